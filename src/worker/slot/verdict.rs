//! How a plugin ended, from what its process and its bridge show.

use crate::job::{Attempt, Cause, Content};
use crate::plugin::Exit;
use crate::sink;

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whose fault it is.
    pub cause: Cause,
    /// What happened.
    pub message: String,
    /// How the process ended, when it ended by itself and the message does not contain it.
    pub exit: Option<String>,
    /// It came from another job's doing: the job is given back and nothing is counted.
    pub is_innocent: bool,
    /// It counts for the job, and says nothing about the worker.
    pub spares_worker: bool,
    /// The worker can run no job before that is repaired.
    pub is_trouble: bool,
    /// The plugin's code ended so: by an exception, an exit or a signal.
    pub is_plugins_end: bool,
    /// The number up to which attempts of the job are barred, when that is the reason.
    pub barred_by: Option<i64>,
    /// The attempt of another job whose output is in the way, when that is the reason.
    pub taken_by: Option<Attempt>,
    /// Others had the database of a sink locked.
    pub sink_locked: bool,
    /// The input changed while the job ran, or before.
    pub input_changed: bool,
    /// What its content is now, where it is not that of the job's file version.
    pub content: Option<Box<Content>>,
}

impl Failure {
    /// A failure.
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        Failure {
            cause,
            message: message.into(),
            exit: None,
            is_innocent: false,
            spares_worker: false,
            is_trouble: false,
            is_plugins_end: false,
            barred_by: None,
            taken_by: None,
            sink_locked: false,
            input_changed: false,
            content: None,
        }
    }
}

impl From<sink::Error> for Failure {
    fn from(error: sink::Error) -> Self {
        Failure {
            spares_worker: error.is_contention(),
            sink_locked: matches!(error, sink::Error::Locked { .. }),
            is_trouble: error.is_trouble(),
            barred_by: error.barred_by(),
            taken_by: error.taken_by(),
            ..Failure::new(error.cause(), error.to_string())
        }
    }
}

/// The failure that follows from the process's end (the reason when that was not seen), when no
/// other is known. `connected` and `complete` = the bridge was opened, and brought its end of
/// output.
pub(super) fn verdict(
    end: Result<Exit, Failure>,
    connected: bool,
    complete: bool,
) -> Option<Failure> {
    let exit = match end {
        Ok(exit) => exit,
        Err(failure) => return Some(failure),
    };
    let early = if connected {
        ""
    } else {
        " before it connected"
    };
    let (cause, message) = if exit.code.is_none() && exit.signal.is_none() {
        let message = format!("it is not known how the plugin's process ended{early}");
        (Cause::Worker, message)
    } else if exit.signal == Some(9) {
        let message = format!(
            "the plugin's process was ended by the kernel or another program with {exit}{early}"
        );
        return Some(Failure {
            spares_worker: true,
            ..Failure::new(Cause::Lost, message)
        });
    } else if !connected {
        // No line of the plugin has run.
        let message = format!("the plugin's process ended with {exit}{early}");
        (Cause::Environment, message)
    } else if !exit.is_clean() {
        let message = format!("the plugin's process ended with {exit}");
        return Some(Failure {
            is_plugins_end: true,
            ..Failure::new(Cause::Plugin, message)
        });
    } else if !complete {
        let message = "the plugin closed the bridge without an end of output".to_owned();
        (Cause::Plugin, message)
    } else {
        return None;
    };
    Some(Failure::new(cause, message))
}
