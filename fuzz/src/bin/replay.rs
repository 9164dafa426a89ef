//! Runs inputs through targets without libFuzzer: `replay [TARGET [FILE|FOLDER]…]`. Without
//! arguments every target runs over its corpus. Prints the number of inputs of each target and the
//! time that they took.

use std::path::{Path, PathBuf};
use std::time::Instant;

fn files(path: &Path, found: &mut Vec<PathBuf>) {
    if !path.is_dir() {
        found.push(path.to_path_buf());
        return;
    }
    let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    entries.iter().for_each(|entry| files(entry, found));
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map(String::as_str);
    let known = casparian_fuzz::TARGETS
        .iter()
        .any(|(target, _)| Some(*target) == name);
    assert!(name.is_none() || known, "no target {name:?}");
    for (target, run) in casparian_fuzz::TARGETS {
        if name.is_some_and(|name| name != *target) {
            continue;
        }
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(target);
        let mut found = Vec::new();
        match arguments.get(1..) {
            None | Some([]) => files(&corpus, &mut found),
            Some(paths) => paths
                .iter()
                .for_each(|path| files(Path::new(path), &mut found)),
        }
        let began = Instant::now();
        for path in &found {
            match std::fs::read(path) {
                Ok(bytes) => run(&bytes),
                // A running fuzzer may have replaced the input by a smaller one.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
        println!(
            "{target:18} {:5} inputs, {:?}",
            found.len(),
            began.elapsed()
        );
    }
}
