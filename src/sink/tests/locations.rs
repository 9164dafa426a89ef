//! One file with several paths: by symbolic links, by mounts, and in a root that was moved. Databases
//! with several hard links are refused.

use std::os::unix::fs::symlink;

use super::roots::Mount;
use super::*;
use crate::job::{Cause, History, Past, PastEnd, Settlement};
use crate::sink::publish::Step;

fn of(number: i64, uri: &str) -> Job {
    job(Some(A), Attempt::new(7, number), &[("t", uri, "append")])
}

/// Sum of the values in a database's table; 0 when it is empty.
fn sum(database: &Path) -> i64 {
    let connection = rusqlite::Connection::open(database).unwrap();
    let query = "SELECT ifnull(sum(x), 0) FROM rows";
    connection.query_row(query, [], |row| row.get(0)).unwrap()
}

/// A root in which `a/x.db`, `b/x.db` and `y.db` are the same database, and a folder outside whose `link`
/// leads to the root.
fn linked() -> (Fixture, tempfile::TempDir) {
    let fixture = Fixture::new();
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(fixture.path("a")).unwrap();
    symlink("a", fixture.path("b")).unwrap();
    symlink("a/x.db", fixture.path("y.db")).unwrap();
    symlink(fixture.path(""), outside.path().join("link")).unwrap();
    (fixture, outside)
}

#[test]
fn a_job_keeps_its_rows_when_its_table_gets_another_path() {
    for (first, second) in [
        ("sqlite://a/x.db/rows", "sqlite://b/x.db/rows"),
        ("sqlite://b/x.db/rows", "sqlite://a/x.db/ROWS"),
        ("sqlite://a/x.db/rows", "sqlite://y.db/rows"),
        ("sqlite://ROOT/a/x.db/rows", "sqlite://b/x.db/rows"),
        ("sqlite://OUTSIDE/link/a/x.db/rows", "sqlite://a/x.db/rows"),
        ("sqlite://y.db/rows", "sqlite://OUTSIDE/link/b/x.db/rows"),
    ] {
        let (fixture, outside) = linked();
        let root = fixture.path("");
        let root = root.to_str().unwrap().trim_end_matches('/');
        let uri = |uri: &str| {
            uri.replace("ROOT", root)
                .replace("OUTSIDE", outside.path().to_str().unwrap())
        };
        let database = fixture.path("a/x.db");
        // The database is created, because a link to a missing database is refused.
        rusqlite::Connection::open(&database)
            .unwrap()
            .execute_batch("CREATE TABLE other (x)")
            .unwrap();
        let before = publish(&fixture.root, &of(1, &uri(first)), &[1]).unwrap();
        let mut next = of(2, &uri(second));
        next.previous = before.artifacts.into_iter().map(|one| one.uri).collect();
        let removed = publish(&fixture.root, &next, &[2]).unwrap().removed;
        assert_eq!((sum(&database), removed), (2, vec![]), "{first} {second}");
        // Receipts of an earlier release have the path of the sink's URI, with links.
        let mut next = of(3, &uri(first));
        next.previous = [first, second].map(uri).to_vec();
        let removed = publish(&fixture.root, &next, &[3]).unwrap().removed;
        assert_eq!((sum(&database), removed), (3, vec![]), "{first} {second}");
    }
}

#[test]
fn workers_that_see_a_root_under_different_paths_agree_on_its_tables() {
    let fixture = Fixture::new();
    let alias = tempfile::tempdir().unwrap();
    let root = fixture.path("");
    let Some(mount) = Mount::new(
        &["--bind", root.to_str().unwrap()],
        alias.path().join("alias"),
    ) else {
        eprintln!("skipped: this process may not mount");
        return;
    };
    let other = open(&mount.0);
    let uri = "sqlite://x.db/rows";
    let absolute = format!("sqlite://{}x.db/rows", root.display());
    for (number, worker, uri) in [
        (1, &fixture.root, uri),
        (2, &other, uri),
        (3, &fixture.root, &absolute),
        (4, &other, &absolute),
        (5, &other, uri),
    ] {
        let mut job = of(number, uri);
        job.previous = vec![absolute.clone()];
        let published = publish(worker, &job, &[number]).unwrap();
        assert_eq!(published.removed, [""; 0], "{number}");
        assert_eq!(sum(&fixture.path("x.db")), number);
    }
    drop(other);
}

/// Output that an attempt left under an old path of the root is settled, replaced or removed under the
/// new path.
#[test]
fn a_root_that_has_another_path_now_is_settled() {
    let past = |number| Past {
        number,
        key: 0,
        end: PastEnd::Unknown,
    };
    let settlement = |keep| Settlement {
        attempt: Attempt::new(7, 2),
        database: A.to_owned(),
        previous: Vec::new(),
        history: History {
            key: 0,
            past: vec![past(1)],
            ..History::default()
        },
        keep,
    };
    for (case, want) in [("lost", 1), ("cancelled", 0), ("failed", 0), ("again", 2)] {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        fs::create_dir_all(old.join("a")).unwrap();
        symlink("a", old.join("b")).unwrap();
        let root = open(&old);
        publish(&root, &of(1, "sqlite://b/x.db/rows"), &[1]).unwrap();
        drop(root);
        fs::rename(&old, &new).unwrap();
        let root = open(&new);
        match case {
            "lost" => {
                let (attempt, artifacts) = root.settle(&settlement(true)).unwrap().unwrap();
                assert_eq!((attempt, artifacts.len()), (1, 1));
                let want = format!(
                    "sqlite://{}/a/x.db/rows",
                    new.canonicalize().unwrap().display()
                );
                assert_eq!(artifacts[0].uri, want);
            }
            "cancelled" => assert_eq!(root.settle(&settlement(false)).unwrap(), None),
            "failed" => {
                let removed = root.settle_failed(&of(2, "sqlite://z.db/rows")).unwrap();
                assert_eq!(removed.len(), 1);
            }
            _ => {
                publish(&root, &of(2, "sqlite://a/x.db/rows"), &[2]).unwrap();
            }
        }
        assert_eq!(sum(&new.join("a/x.db")), want, "{case}");
    }
}

fn record(fixture: &Fixture) -> PathBuf {
    fixture.path(&format!(".casparian/outputs/{A}/0/7"))
}

/// Changes the record of job 7 to the form of an earlier release, with paths through the link `b`.
fn make_older(fixture: &Fixture) {
    let text = fs::read_to_string(record(fixture)).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let database = fixture.path("b/x.db");
    for table in json["outputs"]["tables"].as_array_mut().unwrap() {
        table.as_object_mut().unwrap().remove("below");
        table["database"] = database.to_str().unwrap().into();
    }
    for file in json["outputs"]["files"].as_array_mut().unwrap() {
        file["path"] = "b/o_7.parquet".into();
    }
    fs::write(record(fixture), json.to_string()).unwrap();
}

#[test]
fn a_record_whose_names_contain_a_nul_is_refused_as_corrupt() {
    let sinks = [
        ("t", "sqlite://x.db/rows", "append"),
        ("f", "parquet://o.parquet", "append"),
    ];
    for (pointer, name) in [
        ("/outputs/files/0/path", "o\0"),
        ("/outputs/files/0/bay", "bay\0"),
        ("/previous/files/0/path", "\0"),
        ("/outputs/tables/0/database", "/x\0.db"),
        ("/outputs/tables/0/below", "\0"),
        ("/outputs/tables/0/table", "ro\0ws"),
    ] {
        let fixture = Fixture::new();
        let of = |number| job(Some(A), Attempt::new(7, number), &sinks);
        publish(&fixture.root, &of(1), &[1]).unwrap();
        let text = fs::read_to_string(record(&fixture)).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["previous"] = json["outputs"].clone();
        json["outputs"]["files"][0]["bay"] = "bay".into();
        *json.pointer_mut(pointer).unwrap() = name.into();
        fs::write(record(&fixture), json.to_string()).unwrap();
        let error = publish(&fixture.root, &of(2), &[2]).map(drop).unwrap_err();
        assert_eq!(error.cause(), Cause::Operator, "{pointer}: {error}");
        let text = error.to_string();
        assert!(
            text.contains(record(&fixture).to_str().unwrap()),
            "{pointer}: {text}"
        );
        assert!(!text.contains('\0'), "{pointer}: {text:?}");
    }
}

#[test]
fn records_of_earlier_releases_are_read_with_the_paths_of_now() {
    let (fixture, _outside) = linked();
    let sinks = [
        ("t", "sqlite://a/x.db/rows", "append"),
        ("f", "parquet://a/o.parquet", "append"),
    ];
    let of = |number| job(Some(A), Attempt::new(7, number), &sinks);
    publish(&fixture.root, &of(1), &[1]).unwrap();
    make_older(&fixture);
    let mut next = of(2);
    next.previous = vec![
        format!("sqlite://{}/rows", fixture.path("b/x.db").display()),
        format!("file://{}", fixture.path("b/o_7.parquet").display()),
    ];
    let removed = publish(&fixture.root, &next, &[2]).unwrap().removed;
    assert_eq!(removed, [""; 0]);
    assert_eq!(sum(&fixture.path("a/x.db")), 2);
    assert_eq!(values(&fixture.path("a/o_7.parquet")), [2]);
    // Output that a receipt names by another path stays when the job fails.
    make_older(&fixture);
    let mut failed = of(3);
    failed.previous = next.previous;
    assert_eq!(fixture.root.settle_failed(&failed).unwrap(), [""; 0]);
    assert_eq!(sum(&fixture.path("a/x.db")), 2);
    assert_eq!(values(&fixture.path("a/o_7.parquet")), [2]);
}

/// The intent of an attempt of an earlier release lists its own table, under another path, among the
/// tables to clear.
#[test]
fn what_a_record_publishes_is_not_cleared_by_it() {
    let (fixture, _outside) = linked();
    let staged = stage(&fixture.root, &of(1, "sqlite://a/x.db/rows"), &[1]).unwrap();
    let folder = fixture.path(&format!(".casparian/staging/{A}.7.1"));
    let aside = fixture.path("aside");
    let hook = |step| match step {
        Step::Remove => {
            fs::rename(&folder, &aside).unwrap();
            Err(Error::at_path(&folder, "stopped"))
        }
        _ => Ok(()),
    };
    staged
        .publish_by_steps(&[], &|| true, &hook)
        .map(drop)
        .unwrap_err();
    fs::rename(&aside, &folder).unwrap();
    let text = fs::read_to_string(record(&fixture)).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut table = json["outputs"]["tables"][0].clone();
    table.as_object_mut().unwrap().remove("below");
    table["table"] = "ROWS".into();
    table["database"] = fixture.path("y.db").to_str().unwrap().into();
    json["clears"].as_array_mut().unwrap().push(table);
    fs::write(record(&fixture), json.to_string()).unwrap();
    fixture.root.die();
    open(fixture.dir.path());
    assert_eq!(sum(&fixture.path("a/x.db")), 1);
}

#[test]
fn a_job_replaces_its_file_when_its_sink_gets_another_path() {
    let (fixture, _outside) = linked();
    for (number, uri) in [
        (1, "parquet://a/o.parquet"),
        (2, "parquet://b/o.parquet"),
        (3, "parquet://a/o.parquet"),
    ] {
        let published = publish(&fixture.root, &of(number, uri), &[number]).unwrap();
        assert_eq!(published.removed, [""; 0]);
        let uri = format!("file://{}", fixture.path("a/o_7.parquet").display());
        assert_eq!(published.artifacts[0].uri, uri);
        assert_eq!(values(&fixture.path("a/o_7.parquet")), [number]);
    }
}

#[test]
fn modes_see_other_jobs_output_by_whatever_path() {
    for (one, other) in [("a", "b"), ("b", "a")] {
        for has_folder in [true, false] {
            let (fixture, _outside) = linked();
            let of = |id, folder: &str, mode| {
                let folder = match has_folder {
                    true => folder.to_owned(),
                    false => format!("{folder}/deep"),
                };
                let uri = format!("parquet://{folder}/o.parquet");
                job(Some(A), Attempt::new(id, 1), &[("t", &uri, mode)])
            };
            publish(&fixture.root, &of(1, one, "append"), &[1]).unwrap();
            let published = publish(&fixture.root, &of(2, other, "replace"), &[2]).unwrap();
            assert_eq!(published.removed.len(), 1);
            let files = fixture.files();
            let parquet: Vec<_> = files.iter().filter(|name| name.starts_with("a/")).collect();
            assert_eq!(parquet.len(), 1, "{files:?}");

            // Two jobs that publish at the same time exclude each other.
            let (fixture, _outside) = linked();
            let worker = open(fixture.dir.path());
            let staged = stage(&fixture.root, &of(1, one, "error"), &[1]).unwrap();
            let hook = |step| {
                if step == Step::Keep {
                    let second = stage(&worker, &of(2, other, "error"), &[2]).unwrap();
                    let refused = second.publish(&[], &|| true);
                    assert!(
                        matches!(refused, Err(Refused::NotGranted(_))),
                        "{refused:?}"
                    );
                }
                Ok(())
            };
            staged.publish_by_steps(&[], &|| true, &hook).unwrap();
        }
    }
}

#[test]
fn two_sinks_of_a_job_that_mean_one_file_are_refused_before_anything_is_written() {
    let (fixture, _outside) = linked();
    for (one, other) in [
        ("parquet://a/o.parquet", "parquet://b/o.parquet"),
        ("parquet://a/new/o.parquet", "parquet://b/new/o.parquet"),
        ("parquet://a/set", "parquet://b/set"),
        ("parquet://a/o.db", "sqlite://b/o_7.db/rows"),
        ("sqlite://b/o_7.db/rows", "parquet://a/o.db"),
    ] {
        let sinks = [("one", one, "append"), ("other", other, "append")];
        let job = Arc::new(job(Some(A), Attempt::new(7, 1), &sinks));
        let refused = JobOutput::new(fixture.root.clone(), job).map(drop);
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::SameFile { .. }), "{one}: {error}");
        assert_eq!(fixture.staged(), [""; 0]);
    }
    assert_eq!(fixture.files(), ["y.db"]);
}

#[test]
fn tables_of_one_database_are_published_together_by_whatever_path() {
    let (fixture, outside) = linked();
    let absolute = format!("sqlite://{}/link/a/x.db/more", outside.path().display());
    let sinks = [
        ("one", "sqlite://a/x.db/rows", "append"),
        ("two", "sqlite://b/x.db/more", "append"),
        ("three", &absolute, "append"),
        ("four", "sqlite://b/x.db/ROWS", "append"),
    ];
    for number in [1, 2] {
        let job = job(Some(A), Attempt::new(7, number), &sinks);
        let published = publish(&fixture.root, &job, &[1]).unwrap();
        assert_eq!(published.artifacts.len(), sinks.len());
        assert_eq!(published.removed, [""; 0]);
        assert_eq!(sum(&fixture.path("a/x.db")), 2);
    }
}

#[test]
fn a_database_with_two_names_is_refused() {
    let (fixture, _outside) = linked();
    let database = fixture.path("a/x.db");
    let second = fixture.path("hard.db");
    publish(&fixture.root, &of(1, "sqlite://a/x.db/rows"), &[1]).unwrap();
    fs::hard_link(&database, &second).unwrap();
    for (number, name) in [(2, "a/x.db"), (3, "hard.db"), (4, "y.db")] {
        let uri = format!("sqlite://{name}/rows");
        let error = publish(&fixture.root, &of(number, &uri), &[number]).unwrap_err();
        assert_eq!(
            error.cause(),
            crate::job::Cause::Operator,
            "{name}: {error}"
        );
        let text = error.to_string();
        assert!(
            text.contains("hard link") && text.contains(".db"),
            "{name}: {text}"
        );
        assert_eq!(sum(&database), 1, "{name}");
    }
    // The job's rows can still be removed, by the name in the record.
    fixture
        .root
        .settle_failed(&of(5, "sqlite://a/x.db/rows"))
        .unwrap();
    assert_eq!(sum(&database), 0);
    fs::remove_file(&second).unwrap();
    publish(&fixture.root, &of(6, "sqlite://a/x.db/rows"), &[6]).unwrap();
    assert_eq!(sum(&database), 6);
}

#[test]
fn a_root_whose_path_is_not_utf_8_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"odd\xff"));
    for exists in [false, true] {
        for error in [
            create_folder(&odd).unwrap_err(),
            Root::open(&odd, RootOptions::default()).unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(text.contains("UTF-8"), "{text}");
        }
        assert_eq!(odd.exists(), exists);
        if !exists {
            fs::create_dir(&odd).unwrap();
        }
    }
    let link = dir.path().join("link");
    symlink(&odd, &link).unwrap();
    let error = Root::open(&link, RootOptions::default()).unwrap_err();
    assert!(error.to_string().contains("UTF-8"), "{error}");
    assert_eq!(names_in(&odd), [""; 0]);
}

#[test]
fn a_root_whose_own_folders_are_on_another_mount_is_refused() {
    let other = tempfile::tempdir().unwrap();
    let bind = other.path().to_str().unwrap().to_owned();
    for folder in ["", "/staging", "/outputs", "/barred", "/workers"] {
        for kind in [&["-t", "tmpfs", "tmpfs"][..], &["--bind", &bind]] {
            let fixture = Fixture::new();
            let below = format!(".casparian{folder}");
            let Some(mount) = Mount::new(kind, fixture.path(&below)) else {
                eprintln!("skipped: this process may not mount");
                return;
            };
            for error in [
                Root::open(fixture.dir.path(), RootOptions::default()).map(drop),
                fixture.root.ensure(),
            ] {
                let text = error.unwrap_err().to_string();
                assert!(
                    text.contains(&below) && text.contains("file system"),
                    "{text}"
                );
            }
            drop(mount);
            open(fixture.dir.path());
        }
    }
}

#[test]
fn a_link_leads_no_sink_into_casparians_own_folder() {
    for uri in [
        "parquet://priv/x.parquet",
        "parquet://priv/staging/x.parquet",
        "parquet://a/up/x.parquet",
        "sqlite://priv/x.db/rows",
        "sqlite://own.db/rows",
        "sqlite://ROOT/priv/x.db/rows",
    ] {
        let (fixture, _outside) = linked();
        symlink(".casparian", fixture.path("priv")).unwrap();
        symlink("../.casparian/outputs", fixture.path("a/up")).unwrap();
        symlink(".casparian/own.db", fixture.path("own.db")).unwrap();
        rusqlite::Connection::open(fixture.path(".casparian/own.db"))
            .unwrap()
            .execute_batch("CREATE TABLE other (x)")
            .unwrap();
        let root = fixture.path("");
        let uri = uri.replace("ROOT", root.to_str().unwrap().trim_end_matches('/'));
        let error = publish(&fixture.root, &of(1, &uri), &[1]).unwrap_err();
        assert!(
            error.to_string().contains("leads into .casparian"),
            "{uri}: {error}"
        );
        assert_eq!(error.cause(), crate::job::Cause::Operator);
        assert!(!fixture.path(".casparian/x.db").exists(), "{uri}");
    }
}
