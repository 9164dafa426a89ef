//! Holds the code to the layout that ARCHITECTURE.md describes.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

mod circles;
mod sources;
mod words;

use sources::{is_test, rust_files, sources};

/// The modules at the root of the crate: each uses only modules before it.
const MODULES: &[&str] = &[
    "limits",
    "thread",
    "disk",
    "beside",
    "descriptors",
    "proc_file",
    "lock_file",
    "zmtp",
    "reactor",
    "remover",
    "socket",
    "job",
    "input_file",
    "keys_in_use",
    "protocol",
    "store",
    "sentinel",
    "sink",
    "sandbox",
    "plugin",
    "worker",
    "cli",
    "fuzzing",
];

/// Modules that do not use each other, although the order allows it: the first uses no item of the second.
const APART: &[(&str, &str)] = &[
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
    "src/socket/engine",
    "src/job",
    "src/protocol",
    "src/sentinel/control.rs",
    "src/sentinel/control",
    "src/worker/health.rs",
    "src/worker/slot",
    "src/worker/slot.rs",
    "src/worker/watchdog.rs",
];
const IMPURE: &[&[&str]] = &[
    &["mio"],
    &["rusqlite"],
    &["rustix"],
    &["std", "net"],
    &["std", "fs"],
    &["std", "process"],
    &["std", "thread"],
    &["fs"],
    &["thread"],
    &["Instant", "now"],
    &["BootTime", "now"],
    &["SystemTime", "now"],
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_module_has_a_description() {
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

/// The modules that each module uses.
fn uses() -> BTreeMap<String, BTreeSet<String>> {
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources(&root().join("src")) {
        let Some(module) = source.module.first().filter(|module| *module != "bin") else {
            continue;
        };
        let used = uses.entry(module.clone()).or_default();
        let own = source.paths.iter().filter(|path| path[0] == "crate");
        used.extend(
            own.map(|path| path[1].clone())
                .filter(|other| other != module),
        );
    }
    uses
}

#[test]
fn modules_use_only_modules_before_them() {
    let order = |module: &String| MODULES.iter().position(|known| known == module);
    for (module, used) in uses() {
        let own = order(&module).unwrap_or_else(|| panic!("MODULES misses {module}"));
        for other in used.iter().filter(|other| order(other).is_some()) {
            let is_before = order(other) < Some(own);
            let is_isolated = APART.contains(&(module.as_str(), other.as_str()));
            assert!(
                is_before && !is_isolated,
                "{module} uses crate::{other}, which it must not"
            );
        }
    }
}

/// `CASPARIAN_TIDY_WRITE=1 cargo test --test tidy` writes the table anew.
#[test]
fn the_table_of_modules_in_architecture_md_is_current() {
    const BEGIN: &str = "<!-- begin: what modules use, written by tests/tidy -->\n";
    const END: &str = "<!-- end -->\n";
    let uses = uses();
    let mut table = "| module | uses |\n|---|---|\n".to_owned();
    for module in MODULES {
        let used = uses.get(*module).into_iter().flatten();
        let known: BTreeSet<&str> = used.map(String::as_str).collect();
        let used = MODULES.iter().filter(|other| known.contains(**other));
        let used: Vec<String> = used.map(|other| format!("`{other}`")).collect();
        let used = match used.is_empty() {
            true => "–".to_owned(),
            false => used.join(", "),
        };
        table.push_str(&format!("| `{module}` | {used} |\n"));
    }
    let path = root().join("ARCHITECTURE.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the table's begin");
    let (found, after) = rest.split_once(END).expect("the table's end");
    if std::env::var_os("CASPARIAN_TIDY_WRITE").is_some() {
        fs::write(&path, [before, BEGIN, &table, END, after].concat()).unwrap();
        return;
    }
    assert_eq!(
        found, table,
        "ARCHITECTURE.md is out of date: CASPARIAN_TIDY_WRITE=1 cargo test --test tidy"
    );
}

#[test]
fn pure_files_name_no_io() {
    let src = root().join("src");
    for source in sources(&src) {
        let file = source.path.strip_prefix(root()).unwrap();
        if !PURE.iter().any(|pure| file.starts_with(pure)) {
            continue;
        }
        let engine: &[&[&str]] = match file.starts_with("src/socket") {
            true => &[&["std", "io"], &["io"]],
            false => &[],
        };
        for name in IMPURE.iter().chain(engine) {
            assert!(
                !source.names(name),
                "{} names {}",
                file.display(),
                name.join("::")
            );
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

/// No compiler finds them, and much of that code runs for failures alone.
#[test]
fn the_program_of_plugin_processes_defines_every_name_that_it_uses() {
    let folder = root().join("src/plugin");
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "py"));
    let mut python = std::process::Command::new("python3");
    python.arg(root().join("tests/tidy/undefined_names.py"));
    let output = python.args(files).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn every_fuzz_target_has_seeds_a_dictionary_and_an_entry_in_the_list() {
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
