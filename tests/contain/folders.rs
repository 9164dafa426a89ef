//! Output folders that came from elsewhere: a run over one changes nothing outside it. And names
//! that are not UTF-8.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::*;

const ONE_ROW: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";
const NOTHING: &str = "class Handler:\n    def execute(self, path):\n        return None\n";

struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    /// A folder `victim` beside the output folder, with files that have names of ours.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let scene = Scene { dir };
        for folder in ["in", "victim/staging", "out"] {
            fs::create_dir_all(scene.path(folder)).unwrap();
        }
        for file in [
            "in/a",
            "victim/queue.sqlite",
            "victim/run.lock",
            "victim/p_output_1.parquet",
        ] {
            fs::write(scene.path(file), "").unwrap();
        }
        fs::write(scene.path("p.py"), ONE_ROW).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self) -> (Option<i32>, String) {
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let output = casparian(&["run", &path("p.py"), &path("in"), "-o", &path("out")]);
        (output.status.code(), stdout(&output) + &stderr(&output))
    }

    fn sql(&self, sql: &str) {
        let path = self.path("out/.casparian/queue.sqlite");
        let store = rusqlite::Connection::open(path).unwrap();
        store.execute_batch(sql).unwrap();
    }

    /// Every file and folder beside the output folder, with a hash of its content.
    fn outside(&self) -> Vec<(PathBuf, u64)> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let entries = walkdir::WalkDir::new(self.path("victim"));
        let mut found: Vec<_> = entries
            .into_iter()
            .map(|entry| {
                let path = entry.unwrap().into_path();
                let mut hasher = DefaultHasher::new();
                if path.is_file() {
                    fs::read(&path).unwrap().hash(&mut hasher);
                }
                (path, hasher.finish())
            })
            .collect();
        found.sort();
        found
    }
}

#[test]
fn symbolic_links_in_an_output_folder_lead_nowhere() {
    for (link, target) in [
        (".casparian", "victim"),
        (".casparian/queue.sqlite", "victim/queue.sqlite"),
        (".casparian/queue.sqlite-wal", "victim/new"),
        (".casparian/queue.sqlite-journal", "victim/new"),
        (".casparian/run.lock", "victim/run.lock"),
        (".casparian/queue.sqlite.sentinel-lock", "victim/new"),
        (".casparian/staging", "victim/staging"),
        (".casparian/outputs", "victim"),
        (".casparian/barred", "victim"),
        (".casparian/workers", "victim"),
        (".casparian/datasets", "victim"),
        ("p", "victim"),
    ] {
        let scene = Scene::new();
        let link = scene.path("out").join(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(scene.path(target), &link).unwrap();
        let before = scene.outside();
        let (code, text) = scene.run();
        assert_eq!(code, Some(1), "{link:?}: {text}");
        let name = link.file_name().unwrap().to_str().unwrap();
        assert!(text.contains(name), "{link:?}: {text}");
        assert_eq!(scene.outside(), before, "{link:?}: {text}");
    }
}

/// The folders of one database below those of all.
#[test]
fn a_link_further_down_is_refused_by_the_job_that_needs_it() {
    for attempts in [1, 2] {
        let scene = Scene::new();
        assert_eq!(scene.run().0, Some(0));
        let folder = match attempts {
            1 => "outputs",
            _ => "barred",
        };
        let database = names(&scene.path("out/.casparian/outputs")).remove(0);
        let link = scene.path("out/.casparian").join(folder).join(database);
        drop(fs::remove_dir_all(&link));
        symlink(scene.path("victim"), &link).unwrap();
        fs::write(scene.path("in/a"), "changed").unwrap();
        let before = scene.outside();
        let (code, text) = scene.run();
        assert_eq!(code, Some(1), "{folder}: {text}");
        assert!(text.contains("symbolic link"), "{folder}: {text}");
        assert_eq!(scene.outside(), before, "{folder}: {text}");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect()
}

#[test]
fn receipts_that_name_files_of_others_remove_none() {
    let scene = Scene::new();
    assert_eq!(scene.run().0, Some(0));
    symlink(scene.path("victim"), scene.path("out/link")).unwrap();
    let out = scene.path("out").canonicalize().unwrap();
    let uris: Vec<String> = ["../victim/run.lock", "link/queue.sqlite", "../victim"]
        .iter()
        .map(|name| format!("file://{}/{name}", out.display()))
        .collect();
    let artifacts: Vec<String> = uris
        .iter()
        .map(|uri| format!(r#"{{"topic":"output","uri":"{uri}"}}"#))
        .collect();
    scene.sql(&format!(
        r#"UPDATE cf_processing_queue SET published = '["{}"]',
           receipt = '{{"status":"SUCCESS","metrics":{{}},"artifacts":[{}]}}'"#,
        uris.join("\",\""),
        artifacts.join(",")
    ));
    fs::write(scene.path("p.py"), NOTHING).unwrap();
    let before = scene.outside();
    let (code, text) = scene.run();
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(scene.outside(), before, "{text}");
}

/// A record names what the next attempt, or the next worker that opens the root, moves.
#[test]
fn records_that_name_files_of_others_move_none() {
    for path in ["../victim/run.lock", "link/run.lock", "/victim/run.lock"] {
        for dies in [false, true] {
            let scene = Scene::new();
            assert_eq!(scene.run().0, Some(0));
            symlink(scene.path("victim"), scene.path("out/link")).unwrap();
            let private = scene.path("out/.casparian");
            let database = names(&private.join("outputs")).remove(0);
            let record = private.join(format!("outputs/{database}/0/1"));
            let text = fs::read_to_string(&record).unwrap();
            let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
            // The victim itself, as if it were output that goes.
            use std::os::unix::fs::MetadataExt;
            let found = fs::metadata(scene.path("victim/run.lock")).unwrap();
            let mut file = json["outputs"]["files"][0].clone();
            file["path"] = path.into();
            file["identity"] = serde_json::json!({
                "inode": found.ino(), "size": found.size(),
                "modified_s": found.mtime(), "modified_ns": found.mtime_nsec(),
            });
            json["removes"] = serde_json::json!([file]);
            json["outputs"]["files"] = serde_json::json!([file.clone(), file]);
            json["state"] = if dies { "intent" } else { "committed" }.into();
            fs::write(&record, json.to_string()).unwrap();
            if dies {
                let run = json["run"].as_str().unwrap();
                let staging = private.join("staging").join(run);
                fs::create_dir_all(&staging).unwrap();
                fs::write(staging.join("k0"), "planted").unwrap();
                fs::write(staging.join("worker"), "1-0").unwrap();
            }
            fs::write(scene.path("in/a"), "changed").unwrap();
            let before = scene.outside();
            let (_, text) = scene.run();
            assert_eq!(scene.outside(), before, "{path} {dies}: {text}");
        }
    }
}

/// Such a record fails its own job, and says what to do; the others are done.
#[test]
fn what_is_no_file_at_the_path_of_a_record_costs_its_own_job_alone() {
    let scene = Scene::new();
    for name in ["b", "c", "d", "e", "f"] {
        fs::write(scene.path("in").join(name), name).unwrap();
    }
    assert_eq!(scene.run().0, Some(0));
    let outputs = scene.path("out/.casparian/outputs");
    let database = names(&outputs).remove(0);
    for (job, kind) in ["fifo", "folder", "link", "garbage", "large"]
        .iter()
        .enumerate()
    {
        let record = outputs.join(format!("{database}/0/{}", job + 1));
        fs::remove_file(&record).unwrap();
        match *kind {
            "fifo" => assert!(
                Command::new("mkfifo")
                    .arg(&record)
                    .status()
                    .unwrap()
                    .success()
            ),
            "folder" => fs::create_dir(&record).unwrap(),
            "link" => symlink("/dev/zero", &record).unwrap(),
            "garbage" => fs::write(&record, "{").unwrap(),
            _ => fs::File::create(&record).unwrap().set_len(1 << 40).unwrap(),
        }
    }
    for name in ["a", "b", "c", "d", "e", "f"] {
        fs::write(scene.path("in").join(name), "changed").unwrap();
    }
    let (code, text) = scene.run();
    assert_eq!(code, Some(1), "{text}");
    for job in 1..=5 {
        let record = format!("{database}/0/{job}: ");
        let mut lines = text.lines().filter(|line| line.contains(&record));
        let is_told =
            |line: &str| line.contains("; remove it to discard its data about earlier output");
        assert!(lines.any(is_told), "{job} {text}");
    }
    assert!(text.contains("f: 1 rows"), "{text}");
}

#[test]
fn code_in_the_database_of_an_output_folder_is_refused() {
    for code in [
        "CREATE TRIGGER planted AFTER UPDATE ON cf_processing_queue BEGIN \
         UPDATE cf_plugin_manifest SET source_code = 'import os'; END",
        "CREATE VIEW planted AS SELECT 1",
    ] {
        let scene = Scene::new();
        assert_eq!(scene.run().0, Some(0));
        scene.sql(code);
        fs::write(scene.path("in/a"), "changed").unwrap();
        let (exit, text) = scene.run();
        assert_eq!(exit, Some(1), "{code}: {text}");
        assert!(text.contains("trigger or view"), "{code}: {text}");
    }
}

/// A trigger under the name of one of ours is replaced before the first change of the database.
#[test]
fn a_changed_trigger_in_the_database_of_an_output_folder_is_replaced() {
    let scene = Scene::new();
    assert_eq!(scene.run().0, Some(0));
    scene.sql(
        "DROP TRIGGER casparian_job_taken; \
         CREATE TRIGGER casparian_job_taken AFTER UPDATE ON cf_processing_queue BEGIN \
         UPDATE cf_plugin_manifest SET source_code = 'import os'; END",
    );
    fs::write(scene.path("in/a"), "changed").unwrap();
    let (exit, text) = scene.run();
    assert_eq!(exit, Some(0), "{text}");
    let queue = scene.path("out/.casparian/queue.sqlite");
    let changed = sql(
        &queue,
        "SELECT count(*) FROM cf_plugin_manifest WHERE source_code = 'import os'",
    );
    let triggers = sql(
        &queue,
        "SELECT count(*) FROM sqlite_master WHERE sql LIKE '%import os%'",
    );
    assert_eq!((changed.trim(), triggers.trim()), ("0", "0"));
}

/// Rows of the folder's database that were not asked for.
#[test]
fn other_plugins_in_the_database_of_an_output_folder_do_not_run() {
    let scene = Scene::new();
    assert_eq!(scene.run().0, Some(0));
    let planted = scene.path("victim/planted");
    let source = format!("open({:?}, 'w')", planted.to_str().unwrap());
    for status in ["QUEUED", "PENDING", "RUNNING"] {
        scene.sql(&format!(
            "INSERT INTO cf_plugin_config (plugin_name) VALUES ('evil-{status}'); \
             INSERT INTO cf_plugin_manifest (plugin_name, version, source_code, source_hash, \
             status, created_at, deployed_at) VALUES ('evil-{status}', '1', '{}', '{status}', \
             'ACTIVE', '2026-01-01', '2026-01-01'); \
             INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, priority, \
             retry_count, next_run) VALUES (1, 'evil-{status}', '{status}', 9, 0, '2026-01-01')",
            source.replace('\'', "''")
        ));
    }
    fs::write(scene.path("in/a"), "changed").unwrap();
    let (code, text) = scene.run();
    assert_eq!(code, Some(0), "{text}");
    assert!(!planted.exists());
}

/// A sink of the folder's database that leads out of the folder, or that is none.
#[test]
fn sinks_of_an_output_folder_stay_in_it() {
    for by_job in [false, true] {
        let scene = Scene::new();
        assert_eq!(scene.run().0, Some(0));
        let victim = scene.path("victim/queue.sqlite");
        let uri = format!("sqlite://{}/rows", victim.display());
        scene.sql(&match by_job {
            false => format!(
                "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
                 VALUES ('p', 'output', '{uri}', 'append')"
            ),
            true => format!(
                r#"UPDATE cf_processing_queue SET config_overrides = '{{"uri": "{uri}", "output": {{"uri": "{uri}"}}}}'"#
            ),
        });
        fs::write(scene.path("in/a"), "changed").unwrap();
        let before = scene.outside();
        let (code, text) = scene.run();
        assert_eq!(scene.outside(), before, "{by_job}: {text}");
        if !by_job {
            assert_eq!(code, Some(1), "{text}");
            assert!(text.contains("output folder alone"), "{text}");
        }
    }
}

/// Links of an output folder where its sinks have their files.
#[test]
fn links_at_the_paths_of_sinks_lead_nowhere() {
    for (uri, link, target) in [
        ("sqlite://x.db/rows", "x.db", "victim/queue.sqlite"),
        ("sqlite://x.db/rows", "x.db", "victim/new"),
        ("sqlite://x.db/rows", "x.db-journal", "victim/new"),
        ("sqlite://x.db/rows", "x.db-journal", "victim/run.lock"),
        ("sqlite://x.db/rows", "x.db-wal", "victim/new"),
        ("sqlite://x.db/rows", "x.db-shm", "victim/new"),
        ("sqlite://sub/x.db/rows", "sub", "victim"),
        ("sqlite://sub/deep/x.db/rows", "sub", "victim"),
        ("parquet://sub/x.parquet", "sub", "victim"),
        ("parquet://sub/deep/x.parquet", "sub", "victim"),
        (
            "parquet://x.parquet",
            "x_1.parquet",
            "victim/p_output_1.parquet",
        ),
    ] {
        for mode in ["append", "replace"] {
            let scene = Scene::new();
            assert_eq!(scene.run().0, Some(0));
            scene.sql(&format!(
                "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
                 VALUES ('p', 'output', '{uri}', '{mode}')"
            ));
            symlink(scene.path(target), scene.path("out").join(link)).unwrap();
            fs::write(scene.path("in/a"), "changed").unwrap();
            let before = scene.outside();
            let (code, text) = scene.run();
            assert_eq!(scene.outside(), before, "{uri} {link}: {text}");
            assert_eq!(code, Some(1), "{uri} {link}: {text}");
            let is_named = text.contains(link) || text.contains("symbolic link leads");
            assert!(is_named, "{uri} {link}: {text}");
        }
    }
}

/// Records and receipts that name a database elsewhere, which has rows of a job of this name.
#[test]
fn databases_of_others_that_records_and_receipts_name_stay_as_they_are() {
    for case in ["leftover", "clears", "previous", "intent", "receipt"] {
        let scene = Scene::new();
        assert_eq!(scene.run().0, Some(0));
        scene.sql(
            "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
             VALUES ('p', 'output', 'sqlite://x.db/rows', 'append')",
        );
        fs::write(scene.path("in/a"), "changed").unwrap();
        assert_eq!(scene.run().0, Some(0));
        let victim = scene.path("victim/x.db");
        fs::copy(scene.path("out/x.db"), &victim).unwrap();
        let private = scene.path("out/.casparian");
        let database = names(&private.join("outputs")).remove(0);
        let record = private.join(format!("outputs/{database}/0/1"));
        let text = fs::read_to_string(&record).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut table = json["outputs"]["tables"][0].clone();
        table["database"] = victim.to_str().unwrap().into();
        table.as_object_mut().unwrap().remove("below");
        let uri = format!("sqlite://{}/rows", victim.display());
        let own = json["outputs"]["tables"][0].clone();
        match case {
            "leftover" => {
                json["clears"] = serde_json::json!([table]);
                json["has_leftovers"] = true.into();
            }
            "previous" => json["outputs"]["tables"] = serde_json::json!([table]),
            "clears" => json["clears"] = serde_json::json!([table]),
            "intent" => {
                // Undone, as the other one is missing.
                let mut missing = own;
                missing["below"] = "none.db".into();
                json["outputs"]["tables"] = serde_json::json!([table, missing]);
                json["state"] = "intent".into();
            }
            _ => scene.sql(&format!(
                "UPDATE cf_processing_queue SET published = '[\"{uri}\"]'"
            )),
        }
        if ["clears", "intent"].contains(&case) {
            let staging = private.join("staging").join(json["run"].as_str().unwrap());
            fs::create_dir_all(&staging).unwrap();
            fs::write(staging.join("worker"), "1-0").unwrap();
        }
        fs::write(&record, json.to_string()).unwrap();
        fs::write(scene.path("in/a"), "changed again").unwrap();
        let before = scene.outside();
        let (code, text) = scene.run();
        assert_eq!(scene.outside(), before, "{case}: {text}");
        assert_eq!(code, Some(0), "{case}: {text}");
    }
}

#[test]
fn a_sink_that_is_none_is_refused_at_the_start() {
    for uri in [
        "nonsense",
        "ftp://x",
        "parquet://",
        "sqlite://x",
        "parquet://../x.parquet",
    ] {
        let scene = Scene::new();
        assert_eq!(scene.run().0, Some(0));
        scene.sql(&format!(
            "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
             VALUES ('p', 'output', '{uri}', 'append')"
        ));
        fs::write(scene.path("in/a"), "changed").unwrap();
        let (code, text) = scene.run();
        assert_eq!(code, Some(1), "{uri}: {text}");
        assert!(text.contains("cf_topic_config"), "{uri}: {text}");
    }
}

/// A name that is not UTF-8: `caf\xe9`.
fn odd() -> &'static OsStr {
    OsStr::from_bytes(b"caf\xe9")
}

/// What must be so in a plugin process whose worker has these variables.
const CHECKS: &str = "import os, tempfile
import pyarrow as pa
class Handler:
    def execute(self, path):
        here, home, own = os.getcwdb(), os.environb[b'HOME'], os.environb[b'TMPDIR']
        assert here == home == own, (here, home, own)
        assert b'/caf\\xe9/' in here and os.environb[b'LC_ODD'] == b'\\xe9', (here, os.environb)
        assert b'/caf\\xe9' in os.environb[b'PATH'], os.environb[b'PATH']
        with tempfile.NamedTemporaryFile() as file:
            assert os.fsencode(file.name).startswith(here), file.name
        open(path).close()
        yield pa.table({'x': [1]})
";

#[test]
fn folders_and_variables_that_are_not_utf_8_reach_plugins_as_they_are() {
    for start in ["warm", "spawn"] {
        for sandbox in ["on", "off"] {
            // A socket's path is short.
            let dir = tempfile::tempdir_in("/tmp").unwrap();
            let folder = dir.path().join(odd());
            fs::create_dir(&folder).unwrap();
            fs::create_dir(dir.path().join("in")).unwrap();
            fs::write(dir.path().join("in/ä"), "").unwrap();
            fs::write(folder.join("p.py"), CHECKS).unwrap();
            symlink(
                home().join(".casparian_flow"),
                folder.join(".casparian_flow"),
            )
            .unwrap();
            let mut path = std::env::var_os("PATH").unwrap();
            path.push(":");
            path.push(&folder);
            let mut run = program("casparian");
            run.args(["run", "--plugin-start", start, "--sandbox", sandbox])
                .args(["--outage-timeout", "5", "-o"])
                .arg(dir.path().join("out"))
                .args([&folder.join("p.py"), &dir.path().join("in")])
                .env("HOME", &folder)
                .env("TMPDIR", &folder)
                .env("PATH", path)
                .env("LC_ODD", OsStr::from_bytes(b"\xe9"));
            let ended = output(&mut run);
            let text = stdout(&ended) + &stderr(&ended);
            assert_eq!(ended.status.code(), Some(0), "{start} {sandbox}: {text}");
        }
    }
}

/// uv creates no environment there.
#[test]
fn a_home_that_uv_cannot_work_in_is_refused_before_anything_is_created() {
    let scene = Scene::new();
    let home = scene.path("home").join(odd());
    fs::create_dir_all(&home).unwrap();
    for words in [
        &["run", "p.py", "in", "-o", "out"][..],
        &["deploy", "p.py", "-d", "q.db"],
    ] {
        casparian_ok(&["init", scene.path("q.db").to_str().unwrap()]);
        let mut command = program("casparian");
        command.args(words).current_dir(scene.dir.path());
        let ended = output(command.env("HOME", &home));
        let text = stderr(&ended);
        assert_eq!(ended.status.code(), Some(1), "{words:?}: {text}");
        assert!(
            text.contains("not UTF-8") && text.contains("set HOME"),
            "{text}"
        );
        let flow = home.join(".casparian_flow");
        let made = walkdir::WalkDir::new(flow).into_iter().flatten();
        let folders = made.filter(|entry| entry.path().is_dir()).count();
        assert!(
            folders <= 3,
            "{words:?}: only the folders of environments, locks and key files"
        );
    }
}

/// Receipts, DISPATCH and the catalogue have no name for such a file.
#[test]
fn inputs_whose_names_are_not_utf_8_fail_alone_and_are_named_with_escapes() {
    let scene = Scene::new();
    let folder = scene.path("in").join(odd());
    fs::create_dir(&folder).unwrap();
    let deep = folder.join("deep");
    for file in [
        &deep,
        &scene.path("in").join(OsStr::from_bytes(b"b\xff")),
        &scene.path("in").join(OsStr::from_bytes(b"b\xfe")),
    ] {
        fs::write(file, "").unwrap();
    }
    // Another name of a file, which has a good one: each name is an input.
    let other = scene.path("in").join(OsStr::from_bytes(b"link\xff"));
    symlink(scene.path("in/a"), other).unwrap();
    let root = scene.path("in").canonicalize().unwrap();
    let named = |name: &str| format!("{}/{name}", root.display());
    let deep_name = r"caf\xe9/deep";
    let flat = [r"b\xfe", r"b\xff", r"link\xff"];
    let all = [r"b\xfe", r"b\xff", deep_name, r"link\xff"];
    let inputs: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    casparian_ok(&["init", scene.path("q.db").to_str().unwrap()]);
    let (plugin, database) = (scene.path("p.py"), scene.path("q.db"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    casparian_ok(&["deploy", &text(&plugin), "-d", &text(&database)]);
    let cases: [(&str, Vec<PathBuf>, &[&str], u64); 5] = [
        ("a folder", vec![root.clone()], &all, 1),
        ("what a shell makes of in/*", inputs, &all, 1),
        ("a glob", vec![root.join("*")], &flat, 1),
        ("such a folder", vec![folder], &all[2..3], 0),
        ("such a file", vec![deep], &all[2..3], 0),
    ];
    for (case, inputs, failed, done) in cases {
        let mut run = program("casparian");
        run.args(["run", "--json", "--force", "-o"])
            .arg(scene.path("out"))
            .arg(&plugin)
            .args(&inputs);
        let ended = output(&mut run);
        assert_eq!(ended.status.code(), Some(1), "{case}: {}", stderr(&ended));
        let summary: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert_eq!(summary["totals"]["done"], done, "{case}: {summary}");
        let files = summary["files"].as_array().unwrap();
        let files = files.iter().filter(|file| file["status"] == "FAILED");
        let names: Vec<&str> = files
            .map(|file| {
                let error = file["error"].as_str().unwrap();
                let name = file["file"].as_str().unwrap();
                assert!(error.starts_with(&format!("input {name}: ")), "{error}");
                assert!(error.contains("not UTF-8"), "{error}");
                name
            })
            .collect();
        let want: Vec<String> = failed.iter().map(|name| named(name)).collect();
        assert_eq!(names, want, "{case}");
        let mut submit = program("casparian");
        submit.args(["submit", "--plugin", "p", "-d"]);
        let ended = output(submit.arg(&database).args(&inputs));
        let said = stderr(&ended);
        assert_eq!(ended.status.code(), Some(1), "{case}: {said}");
        assert_eq!(stdout(&ended).lines().count() as u64, done, "{case}");
        for name in failed {
            assert!(said.contains(&named(name)), "{case}: {said}");
        }
    }
    // The line of progress and the table name them, too.
    let (code, text) = scene.run();
    assert_eq!(code, Some(1), "{text}");
    assert_eq!(text.matches(r"/in/b\xfe  ").count(), 1, "{text}");
    assert!(text.contains(r"] b\xfe: FAILED"), "{text}");
    assert!(!text.contains('\u{fffd}'), "{text}");
}

/// Rows of other programs whose paths are not text, or look like an encoding of other bytes.
#[test]
fn databases_whose_path_is_not_utf_8_work_and_odd_paths_in_rows_fail_alone() {
    // A socket's path is short.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let folder = dir.path().join(odd());
    fs::create_dir(&folder).unwrap();
    fs::write(dir.path().join("p.py"), ONE_ROW).unwrap();
    let shim = folder.join("shim.py");
    fs::write(&shim, casparian::plugin::SHIM).unwrap();
    let mut url = OsString::from("sqlite://");
    url.push(&folder);
    url.push("/q.db");
    let tool = |words: &[&str]| {
        let mut tool = program("casparian");
        let ended = output(tool.args(words).arg(&url).current_dir(dir.path()));
        assert!(ended.status.success(), "{words:?}: {}", stderr(&ended));
        stdout(&ended)
    };
    tool(&["init"]);
    tool(&["deploy", "p.py", "-d"]);
    let cases = [
        ("'good'", "COMPLETED"),
        (r"'b%E9'", "COMPLETED"),
        (r"'b\xe9'", "COMPLETED"),
        (r"'b\udce9'", "COMPLETED"),
        ("x'62e9'", "FAILED"),
        ("CAST(x'62e9' AS TEXT)", "FAILED"),
        ("CAST(x'62edb3a9' AS TEXT)", "FAILED"),
    ];
    for name in ["good", "b%E9", r"b\xe9", r"b\udce9", "4", "5", "6"] {
        fs::write(dir.path().join(name), name).unwrap();
        tool(&["submit", "--plugin", "p", name, "-d"]);
    }
    fs::write(dir.path().join(OsStr::from_bytes(b"b\xe9")), "").unwrap();
    let queue = folder.join("q.db");
    let store = rusqlite::Connection::open(&queue).unwrap();
    for (index, (path, _)) in cases.iter().enumerate() {
        let id = index + 1;
        let sql = format!("UPDATE cf_file_location SET rel_path = {path} WHERE id = {id}");
        assert_eq!(store.execute(&sql, []), Ok(1), "{path}");
    }
    let (_sentinel, endpoint) = sentinel(&queue, &[]);
    let mut worker = program("casparian-worker");
    worker.args(["--connect", &endpoint, "--output"]);
    worker.arg(dir.path().join("out"));
    worker
        .args(["--plugin-start", "spawn", "--shim"])
        .arg(&shim);
    let _worker = Background::start(worker.env("TMPDIR", &folder));
    for (index, (path, want)) in cases.iter().enumerate() {
        let id = (index + 1).to_string();
        let job = until("the job ends", || {
            let text = tool(&["job", &id, "--json", "-d"]);
            let job: serde_json::Value = serde_json::from_str(&text).unwrap();
            let has_ended = ["COMPLETED", "FAILED"].contains(&job["status"].as_str().unwrap());
            has_ended.then_some(job)
        });
        assert_eq!(job["status"], *want, "{path}: {job}");
        let is_named = job.to_string().contains("cf_file_location.rel_path");
        assert_eq!(is_named, *want == "FAILED", "{path}: {job}");
    }
    tool(&["jobs", "-d"]);
}
