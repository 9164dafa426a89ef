//! Unit tests of `tool.rs`.

use std::fs;

use super::*;

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn the_error_of_a_tool_that_fails_has_its_last_lines() {
    let cancel = AtomicBool::new(false);
    let command = shell("for i in 1 2 3; do echo line $i >&2; done; exit 3");
    let error = run(&command, "sh", &cancel).unwrap_err().to_string();
    assert_eq!(error, "sh failed: line 1\nline 2\nline 3");
    let error = run(&shell("exit 3"), "sh", &cancel).unwrap_err();
    assert_eq!(error.to_string(), "sh failed: exit status: 3");
    let cancelled = run(&shell("sleep 1000"), "sleep", &AtomicBool::new(true));
    assert!(matches!(cancelled, Err(Error::Cancelled)));
}

#[test]
fn the_error_of_a_tool_that_takes_too_long_has_its_last_lines() {
    let cancel = AtomicBool::new(false);
    let limit = Duration::from_secs(1);
    let fails = |script: &str| {
        let ended = output(&mut shell(script), "sh", limit, &cancel);
        ended.err().expect("it takes too long").to_string()
    };
    let reason = fails("echo waiting for x >&2; printf half; sleep 1000");
    assert_eq!(reason, "sh took longer than 1 s: waiting for x\nhalf");
    let reason = fails("exec sleep 1000");
    assert_eq!(reason, "sh took longer than 1 s and printed nothing");
}

#[test]
fn a_tool_gets_its_words_and_variables_and_leaves_nothing_in_its_group() {
    let cancel = AtomicBool::new(false);
    let dir = tempfile::tempdir().unwrap();
    let (out, left) = (dir.path().join("out"), dir.path().join("left"));
    let mut command =
        shell("printf '%s|' \"$@\" \"$A\" \"$(cat)\" > $0; sleep 1000 & echo $! > $1");
    command
        .arg(&out)
        .arg(&left)
        .args(["a b", "$A"])
        .env("A", "'\"");
    run(&command, "sh", &cancel).unwrap();
    let words = format!("{}|a b|$A|'\"||", left.display());
    assert_eq!(fs::read_to_string(&out).unwrap(), words);
    let pid = fs::read_to_string(&left).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    let until = BootTime::now() + Duration::from_secs(20);
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(BootTime::now() < until, "{pid} is left");
        std::thread::sleep(POLL_INTERVAL);
    }
    let missing = Command::new(dir.path().join("missing"));
    let error = run(&missing, "it", &cancel).unwrap_err().to_string();
    assert!(error.contains("not found"), "{error}");
}

#[test]
fn a_grandchild_that_holds_stderr_delays_nothing() {
    let cancel = AtomicBool::new(false);
    let before = BootTime::now();
    run(&shell("setsid sleep 30 & exit 0"), "sh", &cancel).unwrap();
    let failed = run(&shell("setsid sleep 30 & exit 3"), "sh", &cancel).unwrap_err();
    assert!(failed.to_string().contains("exit status: 3"), "{failed}");
    let took = BootTime::now().saturating_duration_since(before);
    assert!(took < Duration::from_secs(25), "{took:?}");
}

#[test]
fn a_grandchild_that_holds_stderr_takes_no_reason_away() {
    let cancel = AtomicBool::new(false);
    let dir = tempfile::tempdir().unwrap();
    let over = dir.path().join("over");
    let fails = |script: &str| {
        let mut command = shell(script);
        command.arg(&over);
        run(&command, "sh", &cancel).unwrap_err().to_string()
    };
    for stays in ["sleep 1000", "setsid sleep 1000"] {
        let reason = fails(&format!("echo why >&2; {stays} & exit 3"));
        assert_eq!(reason, "sh failed: why", "{stays}");
    }
    for floods in ["yes '' >&2 & yes ''", "setsid yes '' >&2"] {
        let reason = fails(&format!("echo why >&2; {floods} & exit 3"));
        assert_eq!(reason, "sh failed: why", "{floods}");
    }
    // The pipe is closed because it is no longer read, so `echo` fails and the loop ends.
    let goes_on = "trap '' PIPE; : > $0.up; while echo x; do sleep 0.01; done 2>/dev/null; : > $0";
    // Until `setsid` has run, the process is in the group, which is killed.
    let until_up = "while [ ! -e $0.up ]; do sleep 0.01; done";
    fails(&format!("setsid sh -c {goes_on:?} & {until_up}; exit 3"));
    let until = BootTime::now() + Duration::from_secs(20);
    while !over.exists() {
        assert!(BootTime::now() < until, "the pipe is read for ever");
        std::thread::sleep(POLL_INTERVAL);
    }
}
