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

#[test]
fn another_programs_database_is_refused_by_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("app.db");
    sql(&database, "CREATE TABLE users (id INTEGER)");
    let before = std::fs::read(&database).unwrap();
    let text = database.to_str().unwrap();
    let plugin = dir.path().join("one.py");
    std::fs::write(&plugin, ONE_ROW).unwrap();
    let plugin = plugin.to_str().unwrap();
    for words in [
        &["init", text][..],
        &["init", "--new-identity", text],
        &["deploy", plugin, "-d", text],
        &["submit", "--plugin", "one", plugin, "-d", text],
        &["jobs", "-d", text],
        &["sentinel", "--bind", "tcp://127.0.0.1:0", "-d", text],
    ] {
        let refused = casparian(words);
        let error = stderr(&refused);
        assert_eq!(refused.status.code(), Some(1), "{words:?}: {error}");
        assert!(error.contains("of another program"), "{words:?}: {error}");
        assert!(std::fs::read(&database).unwrap() == before, "{words:?}");
    }
}
