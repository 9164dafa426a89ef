//! Words as the command line of every command: an error must be one line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

pub fn run(data: &[u8]) {
    let words: Vec<OsString> = data
        .split(|byte| *byte == 0)
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect();
    for message in casparian::fuzzing::command_lines(&words) {
        assert!(!message.is_empty());
        if message.starts_with("Usage(") {
            assert!(!message.contains('\n'), "{message}");
            assert!(message.contains("--help"), "{message}");
        }
    }
}
