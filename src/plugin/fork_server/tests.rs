//! Unit tests of `fork_server.rs`.

use super::*;
use crate::job::{Parameters, Plugin};
use crate::plugin::source::Source;

#[test]
fn only_children_of_a_fork_server_are_accepted_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let shim = dir.path().join("shim");
    let text = format!(
        "sleep 1000 & echo $! > {0}/new; mv {0}/new {0}/child; wait",
        dir.path().display()
    );
    std::fs::write(&shim, text).unwrap();
    let server = ForkServer::start(Path::new("/bin/sh"), &shim, Imports::None, None).unwrap();
    let child = loop {
        if let Ok(text) = std::fs::read_to_string(dir.path().join("child")) {
            break text.trim().parse().unwrap();
        }
        std::thread::yield_now();
    };
    let own = i32::try_from(std::process::id()).unwrap();
    let mut reaped = std::process::Command::new("true").spawn().unwrap();
    let ended = i32::try_from(reaped.id()).unwrap();
    reaped.wait().unwrap();
    let taken = |number| server.child_process(number);
    let Started::Running(process) = taken(child).unwrap() else {
        panic!("it runs");
    };
    assert_eq!(process.id(), child);
    // A reaped process, and an ID above the kernel's highest process ID.
    for number in [ended, 1 << 30] {
        let taken = taken(number).unwrap();
        assert!(matches!(taken, Started::Ended(ended) if ended == number));
    }
    for (number, words) in [
        (own, "is none of the interpreter's"),
        (0, "0 is no process ID"),
        (-child, "is no process ID"),
    ] {
        let error = taken(number).unwrap_err().to_string();
        assert!(error.contains(words), "{number}: {error}");
    }
    server.process.kill();
}

#[test]
fn a_fork_server_that_reads_no_requests_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let shim = dir.path().join("shim");
    std::fs::write(&shim, "exec sleep 1000").unwrap();
    let mut server = ForkServer::start(Path::new("/bin/sh"), &shim, Imports::None, None).unwrap();
    let source = Source::new(Plugin::default().into()).unwrap();
    let job = Job {
        job_id: 1,
        file_version_id: 1,
        plugin_name: "p",
        file_path: "in",
        source: &source,
        parameters: &Parameters::default(),
        shim: None,
        interpreter: None,
        sandbox: None,
        open_files: 0,
        socket_path: &shim,
        work_dir: dir.path(),
    };
    let refused = (0..100_000).find_map(|key| server.request(key, &job).err());
    assert!(matches!(refused, Some(Error::Full)), "{refused:?}");
    assert!(!server.process().has_exited());
}
