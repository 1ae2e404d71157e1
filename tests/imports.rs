//! The imports of the sources run down the table of modules in ARCHITECTURE.md, and no files import each
//! other in a circle. Tasks are started where their panics are caught.
#![allow(missing_docs, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The sources of the library: the path of each module, with its text up to its tests.
type Sources = BTreeMap<Vec<String>, String>;

/// Reads the sources. Files of tests are left out.
fn sources() -> Sources {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Sources::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let module = module_of(path.strip_prefix(&root).expect("below src"));
                let is_test = |name: &String| name == "tests" || name == "interleavings";
                if module.iter().any(is_test) {
                    continue;
                }
                let text = std::fs::read_to_string(&path).expect("a source file");
                let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
                sources.insert(module, text.to_owned());
            }
        }
    }
    sources
}

fn module_of(path: &Path) -> Vec<String> {
    let path: PathBuf = path.with_extension("");
    let mut module: Vec<_> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

/// Returns the paths that the module's `use` declarations name, from the root of the crate.
fn imports(module: &[String], text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for line in text.split(';') {
        let Some(at) = line.rfind("use ") else { continue };
        let before = line[..at].lines().last().unwrap_or_default().trim();
        if !matches!(before, "" | "pub" | "pub(crate)" | "pub(super)") {
            continue;
        }
        expand(&line[at + 4..].replace(char::is_whitespace, ""), &[], &mut found);
    }
    let absolute = |path: Vec<String>| {
        let mut base = module.to_vec();
        let mut rest = path.into_iter().peekable();
        match rest.peek().map(String::as_str) {
            Some("crate") => {
                rest.next();
                base.clear();
            }
            Some("self") => {
                rest.next();
            }
            Some("super") => {
                while rest.next_if(|part| part == "super").is_some() {
                    base.pop();
                }
            }
            _ => return None,
        }
        Some(base.into_iter().chain(rest).collect())
    };
    found.into_iter().filter_map(absolute).collect()
}

/// Adds each path of `a::{b, c::d}` to `found`.
fn expand(text: &str, before: &[String], found: &mut Vec<Vec<String>>) {
    let Some((path, list)) = text.split_once('{') else {
        let parts = text.split("::").map(str::to_owned);
        found.push(before.iter().cloned().chain(parts).collect());
        return;
    };
    let before: Vec<_> = before
        .iter()
        .cloned()
        .chain(path.trim_end_matches("::").split("::").map(str::to_owned))
        .collect();
    let (mut depth, mut part) = (0, String::new());
    for character in list.chars() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&std::mem::take(&mut part), &before, found);
                continue;
            }
            _ => {}
        }
        part.push(character);
    }
    if !part.is_empty() {
        expand(&part, &before, found);
    }
}

/// Returns the file that a path names: the longest beginning of it that is a module, and the file that it
/// takes the name from, where that module hands it on.
fn file_of(path: &[String], sources: &Sources) -> Option<Vec<String>> {
    let (length, text) =
        (1..=path.len()).rev().find_map(|length| Some((length, sources.get(&path[..length])?)))?;
    let module = path[..length].to_vec();
    let Some(name) = path.get(length) else { return Some(module) };
    let handed_on = imports(&module, text).into_iter().find(|import| {
        import.last() == Some(name) && import.len() > length && import.starts_with(&module)
    });
    match handed_on {
        Some(import) if import != path => file_of(&import, sources),
        _ => Some(module),
    }
}

/// Returns which files each file imports.
fn graph(sources: &Sources) -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let of = |module: &Vec<String>, text: &str| {
        let files = imports(module, text).into_iter().filter_map(|path| file_of(&path, sources));
        // A folder's own file declares its parts, which is no import.
        files.filter(|file| file != module && !file.starts_with(module)).collect()
    };
    sources.iter().map(|(module, text)| (module.clone(), of(module, text))).collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = sources();
    let mut graph = graph(&sources);
    // Files that import nothing are removed, again and again; what is left are circles, and what imports
    // them.
    loop {
        let leaves: BTreeSet<_> =
            graph.iter().filter(|(_, to)| to.is_empty()).map(|(file, _)| file.clone()).collect();
        if leaves.is_empty() {
            break;
        }
        graph.retain(|file, _| !leaves.contains(file));
        for to in graph.values_mut() {
            to.retain(|file| !leaves.contains(file));
        }
    }
    let mut left = String::new();
    for (file, to) in &graph {
        let to: Vec<_> = to.iter().map(|file| file.join("/")).collect();
        writeln!(left, "{} -> {}", file.join("/"), to.join(", ")).expect("a text");
    }
    assert!(graph.is_empty(), "{left}");
}

#[test]
fn a_module_imports_only_modules_below_it_in_the_table_of_the_architecture() {
    let page = include_str!("../ARCHITECTURE.md");
    let table = page.split("\n## The modules\n").nth(1).expect("the chapter");
    let table = table.split("\n\nThe files of").next().expect("the table");
    let names = |row: &str| -> Vec<String> {
        let cell = row.split('|').nth(1).unwrap_or_default();
        let names = cell.split('`').skip(1).step_by(2);
        names.map(|name| name.trim_end_matches(".rs").trim_end_matches('/').to_owned()).collect()
    };
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let rank: BTreeMap<_, _> = rows
        .enumerate()
        .flat_map(|(rank, row)| names(row).into_iter().map(move |name| (name, rank)))
        .collect();
    let name_of = |module: &[String]| match module {
        // The shared parts of the fronts stand with them.
        [api] if api == "api" => "api/native".to_owned(),
        [api, front, ..] if api == "api" && rank.contains_key(&format!("api/{front}")) => {
            format!("api/{front}")
        }
        [api, ..] if api == "api" => "api/native".to_owned(),
        [name, ..] => name.clone(),
        [] => String::new(),
    };
    let sources = sources();
    let mut upward = String::new();
    for (module, text) in &sources {
        let name = name_of(module);
        if name == "lib" {
            continue;
        }
        let from = rank.get(&name).unwrap_or_else(|| panic!("{name} is not in the table"));
        for path in imports(module, text) {
            let to = name_of(&path);
            let Some(to_rank) = rank.get(&to) else { continue };
            if to != name
                && !(name.starts_with("api/") && to.starts_with("api/"))
                && to_rank <= from
            {
                writeln!(upward, "{} -> {}", module.join("/"), path.join("::")).expect("a text");
            }
        }
    }
    assert!(upward.is_empty(), "{upward}");
}

/// Calls that start a task as it is, so that a panic in it would be neither logged nor counted.
const BARE_STARTS: [&str; 3] = ["tokio::spawn(", "runtime.spawn(", "s.spawn(async"];

#[test]
fn every_task_is_started_where_its_panic_is_caught() {
    let mut bare = String::new();
    for (module, text) in &sources() {
        // Where panics are caught, and what is below: a lost span, and the end of a change of the filter.
        let may = matches!(&*module[0], "lifecycle" | "telemetry");
        let starts =
            text.lines().filter(|line| BARE_STARTS.iter().any(|start| line.contains(start)));
        for line in starts.filter(|_| !may) {
            writeln!(bare, "{}: {}", module.join("/"), line.trim()).expect("a text");
        }
    }
    assert!(bare.is_empty(), "not spawn_caught, spawn_on_drop or catch_panic:\n{bare}");
}

#[test]
fn a_list_of_imports_is_read_whole() {
    let module = ["a", "b"].map(str::to_owned);
    let text =
        "use crate::x::{y::{self, Z}, w};\nuse super::c;\npub use self::d::E;\nuse std::fmt;";
    let found: Vec<_> = imports(&module, text).iter().map(|path| path.join("/")).collect();
    assert_eq!(found, ["x/y/self", "x/y/Z", "x/w", "a/c", "a/b/d/E"]);
}
