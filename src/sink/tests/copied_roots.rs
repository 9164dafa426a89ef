//! Roots that were copied or restored, so that all files have other inodes: what an attempt left is finished
//! or undone by the content of the files.

use std::process::Command;

use super::steps::{FILES, Scene, TABLES, crash, each_step, is_committed};
use super::*;
use crate::job::{History, Past, PastEnd, Settlement};
use crate::sink::publish::Step;

/// How a root is copied: with times and hard links, without hard links, without both.
const COPIES: [&[&str]; 3] = [&["-a"], &["-r", "--preserve=timestamps"], &["-r"]];

/// Replaces the root by a copy of it at the same path.
fn copy(fixture: &Fixture, options: &[&str]) {
    let root = fixture.path("");
    let mut copied = root.clone();
    copied.set_file_name(format!(
        "{}-copy",
        root.file_name().unwrap().to_str().unwrap()
    ));
    let status = Command::new("cp")
        .args(options)
        .args([&root, &copied])
        .status();
    assert!(status.unwrap().success());
    fs::remove_dir_all(&root).unwrap();
    fs::rename(&copied, &root).unwrap();
}

#[test]
fn what_a_dead_attempt_left_in_a_copied_root_is_finished_or_undone() {
    for options in COPIES {
        each_step(&[FILES, TABLES], |scene| {
            let Some(step) = crash(&scene) else {
                return false;
            };
            copy(&scene.fixture, options);
            let root = open(scene.fixture.dir.path());
            scene.check("recovery");
            let shown = scene.shown(7);
            let is_complete = shown == scene.all(Some(2));
            assert!(
                is_complete || (shown == scene.before() && !is_committed(step)),
                "{options:?} {step:?} {:?}: {shown:?}",
                scene.case
            );
            if is_complete && scene.case.mode == "replace" {
                assert_eq!(scene.shown(9), scene.all(None), "{step:?} {:?}", scene.case);
            }
            assert_eq!(scene.fixture.staged(), [""; 0], "{step:?}");
            // Output of other attempts counts as the database's once it is adopted.
            for job_id in [7, 9] {
                root.adopt(A, Attempt::new(job_id, 2), &[]).unwrap();
            }
            assert_eq!(scene.shown(7), shown, "{step:?} {:?}", scene.case);
            scene.succeed(&root);
            true
        });
    }
}

/// The settlement of job 7 after an attempt 2 without a receipt.
fn settlement(scene: &Scene, keep: bool) -> Settlement {
    let completed = Past {
        number: 1,
        key: 0,
        end: PastEnd::Completed,
    };
    let past = scene.case.has_previous.then_some(completed);
    Settlement {
        attempt: Attempt::new(7, 3),
        database: A.to_owned(),
        previous: scene.previous.clone(),
        history: History {
            past: past.into_iter().collect(),
            ..History::default()
        },
        keep,
    }
}

#[test]
fn what_a_lost_attempt_left_in_a_copied_root_is_settled() {
    for (options, keep) in [(COPIES[0], true), (COPIES[2], false)] {
        each_step(&[FILES, TABLES], |scene| {
            let Some(step) = crash(&scene) else {
                return false;
            };
            copy(&scene.fixture, options);
            let root = open(scene.fixture.dir.path());
            let kept = root.settle(&settlement(&scene, keep)).unwrap();
            let (shown, what) = (scene.shown(7), format!("{step:?} {keep} {:?}", scene.case));
            match &kept {
                Some((2, artifacts)) => {
                    assert_eq!(shown, scene.all(Some(2)), "{what}");
                    assert_eq!(artifacts.len(), shown.len(), "{what}");
                }
                Some(other) => panic!("{what}: {other:?}"),
                None => assert_eq!(shown, scene.before(), "{what}"),
            }
            if is_committed(step) {
                let replaces = scene.case.has_previous || scene.case.mode == "replace";
                assert_eq!(kept.is_some(), keep || replaces, "{what}");
            }
            true
        });
    }
}

/// Job 7 has the files `a` and `b`, and its attempt 2 ended after it had renamed the first one.
fn half_published(has_previous: bool) -> Fixture {
    let fixture = Fixture::new();
    let sinks = [
        ("a", "parquet://a.parquet", "append"),
        ("b", "parquet://b.parquet", "append"),
    ];
    if has_previous {
        let first = job(Some(A), Attempt::new(7, 1), &sinks[..1]);
        publish(&fixture.root, &first, &[1]).unwrap();
    }
    let folder = fixture.path(&format!(".casparian/staging/{A}.7.2"));
    let second = job(Some(A), Attempt::new(7, 2), &sinks);
    let staged = stage(&fixture.root, &second, &[2]).unwrap();
    let aside = fixture.path("aside");
    let hook = |step| match step {
        Step::Rename(1) => {
            fs::rename(&folder, &aside).unwrap();
            Err(Error::Io {
                path: folder.clone(),
                source: std::io::Error::other("stopped"),
            })
        }
        _ => Ok(()),
    };
    staged
        .publish_by_steps(&[], &|| true, &hook)
        .map(drop)
        .unwrap_err();
    fs::rename(&aside, &folder).unwrap();
    fixture.root.die();
    fixture
}

/// A copy without the staging folder has neither the rest of the attempt nor the earlier files. Its record
/// stays, so that the half that is visible does not stay without notice.
#[test]
fn half_of_an_attempt_in_a_copy_without_staging_is_known_and_replaced() {
    for has_previous in [false, true] {
        let fixture = half_published(has_previous);
        fs::remove_dir_all(fixture.path(".casparian/staging")).unwrap();
        copy(&fixture, &["-a"]);
        let root = open(fixture.dir.path());
        assert_eq!(values(&fixture.path("a_7.parquet")), [2]);
        let adopted = root.adopt(A, Attempt::new(7, 2), &[]).unwrap().unwrap();
        assert_eq!(adopted.attempt, 2, "{has_previous}");
        assert_eq!((adopted.named.len(), adopted.others.len()), (0, 0));
        let settlement = Settlement {
            attempt: Attempt::new(7, 3),
            database: A.to_owned(),
            previous: Vec::new(),
            history: History::default(),
            keep: true,
        };
        assert_eq!(root.settle(&settlement).unwrap(), None);
        assert_eq!(fixture.files(), [""; 0], "{has_previous}");
    }
}

/// A record of an earlier release has no hashes, and the copy has other times, so nothing shows whether the
/// visible file is of the attempt or of the one before it.
#[test]
fn what_cannot_be_decided_in_a_copied_root_keeps_its_record_and_files() {
    let fixture = half_published(true);
    let record = fixture.path(&format!(".casparian/outputs/{A}/0/7"));
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    for (list, at) in [("outputs", 0), ("outputs", 1), ("previous", 0)] {
        let file = json[list]["files"][at].as_object_mut().unwrap();
        assert!(file.remove("sha256").is_some());
    }
    fs::write(&record, json.to_string()).unwrap();
    copy(&fixture, &["-r"]);
    let root = open(fixture.dir.path());
    assert_eq!(fixture.staged().len(), 1);
    assert_eq!(values(&fixture.path("a_7.parquet")), [2]);
    // The next attempt's error names the file. When it has been moved away, the earlier one is restored.
    let next = job(
        Some(A),
        Attempt::new(7, 3),
        &[("a", "parquet://a.parquet", "append")],
    );
    let error = publish(&root, &next, &[3]).unwrap_err();
    assert!(error.to_string().contains("a_7.parquet"), "{error}");
    fs::remove_file(fixture.path("a_7.parquet")).unwrap();
    root.bar(A, Attempt::new(7, 2)).unwrap();
    assert_eq!(values(&fixture.path("a_7.parquet")), [1]);
    assert_eq!(fixture.files(), ["a_7.parquet"]);
}

/// In a root that is no copy, a file that another attempt has published since is not removed, whatever its
/// content is.
#[test]
fn a_file_with_the_content_of_one_to_remove_stays_in_a_root_that_is_no_copy() {
    let fixture = Fixture::new();
    let both = [
        ("a", "parquet://a.parquet", "append"),
        ("b", "parquet://b.parquet", "append"),
    ];
    let of = |number, sinks| job(Some(A), Attempt::new(7, number), sinks);
    publish(&fixture.root, &of(1, &both), &[1]).unwrap();
    let folder = fixture.path(&format!(".casparian/staging/{A}.7.2"));
    let aside = fixture.path("aside");
    let staged = stage(&fixture.root, &of(2, &both[..1]), &[2]).unwrap();
    let hook = |step| match step {
        Step::Remove => {
            fs::rename(&folder, &aside).unwrap();
            Err(Error::Io {
                path: folder.clone(),
                source: std::io::Error::other("stopped"),
            })
        }
        _ => Ok(()),
    };
    staged
        .publish_by_steps(&[], &|| true, &hook)
        .map(drop)
        .unwrap_err();
    fs::rename(&aside, &folder).unwrap();
    fixture.root.die();
    let path = fixture.path("b_7.parquet");
    let content = fs::read(&path).unwrap();
    fs::write(fixture.path("new"), content).unwrap();
    fs::rename(fixture.path("new"), &path).unwrap();
    open(fixture.dir.path());
    assert_eq!(values(&fixture.path("a_7.parquet")), [2]);
    assert!(path.exists());
    assert_eq!(fixture.staged(), [""; 0]);
}

/// A move to another layout that stopped before or after it had given a file its second name.
#[test]
fn a_stopped_move_in_a_copied_root_leaves_each_file_one_name() {
    for (has_old, has_new, is_moved) in [
        (true, false, false),
        (true, true, false),
        (true, true, true),
        (true, false, true),
        (false, true, true),
    ] {
        let fixture = Fixture::new();
        let first = job(
            Some(A),
            Attempt::new(7, 1),
            &[("a", "parquet://a.parquet", "append")],
        );
        publish(&fixture.root, &first, &[1]).unwrap();
        let record = fixture.path(&format!(".casparian/outputs/{A}/0/7"));
        let mut json: serde_json::Value =
            serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
        json["outputs"]["files"][0]["also"] = "set/b.parquet".into();
        json["state"] = "committed".into();
        fs::write(&record, json.to_string()).unwrap();
        let (old, new) = (fixture.path("a_7.parquet"), fixture.path("set/b.parquet"));
        fs::create_dir(fixture.path("set")).unwrap();
        if has_new {
            fs::hard_link(&old, &new).unwrap();
        }
        if !has_old {
            fs::remove_file(&old).unwrap();
        }
        if is_moved {
            fs::write(fixture.path(&format!(".casparian/moved.{A}")), "{}").unwrap();
        }
        copy(&fixture, &["-r"]);
        let root = open(fixture.dir.path());
        // The job's next attempt ends the move.
        let next = job(
            Some(A),
            Attempt::new(7, 2),
            &[("b", "parquet://c.parquet", "append")],
        );
        let published = publish(&root, &next, &[2]);
        let what = format!("{has_old} {has_new} {is_moved}");
        published.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(fixture.files(), ["c_7.parquet"], "{what}");
    }
}
