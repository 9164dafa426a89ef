//! Decides how a plugin failed, from the exit of its process and from its bridge.

use crate::job::{Attempt, Cause, Content};
use crate::plugin::Exit;
use crate::sink;

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Cause of the failure.
    pub cause: Cause,
    /// What happened.
    pub message: String,
    /// How the process ended, if it ended by itself and the message does not contain it.
    pub exit: Option<String>,
    /// Caused by another job or the environment's state: the job is given back, uncounted.
    pub is_uncounted: bool,
    /// Counts for the job, and does not count against the worker.
    pub is_neutral_for_worker: bool,
    /// The worker can run no job until the fault is repaired.
    pub is_trouble: bool,
    /// The plugin's code ended in this way: by an exception, an exit or a signal.
    pub ended_by_plugin_code: bool,
    /// If attempts of the job are barred: the number up to which they are.
    pub barred_by: Option<i64>,
    /// If output of another job is in the sink: that attempt.
    pub taken_by: Option<Attempt>,
    /// Other programs had locked the database of a sink.
    pub sink_locked: bool,
    /// The input changed while the job ran, or before.
    pub input_changed: bool,
    /// The plugin process had another file at the path of its input, or none that it could read, although the
    /// input has not changed for the worker.
    pub other_input: bool,
    /// The input's present content, if it is not that of the job's file version.
    pub content: Option<Box<Content>>,
}

impl Failure {
    /// A failure without further properties.
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        Failure {
            cause,
            message: message.into(),
            exit: None,
            is_uncounted: false,
            is_neutral_for_worker: false,
            is_trouble: false,
            ended_by_plugin_code: false,
            barred_by: None,
            taken_by: None,
            sink_locked: false,
            input_changed: false,
            other_input: false,
            content: None,
        }
    }
}

impl From<sink::Error> for Failure {
    fn from(error: sink::Error) -> Self {
        Failure {
            is_neutral_for_worker: error.is_contention(),
            sink_locked: matches!(error, sink::Error::Locked { .. }),
            is_trouble: error.is_trouble(),
            barred_by: error.barred_by(),
            taken_by: error.taken_by(),
            ..Failure::new(error.cause(), error.to_string())
        }
    }
}

/// The failure that follows from the exit of the process (`end` is a failure if the exit is unknown), if
/// there is no other failure. `connected` = the bridge was opened. `complete` = its end of output was
/// received.
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
            is_neutral_for_worker: true,
            ..Failure::new(Cause::Lost, message)
        });
    } else if !connected {
        // No code of the plugin has run.
        let message = format!("the plugin's process ended with {exit}{early}");
        (Cause::Environment, message)
    } else if !exit.is_clean() {
        let message = format!("the plugin's process ended with {exit}");
        return Some(Failure {
            ended_by_plugin_code: true,
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
