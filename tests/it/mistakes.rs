//! Command lines and places that cannot work: one line that says what is wrong and what to do.

use std::path::Path;

use crate::common::*;
use crate::run::Folder;

fn refused(words: &[&str], code: i32, wants: &[&str]) {
    let output = casparian(words);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{words:?}: {text}");
    for want in wants {
        assert!(text.contains(want), "{want}: {words:?}: {text}");
    }
}

#[test]
fn a_path_of_no_characters_is_refused_with_its_flag() {
    let folder = Folder::new(&[("a", "1\n")]);
    let (plugin, input, out) = (
        folder.path("count.py"),
        folder.path("in"),
        folder.path("out"),
    );
    refused(
        &["run", &plugin, &input, "-o", ""],
        2,
        &["--output", "empty"],
    );
    let words = ["run", &plugin, &input, "-o", &out, "-r", ""];
    refused(&words, 2, &["--requirements", "empty"]);
    refused(&["worker", "--output", ""], 2, &["--output", "empty"]);
}

#[test]
fn numbers_that_a_run_cannot_use_are_refused_with_their_range() {
    let folder = Folder::new(&[("a", "1\n")]);
    let (plugin, input, out) = (
        folder.path("count.py"),
        folder.path("in"),
        folder.path("out"),
    );
    for flag in ["--slots", "--job-timeout", "--outage-timeout"] {
        for value in ["-1", "0", "1.5", "1e3", "", " 1", "99999999999999999999999"] {
            let words = ["run", &plugin, &input, "-o", &out, flag, value];
            refused(&words, 2, &[flag, "expected a whole number from 1 to"]);
        }
    }
    assert!(!Path::new(&out).exists(), "nothing was made");
}

#[test]
fn a_plugins_file_given_for_its_name_is_recognized() {
    let folder = Folder::new(&[("a", "1\n")]);
    let queue = folder.path("q.db");
    casparian_ok(&["init", &queue]);
    let input = folder.path("in/a");
    for plugin in ["count.py", &folder.path("count.py")] {
        let words = ["submit", "--plugin", plugin, &input, "-d", &queue];
        let wants = [
            "`count`",
            "not its file",
            "casparian deploy",
            "casparian run",
        ];
        refused(&words, 1, &wants);
    }
    let words = ["submit", "--plugin", "count", &input, "-d", &queue];
    refused(&words, 1, &["count is not deployed", "casparian deploy"]);
}

#[test]
fn a_path_that_is_too_long_for_a_database_is_named_as_the_reason() {
    let folder = Folder::new(&[("a", "1\n")]);
    let deep = folder.path(&vec!["x".repeat(200); 3].join("/"));
    std::fs::create_dir_all(&deep).unwrap();
    let wants = ["too long", "bytes", "shorter"];
    refused(&["init", &format!("{deep}/q.db")], 1, &wants);
    let words = ["run", &folder.path("count.py"), &folder.path("in"), "-o"];
    refused(&[&words[..], &[&deep]].concat(), 1, &wants);
}

/// The first folder that can be used has the control socket; the reasons name all of them.
#[test]
fn a_tmpdir_that_cannot_hold_a_socket_costs_no_run() {
    let folder = Folder::new(&[("a", "1\n")]);
    let long = folder.path(&"x".repeat(120));
    std::fs::create_dir(&long).unwrap();
    for tmpdir in [long, folder.path("missing")] {
        let mut command = program("casparian");
        command
            .args(["run", &folder.path("count.py"), &folder.path("in")])
            .args(["--force", "--output", &folder.path("out")])
            .env("TMPDIR", &tmpdir);
        let output = output(&mut command);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
}

#[test]
fn what_a_database_refuses_is_reported_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let source = "class Handler:\n    def execute(self, path):\n        pass\n";
    let database = database_with(dir.path(), "p", source);
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let text = database.to_str().unwrap();
    let refuse = "BEGIN SELECT RAISE(FAIL, 'no more'); END;";
    let script = format!(
        "CREATE TRIGGER a BEFORE INSERT ON cf_processing_queue {refuse}
         CREATE TRIGGER b BEFORE INSERT ON cf_plugin_manifest {refuse}"
    );
    let run = "import sqlite3, sys\nsqlite3.connect(sys.argv[1]).executescript(sys.argv[2])";
    let mut command = std::process::Command::new(python());
    let made = output(command.args(["-c", run, text, &script]));
    assert!(made.status.success(), "{}", stderr(&made));
    std::fs::write(path("p.py"), format!("{source}# changed\n")).unwrap();
    let want = format!("casparian: database {text}: no more");
    for words in [
        ["submit", "--plugin", "p", &path("p.py"), "--database", text].as_slice(),
        &["deploy", &path("p.py"), "--database", text],
    ] {
        refused(words, 1, &[&want]);
    }
}
