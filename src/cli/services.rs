//! The commands `sentinel` and `worker`.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
#[cfg(feature = "worker")]
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use super::args::{Command, Flag, Typed};
use super::{Failure, failed, log_lines, security};
use crate::keys_in_use::{KeysInUse, Noted};
use crate::limits;
#[cfg(feature = "worker")]
use crate::plugin::{programs, quota::Quota};
use crate::reactor::Endpoint;
#[cfg(feature = "worker")]
use crate::sandbox::{Mode, Support, launch};
#[cfg(feature = "sentinel")]
use crate::{sentinel, store};
#[cfg(feature = "worker")]
use crate::{sink, worker};

#[cfg(feature = "sentinel")]
const SENTINEL_FLAGS: &[Flag] = &[
    Flag {
        long: "bind",
        short: Some('b'),
        value: Some("ENDPOINT"),
        help: "Where workers connect (default tcp://127.0.0.1:5555):\ntcp://host:port, ipc:///path, ipc://@name",
    },
    Flag {
        long: "database",
        short: Some('d'),
        value: Some("DB"),
        help: "Path or sqlite:// URL (default sqlite://casparian_flow.db);\nmade when it is missing",
    },
    Flag {
        long: "lease",
        short: None,
        value: Some("SECONDS"),
        help: "How long a worker may go on without an answer of the sentinel;\nits jobs go to others 2 s later (default 10)",
    },
    Flag {
        long: "attempt-timeout",
        short: None,
        value: Some("SECONDS"),
        help: "A job that its worker has not ended by then goes to another one;\nlonger than any job, and than --job-timeout of the workers\n(default 86400)",
    },
    Flag {
        long: "max-message-size",
        short: None,
        value: Some("BYTES"),
        help: "A larger message of a worker costs it its connection (default\n1048576); receipts may have 8 MiB at least",
    },
    Flag {
        long: "retries",
        short: None,
        value: Some("N"),
        help: "Retries of a job that lost its worker (default 3). Faults of\nenvironments and workers get 10, or N if that is more; 0: none",
    },
    Flag {
        long: "insecure",
        short: None,
        value: None,
        help: "Bind an address that other hosts reach without encryption",
    },
    Flag {
        long: "allow-uid",
        short: None,
        value: Some("UID"),
        help: "Without CURVE, another user of this host that may connect, by\nnumber; may be repeated (default: its own user and root). They must\nbe able to enter the folder of an ipc socket",
    },
    SECRET_KEY_FLAG,
    Flag {
        long: "authorized-keys",
        short: None,
        value: Some("FILE"),
        help: "Workers that may connect, with CURVE: a public key and a name\na line, then slots=N and plugins=A,B as limits where wanted;\nfollowed while it runs, and read again at SIGHUP",
    },
    Flag {
        long: "authorize-any-key",
        short: None,
        value: None,
        help: "With CURVE, any worker that knows our public key may connect",
    },
    Flag {
        long: "trusted-publishers",
        short: None,
        value: Some("FILE"),
        help: "Clients may deploy plugins that one of these publishers has\nsigned: a public key and a name a line; followed while it\nruns, and read again at SIGHUP",
    },
    Flag {
        long: "allow-unsigned",
        short: None,
        value: None,
        help: "Clients that may connect may deploy plugins without a signature",
    },
];

#[cfg(any(feature = "sentinel", feature = "worker"))]
const SECRET_KEY_FLAG: Flag = Flag {
    long: "curve-secret-key",
    short: None,
    value: Some("FILE"),
    help: "Encrypt (CURVE) with the secret key of this file, which\n`casparian keygen` makes",
};

#[cfg(feature = "sentinel")]
const fn sentinel_command(name: &'static str) -> Command {
    Command {
        name,
        about: "Serves the job queue of a database to workers",
        usage: "[OPTIONS]",
        flags: SENTINEL_FLAGS,
        notes: "An address that other hosts reach needs CURVE (--curve-secret-key with\n--authorized-keys or --authorize-any-key) or --insecure.\n\nSIGTERM or SIGINT: no more jobs are given out, running ones may end within 30 s;\na second one ends it at once.",
    }
}

#[cfg(feature = "sentinel")]
pub(super) const SENTINEL: Command = sentinel_command("casparian-sentinel");
#[cfg(all(feature = "sentinel", feature = "worker"))]
pub(super) const CASPARIAN_SENTINEL: Command = sentinel_command("casparian sentinel");

/// The paths by which other processes can open these files: the file's real path and that of a link to it. A
/// process's paths of its own descriptors (`/dev/stdin`) are left out, because they name another file in each
/// process.
fn names_of(paths: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut names = Vec::new();
    for path in absolute(paths) {
        match std::fs::canonicalize(&path) {
            Ok(own) if own.is_file() => {
                let found = std::fs::metadata(&own);
                if found.is_ok_and(|found| found.nlink() > 1) {
                    log::warn!(
                        "{}: the file has other names, too (hard links), which plugins are not kept from",
                        own.display()
                    );
                }
                names.push(own);
            }
            Ok(_) | Err(_) => log::warn!(
                "{}: it is no file with a name, which plugins of this user's workers could be kept from",
                path.display()
            ),
        }
        let is_of_process = ["/proc", "/dev"]
            .iter()
            .any(|folder| path.starts_with(folder));
        if !is_of_process && !names.contains(&path) {
            names.push(path);
        }
    }
    names
}

/// Lists the key files for the workers of this user, which hide them from plugins.
fn note_keys(typed: &Typed) -> Option<Noted> {
    let lists = [
        typed.paths("authorized-keys"),
        typed.paths("trusted-publishers"),
    ];
    let keys = KeysInUse {
        secret: names_of(typed.paths("curve-secret-key")),
        lists: names_of(lists.concat()),
    };
    if keys == KeysInUse::default() {
        return None;
    }
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let noted = match home.filter(|home| home.is_absolute()) {
        Some(home) => keys.note(&home.join(".casparian_flow")),
        None => Err(std::io::Error::other("HOME is no absolute path")),
    };
    let warned = noted.inspect_err(|error| {
        log::warn!(
            "cannot list the key files for workers of this user ({error}): name them by --protect there"
        );
    });
    warned.ok()
}

#[cfg(feature = "sentinel")]
pub(super) fn sentinel(
    command: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(), Failure> {
    let typed = command.parse(arguments)?;
    no_positionals(command, &typed)?;
    let bind = endpoint(command, &typed, "bind")?;
    let database = command
        .path(&typed, "database")?
        .unwrap_or_else(|| "casparian_flow.db".into());
    let database = store::parse_location(database).map_err(|error| command.usage_error(error))?;
    let is_local = bind.is_local();
    let mut options = sentinel::Options::new(bind, database);
    security::sentinel(command, &typed, &mut options)?;
    options.allowed_uids = security::allowed_uids(command, &typed, &options.security)?;
    let is_open = !is_local && !options.security.is_encrypted();
    if is_open && !typed.has("insecure") {
        return Err(failed(format!(
            "{} can be reached by other hosts and is not encrypted; use --curve-secret-key, or \
             --insecure if the network is trusted",
            options.bind
        )));
    }
    if let Some(seconds) = command.number(&typed, "lease", 1..=limits::LEASE_SECONDS_MAX as u64)? {
        options.lease = Duration::from_secs(seconds);
    }
    if let Some(seconds) = command.number(&typed, "attempt-timeout", 1..=31_536_000)? {
        options.attempt_timeout = Duration::from_secs(seconds);
    }
    let sizes = limits::WORKER_MESSAGE_SIZE_MAX as u64..=limits::ZMTP_MESSAGE_SIZE_MAX;
    if let Some(size) = command.number(&typed, "max-message-size", sizes)? {
        options.message_size_max = usize::try_from(size).unwrap_or(usize::MAX);
    }
    if let Some(count) = command.number(&typed, "retries", 0..=1_000_000)? {
        options.retries_max = u32::try_from(count).unwrap_or(u32::MAX);
    }
    if let Some(path) = command.path(&typed, "trusted-publishers")? {
        let file = sentinel::publishers::PublishersFile::open(&path).map_err(failed)?;
        options.trusted_publishers = Some(file);
    }
    options.allow_unsigned = typed.has("allow-unsigned");
    log_lines::start("info");
    if let Some(file) = &options.trusted_publishers
        && file.keys().is_empty()
    {
        let path = file.path().display();
        log::warn!("{path} lists no publisher: no client can deploy with a signature");
    }
    if options.allow_unsigned {
        log::warn!("--allow-unsigned: every client that may connect can run code on the workers");
    }
    #[cfg(feature = "curve")]
    if let Some(file) = &options.authorized_keys
        && file.keys().is_empty()
    {
        log::warn!(
            "{} lists no key: no peer may connect",
            file.path().display()
        );
    }
    if is_open {
        log::warn!(
            "{} is not encrypted: any host that reaches it can run code on the workers",
            options.bind
        );
    }
    raise_descriptor_limit();
    let _noted = note_keys(&typed);
    let sentinel = loop {
        match sentinel::Sentinel::open(options.clone()) {
            Err(error) if error.may_pass() => {
                let reason = super::named(&options.database, error.to_string());
                log::warn!("{reason}; trying again");
                std::thread::sleep(limits::STORE_OPEN_PAUSE);
            }
            opened => {
                break opened
                    .map_err(|error| failed(super::named(&options.database, error.to_string())))?;
            }
        }
    };
    sentinel.run().map_err(failed)
}

/// Raises the soft limit of open files, often 1024, to the hard one, because each worker needs a descriptor.
#[cfg(feature = "sentinel")]
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}

#[cfg(feature = "worker")]
const WORKER_FLAGS: &[Flag] = &[
    Flag {
        long: "connect",
        short: Some('c'),
        value: Some("ENDPOINT"),
        help: "The sentinel (default tcp://127.0.0.1:5555)",
    },
    security::LISTENER_UID_FLAG,
    Flag {
        long: "output",
        short: Some('o'),
        value: Some("DIR"),
        help: "Where output goes (default ./output)",
    },
    Flag {
        long: "share-output",
        short: None,
        value: None,
        help: "Publish into an output folder of another database too; the\nnames of the files then end with 8 digits of the database's ID",
    },
    Flag {
        long: "sink-root",
        short: None,
        value: Some("DIR"),
        help: "SQLite sinks stay in the output folder or in this one, links\nfollowed; plugins cannot change it; may be repeated (default:\na sink with an absolute path may be anywhere but in a job\nqueue)",
    },
    Flag {
        long: "worker-id",
        short: None,
        value: Some("ID"),
        help: "Worker ID, reused across restarts (default: generated)",
    },
    Flag {
        long: "slots",
        short: None,
        value: Some("N"),
        help: "Jobs at a time (default: the number of cores)",
    },
    Flag {
        long: "plugins",
        short: None,
        value: Some("NAMES"),
        help: "Plugins it runs, separated by commas (default *, any)",
    },
    Flag {
        long: "job-timeout",
        short: None,
        value: Some("SECONDS"),
        help: "A job that takes longer is killed (default 3600)",
    },
    Flag {
        long: "plugin-start",
        short: None,
        value: Some("HOW"),
        help: "warm: fork from an interpreter that has done its imports\n(default); spawn: a fresh interpreter each",
    },
    Flag {
        long: "shim",
        short: None,
        value: Some("FILE"),
        help: "Run plugins by this shim instead of the built-in one\n(needs --plugin-start spawn)",
    },
    QUOTA_FLAGS[0],
    QUOTA_FLAGS[1],
    QUOTA_FLAGS[2],
    QUOTA_FLAGS[3],
    QUOTA_FLAGS[4],
    QUOTA_FLAGS[5],
    QUOTA_FLAGS[6],
    ENV_CACHE_FLAG,
    NO_BUILD_FLAG,
    JOB_BUFFER_FLAG,
    CELL_MAX_FLAG,
    SANDBOX_FLAG,
    PROTECT_FLAG,
    Flag {
        long: "check-sandbox",
        short: None,
        value: None,
        help: "Print what the kernel offers for --sandbox, and end; the exit\ncode is 1 when something of it is missing",
    },
    Flag {
        long: "curve-server-key",
        short: None,
        value: Some("KEY"),
        help: "Encrypt (CURVE), and connect only to the sentinel with this\npublic key; KEY is its text or a file with it",
    },
    SECRET_KEY_FLAG,
];

#[cfg(feature = "worker")]
pub(super) const ENV_CACHE_FLAG: Flag = Flag {
    long: "env-cache-max",
    short: None,
    value: Some("SIZE"),
    help: "Bytes that Python environments may have before those not used\nfor longest go (default 20G; 0: any)",
};

/// Limits of a job. 0 = none; a plugin can lower them in its `[tool.casparian]`.
#[cfg(feature = "worker")]
pub(super) const QUOTA_FLAGS: [Flag; 7] = [
    Flag {
        long: "job-cpu",
        short: None,
        value: Some("SECONDS"),
        help: "Processor time of a job's processes together",
    },
    Flag {
        long: "job-memory",
        short: None,
        value: Some("SIZE"),
        help: "Memory (RSS) of a job's processes together, beyond what the\nfirst one has at its start",
    },
    Flag {
        long: "job-open-files",
        short: None,
        value: Some("N"),
        help: "Files that each process of a job may open; 32 at least\n(default: the worker's own limit)",
    },
    Flag {
        long: "job-processes",
        short: None,
        value: Some("N"),
        help: "Processes of a job at a time (default 1024)",
    },
    Flag {
        long: "job-output",
        short: None,
        value: Some("SIZE"),
        help: "Output of a job, all topics together",
    },
    Flag {
        long: "job-log",
        short: None,
        value: Some("SIZE"),
        help: "What a job prints (default 1Gi)",
    },
    Flag {
        long: "job-scratch",
        short: None,
        value: Some("SIZE"),
        help: "What a job has in its working directory",
    },
];

#[cfg(feature = "worker")]
pub(super) const NO_BUILD_FLAG: Flag = Flag {
    long: "no-build",
    short: None,
    value: None,
    help: "Install dependencies of plugins from wheels alone, so that no\nbuild code of theirs runs; one without a wheel is refused",
};

#[cfg(feature = "worker")]
pub(super) const JOB_BUFFER_FLAG: Flag = Flag {
    long: "job-buffer",
    short: None,
    value: Some("SIZE"),
    help: "Memory of the worker for the output of one job; half of it is\nthe largest batch, a 32nd the largest row (default 2Gi)",
};

#[cfg(feature = "worker")]
pub(super) const CELL_MAX_FLAG: Flag = Flag {
    long: "cell-max",
    short: None,
    value: Some("SIZE"),
    help: "Take cells, and batches of one row, of up to this size where\n--job-buffer allows less (at most 1984Mi). A job with such a cell\nmay take six times its size in memory beside --job-buffer; a\nSQLite sink takes values of up to 1 GB",
};

#[cfg(feature = "worker")]
pub(super) const SANDBOX_FLAG: Flag = Flag {
    long: "sandbox",
    short: None,
    value: Some("MODE"),
    help: "on (default): plugins cannot change the output folder,\nenvironments or other jobs' files, nor signal or trace\nprocesses that are not theirs; strict: they write to their\nworking directory alone, read their input, environment and the\nsystem's files, and use no network; off",
};

#[cfg(feature = "worker")]
pub(super) const PROTECT_FLAG: Flag = Flag {
    long: "protect",
    short: None,
    value: Some("PATH"),
    help: "Another file or folder that plugins cannot change; of a secret\nkey they find nothing, nor of a SQLite database, such as the\nsentinel's, whose folder they cannot change, also where it is a\nfile of that folder; may be repeated",
};

#[cfg(feature = "worker")]
const fn worker_command(name: &'static str) -> Command {
    Command {
        name,
        about: "Runs jobs of a sentinel and writes their output",
        usage: "[OPTIONS]",
        flags: WORKER_FLAGS,
        notes: "A job that is over a limit (--job-...) fails, and its error names the limit; 0 is none. A plugin can lower\nthem in its PEP 723 metadata, [tool.casparian] job-memory = \"2G\" and so on.\n\nA sentinel with CURVE lets in workers whose key (--curve-secret-key) it lists; without\na key of its own a worker generates one, which needs --authorize-any-key there.\n\nSIGTERM or SIGINT: no more jobs are taken, running ones may end within 30 s;\na second one kills them (the sentinel gives them to others).",
    }
}

#[cfg(feature = "worker")]
pub(super) const WORKER: Command = worker_command("casparian-worker");
#[cfg(all(feature = "sentinel", feature = "worker"))]
pub(super) const CASPARIAN_WORKER: Command = worker_command("casparian worker");

#[cfg(feature = "worker")]
pub(super) fn worker(
    command: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(), Failure> {
    let typed = command.parse(arguments)?;
    no_positionals(command, &typed)?;
    if typed.has("check-sandbox") {
        return check_sandbox();
    }
    let connect = endpoint(command, &typed, "connect")?;
    if !connect.is_definite() {
        let what = format!(
            "--connect: cannot connect to the wildcard {connect}; give the sentinel's own port or path"
        );
        return Err(command.usage_error(what).into());
    }
    let output = command
        .path(&typed, "output")?
        .unwrap_or_else(|| "output".into());
    let is_local = connect.is_local();
    let mut options = worker::Options::new(connect, output);
    options.security = security::worker(command, &typed)?;
    options.allowed_uids = security::allowed_uids(command, &typed, &options.security)?;
    worker_options(command, &typed, &mut options)?;
    if let Some(id) = command.text(&typed, "worker-id")? {
        if id.is_empty() || id.len() > limits::NAME_SIZE_MAX || id.starts_with('\0') {
            return Err(command
                .usage_error("--worker-id must be 1 to 255 bytes")
                .into());
        }
        options.worker_id = Some(id);
    }
    if let Some(names) = command.text(&typed, "plugins")? {
        let names = names.split(',').map(|name| name.trim().to_owned());
        options.capabilities = names.filter(|name| !name.is_empty()).collect();
        if options.capabilities.is_empty() {
            return Err(command.usage_error("--plugins names no plugin").into());
        }
    }
    options.share_output = typed.has("share-output");
    options.sink_roots = typed.has("sink-root").then(|| typed.paths("sink-root"));
    options.owns_process = true;
    options.shim = command.path(&typed, "shim")?;
    if options.shim.is_some() && options.plugin_start == worker::PluginStart::Warm {
        return Err(command
            .usage_error("--shim needs --plugin-start spawn")
            .into());
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
    let _noted = note_keys(&typed);
    let worker = worker::Worker::open(options).map_err(failed)?;
    worker.run().map_err(failed)
}

/// Raises the soft limit of open files, often 1024, to the hard one, because slots and topics of running jobs
/// need descriptors.
#[cfg(feature = "worker")]
pub(super) fn raise_worker_descriptor_limit() {
    if let Err(error) = worker::raise_limit() {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}

/// Refuses an output folder whose `.casparian/owner` does not contain a database ID.
#[cfg(feature = "worker")]
fn check_owner_file(output: &Path) -> Result<(), Failure> {
    let path = output.join(".casparian").join("owner");
    if std::fs::symlink_metadata(&path).is_err() {
        return Ok(());
    }
    let owner = sink::owner(output).map_err(failed)?.unwrap_or_default();
    let is_id = owner.len() == 32 && owner.bytes().all(|digit| digit.is_ascii_hexdigit());
    match is_id {
        true => Ok(()),
        false => Err(failed(format!(
            "output {}: {} holds no ID of a database; put back what was there, or use another folder",
            output.display(),
            path.display()
        ))),
    }
}

/// Applies the flags that `worker` and `run` share.
#[cfg(feature = "worker")]
pub(super) fn worker_options(
    command: &Command,
    typed: &Typed,
    options: &mut worker::Options,
) -> Result<(), Failure> {
    check_owner_file(&options.output)?;
    if let Some(slots) = command.number(typed, "slots", 1..=limits::WORKER_SLOTS_MAX as u64)? {
        options.slots = usize::try_from(slots).unwrap_or(1);
    }
    if let Some(seconds) = command.number(typed, "job-timeout", 1..=31_536_000)? {
        options.job_timeout = Duration::from_secs(seconds);
    }
    if let Some(size) = command.size(typed, "env-cache-max")? {
        options.cache_max = size;
    }
    options.no_build = typed.has("no-build");
    if let Some(size) = command.size(typed, "job-buffer")? {
        if size < limits::JOB_BUFFER_SIZE_MIN {
            let least = limits::JOB_BUFFER_SIZE_MIN >> 20;
            let what = format!("--job-buffer {size}: expected {least}Mi at least");
            return Err(command.usage_error(what).into());
        }
        options.bounds.buffer = size;
    }
    if let Some(size) = command.size(typed, "cell-max")? {
        if size > limits::CELL_SIZE_MAX {
            let most = limits::CELL_SIZE_MAX >> 20;
            let what = format!("--cell-max {size}: expected {most}Mi at most");
            return Err(command.usage_error(what).into());
        }
        options.bounds.cell = size;
    }
    job_limits(command, typed, &mut options.quota)?;
    // The inputs of `run`, which follow its plugin.
    let inputs = typed.positionals.iter().skip(1).map(PathBuf::from);
    options.sandbox = Some(sandbox_options(
        command,
        typed,
        &inputs.collect::<Vec<_>>(),
    )?);
    options.plugin_start = match command.text(typed, "plugin-start")?.as_deref() {
        None | Some("warm") => worker::PluginStart::Warm,
        Some("spawn") => worker::PluginStart::Spawn,
        Some(other) => {
            return Err(command
                .usage_error(format!("--plugin-start {other}: expected warm or spawn"))
                .into());
        }
    };
    Ok(())
}

/// Applies [`QUOTA_FLAGS`].
#[cfg(feature = "worker")]
fn job_limits(command: &Command, typed: &Typed, quota: &mut Quota) -> Result<(), Failure> {
    let numbers = [
        ("job-cpu", &mut quota.cpu),
        ("job-open-files", &mut quota.open_files),
        ("job-processes", &mut quota.processes),
    ];
    for (long, limit) in numbers {
        *limit = command.number(typed, long, 0..=1 << 40)?.unwrap_or(*limit);
    }
    if (1..limits::JOB_OPEN_FILES_MIN).contains(&quota.open_files) {
        let least = limits::JOB_OPEN_FILES_MIN;
        let what = format!(
            "--job-open-files {}: expected 0 or {least} at least",
            quota.open_files
        );
        return Err(command.usage_error(what).into());
    }
    let sizes = [
        ("job-memory", &mut quota.memory),
        ("job-output", &mut quota.output),
        ("job-log", &mut quota.log),
        ("job-scratch", &mut quota.scratch),
    ];
    for (long, limit) in sizes {
        *limit = command.size(typed, long)?.unwrap_or(*limit);
    }
    Ok(())
}

/// This program itself, even if its file has been replaced by another program.
#[cfg(feature = "worker")]
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Evaluates `--sandbox` and `--protect`.
#[cfg(feature = "worker")]
fn sandbox_options(
    command: &Command,
    typed: &Typed,
    inputs: &[PathBuf],
) -> Result<worker::SandboxOptions, Failure> {
    let name = command
        .text(typed, "sandbox")?
        .unwrap_or_else(|| "on".to_owned());
    let Some(mode) = Mode::from_name(&name) else {
        let what = format!("--sandbox {name}: expected off, on or strict");
        return Err(command.usage_error(what).into());
    };
    let launcher = Path::new(OWN_PROGRAM).to_owned();
    // Before any plugin or build code runs.
    programs::resolve(inputs);
    if mode == Mode::On {
        for (input, kept) in programs::inputs_in_kept() {
            let (input, kept) = (input.display(), kept.display());
            log::warn!(
                "plugins cannot write beside {input}: {kept} is read-only for them, as programs and libraries are"
            );
        }
    }
    Ok(worker::SandboxOptions {
        mode,
        support: probe(&launcher),
        launcher,
        hidden: absolute(typed.paths("curve-secret-key")),
        // If the value is a key instead of a file, no such path exists.
        read_only: absolute([typed.paths("protect"), typed.paths("curve-server-key")].concat()),
        named: absolute(typed.paths("output")),
    })
}

fn absolute(paths: Vec<PathBuf>) -> Vec<PathBuf> {
    let whole = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    paths.into_iter().map(whole).collect()
}

/// Logs how plugin processes are restricted, and what is missing.
#[cfg(feature = "worker")]
fn log_sandbox(sandbox: &worker::SandboxOptions) {
    log::info!("sandbox {}: {}", sandbox.mode.name(), sandbox.support);
    for missing in sandbox.support.lacks() {
        log::warn!("sandbox: {missing}");
    }
}

/// `--check-sandbox`: prints what the kernel supports, and what is missing.
#[cfg(feature = "worker")]
fn check_sandbox() -> Result<(), Failure> {
    let support = probe(Path::new(OWN_PROGRAM));
    super::print(&format!("{support}\n"))?;
    for missing in support.lacks() {
        super::print(&format!("{missing}\n"))?;
    }
    match support.lacks().is_empty() {
        true => Ok(()),
        false => Err(failed("not all of the sandbox is to be had")),
    }
}

/// What the kernel supports for the launcher.
#[cfg(feature = "worker")]
fn probe(launcher: &Path) -> Support {
    let printed = launch::probe_command(launcher).output();
    match printed {
        Ok(output) => serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            let reason = String::from_utf8_lossy(&output.stderr);
            Support::none(reason.trim())
        }),
        Err(error) => Support::none(&error.to_string()),
    }
}

fn no_positionals(command: &Command, typed: &Typed) -> Result<(), Failure> {
    match typed.positionals.first() {
        Some(word) => Err(command
            .usage_error(format!("unexpected argument {:?}", word.to_string_lossy()))
            .into()),
        None => Ok(()),
    }
}

fn endpoint(command: &Command, typed: &Typed, long: &str) -> Result<Endpoint, Failure> {
    let text = command
        .text(typed, long)?
        .unwrap_or_else(|| format!("tcp://127.0.0.1:{}", limits::PORT_DEFAULT));
    Ok(text
        .parse()
        .map_err(|error| command.usage_error(format!("--{long}: {error}")))?)
}
