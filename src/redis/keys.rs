//! The keys of Redis, and their hash slots.
//!
//! How a key begins decides its hash slot, and so what one function may change in one step. So every
//! beginning is made here, and nowhere else. The functions and the modules above make the rest of a
//! key; `ARCHITECTURE.md` lists all of them.

/// The beginning of the keys of the queue and of the names of the replicas' channels.
pub const QUEUE: &str = "jarvis:{queue}";
/// The beginning of the keys of the storage budgets.
pub const BUDGET: &str = "jarvis:{budget}";
/// A hash: the API keys, as `migrations/functions/include/api_keys/keys.lua` describes it.
pub const API_KEYS: &str = "jarvis:{api_keys}:keys";
/// A string: the key of the digests of addresses.
pub const SOURCE_KEY: &str = "jarvis:{source}:key";
/// A string: when the primary lease ends. It has no hash tag, because only a Redis with sentinels has it.
pub const PRIMARY_LEASE: &str = "jarvis:primary_lease";
/// A hash: the layout, and the checksum of each file of Lua that was applied, by its path.
pub const MIGRATIONS: &str = "jarvis:{migrations}:applied";
/// A string: which replica applies the migrations.
pub const MIGRATIONS_LOCK: &str = "jarvis:{migrations}:lock";
/// The number of buckets of sessions. The keys of a bucket lie in one hash slot.
pub const BUCKETS: u16 = 256;

/// Returns the hash of heartbeats: replica → the counter that it renews, -1 once it has signed off. It
/// lies in the hash slot of the queue, because a replica's tickets are freed only while its heartbeat
/// stands still.
pub fn heartbeats() -> String {
    in_queue("heartbeats")
}

/// Returns the hash of what the replicas publish of themselves, once a second, in the hash slot of the
/// heartbeats.
pub fn figures() -> String {
    in_queue("figures")
}

/// Returns the hash of the replicas that went lately, in the hash slot of the heartbeats.
pub fn gone() -> String {
    in_queue("gone")
}

/// Returns the channel on which a replica learns of its grants.
pub fn grants(replica: &str) -> String {
    in_queue(&format!("replica:{replica}"))
}

/// Returns a key in the hash slot of the queue.
pub fn in_queue(name: &str) -> String {
    format!("{QUEUE}:{name}")
}

/// Returns a key of a bucket, a number below [`BUCKETS`].
pub fn in_bucket(bucket: u16, name: &str) -> String {
    format!("jarvis:{{b{bucket}}}:{name}")
}

/// Returns the channel on which a replica receives the copies that it keeps for others. Each has a
/// hash slot of its own, so that the copies of all replicas are spread over the nodes.
pub fn copies(replica: &str) -> String {
    format!("jarvis:{{copies:{replica}}}")
}

/// Returns the beginning of the keys of a user's limits, by a digest of the user.
pub fn limits_of_user(digest: &str) -> String {
    format!("jarvis:{{limits:u:{digest}}}")
}

/// Returns the beginning of the keys of the limits of a network and of all networks within it.
pub fn limits_of_network(network: &str) -> String {
    format!("jarvis:{{limits:a:{network}}}")
}

/// Returns the hash slot of a key or a channel.
pub fn hash_slot(key: &str) -> u16 {
    fred::util::redis_keyslot(key.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// Returns every file of Rust below this folder, with its text above its tests.
    fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
        let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("one"));
        entries
            .flat_map(|entry| match entry.path() {
                path if path.is_dir() => sources(&path),
                path if path.ends_with("tests.rs") => Vec::new(),
                path => {
                    let text = std::fs::read_to_string(&path).expect("a source file");
                    let above = text.split("#[cfg(test)]").next().unwrap_or_default();
                    vec![(path, above.to_owned())]
                }
            })
            .collect()
    }

    #[test]
    fn every_key_begins_and_every_slot_is_computed_in_one_file() {
        let files = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        // A text that begins with `jarvis:` and a blank is a message, and one with `jarvis::` a module.
        let begins_key = |text: &str| {
            let is_key =
                |rest: &str| rest.starts_with(|c: char| c == '{' || c.is_ascii_lowercase());
            text.split("\"jarvis:").skip(1).any(is_key)
        };
        let computes_slot = |text: &str| text.contains("redis_keyslot");
        let in_this_file = |part: &str, has_part: &dyn Fn(&str) -> bool| {
            let having = files.iter().filter(|(_, text)| has_part(text));
            let found: Vec<_> = having.map(|(path, _)| path.clone()).collect();
            let is_this_file = found.iter().all(|path| path.ends_with("redis/keys.rs"));
            assert!(found.len() == 1 && is_this_file, "{part} is made in {found:?}");
        };
        in_this_file("a key", &begins_key);
        in_this_file("the hash slot of a key", &computes_slot);
    }

    #[test]
    fn the_keys_of_one_step_lie_in_one_slot_and_those_of_replicas_in_their_own() {
        assert_eq!(hash_slot(&heartbeats()), hash_slot(QUEUE));
        assert_eq!(hash_slot(&grants("r")), hash_slot(QUEUE));
        assert_eq!(hash_slot(&in_bucket(7, "open")), hash_slot(&in_bucket(7, "s:x:messages")));
        assert_ne!(hash_slot(&in_bucket(7, "open")), hash_slot(&in_bucket(8, "open")));
        assert_ne!(hash_slot(&copies("r1")), hash_slot(&copies("r2")));
    }
}
