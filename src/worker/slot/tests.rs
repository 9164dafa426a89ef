use super::*;
use crate::sink;

const TIMEOUT: Duration = Duration::from_secs(100);
const TIMEOUTS: Timeouts = Timeouts {
    job: TIMEOUT,
    job_of: LimitOf::Operator,
    writer: Duration::from_secs(40),
    publish: Duration::from_secs(120),
};
const NOW: BootTime = BootTime::after_boot(Duration::from_secs(1000));

fn at(seconds: u64) -> BootTime {
    NOW + Duration::from_secs(seconds)
}

fn code(code: i32) -> Exit {
    Exit {
        code: Some(code),
        ..Exit::UNKNOWN
    }
}

fn signal(signal: i32) -> Exit {
    Exit {
        signal: Some(signal),
        ..Exit::UNKNOWN
    }
}

fn drain(slot: &mut Slot) -> Vec<Action> {
    std::iter::from_fn(|| slot.poll(true, NOW)).collect()
}

fn running() -> Slot {
    let mut slot = Slot::new(TIMEOUTS);
    slot.handle_started(NOW);
    slot.handle_connected();
    slot
}

/// Carries out all actions until the job is concluded. Where there is no action, the next deadline passes.
/// Returns the failure, and whether the process was killed.
fn concluded(slot: &mut Slot) -> (Option<Failure>, bool) {
    let mut killed = false;
    let mut now = NOW;
    for _ in 0..100 {
        match slot.poll(true, now) {
            Some(Action::Kill) => {
                killed = true;
                slot.handle_exited(signal(9), now);
            }
            Some(Action::Stage) => slot.handle_staged(),
            Some(Action::Publish) => slot.handle_published(),
            Some(Action::Discard) => slot.handle_discarded(),
            Some(Action::GiveUp(cause)) => slot.handle_given_up(Failure::new(cause, "silent")),
            Some(Action::Conclude(failure)) => return (failure, killed),
            None => {
                now = slot.poll_timeout().expect("it has a deadline");
                slot.handle_timeout(now);
            }
        }
    }
    panic!("not concluded: {slot:?}");
}

#[test]
fn a_good_job_is_staged_then_published_then_concluded() {
    let mut slot = running();
    assert!(drain(&mut slot).is_empty());
    slot.handle_end(NOW);
    assert_eq!(drain(&mut slot), [Action::Stage]);
    slot.handle_staged();
    assert!(
        drain(&mut slot).is_empty(),
        "the exit code is not known yet"
    );
    slot.handle_exited(code(0), NOW);
    assert_eq!(slot.poll(false, NOW), None, "the sentinel has not answered");
    assert!(slot.is_staged());
    assert_eq!(drain(&mut slot), [Action::Publish]);
    slot.handle_published();
    assert_eq!(drain(&mut slot), [Action::Conclude(None)]);
    assert_eq!(drain(&mut slot), []);
}

/// The bridge's end and the exit are observed in either order. The reason is the same.
#[test]
fn the_reason_does_not_depend_on_what_is_seen_first() {
    type Step = fn(&mut Slot);
    let end: Step = |slot| slot.handle_end(NOW);
    let failure: Step = |slot| slot.handle_failure("ValueError: my message".into(), NOW);
    let input: Step = |slot| slot.handle_failure("input: /x: it is a FIFO".into(), NOW);
    let eof: Step = |slot| slot.handle_closed(NOW);
    /// Cause, words of the message, exit that the failure has.
    type Want = Option<(Cause, &'static str, Option<&'static str>)>;
    let environment: Step = |slot| slot.handle_failure("environment: no pyarrow".into(), NOW);
    let wordless: Step = |slot| slot.handle_failure(" \n".into(), NOW);
    let cases: [(&str, Step, Exit, Want); 11] = [
        (
            "fails without a word",
            wordless,
            code(0),
            Some((Cause::Plugin, "gave no reason", None)),
        ),
        (
            "no pyarrow",
            environment,
            code(1),
            Some((Cause::Environment, "no pyarrow", Some("exit code 1"))),
        ),
        ("good", end, code(0), None),
        (
            "raises",
            failure,
            code(1),
            Some((Cause::Plugin, "my message", Some("exit code 1"))),
        ),
        (
            "raises, then crashes",
            failure,
            signal(11),
            Some((Cause::Plugin, "my message", Some("signal 11 (SIGSEGV)"))),
        ),
        (
            "raises, then exits well",
            failure,
            code(0),
            Some((Cause::Plugin, "my message", None)),
        ),
        (
            "input",
            input,
            code(1),
            Some((Cause::Input, "FIFO", Some("exit code 1"))),
        ),
        (
            "exits",
            eof,
            code(3),
            Some((Cause::Plugin, "ended with exit code 3", None)),
        ),
        (
            "is killed by another",
            eof,
            signal(9),
            Some((Cause::Lost, "signal 9 (SIGKILL)", None)),
        ),
        (
            "exits well too early",
            eof,
            code(0),
            Some((Cause::Plugin, "without an end of output", None)),
        ),
        (
            "ends, then crashes",
            end,
            signal(6),
            Some((Cause::Plugin, "signal 6", None)),
        ),
    ];
    for (name, bridge, exit, want) in cases {
        for exit_first in [false, true] {
            for seen_by_pidfd in [false, true] {
                let mut slot = running();
                let leave = |slot: &mut Slot| {
                    if seen_by_pidfd {
                        slot.handle_exit_seen(exit, NOW);
                    }
                    slot.handle_exited(exit, NOW);
                };
                if exit_first {
                    leave(&mut slot);
                    assert_eq!(drain(&mut slot), [], "{name}: decided with bytes unread");
                    assert!(slot.reads(), "{name}");
                    bridge(&mut slot);
                } else {
                    bridge(&mut slot);
                    leave(&mut slot);
                }
                let (got, killed) = concluded(&mut slot);
                let shown = got.as_ref().map(|failure| {
                    let exit = failure.exit.as_deref();
                    (failure.cause, failure.message.as_str(), exit)
                });
                assert!(!killed, "{name}");
                match (&shown, &want) {
                    (None, None) => {}
                    (Some((cause, message, exit)), Some((cause_want, words, exit_want))) => {
                        assert_eq!((cause, exit), (cause_want, exit_want), "{name}: {shown:?}");
                        assert!(message.contains(words), "{name}: {shown:?}");
                    }
                    _ => panic!("{name}, exit first {exit_first}: {shown:?}"),
                }
                assert_eq!(slot.own_exit(), Some(exit), "{name}");
            }
        }
    }
}

#[test]
fn what_the_worker_decides_kills_and_does_not_name_its_own_signal() {
    type Step = fn(&mut Slot);
    let cases: [(&str, Step, Cause, &str); 8] = [
        (
            "abort",
            |slot| slot.handle_abort("aborted by the sentinel"),
            Cause::Operator,
            "aborted",
        ),
        (
            "garbage",
            |slot| slot.handle_bridge_broken(Failure::new(Cause::Plugin, "garbage")),
            Cause::Plugin,
            "garbage",
        ),
        (
            "disk full",
            |slot| slot.handle_output_failed(Failure::new(Cause::Worker, "disk full")),
            Cause::Worker,
            "disk full",
        ),
        (
            "time-out",
            |slot| slot.handle_timeout(NOW + TIMEOUT),
            Cause::Plugin,
            "limit of 100 s",
        ),
        (
            "end, then no exit",
            |slot| slot.handle_end(NOW),
            Cause::Plugin,
            "did not exit",
        ),
        (
            "failure, then no exit",
            |slot| slot.handle_failure("ValueError: x".into(), NOW),
            Cause::Plugin,
            "ValueError",
        ),
        (
            "EOF, then no exit",
            |slot| slot.handle_closed(NOW),
            Cause::Plugin,
            "without an end",
        ),
        (
            "disk full after the end",
            |slot| {
                slot.handle_end(NOW);
                assert_eq!(slot.poll(true, NOW), Some(Action::Stage));
                slot.handle_output_failed(Failure::new(Cause::Worker, "disk full"));
            },
            Cause::Worker,
            "disk full",
        ),
    ];
    for (name, step, cause, words) in cases {
        let mut slot = running();
        step(&mut slot);
        let (failure, killed) = concluded(&mut slot);
        let failure = failure.expect("it failed");
        assert!(killed, "{name}");
        assert_eq!((failure.cause, &failure.exit), (cause, &None), "{name}");
        assert!(failure.message.contains(words), "{name}: {failure:?}");
        assert_eq!(slot.own_exit(), None, "{name}: the signal was ours");
    }
}

#[test]
fn starts_that_fail_are_not_the_plugins_fault() {
    type Step = fn(&mut Slot);
    let cases: [(&str, Step, Cause, &str); 6] = [
        (
            "no interpreter",
            |slot| slot.handle_start_failed(Failure::new(Cause::Environment, "no interpreter")),
            Cause::Environment,
            "no interpreter",
        ),
        (
            "exits before it connects",
            |slot| {
                slot.handle_started(NOW);
                slot.handle_exited(code(1), NOW);
            },
            Cause::Environment,
            "exit code 1 before it connected",
        ),
        (
            "is killed before it connects",
            |slot| {
                slot.handle_started(NOW);
                slot.handle_exited(signal(9), NOW);
            },
            Cause::Lost,
            "signal 9 (SIGKILL) before it connected",
        ),
        (
            "ends unseen before it connects",
            |slot| {
                slot.handle_started(NOW);
                slot.handle_exited(Exit::UNKNOWN, NOW);
            },
            Cause::Worker,
            "not known how",
        ),
        (
            "never connects",
            |slot| slot.handle_started(NOW),
            Cause::Worker,
            "did not connect",
        ),
        (
            "interpreter lost",
            |slot| {
                slot.handle_requested();
                slot.handle_start_failed(Failure::new(Cause::Worker, "interpreter died"));
            },
            Cause::Worker,
            "interpreter died",
        ),
    ];
    for (name, step, cause, words) in cases {
        let mut slot = Slot::new(TIMEOUTS);
        step(&mut slot);
        let failure = concluded(&mut slot).0.expect("it failed");
        assert_eq!(failure.cause, cause, "{name}: {failure:?}");
        assert!(failure.message.contains(words), "{name}: {failure:?}");
    }
}

#[test]
fn after_the_exit_the_bridge_is_read_as_long_as_bytes_come() {
    let mut slot = running();
    slot.handle_exited(code(0), NOW);
    let idle = limits::BRIDGE_DRAIN_TIMEOUT;
    // Slow, and longer than the deadline in total, as with a slow disk.
    let mut now = NOW;
    for _ in 0..20 {
        now = now + idle / 2;
        slot.handle_timeout(now);
        assert!(slot.reads());
        slot.handle_progress(now);
    }
    slot.handle_end(now);
    assert_eq!(concluded(&mut slot).0, None);
    // Another process keeps the bridge open and sends nothing.
    let mut slot = running();
    slot.handle_exited(code(0), NOW);
    assert_eq!(slot.poll_timeout(), Some(NOW + idle));
    let failure = concluded(&mut slot).0.expect("it failed");
    assert!(failure.message.contains("without an end of output"));
    // Another process keeps it open and never stops sending.
    let mut slot = running();
    slot.handle_exited(code(0), NOW);
    for second in 0..TIMEOUT.as_secs() {
        slot.handle_progress(at(second));
        slot.handle_timeout(at(second));
    }
    slot.handle_timeout(NOW + TIMEOUT);
    let failure = concluded(&mut slot).0.expect("it failed");
    assert!(failure.message.contains("limit of 100 s"), "{failure:?}");
}

#[test]
fn a_time_out_while_the_input_is_read_is_the_inputs() {
    for (reads_input, cause) in [(true, Cause::Input), (false, Cause::Plugin)] {
        let mut slot = running();
        slot.handle_writer_progress(NOW, reads_input);
        slot.handle_timeout(NOW + TIMEOUT);
        let failure = concluded(&mut slot).0.expect("it failed");
        assert_eq!(failure.cause, cause, "{failure:?}");
        assert!(failure.message.contains("limit of 100 s"), "{failure:?}");
    }
}

#[test]
fn a_process_that_does_not_die_is_given_up() {
    let mut slot = running();
    slot.handle_timeout(NOW + TIMEOUT);
    let now = NOW + TIMEOUT;
    assert_eq!(slot.poll(true, now), Some(Action::Kill));
    assert_eq!(slot.poll(true, now), Some(Action::Discard));
    slot.handle_discarded();
    assert_eq!(slot.poll(true, now), None, "it may still run");
    let given_up = now + limits::KILL_TIMEOUT;
    assert_eq!(slot.poll_timeout(), Some(given_up));
    slot.handle_timeout(given_up);
    let failure = concluded(&mut slot).0.expect("it failed");
    assert!(failure.message.contains("limit of 100 s"), "{failure:?}");
}

#[test]
fn an_exit_that_is_not_reported_counts_as_the_kernel_shows_it() {
    for (exit, want) in [
        (code(0), None),
        (code(3), Some(Cause::Plugin)),
        (Exit::UNKNOWN, Some(Cause::Worker)),
    ] {
        let mut slot = running();
        slot.handle_end(NOW);
        slot.handle_exit_seen(exit, NOW);
        assert_eq!(
            slot.poll_timeout(),
            Some(NOW + limits::FORK_SERVER_REPORT_TIMEOUT),
            "{exit}"
        );
        let (failure, killed) = concluded(&mut slot);
        assert_eq!(failure.map(|failure| failure.cause), want, "{exit}");
        assert!(!killed);
    }
}

/// As when the kernel is short of memory: the fork server cannot report the exit in time.
#[test]
fn an_exit_that_is_seen_counts_whenever_the_bridge_is_seen_to_close() {
    for (exit, want) in [
        (signal(9), Cause::Lost),
        (signal(11), Cause::Plugin),
        (code(3), Cause::Plugin),
    ] {
        let mut messages = Vec::new();
        for closed_first in [true, false] {
            let mut slot = running();
            if closed_first {
                slot.handle_closed(NOW);
                slot.handle_exit_seen(exit, NOW);
            } else {
                slot.handle_exit_seen(exit, NOW);
                slot.handle_closed(NOW);
            }
            let (failure, killed) = concluded(&mut slot);
            let failure = failure.unwrap();
            assert_eq!(failure.cause, want, "{exit} {closed_first}: {failure:?}");
            assert!(!killed);
            messages.push(failure.message);
        }
        assert_eq!(messages[0], messages[1], "{exit}");
    }
}

#[test]
fn a_lost_process_is_innocent_unless_it_has_reported_otherwise() {
    let lost = || Failure::new(Cause::Worker, "the fork server has died");
    type Step = fn(&mut Slot);
    let cases: [(&str, Step, Cause); 3] = [
        (
            "in the middle",
            |slot| slot.handle_closed(NOW),
            Cause::Worker,
        ),
        ("after its end", |slot| slot.handle_end(NOW), Cause::Worker),
        (
            "after its failure",
            |slot| slot.handle_failure("ValueError: x".into(), NOW),
            Cause::Plugin,
        ),
    ];
    for (name, bridge, cause) in cases {
        for lost_first in [false, true] {
            let mut slot = running();
            if lost_first {
                slot.handle_lost(lost(), NOW);
            }
            bridge(&mut slot);
            slot.handle_lost(lost(), NOW);
            let failure = concluded(&mut slot).0.expect("it failed");
            assert_eq!(failure.cause, cause, "{name}: {failure:?}");
        }
    }
}

#[test]
fn the_time_out_counts_the_plugins_time_only() {
    // The time for the environment does not count.
    let mut slot = Slot::new(TIMEOUTS);
    assert_eq!(slot.poll_timeout(), None);
    slot.handle_timeout(at(10_000));
    assert_eq!(drain(&mut slot), []);
    // Nor does the start of the fork server.
    slot.handle_requested();
    slot.handle_timeout(at(10_000));
    assert_eq!(drain(&mut slot), []);
    // Nor does the wait for a lease.
    let mut slot = running();
    slot.handle_end(NOW);
    assert_eq!(slot.poll(false, NOW), Some(Action::Stage));
    slot.handle_exited(code(0), NOW);
    assert_eq!(slot.poll_timeout(), Some(NOW + TIMEOUT), "not staged yet");
    slot.handle_staged();
    assert_eq!(slot.poll_timeout(), None);
    slot.handle_timeout(at(10_000));
    assert_eq!(drain(&mut slot), [Action::Publish]);
}

#[test]
fn an_abort_that_comes_too_late_changes_nothing() {
    let mut slot = running();
    slot.handle_end(NOW);
    drain(&mut slot);
    slot.handle_staged();
    slot.handle_exited(code(0), NOW);
    assert_eq!(drain(&mut slot), [Action::Publish]);
    slot.handle_abort("too late");
    slot.handle_timeout(NOW + TIMEOUT);
    slot.handle_published();
    assert_eq!(drain(&mut slot), [Action::Conclude(None)]);
}

/// A writer whose storage does not respond is given up after its time limit. Its later reports change
/// nothing.
#[test]
fn a_silent_writer_is_given_up() {
    type Step = fn(&mut Slot);
    let cases: [(&str, Step, Cause, &str); 4] = [
        ("time-out", |_| {}, Cause::Worker, "silent"),
        (
            "time-out while it stages",
            |slot| {
                slot.handle_end(NOW);
                slot.handle_exited(code(0), NOW);
                assert_eq!(drain(slot), [Action::Stage]);
            },
            Cause::Worker,
            "silent",
        ),
        (
            "abort",
            |slot| slot.handle_abort("aborted by the sentinel"),
            Cause::Operator,
            "aborted",
        ),
        (
            "the plugin's own failure",
            |slot| {
                slot.handle_failure("ValueError: x".into(), NOW);
                slot.handle_exited(code(1), NOW);
            },
            Cause::Plugin,
            "ValueError",
        ),
    ];
    for (name, step, cause, words) in cases {
        let mut slot = running();
        step(&mut slot);
        let failed = at(100);
        slot.handle_timeout(failed);
        while let Some(action) = slot.poll(true, failed) {
            if action == Action::Kill {
                slot.handle_exited(signal(9), failed);
            }
        }
        let due = failed + TIMEOUTS.writer;
        assert_eq!(slot.poll_timeout(), Some(due), "{name}");
        // A step of its work extends the deadline by the same time.
        slot.handle_writer_progress(at(110), false);
        slot.handle_timeout(due);
        assert_eq!(slot.poll(true, due), None, "{name}");
        let due = at(110) + TIMEOUTS.writer;
        slot.handle_timeout(due);
        assert_eq!(slot.poll_timeout(), None, "{name}");
        let action = slot.poll(true, due);
        assert_eq!(action, Some(Action::GiveUp(Cause::Worker)), "{name}");
        slot.handle_given_up(Failure::new(Cause::Worker, "silent"));
        slot.handle_published();
        slot.handle_output_failed(Failure::new(Cause::Plugin, "late"));
        let Some(Action::Conclude(Some(failure))) = slot.poll(true, due) else {
            panic!("{name}: not concluded: {slot:?}");
        };
        assert_eq!(failure.cause, cause, "{name}");
        assert!(failure.message.contains(words), "{name}: {failure:?}");
        assert_eq!(slot.poll(true, due), None, "{name}");
    }
}

#[test]
fn a_publish_that_does_not_end_counts_as_the_loss_of_its_holder() {
    let mut slot = running();
    slot.handle_end(NOW);
    drain(&mut slot);
    slot.handle_staged();
    slot.handle_exited(code(0), NOW);
    assert_eq!(drain(&mut slot), [Action::Publish]);
    assert_eq!(slot.poll_timeout(), Some(NOW + TIMEOUTS.publish));
    // The lease ended. The job waits for another one without a deadline.
    slot.handle_not_granted();
    assert_eq!(slot.poll_timeout(), None);
    assert_eq!(slot.poll(true, at(50)), Some(Action::Publish));
    slot.handle_writer_progress(at(60), false);
    slot.handle_abort("too late");
    let due = at(60) + TIMEOUTS.publish;
    assert_eq!(slot.poll_timeout(), Some(due));
    slot.handle_timeout(due);
    let action = slot.poll(true, due);
    assert_eq!(action, Some(Action::GiveUp(Cause::Lost)));
    slot.handle_given_up(Failure::new(Cause::Lost, "silent"));
    slot.handle_published();
    let lost = Some(Failure::new(Cause::Lost, "silent"));
    assert_eq!(slot.poll(true, due), Some(Action::Conclude(lost)));
}

#[test]
fn a_sink_that_others_lock_is_distinguished_from_other_faults_of_the_worker() {
    let path = std::path::PathBuf::from("/x.db");
    for (error, expected) in [
        (sink::Error::Locked { path: path.clone() }, true),
        (
            sink::Error::Io {
                path,
                source: std::io::ErrorKind::StorageFull.into(),
            },
            false,
        ),
    ] {
        let failure = Failure::from(error);
        assert_eq!(failure.cause, Cause::Worker);
        assert_eq!(failure.sink_locked, expected);
    }
}
