//! The Redis Functions, embedded in the binary, and calls of them by name.
//!
//! A command is one file under `migrations/functions`; `migrations/README.md` describes how to
//! change one. On the wire the keys and arguments of a call are positional, so that names cost
//! nothing there. In Rust and in Lua both have names: a debug build compares the names of every
//! call with those that the command declares.

use fred::prelude::Value;

use super::keys;

/// A file of Lua.
#[derive(Debug)]
pub struct SourceFile {
    /// The path of the file below `migrations/functions`.
    pub path: &'static str,
    /// The text of the file.
    pub text: &'static str,
}

/// A library of functions, which Redis replaces as a whole.
#[derive(Debug)]
pub struct Library {
    /// The name of the library in Redis.
    pub name: &'static str,
    /// The whole text of the library, as Redis loads it.
    pub code: &'static str,
    /// The files that the commands share.
    pub includes: &'static [SourceFile],
    /// The commands, one a file.
    pub commands: &'static [SourceFile],
}

macro_rules! lua {
    ($($part:expr),*) => {
        include_str!(concat!("../../migrations/functions/", $($part,)* ".lua"))
    };
}

macro_rules! library {
    ($name:literal, include: [$($include:literal),*], commands: [$($command:literal),*]) => {
        Library {
            name: concat!("jarvis_", $name),
            code: concat!(
                "#!lua name=jarvis_", $name, "\n",
                lua!("include/register"),
                $(lua!("include/", $name, "/", $include),)*
                // The locals of a command stay in its block.
                $("do\n", lua!($name, "/", $command), "end\n",)*
            ),
            includes: &[
                SourceFile { path: "include/register.lua", text: lua!("include/register") },
                $(SourceFile {
                    path: concat!("include/", $name, "/", $include, ".lua"),
                    text: lua!("include/", $name, "/", $include),
                },)*
            ],
            commands: &[$(SourceFile {
                path: concat!($name, "/", $command, ".lua"),
                text: lua!($name, "/", $command),
            },)*],
        }
    };
}

/// Every library. The includes of a library come in the order in which they need each other.
pub const LIBRARIES: &[Library] = &[
    library!(
        "session",
        include: ["text", "session", "images", "events", "branches", "messages", "turns", "transfer"],
        commands: [
            "accept", "add_messages", "append", "begin", "cancel", "claim", "clear", "conversation", "describe", "drop_images", "evict",
            "finish", "hide_request", "image", "import_commit", "import_messages", "listeners", "measure", "message", "messages",
            "note_continued", "open_turn", "open_turns", "put_image", "question", "read", "restore", "rewind", "select", "start",
            "transfer", "update", "upstream_closed"
        ]
    ),
    library!(
        "budget",
        include: ["keys", "budget"],
        commands: [
            "budget_delete_all", "budget_delete_next", "budget_deletions", "budget_forget",
            "budget_list", "budget_record", "budget_room", "budget_unlist", "budget_withdraw"
        ]
    ),
    library!(
        "membership",
        include: [],
        commands: ["heartbeat", "living", "remove_replica", "sign_off"]
    ),
    library!(
        "queue",
        include: ["keys", "tickets", "hosts", "grants", "outlook"],
        commands: [
            "queue_free", "queue_give_back", "queue_holdings", "queue_join", "queue_overview",
            "queue_release", "queue_report", "queue_restore", "queue_room", "queue_statuses", "queue_tick"
        ]
    ),
    library!(
        "api_keys",
        include: ["keys"],
        commands: ["check_api_keys", "create_api_key", "list_api_keys", "revoke_api_key"]
    ),
    library!(
        "limits",
        include: ["gcra"],
        commands: ["limit_release", "limit_renew", "limit_take"]
    ),
    // Last, so that its function is loaded only where the others are.
    library!("probe", include: [], commands: ["probe"]),
];

/// One call of a function, with its keys and arguments in the order that the function declares.
#[derive(Clone, Debug)]
pub struct Call {
    function: &'static str,
    slot: Option<u16>,
    keys: Vec<Value>,
    arguments: Vec<Value>,
    #[cfg(debug_assertions)]
    names: declaration::Names,
}

impl Call {
    /// Creates a call of this function, named with its version, without keys and arguments.
    pub fn new(function: &'static str) -> Self {
        Self {
            function,
            slot: None,
            keys: Vec::new(),
            arguments: Vec::new(),
            #[cfg(debug_assertions)]
            names: declaration::Names::default(),
        }
    }

    /// Returns the name of the function.
    pub fn function(&self) -> &'static str {
        self.function
    }

    /// Adds a key. The first key decides the node.
    #[must_use]
    pub fn key(mut self, name: &'static str, key: String) -> Self {
        self.slot.get_or_insert_with(|| keys::hash_slot(&key));
        self.keys.push(key.into());
        self.named(name, |names| &mut names.keys)
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.arguments.push(value.into());
        self.named(name, |names| &mut names.arguments)
    }

    /// Adds an argument in its text form.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "numbers and identifiers, which are small")]
    pub fn text(self, name: &'static str, value: impl ToString) -> Self {
        self.arg(name, value.to_string())
    }

    /// Adds a boolean argument.
    #[must_use]
    pub fn flag(self, name: &'static str, set: bool) -> Self {
        self.arg(name, Value::from_static_str(if set { "1" } else { "0" }))
    }

    /// Adds the list that follows the named arguments.
    #[must_use]
    pub fn rest(mut self, name: &'static str, values: impl IntoIterator<Item = Value>) -> Self {
        self.arguments.extend(values);
        self.named(name, |names| &mut names.rest)
    }

    /// Returns the hash slot of the keys.
    pub(super) fn slot(&self) -> Option<u16> {
        self.slot
    }

    /// Returns the arguments of FCALL. The last one is a placeholder for the key of the primary
    /// lease.
    pub(super) fn into_arguments(self) -> Vec<Value> {
        #[cfg(debug_assertions)]
        self.names.check(self.function);
        let mut arguments = Vec::with_capacity(3 + self.keys.len() + self.arguments.len());
        arguments.push(Value::from_static_str(self.function));
        arguments.push(Value::Integer(i64::try_from(self.keys.len()).unwrap_or(i64::MAX)));
        arguments.extend(self.keys);
        arguments.extend(self.arguments);
        arguments.push(Value::Null);
        arguments
    }

    #[cfg(debug_assertions)]
    fn named(
        mut self,
        name: &'static str,
        of: impl Fn(&mut declaration::Names) -> &mut Vec<&'static str>,
    ) -> Self {
        of(&mut self.names).push(name);
        self
    }

    #[cfg(not(debug_assertions))]
    fn named(
        self,
        _name: &'static str,
        _of: impl Fn(&mut Names) -> &mut Vec<&'static str>,
    ) -> Self {
        self
    }
}

/// Replaces the names of a call in a release build, which does not keep them.
#[cfg(not(debug_assertions))]
struct Names {
    keys: Vec<&'static str>,
    arguments: Vec<&'static str>,
    rest: Vec<&'static str>,
}

/// The declarations of the commands, parsed from the embedded Lua.
#[cfg(debug_assertions)]
pub mod declaration {
    use std::collections::BTreeMap;
    use std::sync::LazyLock;

    use super::{LIBRARIES, Library, SourceFile};

    /// The names of a call's keys and arguments, in their order.
    #[derive(Clone, Debug, Default)]
    pub(super) struct Names {
        pub(super) keys: Vec<&'static str>,
        pub(super) arguments: Vec<&'static str>,
        pub(super) rest: Vec<&'static str>,
    }

    /// The keys and arguments that a command declares.
    #[derive(Debug)]
    pub struct Declaration {
        /// The names of the keys.
        pub keys: Vec<&'static str>,
        /// The names of the arguments.
        pub arguments: Vec<&'static str>,
        /// The name of the list of all further arguments.
        pub rest: Option<&'static str>,
    }

    /// The declaration of every function, by the function's name with its version.
    pub static DECLARED: LazyLock<BTreeMap<String, Declaration>> = LazyLock::new(|| {
        LIBRARIES
            .iter()
            .flat_map(|library| library.commands.iter().map(move |file| parse(library, file)))
            .collect()
    });

    impl Names {
        /// Panics where the names of a call differ from those that its function declares.
        pub(super) fn check(&self, function: &str) {
            let declared = DECLARED.get(function);
            let Some(declared) = declared else { panic!("no command declares {function}") };
            assert_eq!(self.keys, declared.keys, "the keys of {function}");
            assert_eq!(self.arguments, declared.arguments, "the arguments of {function}");
            assert_eq!(self.rest.first().copied(), declared.rest, "the rest of {function}");
        }
    }

    /// Parses a file, and returns the name of its function with its declaration.
    pub(super) fn parse(library: &Library, file: &'static SourceFile) -> (String, Declaration) {
        let (_, fields) = file.text.split_once("register {").unwrap_or_default();
        let name = quoted(fields, "\n  name = ").unwrap_or_default();
        let version = after(fields, "\n  version = ").and_then(|rest| rest.split(',').next());
        let declaration = Declaration {
            keys: list(library, fields, "\n  keys = "),
            arguments: list(library, fields, "\n  arguments = "),
            rest: quoted(fields, "\n  rest = "),
        };
        (format!("jarvis_{name}_{}", version.unwrap_or_default()), declaration)
    }

    fn after<'a>(text: &'a str, label: &str) -> Option<&'a str> {
        text.split_once(label).map(|(_, rest)| rest)
    }

    fn quoted(text: &'static str, label: &str) -> Option<&'static str> {
        after(text, label)?.split('\'').nth(1)
    }

    /// Parses a list of names, or the constant of the library that holds it.
    fn list(library: &Library, text: &'static str, label: &str) -> Vec<&'static str> {
        let Some(value) = after(text, label) else { return Vec::new() };
        let literal = value.strip_prefix('{').or_else(|| {
            let constant = value.split(',').next().unwrap_or_default();
            let start = format!("\nlocal {constant} = {{");
            library.includes.iter().find_map(|file| after(file.text, &start))
        });
        let names = literal.and_then(|names| names.split('}').next()).unwrap_or_default();
        names.split('\'').skip(1).step_by(2).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    use super::declaration::{DECLARED, parse};
    use super::*;

    fn lua_files(folder: &Path) -> BTreeSet<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/functions");
        let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("one"));
        entries
            .flat_map(|entry| match entry.path() {
                path if path.is_dir() => lua_files(&path),
                path => {
                    let path = path.strip_prefix(&root).expect("below the root");
                    [path.display().to_string()].into()
                }
            })
            .collect()
    }

    #[test]
    fn every_file_of_lua_is_part_of_a_library() {
        let embedded: BTreeSet<String> = LIBRARIES
            .iter()
            .flat_map(|library| library.includes.iter().chain(library.commands))
            .map(|file| file.path.to_owned())
            .collect();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/functions");
        assert_eq!(embedded, lua_files(&root));
    }

    #[test]
    fn the_header_of_every_command_names_its_keys_arguments_reply_and_callers() {
        let files = LIBRARIES.iter().flat_map(|library| {
            library.commands.iter().map(move |file| (file, parse(library, file).1))
        });
        for (file, declared) in files {
            let header = file.text.split("\n\n").next().unwrap_or_default();
            let header = header.split("\nregister {").next().unwrap_or_default();
            assert!(header.starts_with("-- "), "{} has no header", file.path);
            for part in ["-- Keys: ", "-- Arguments: ", "-- Reply: ", "-- Called by: "] {
                assert!(header.contains(part), "{} lacks {part}", file.path);
            }
            let shared = header.contains("those of the session");
            let keys = declared.keys.iter().filter(|_| !shared);
            for name in keys.chain(&declared.arguments).chain(&declared.rest) {
                let mut words = header.split(|c: char| !c.is_alphanumeric() && c != '_');
                assert!(words.any(|word| word == *name), "{}: {name}", file.path);
            }
        }
    }

    #[test]
    fn the_declarations_are_parsed_from_the_lua() {
        let append = &DECLARED["jarvis_append_1"];
        assert_eq!(append.keys, ["session", "answer"]);
        let arguments = ["owner", "generation", "fence", "revision", "offset", "listens", "text"];
        assert_eq!(append.arguments, arguments);
        let accept = &DECLARED["jarvis_accept_1"];
        assert_eq!(accept.keys.len(), 14);
        assert_eq!(accept.rest, Some("conversation"));
        let commands: usize = LIBRARIES.iter().map(|library| library.commands.len()).sum();
        assert_eq!(DECLARED.len(), commands, "each command is a function of its own");
    }

    #[test]
    fn every_key_is_built_in_one_place_of_its_library() {
        for library in LIBRARIES {
            let mut places: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for file in library.includes.iter().chain(library.commands) {
                let lines = file.text.lines().filter(|line| !line.trim_start().starts_with("--"));
                for literal in lines.flat_map(|line| line.split('\'').skip(1).step_by(2)) {
                    let name = literal.strip_prefix(':').unwrap_or_default();
                    if name.starts_with(|first: char| first.is_ascii_lowercase()) {
                        places.entry(literal).or_default().push(file.path);
                    }
                }
            }
            for (key, files) in places {
                assert_eq!(files.len(), 1, "{}: {key} stands in {files:?}", library.name);
            }
        }
    }

    #[test]
    fn the_probe_checks_every_command_that_a_function_uses() {
        let probe = LIBRARIES.last().expect("a library").commands[0].text;
        for library in LIBRARIES {
            for file in library.includes.iter().chain(library.commands) {
                for used in file.text.split("redis.call('").skip(1) {
                    let command = used.split('\'').next().unwrap_or_default();
                    let checked = probe.contains(&format!("'{command}'"));
                    assert!(checked, "{} uses {command}", file.path);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "the arguments of jarvis_sign_off_1")]
    fn a_call_with_other_arguments_than_its_function_declares_is_refused() {
        let call = Call::new("jarvis_sign_off_1").key("heartbeats", "k".to_owned());
        call.arg("name", "r").into_arguments();
    }

    #[test]
    #[should_panic(expected = "the keys of jarvis_append_1")]
    fn a_call_with_its_keys_in_another_order_is_refused() {
        let call = Call::new("jarvis_append_1").key("answer", "a".to_owned());
        call.key("session", "s".to_owned()).into_arguments();
    }

    /// The commands that the client sends in addition to those of the functions.
    const OF_CLIENT: [&str; 20] = [
        "auth",
        "client|id",
        "client|setname",
        "cluster|info",
        "cluster|slots",
        "del",
        "eval",
        "fcall",
        "fcall_ro",
        "function|load",
        "get",
        "hello",
        "hset",
        "info",
        "ping",
        "role",
        "select",
        "ssubscribe",
        "sunsubscribe",
        "wait",
    ];

    #[test]
    fn the_user_of_redis_may_run_the_commands_that_are_used_and_no_other() {
        let file = include_str!("../../deploy/redis.acl");
        let rules = file.lines().find(|line| line.starts_with("user jarvis ")).expect("a user");
        let allowed = rules.split(' ').filter_map(|rule| rule.strip_prefix('+'));
        let allowed: BTreeSet<String> = allowed.map(str::to_owned).collect();
        let texts =
            LIBRARIES.iter().flat_map(|library| library.includes.iter().chain(library.commands));
        let of_functions = texts.flat_map(|file| {
            file.text.split("call('").skip(1).filter_map(|rest| {
                let (command, rest) = rest.split_once('\'')?;
                let below = rest.strip_prefix(", '").and_then(|rest| rest.split('\'').next());
                match (command, below) {
                    ("PUBSUB", Some(below)) => Some(format!("{command}|{below}").to_lowercase()),
                    _ => Some(command.to_lowercase()),
                }
            })
        });
        let mut needed: BTreeSet<String> = of_functions.collect();
        needed.extend(OF_CLIENT.map(str::to_owned));
        let missing: Vec<_> = needed.difference(&allowed).collect();
        let needless: Vec<_> = allowed.difference(&needed).collect();
        assert!(
            missing.is_empty() && needless.is_empty(),
            "missing {missing:?}, needless {needless:?}"
        );
        let other = rules.split(' ').skip(2).filter(|rule| !rule.starts_with(['+', '>']));
        let other: Vec<_> = other.collect();
        assert_eq!(other, ["on", "resetkeys", "resetchannels", "~jarvis:*", "&jarvis:*", "-@all"]);
    }
}
