//! Sessions: what is stored of them, how it is read, and how it reaches a replica live.
//!
//! This is the only part that knows the keys in Redis. Every write is one Redis Function, one
//! atomic step, and is refused in Redis when it is not the caller's session.

pub mod cursor;
pub mod delta;
pub mod event;
pub mod feed;
pub mod model;
pub mod reader;
pub mod reasoning;
pub mod store;
pub mod window;

pub use cursor::{Cursor, Tag};
pub use delta::{Change, Delta, Front};
pub use event::{Control, Event, Hint};
pub use feed::{Feed, Feeds};
pub use model::{
    FinishReason, GenerationId, Message, Owner, Role, SessionId, SessionInfo, Status, TurnSpec,
    Usage,
};
pub use reader::{Delivered, Reader};
pub use store::{Store, StoreError};
pub use window::Window;
