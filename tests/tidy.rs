//! Holds the code to the layout that ARCHITECTURE.md describes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms in the order of the data's way: a room uses only rooms before it.
const ROOMS: &[&str] = &[
    "zmtp", "reactor", "socket", "job", "protocol", "store", "sentinel", "sink", "sandbox",
    "plugin", "worker", "cli",
];

/// Rooms that do not know each other although one stands before the other.
const STRANGERS: &[(&str, &str)] = &[
    ("worker", "sentinel"),
    ("worker", "store"),
    ("sink", "store"),
    ("sink", "sentinel"),
    ("plugin", "store"),
    ("plugin", "sentinel"),
    ("plugin", "sink"),
    ("sink", "socket"),
    ("store", "socket"),
    ("reactor", "zmtp"),
    ("protocol", "socket"),
    ("job", "zmtp"),
    ("job", "reactor"),
    ("job", "socket"),
];

/// Files that decide without I/O, and what they never name outside their tests.
const PURE: &[&str] = &[
    "src/zmtp",
    "src/job",
    "src/protocol",
    "src/sentinel/control.rs",
    "src/sentinel/control",
    "src/worker/health.rs",
    "src/worker/slot",
    "src/worker/slot.rs",
    "src/worker/watchdog.rs",
];
const IMPURE: &[&str] = &[
    "mio::",
    "rusqlite",
    "std::net",
    "std::fs",
    "std::process",
    "std::thread",
    "Instant::now",
    "BootTime::now",
    "SystemTime::now",
];

fn rust_files(below: &Path) -> Vec<PathBuf> {
    if below.is_file() {
        return vec![below.to_path_buf()];
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(below).unwrap_or_else(|error| panic!("{}: {error}", below.display()))
    {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The file's text without its tests and comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let end = text.find("#[cfg(test)]\nmod").unwrap_or(text.len());
    let code = text[..end]
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    code.map(|line| format!("{line}\n")).collect()
}

fn is_test(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tests.rs")
        || path.iter().any(|part| part == "tests")
}

#[test]
fn every_module_says_what_it_is() {
    for path in rust_files(&root().join("src")) {
        if !is_test(&path) {
            let text = fs::read_to_string(&path).unwrap();
            assert!(
                text.starts_with("//!"),
                "{} has no module head",
                path.display()
            );
        }
    }
}

#[test]
fn rooms_use_only_rooms_before_them() {
    for (place, room) in ROOMS.iter().enumerate() {
        for path in rust_files(&root().join("src").join(room)) {
            let text = code(&path);
            for (other_place, other) in ROOMS.iter().enumerate() {
                let used = text.contains(&format!("crate::{other}"));
                let strangers = STRANGERS.contains(&(room, other));
                assert!(
                    !used || (other_place <= place && !strangers),
                    "{} uses crate::{other}, which {room} must not",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn pure_files_name_no_io() {
    for place in PURE {
        for path in rust_files(&root().join(place)) {
            if is_test(&path) {
                continue;
            }
            let text = code(&path);
            for word in IMPURE {
                assert!(!text.contains(word), "{} names {word}", path.display());
            }
        }
    }
}

#[test]
fn no_async_runtime_is_in_the_tree() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for runtime in [
        "tokio",
        "async-std",
        "smol",
        "futures-executor",
        "async-executor",
    ] {
        assert!(
            !lock.contains(&format!("name = \"{runtime}\"")),
            "{runtime} is in Cargo.lock"
        );
    }
}

#[test]
fn every_known_fault_of_the_simulation_can_be_put_back() {
    let script = root().join("tests/simulation/mutants.py");
    let mut python = std::process::Command::new("python3");
    let output = python.arg(script).arg("--check").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn every_fuzz_target_has_seeds_a_dictionary_and_a_place_in_the_list() {
    let fuzz = root().join("fuzz");
    let list = fs::read_to_string(fuzz.join("src/lib.rs")).unwrap();
    let readme = fs::read_to_string(fuzz.join("README.md")).unwrap();
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    let targets = rust_files(&fuzz.join("fuzz_targets"));
    assert!(!targets.is_empty());
    for target in targets {
        let name = target.file_stem().unwrap().to_str().unwrap();
        assert!(
            list.contains(&format!("\"{name}\"")),
            "replay misses {name}"
        );
        assert!(
            readme.contains(&format!("`{name}`")),
            "fuzz/README.md misses {name}"
        );
        assert!(
            manifest.contains(&format!("name = \"{name}\"")),
            "Cargo.toml misses {name}"
        );
        assert!(
            fuzz.join(format!("dictionaries/{name}.dict")).exists(),
            "{name} has no dictionary"
        );
        let corpus = fuzz.join("corpus").join(name);
        let inputs = fs::read_dir(&corpus).map_or(0, |inputs| inputs.count());
        assert!(inputs > 0, "{name} has no seeds");
    }
}
