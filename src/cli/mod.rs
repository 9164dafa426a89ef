//! The command lines: `casparian` with its commands, `casparian-sentinel`, `casparian-worker`.
//!
//! Exit codes: 0 = success, 1 = the command or some jobs failed, 2 = the command line is invalid, 130 = the
//! command was interrupted. An error is one line on stderr. Results are written to stdout.

// Some of it is used only by commands of the whole program.
#[cfg_attr(not(all(feature = "sentinel", feature = "worker")), allow(dead_code))]
mod args;
mod clean;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod content;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod deploy;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod entry;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod env;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod folder;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod fsck;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod init;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod input;
mod log_lines;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod operate;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod plugin;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod plugin_file;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod progress;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod publish;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod run;
mod security;
mod services;
mod stderr;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod summary;
#[cfg(all(feature = "sentinel", feature = "worker"))]
mod table;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use stderr::print_last_line;

/// Exit code of an interrupted command.
const INTERRUPTED: u8 = 130;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// `--help` was given. Contains the text.
    Help(String),
    /// `--version` was given.
    Version,
    /// The command line is invalid: the error line, without the hint that [`finish`] adds; exit code 2.
    Usage(String),
    /// The error line; exit code 1.
    Failed(String),
    /// The command was ended by SIGINT or SIGTERM. Exit code 130, as shells use for SIGINT.
    #[cfg_attr(not(all(feature = "sentinel", feature = "worker")), allow(dead_code))]
    Interrupted(&'static str),
    /// The error was already printed; exit code 1.
    #[cfg_attr(not(all(feature = "sentinel", feature = "worker")), allow(dead_code))]
    Reported,
}

#[cfg(all(feature = "sentinel", feature = "worker"))]
impl From<crate::sink::Error> for Failure {
    fn from(error: crate::sink::Error) -> Self {
        failed(format!("output folder: {error}"))
    }
}

/// A failure with the text of any value.
pub(crate) fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

/// A usage error with the text of any value.
pub(crate) fn usage_error(message: impl std::fmt::Display) -> Failure {
    Failure::Usage(message.to_string())
}

/// Converts a store error to a failure that names the database.
#[cfg(all(feature = "sentinel", feature = "worker"))]
fn failed_in(database: &std::path::Path) -> impl Fn(crate::store::Error) -> Failure + '_ {
    |error| failed(named(database, error.to_string()))
}

/// The text of a store error, with the path of the database.
#[cfg(feature = "sentinel")]
fn named(database: &std::path::Path, error: String) -> String {
    match error.strip_prefix("database: ") {
        Some(reason) => format!("database {}: {reason}", database.display()),
        None => error,
    }
}

/// Writes results to stdout. A closed pipe (`| head`) is not an error.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout()
        .lock()
        .write_all(clean::clean(text).as_bytes())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(failed(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// As [`print`], after something was done. If stdout cannot be written, the error contains `done`, too.
#[cfg(all(feature = "sentinel", feature = "worker"))]
pub(crate) fn print_done(text: &str, done: impl std::fmt::Display) -> Result<(), Failure> {
    print(text).map_err(|failure| match failure {
        Failure::Failed(reason) => failed(format!("{reason}; {done}")),
        other => other,
    })
}

/// Ends a command: prints the error line and returns the exit code.
fn finish(command: &str, result: Result<(), Failure>) -> ExitCode {
    let program = command.split(' ').next().unwrap_or(command);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Reported) => ExitCode::from(1),
        Err(Failure::Failed(message)) => {
            print_last_line(format_args!("{program}: {message}"));
            ExitCode::from(1)
        }
        Err(Failure::Interrupted(message)) => {
            print_last_line(format_args!("{program}: {message}"));
            ExitCode::from(INTERRUPTED)
        }
        Err(Failure::Usage(message)) => {
            let message = with_hint(command, &message);
            print_last_line(format_args!("{program}: {message}"));
            ExitCode::from(2)
        }
        Err(Failure::Help(text)) => exit_after(print(&text)),
        Err(Failure::Version) => {
            exit_after(print(&format!("{program} {}\n", env!("CARGO_PKG_VERSION"))))
        }
    }
}

/// The line of a usage error of a command.
fn with_hint(command: &str, message: &str) -> String {
    format!("{message}; see `{command} --help`")
}

/// Makes the memory of this process unreadable for other processes of its user, such as plugins, because it
/// contains keys. The process also writes no core file.
#[cfg(all(target_os = "linux", any(feature = "sentinel", feature = "worker")))]
fn hide_memory() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        print_last_line(format_args!(
            "casparian: other processes may read its memory: {error}"
        ));
    }
}

#[cfg(all(
    not(target_os = "linux"),
    any(feature = "sentinel", feature = "worker")
))]
fn hide_memory() {}

/// Sets up signals for all programs. A write beyond the limit of file sizes (`ulimit -f`) fails like one to a
/// full disk, instead of ending the program.
#[cfg(any(feature = "sentinel", feature = "worker"))]
fn set_up_signals() {
    if let Err(error) = crate::reactor::reset_signals() {
        print_last_line(format_args!("signals: {error}"));
    }
    let seen = std::sync::Arc::default();
    if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, seen) {
        print_last_line(format_args!("SIGXFSZ: {error}"));
    }
}

fn exit_after(printed: Result<(), Failure>) -> ExitCode {
    if printed.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

/// `casparian-sentinel`.
#[cfg(feature = "sentinel")]
pub fn sentinel_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    stderr::report_panics();
    set_up_signals();
    hide_memory();
    finish(
        "casparian-sentinel",
        services::sentinel::main(&services::sentinel::SENTINEL, arguments),
    )
}

/// `casparian-worker`.
#[cfg(feature = "worker")]
pub fn worker_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter().peekable();
    if arguments.next_if(is_launch).is_some() {
        return launch(arguments);
    }
    stderr::report_panics();
    set_up_signals();
    hide_memory();
    finish(
        "casparian-worker",
        services::worker::main(&services::worker::WORKER, arguments),
    )
}

/// True for the argument with which a program runs a plugin's interpreter in its sandbox.
#[cfg(feature = "worker")]
fn is_launch(argument: &OsString) -> bool {
    argument == crate::sandbox::launch::ARGUMENT
}

/// Executes the interpreter in the sandbox, or prints the error. A probe prints what the kernel supports.
#[cfg(feature = "worker")]
fn launch(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match crate::sandbox::launch::main(arguments) {
        Ok(text) => exit_after(print(&format!("{text}\n"))),
        Err(reason) => {
            print_last_line(format!("sandbox: {reason}"));
            ExitCode::FAILURE
        }
    }
}

/// `casparian`.
#[cfg(all(feature = "sentinel", feature = "worker"))]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter().peekable();
    if arguments.next_if(is_launch).is_some() {
        return launch(arguments);
    }
    stderr::report_panics();
    set_up_signals();
    hide_memory();
    let Some(command) = arguments.next() else {
        return finish("casparian", Err(usage_error("no command given")));
    };
    let name = command.to_str().unwrap_or("");
    let result = match name {
        "run" => run::main(arguments),
        "init" => init::init(arguments),
        "deploy" => deploy::deploy(arguments),
        "submit" => plugin::submit(arguments),
        "jobs" => operate::jobs(arguments),
        "job" => operate::job(arguments),
        "workers" => operate::workers(arguments),
        "fsck" => fsck::main(arguments),
        "env" => env::main(arguments),
        "sentinel" => services::sentinel::main(&services::sentinel::CASPARIAN_SENTINEL, arguments),
        "worker" => services::worker::main(&services::worker::CASPARIAN_WORKER, arguments),
        "keygen" => security::keygen(arguments),
        "sign" => publish::sign(arguments),
        "-h" | "--help" | "help" => Err(Failure::Help(overview())),
        "-V" | "--version" => Err(Failure::Version),
        _ => {
            let unknown = format!("unknown command {:?}", command.to_string_lossy());
            return finish("casparian", Err(usage_error(unknown)));
        }
    };
    finish(&format!("casparian {name}"), result)
}

/// Parses words as the arguments of every command, and returns the errors.
#[cfg(all(fuzzing, feature = "curve", feature = "sentinel", feature = "worker"))]
pub(crate) fn parse_all(words: &[OsString]) -> Vec<String> {
    let refusal = |command: &'static dyn args::Described| {
        let printed = match command.refusal(words.to_vec())? {
            Failure::Usage(message) => Failure::Usage(with_hint(command.name(), &message)),
            other => other,
        };
        Some(format!("{printed:?}"))
    };
    commands().into_iter().filter_map(refusal).collect()
}

#[cfg(all(feature = "sentinel", feature = "worker"))]
fn commands() -> Vec<&'static dyn args::Described> {
    vec![
        &run::COMMAND,
        &init::INIT,
        &deploy::DEPLOY,
        &plugin::SUBMIT,
        &operate::JOBS,
        &operate::JOB,
        &operate::WORKERS,
        &fsck::COMMAND,
        &env::COMMAND,
        &services::sentinel::CASPARIAN_SENTINEL,
        &services::worker::CASPARIAN_WORKER,
        &security::KEYGEN,
        &publish::SIGN,
    ]
}

#[cfg(all(feature = "sentinel", feature = "worker"))]
fn overview() -> String {
    let mut out = "Runs Python plugins over files and gives you Parquet.\n\n\
                   Usage: casparian COMMAND [OPTIONS]\n\nCommands:\n"
        .to_owned();
    for command in commands() {
        let name = command.name().rsplit(' ').next().unwrap_or("");
        let about = command.about().lines().next().unwrap_or("");
        out.push_str(&format!("  {name:10}{about}\n"));
    }
    out.push_str(
        "\n`casparian COMMAND --help` describes a command. RUST_LOG=info (or debug) shows what happens.\n",
    );
    out
}

#[cfg(all(test, feature = "sentinel", feature = "worker"))]
mod tests {
    #[test]
    fn no_command_has_two_flags_of_one_name() {
        for command in super::commands() {
            let flags = command.flags();
            let mut names: Vec<String> = flags.iter().map(|flag| flag.long.to_owned()).collect();
            let short = flags.iter().filter_map(|flag| flag.short);
            names.extend(short.map(String::from));
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count, "{}", command.name());
        }
    }
}
