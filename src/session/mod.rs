//! Sessions: how they are stored in Redis, and how their changes reach each replica live.
//!
//! Only this module knows the keys of sessions in Redis. Every write is one Redis Function, one
//! atomic step, and Redis refuses it where the session belongs to another owner.

pub mod branch;
pub mod cursor;
pub mod delta;
pub mod event;
pub mod feed;
pub mod image;
pub mod model;
pub mod reader;
pub mod reasoning;
pub mod store;
pub mod stored_message;
pub mod title;
pub mod window;

pub use branch::{Anchor, Siblings};
pub use cursor::{Cursor, Tag};
pub use delta::{Change, Delta, Front};
pub use event::{Control, Event, Hint};
pub use feed::{Feed, Feeds};
pub use image::{Image, ImageRef};
pub use model::{
    FinishReason, GenerationId, Message, Owner, Role, SessionId, SessionInfo, Status, TurnSpec,
    Usage, User,
};
pub use reader::{Delivered, Reader};
pub use store::{Store, StoreError};
pub use title::shortened;
pub use window::Window;
