//! The command `worker`, which is also the program `casparian-worker`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::job_flags::{JobFlags, PluginStartFlag, ShareFlag, probe};
use super::{absolute, default_endpoint, note_keys};
use crate::cli::args::{Command, Values, flags, no_positionals, values};
use crate::cli::security::{self, ListenerFlag, SecretKeyFlag, ServerKeyFlag};
use crate::cli::{Failure, failed, log_lines, print, usage_error};
use crate::limits;
use crate::reactor::Endpoint;
use crate::sandbox::Mode;
use crate::worker;

flags! {
    /// The flags of `worker`.
    pub(in crate::cli) struct WorkerFlags {
        /// The sentinel (default tcp://127.0.0.1:5555)
        connect: Option<Endpoint> = "connect" | 'c', "ENDPOINT" => values::endpoint;
        /// Users whose sentinel it accepts.
        listener: ListenerFlag;
        /// Where output goes (default ./output)
        output: Option<PathBuf> = "output" | 'o', "DIR" => values::path;
        /// Its output folder may be that of another database.
        sharing: ShareFlag;
        /// SQLite sinks stay in the output folder or in this one, links
        /// followed; plugins cannot change it; may be repeated (default:
        /// a sink with an absolute path may be anywhere but in a job
        /// queue)
        sink_root: Vec<PathBuf> = "sink-root", "DIR" => values::paths;
        /// Worker ID, reused across restarts (default: generated)
        worker_id: Option<String> = "worker-id", "ID" => worker_id;
        /// Jobs at a time (default: the number of cores)
        slots: Option<usize> =
            "slots", "N" => values::number(1..=limits::WORKER_SLOTS_MAX as u64);
        /// Plugins it runs, separated by commas (default *, any)
        plugins: Option<Vec<String>> = "plugins", "NAMES" => plugins;
        /// A job that takes longer is killed (default 3600)
        job_timeout: Option<Duration> =
            "job-timeout", "SECONDS" => values::seconds(1..=values::YEAR_SECONDS);
        /// How plugin processes start.
        start: PluginStartFlag;
        /// Run plugins by this shim instead of the built-in one
        /// (needs --plugin-start spawn)
        shim: Option<PathBuf> = "shim", "FILE" => values::path;
        /// How it runs jobs.
        jobs: JobFlags;
        /// Print what the kernel offers for --sandbox, and end; the exit
        /// code is 1 when something of it is missing
        check_sandbox: bool = "check-sandbox";
        /// The key of its sentinel.
        server: ServerKeyFlag;
        /// Its own key.
        own: SecretKeyFlag;
    }
}

const fn worker_command(name: &'static str) -> Command<WorkerFlags> {
    Command {
        name,
        about: "Runs jobs of a sentinel and writes their output",
        usage: "[OPTIONS]",
        flags: WorkerFlags::TABLE,
        notes: "A job that is over a limit (--job-...) fails, and its error names the limit; 0 is none. A plugin can lower\nthem in its PEP 723 metadata, [tool.casparian] job-memory = \"2G\" and so on.\n\nA sentinel with CURVE lets in workers whose key (--curve-secret-key) it lists; without\na key of its own a worker generates one, which needs --authorize-any-key there.\n\nSIGTERM or SIGINT: no more jobs are taken, running ones may end within 30 s;\na second one kills them (the sentinel gives them to others).",
    }
}

pub(in crate::cli) const WORKER: Command<WorkerFlags> = worker_command("casparian-worker");
#[cfg(feature = "sentinel")]
pub(in crate::cli) const CASPARIAN_WORKER: Command<WorkerFlags> =
    worker_command("casparian worker");

pub(in crate::cli) fn main(
    command: &Command<WorkerFlags>,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(), Failure> {
    let (flags, positionals) = command.parse(arguments)?;
    no_positionals(&positionals)?;
    if flags.check_sandbox {
        return check_sandbox();
    }
    let connect = flags.connect.unwrap_or_else(default_endpoint);
    if !connect.is_definite() {
        return Err(usage_error(format!(
            "--connect: cannot connect to the wildcard {connect}; give the sentinel's own port or path"
        )));
    }
    let is_local = connect.is_local();
    let named = absolute(flags.output.clone());
    let output = flags.output.unwrap_or("output".into());
    let secret = flags.own.curve_secret_key;
    let mut options = worker::Options::new(connect, output);
    options.security = security::worker(&flags.server, secret.as_ref())?;
    options.allowed_uids = security::allowed_uids(flags.listener.allow_uid, &options.security)?;
    flags.jobs.apply(&mut options)?;
    options.slots = flags.slots.unwrap_or(options.slots);
    options.job_timeout = flags.job_timeout.unwrap_or(options.job_timeout);
    options.plugin_start = flags.start.plugin_start.unwrap_or(options.plugin_start);
    let mut sandbox = flags.jobs.sandbox(&[]);
    sandbox.hidden = absolute(secret.clone());
    // If the value is a key instead of a file, no such path exists.
    let server = flags.server.curve_server_key.map(PathBuf::from);
    sandbox.read_only.extend(absolute(server));
    sandbox.named = named;
    options.sandbox = Some(sandbox);
    options.worker_id = flags.worker_id;
    options.capabilities = flags.plugins.unwrap_or(options.capabilities);
    options.share_output = flags.sharing.share_output;
    options.sink_roots = (!flags.sink_root.is_empty()).then_some(flags.sink_root);
    options.owns_process = true;
    options.shim = flags.shim;
    if options.shim.is_some() && options.plugin_start == worker::PluginStart::Warm {
        return Err(usage_error("--shim needs --plugin-start spawn"));
    }
    log_lines::start("info");
    if let Some(sandbox) = &options.sandbox
        && sandbox.mode != Mode::Off
    {
        log_sandbox(sandbox);
    }
    if !is_local && !options.security.is_encrypted() {
        log::warn!(
            "the connection to {} is not encrypted: any host on its path can run code on this worker",
            options.connect
        );
    }
    raise_worker_descriptor_limit();
    // The plugins of the user's other workers are kept from this worker's key.
    let _noted = note_keys(secret, []);
    let worker = worker::Worker::open(options).map_err(failed)?;
    worker.run().map_err(failed)
}

/// Raises the soft limit of open files, often 1024, to the hard one, because slots and topics of running jobs
/// need descriptors.
pub(in crate::cli) fn raise_worker_descriptor_limit() {
    if let Err(error) = worker::raise_limit() {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}

fn worker_id(values: &Values) -> Result<Option<String>, Failure> {
    let id = values::text(values)?;
    let is_usable =
        |id: &String| (1..=limits::NAME_SIZE_MAX).contains(&id.len()) && !id.starts_with('\0');
    match id.as_ref().is_none_or(is_usable) {
        true => Ok(id),
        false => Err(usage_error("--worker-id must be 1 to 255 bytes")),
    }
}

fn plugins(values: &Values) -> Result<Option<Vec<String>>, Failure> {
    let Some(text) = values::text(values)? else {
        return Ok(None);
    };
    let names = text.split(',').map(|name| name.trim().to_owned());
    let names: Vec<String> = names.filter(|name| !name.is_empty()).collect();
    match names.is_empty() {
        true => Err(usage_error("--plugins names no plugin")),
        false => Ok(Some(names)),
    }
}

/// Logs how plugin processes are restricted, and what is missing.
fn log_sandbox(sandbox: &worker::SandboxOptions) {
    log::info!("sandbox {}: {}", sandbox.mode.name(), sandbox.support);
    for missing in sandbox.support.lacks() {
        log::warn!("sandbox: {missing}");
    }
}

/// `--check-sandbox`: prints what the kernel supports, and what is missing.
fn check_sandbox() -> Result<(), Failure> {
    let support = probe();
    print(&format!("{support}\n"))?;
    for missing in support.lacks() {
        print(&format!("{missing}\n"))?;
    }
    match support.lacks().is_empty() {
        true => Ok(()),
        false => Err(failed("not all of the sandbox is to be had")),
    }
}
