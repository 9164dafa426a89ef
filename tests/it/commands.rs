//! What the commands say and refuse.

use crate::common::*;

const ONE_ROW: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";

#[test]
fn deploy_takes_a_version() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let plugin = dir.path().join("one.py");
    let (plugin_text, text) = (plugin.to_str().unwrap(), database.to_str().unwrap());
    for (number, words) in [
        &["--version", "1.0"][..],
        &["--version=2.0"],
        &["-V", "3.0"],
    ]
    .iter()
    .enumerate()
    {
        std::fs::write(&plugin, format!("{ONE_ROW}# {number}\n")).unwrap();
        let mut arguments = vec!["deploy", plugin_text, "-d", text];
        arguments.extend(*words);
        let said = casparian_ok(&arguments);
        assert_eq!(said, format!("one {}.0 deployed\n", number + 1));
    }
    for words in [&["--version"][..], &["jobs", "-V"], &["run", "--version"]] {
        let said = casparian_ok(words);
        assert!(said.starts_with("casparian 0."), "{said}");
    }
}
