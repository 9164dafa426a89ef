//! Detects that the storage of an output folder does not respond, for example a hard mount of a network file
//! system whose server is down. A thread that waits for such storage cannot be ended, so other threads watch
//! it.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::statvfs;

use super::queue::GO_ON;
use crate::cli::clean::path_text;
use crate::cli::stderr::{print_last_line, print_line};
use crate::cli::{Failure, INTERRUPTED, failed};
use crate::limits;
use crate::thread;

/// Interval at which storage is queried and its answers are polled for.
const INTERVAL: Duration = Duration::from_millis(500);

/// Watches the storage of `output` until the process ends. Reports silence of
/// [`limits::OUTPUT_SILENCE_REPORTED`]. Ends the process, without cleaning up, when the silence has lasted
/// for `longest`, or at an interruption.
pub(super) fn watch(
    output: &Path,
    longest: Duration,
    interrupted: Arc<AtomicBool>,
) -> Result<(), Failure> {
    let output = std::path::absolute(output).map_err(failed)?;
    let answers = Arc::new(AtomicU64::new(0));
    let (asked, counter) = (output.clone(), answers.clone());
    start("output probe", move || {
        loop {
            ask(&asked);
            counter.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(INTERVAL);
        }
    })?;
    start("output watch", move || {
        let mut seen = 0;
        // Only time in which this thread ran, because a process that was stopped queried nothing.
        let mut silent = Duration::ZERO;
        let mut is_reported = false;
        loop {
            std::thread::sleep(INTERVAL);
            let answers = answers.load(Ordering::SeqCst);
            silent = match answers == seen {
                true => silent.saturating_add(INTERVAL),
                false => Duration::ZERO,
            };
            seen = answers;
            match decide(
                silent,
                longest,
                is_reported,
                interrupted.load(Ordering::SeqCst),
            ) {
                Step::Nothing => {}
                Step::Report(what) => {
                    is_reported = silent > Duration::ZERO;
                    let output = path_text(&output);
                    print_line(format_args!(
                        "casparian: output {output}: its storage {what}"
                    ));
                }
                Step::End(code, why) => end(code, &output, &why),
            }
        }
    })
}

/// What is to be done after a silence.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// Text about the storage.
    Report(String),
    /// The exit code and the reason.
    End(u8, String),
}

fn decide(silent: Duration, longest: Duration, is_reported: bool, is_interrupted: bool) -> Step {
    let seconds = longest.as_secs();
    if silent.is_zero() && is_reported {
        return Step::Report("responds again".to_owned());
    }
    if silent < limits::OUTPUT_SILENCE_REPORTED {
        return Step::Nothing;
    }
    if is_interrupted {
        let why = "does not respond, and the run was interrupted";
        return Step::End(INTERRUPTED, why.to_owned());
    }
    if silent >= longest {
        let why = format!("has not responded for {seconds} s (--outage-timeout)");
        return Step::End(1, why);
    }
    match is_reported {
        true => Step::Nothing,
        false => Step::Report(format!("does not respond; waiting for at most {seconds} s")),
    }
}

/// Ends the process. The queue is left as by a killed run. A thread that waits for the storage may delay the
/// end until the storage responds.
fn end(code: u8, output: &Path, why: &str) -> ! {
    let output = path_text(output);
    print_last_line(format_args!(
        "casparian: output {output}: its storage {why}; once it responds, {GO_ON}"
    ));
    std::process::exit(i32::from(code))
}

/// Returns when the storage has answered, also with an error. If a folder does not exist, the nearest
/// existing folder above it is queried.
fn ask(output: &Path) {
    for folder in output.ancestors().map(PathBuf::from) {
        let is_missing = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
        // Not only the attributes, because they may come from a cache.
        match statvfs(&folder) {
            Err(error) if is_missing(&error.into()) => {}
            _ => match File::open(&folder) {
                Err(error) if is_missing(&error) => {}
                _ => return,
            },
        }
    }
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let error = "the output folder cannot be watched";
    let started = thread::start(name, run);
    started
        .map(drop)
        .map_err(|reason| failed(format!("{error}: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_is_reported_once_and_ends_the_run_by_its_bound_or_an_interruption() {
        let longest = Duration::from_secs(60);
        let waiting = || Step::Report("does not respond; waiting for at most 60 s".to_owned());
        let again = || Step::Report("responds again".to_owned());
        let interrupted = "does not respond, and the run was interrupted".to_owned();
        let bound = "has not responded for 60 s (--outage-timeout)".to_owned();
        for (seconds, is_reported, is_interrupted, step) in [
            (0, false, false, Step::Nothing),
            (9, false, false, Step::Nothing),
            (9, false, true, Step::Nothing),
            (10, false, false, waiting()),
            (11, true, false, Step::Nothing),
            (0, true, false, again()),
            (10, false, true, Step::End(INTERRUPTED, interrupted)),
            (60, true, false, Step::End(1, bound)),
        ] {
            let silent = Duration::from_secs(seconds);
            let found = decide(silent, longest, is_reported, is_interrupted);
            assert_eq!(found, step, "{seconds} s {is_reported} {is_interrupted}");
        }
    }
}
