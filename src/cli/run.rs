//! `run`: runs queue, sentinel and worker in one process, over the files of a command line.

mod drift;
mod layout;
mod missing;
mod output;
mod plan;
mod queue;
mod silence;
mod watch;
mod work;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use self::drift::Drift;
use self::output::{
    check_code, check_owner, note_kept, open_output, remove_stale, settle_interrupted,
};
use self::plan::{
    Enqueued, Own, check_artifact, check_file, enqueue, enqueue_freed, queue_again, settle,
};
use self::queue::{End, Queue, Stop};
use self::watch::Watch;
use self::work::{report, work};
use super::args::{Command, flags, values};
use super::content::Reader;
use super::folder::{self, Others};
use super::input::Choice;
use super::plugin::{
    FolderFlags, ParamFlag, adopt, check_syntax, declared, interruptible, read, request,
    tool_failed,
};
use super::progress::Progress;
use super::services::absolute;
use super::services::job_flags::{JobFlags, PluginStartFlag, ShareFlag};
use super::services::worker::raise_worker_descriptor_limit;
use super::stderr::print_line;
use super::summary::{Item, Summary};
use super::{Failure, failed, log_lines, print, usage_error};
use crate::limits;
use crate::plugin::environment;
use crate::plugin::request::Request;
use crate::plugin::resolve::{Hosts, lockfile};
use crate::reactor::Endpoint;
use crate::sandbox::Mode;
use crate::sentinel::{self, Sentinel};
use crate::sink::{Root, RootOptions};
use crate::store::Deploy;
use crate::worker::{self, SandboxOptions, Worker};

/// `--layout`: how output without sinks lies in the output folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Layout {
    /// A folder for each topic.
    #[default]
    Datasets,
    /// All files in the output folder.
    Flat,
}

/// `--failed-output`: what happens to the earlier output of a file that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum FailedOutput {
    /// It stays.
    #[default]
    Keep,
    /// It is removed if it is stale.
    Remove,
}

flags! {
    /// The flags of `run`.
    pub(super) struct RunFlags {
        /// Where the Parquet goes; made when it is missing
        output: Option<PathBuf> = "output" | 'o', "DIR" => values::path;
        /// In folders only files with such names, e.g. '*.csv'
        pattern: Option<String> = "pattern" | 'p', "GLOB" => values::text;
        /// Other rules for folders.
        folders: FolderFlags;
        /// Files at a time (default: the number of cores)
        slots: Option<usize> =
            "slots", "N" => values::number(1..=limits::WORKER_SLOTS_MAX as u64);
        /// Packages the plugin needs (default: its PEP 723
        /// metadata, else pyarrow)
        requirements: Option<PathBuf> = "requirements" | 'r', "FILE" => values::path;
        /// Parameters of the jobs.
        parameters: ParamFlag;
        /// Run over files that have not changed, too
        force: bool = "force" | 'f';
        /// datasets: a folder for each topic, PLUGIN_TOPIC or PLUGIN
        /// (default); flat: files in DIR, as in earlier releases
        layout: Option<Layout> = "layout", "HOW" => values::word(&[
            ("datasets", Layout::Datasets),
            ("flat", Layout::Flat),
        ]);
        /// keep: a file that fails keeps its earlier output (default);
        /// remove: not when that is stale: of other content, code or
        /// parameters, or of the file's earlier name
        failed_output: Option<FailedOutput> = "failed-output", "WHAT" => values::word(&[
            ("keep", FailedOutput::Keep),
            ("remove", FailedOutput::Remove),
        ]);
        /// Remove the output of files that are missing in the folders and
        /// globs of the command line
        prune: bool = "prune";
        /// The output folder may be that of another database.
        sharing: ShareFlag;
        /// A file that takes longer fails (default 3600)
        job_timeout: Option<Duration> =
            "job-timeout", "SECONDS" => values::seconds(1..=values::YEAR_SECONDS);
        /// How long the run waits at a time, from its start to its end, while
        /// its queue cannot be written, or its worker cannot work (full disk,
        /// locked database, broken environment; default 300)
        outage_timeout: Option<Duration> =
            "outage-timeout", "SECONDS" => values::seconds(1..=values::YEAR_SECONDS);
        /// How plugin processes start.
        start: PluginStartFlag;
        /// How it runs jobs.
        jobs: JobFlags;
        /// The summary as one JSON value on stdout, no progress
        json: bool = "json";
    }
}

pub(super) const COMMAND: Command<RunFlags> = Command {
    name: "casparian run",
    about: "Runs a plugin over files and leaves Parquet in a folder",
    usage: "PLUGIN INPUT... --output DIR [OPTIONS]",
    flags: RunFlags::TABLE,
    notes: "PLUGIN is a file, or a folder with all its files but the inputs and DIR (docs/plugins.md).\nINPUT is a file, a folder or a glob. Below a folder, names that begin with '.' are skipped;\na line on stderr reports how many.\nA file whose content, plugin, parameters, packages and sinks have not\nchanged since it was done, and whose output is as it was published, is skipped; failed ones\nare run again. A file that is run again replaces its own earlier output. One that\nfails keeps it, and the summary lists stale output. A file that is missing\nin a folder or glob of the command line keeps its output, too, and is listed, unless --prune. A renamed\nfile with the same content is run again and replaces its earlier output. Where a sink has mode replace, the\noutput of the file that was published last is kept, and the other files are skipped.\nA folder of another database is refused, unless --share-output. Ctrl-C stops; the next run goes on where it was.\nJobs of DIR that the command line does not ask for (of an interrupted run with other inputs, or of\n`casparian submit`) are set aside as PENDING.\n\nSinks are those of the plugin's MANIFEST, as for `casparian deploy`; a topic for which a sink is\nconfigured in DIR's queue (cf_topic_config) keeps that one. All of them are below DIR.\nA topic without a sink has a folder, DIR/PLUGIN_TOPIC (what the plugin returns: DIR/PLUGIN), with a\nfile STEM_JOB.parquet for each input. Files of the flat layout are moved there on first use.\n\nA queue that another program locks, or whose disk is full, is waited for at any time.\nStorage of DIR that does not respond is reported after 10 s and waited for likewise; a run that is\ninterrupted meanwhile, or waits too long, ends without its summary.\nA run that cannot go on (its queue or DIR is removed or replaced, or fails for longer than\n--outage-timeout) ends with its summary; the same command goes on with the rest. One that ends\nbefore its files are queued has no summary (with --json stdout is empty), only its reason on stderr.\n\nExit code: 0 all done, 1 some failed or the run could not go on, 2 the command line is wrong, 130 interrupted.",
};

/// How long queue and worker may fail by default. In this time a user may free disk space.
const OUTAGE_MAX: Duration = Duration::from_secs(300);

pub(super) fn main(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let started = Instant::now();
    let (flags, positionals) = COMMAND.parse(arguments)?;
    let [plugin_path, inputs @ ..] = positionals.as_slice() else {
        return Err(usage_error("expected a plugin and its inputs"));
    };
    if inputs.is_empty() {
        return Err(usage_error("expected at least one input"));
    }
    let missing = || usage_error("--output is missing");
    let output = flags.output.ok_or_else(missing)?;
    let removes_failed = flags.failed_output.unwrap_or_default() == FailedOutput::Remove;
    let parameters = flags.parameters.param;
    let json = flags.json;
    let outage_max = flags.outage_timeout.unwrap_or(OUTAGE_MAX);
    let interrupted = Arc::new(AtomicBool::new(false));
    silence::watch(&output, outage_max, interrupted.clone())?;
    let nowhere = Endpoint::Ipc(PathBuf::new());
    let mut worker_options = worker::Options::new(nowhere, output.clone());
    flags.jobs.apply(&mut worker_options)?;
    worker_options.slots = flags.slots.unwrap_or(worker_options.slots);
    worker_options.job_timeout = flags.job_timeout.unwrap_or(worker_options.job_timeout);
    let start = flags.start.plugin_start;
    worker_options.plugin_start = start.unwrap_or(worker_options.plugin_start);
    let named: Vec<PathBuf> = inputs.iter().map(PathBuf::from).collect();
    let mut sandbox = flags.jobs.sandbox(&named);
    sandbox.named = absolute([output.clone()]);
    worker_options.sandbox = Some(sandbox);
    worker_options.share_output = flags.sharing.share_output;
    worker_options.closed_output = true;
    worker_options.owns_process = true;
    worker_options.datasets = flags.layout.unwrap_or_default() == Layout::Datasets;
    log_lines::start("error");
    let (sentinel_security, worker_security) = super::security::of_run()?;

    let plugin_path = PathBuf::from(plugin_path);
    let others = match plugin_path.is_dir() {
        true => Others::new(
            inputs
                .iter()
                .map(OsString::as_os_str)
                .chain([output.as_os_str()]),
        ),
        false => Others::default(),
    };
    let plugin = read(&plugin_path, &others)?;
    let request = request(flags.requirements.as_deref(), &plugin_path, &plugin)?;
    let (output, _lock) = open_output(&output)?;
    let database = output.join(".casparian").join("queue.sqlite");
    let share = worker_options.share_output;
    let choice = Choice {
        pattern: flags.pattern.as_deref(),
        skip: Some(&output),
        follow: flags.folders.follow,
        ignore: &flags.folders.ignore,
    };
    let found = super::input::collect(inputs, choice).map_err(failed)?;
    if let Some(without) = found.without.first()
        && found.files.is_empty()
        && found.left_out.is_empty()
        && !database.exists()
    {
        return Err(failed(&without.reason));
    }
    for line in &found.warnings {
        print_line(format_args!("casparian: {line}"));
    }
    if let Some(sandbox) = &worker_options.sandbox {
        check_sandbox(sandbox)?;
    }
    interruptible(&interrupted)?;
    let mut progress = Progress::new((found.files.len() + found.left_out.len()) as u64, json);
    let mut queue = Queue::new(&database, outage_max, &interrupted);
    if !share {
        check_owner(&output, &mut queue, &progress)?;
    }
    worker_options.output = output.clone();
    let build = worker_options.build(&[]).map_err(failed)?;
    let (lockfile, python) = provision(&request, &build, &progress, &interrupted)?;
    let base = environment::base_interpreter(&python).map_err(tool_failed)?;
    check_syntax(&base, &build, &plugin_path, &plugin, &interrupted)?;
    let (version, sinks) = declared(&plugin_path, &plugin)?;

    // The sentinel opens the database first, because it repairs what an interrupted run has left.
    let runtime = SocketFolder::new()?;
    let endpoint = Endpoint::Ipc(runtime.folder.path().join("s"));
    let mut sentinel_options = sentinel::Options::new(endpoint.clone(), database.clone());
    sentinel_options.security = sentinel_security;
    sentinel_options.handshakes_max = limits::RUN_HANDSHAKES_MAX;
    sentinel_options.signals = false;
    sentinel_options.exclusive = true;
    sentinel_options.attempt_timeout = limits::ATTEMPT_TIMEOUT_MAX;
    sentinel_options.outage_max = Some(outage_max);
    let first = open_sentinel(&mut queue, &progress, &sentinel_options)?;
    // The lock is kept, so that no other sentinel works on the database before all outputs are settled.
    sentinel_options.lock = Some(first.lock());
    let mut sentinel = Some(first);
    check_code(&mut queue, &progress)?;
    // The worker runs no other jobs that are in the database.
    worker_options.capabilities = vec![plugin.name.clone()];
    let options = RootOptions {
        share,
        is_closed: true,
        sink_roots: None,
        datasets: worker_options.datasets,
    };
    let root = Arc::new(Root::open(&output, options).map_err(failed)?);
    let store = queue.wait_for(&progress, |queue| Ok(queue.open()?))?;
    let mut watch = Watch::new(root.clone(), &database, store, &plugin.name, outage_max);
    settle_interrupted(&mut queue, &progress, &root)?;
    let own = Deploy {
        plugin_name: &plugin.name,
        version: version.as_deref(),
        source_code: &plugin.source,
        lockfile_content: &lockfile,
        sinks: &sinks,
    };
    let own = Own {
        deploy: own,
        parameters: &parameters,
    };
    let mut reader = Reader::new(&interrupted);
    let Enqueued {
        mut items,
        sinks,
        mut missing,
        mistaken,
        moved,
    } = enqueue(
        &mut queue,
        &mut reader,
        &progress,
        &own,
        &found,
        flags.force,
        &root,
    )?;
    worker_options.connect = endpoint;
    worker_options.security = worker_security;
    worker_options.signals = false;
    for item in &items {
        report(&mut progress, item);
    }
    raise_worker_descriptor_limit();
    let mut is_pruned = false;
    let mut pass = |items: &mut [Item], progress: &mut Progress| -> Result<bool, End> {
        if items.iter().any(Item::is_waiting) {
            let sentinel = match sentinel.take() {
                Some(sentinel) => sentinel,
                None => open_sentinel(&mut queue, progress, &sentinel_options)?,
            };
            let worker = Worker::open(worker_options.clone()).map_err(failed)?;
            let mut again = |item: &mut Item, progress: &Progress| {
                folder::add_hint(&plugin_path, item);
                check_artifact(&mut queue, progress, &own.deploy, item)?;
                if !check_file(&mut queue, progress, item)? {
                    return Ok(false);
                }
                queue_again(&mut queue, &mut reader, progress, item)
            };
            let end = work(
                sentinel,
                worker,
                &mut watch,
                items,
                progress,
                &interrupted,
                &mut again,
            );
            if matches!(end, Err(End::Lost(_))) {
                return end.map(|()| false);
            }
            end.and(settle(&mut queue, progress))?;
        }
        // Output that is removed may have prevented other files from publishing into its sink. They are run
        // now.
        let mut frees = remove_stale(items, removes_failed, &mut queue, progress, &root)?;
        if !is_pruned && !interrupted.load(Ordering::SeqCst) {
            frees |= missing::settle(&mut missing, flags.prune, &mut queue, progress, &root)?;
            is_pruned = true;
        }
        let mut goes_on = frees && !interrupted.load(Ordering::SeqCst);
        if goes_on {
            enqueue_freed(&mut queue, progress, &own, items, &root)?;
            let waiting = items.iter().filter(|item| item.is_waiting()).count();
            progress.again(waiting);
            goes_on = waiting > 0;
        }
        if !goes_on {
            note_kept(items, &mut queue, progress, &root)?;
        }
        Ok(goes_on)
    };
    let end = loop {
        match pass(&mut items, &mut progress) {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(end) => break Err(end),
        }
    };
    let mut drift = Drift::default();
    if !matches!(end, Err(End::Lost(_))) {
        items.iter_mut().for_each(Item::forget_replaced);
        drift = Drift::of(&items, &queue, &sinks, &output);
    }
    progress.finish();
    let failure = end.err().map(Failure::from);
    if !is_pruned {
        missing.clear();
    }
    let summary = Summary::new(&items, &sinks, missing, moved, &found, started.elapsed());
    if json {
        let mut summary = summary.json(&plugin.name, &output, &items);
        drift.add_to(&mut summary);
        print(&format!("{summary}\n"))?;
    } else {
        let notes = drift.text();
        print(&summary.text(&items, &output, &notes))?;
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    if interrupted.load(Ordering::SeqCst) {
        return Err(Failure::Interrupted(
            "interrupted; the same command goes on with the rest",
        ));
    }
    if let [first, others @ ..] = mistaken.as_slice() {
        for reason in others {
            print_line(format_args!("casparian: {reason}"));
        }
        return Err(failed(first));
    }
    if summary.failed > 0 {
        Err(Failure::Reported)
    } else {
        Ok(())
    }
}

/// Reports what the kernel lacks for the sandbox of this run. Fails where the strict one is not available.
fn check_sandbox(sandbox: &SandboxOptions) -> Result<(), Failure> {
    match (sandbox.mode, sandbox.support.strict_lacks()) {
        (Mode::Off, _) => return Ok(()),
        (Mode::Strict, Some(reason)) => {
            return Err(failed(format!(
                "--sandbox strict is not available here: {reason}"
            )));
        }
        (Mode::On | Mode::Strict, _) => {}
    }
    for missing in sandbox.support.lacks() {
        print_line(format_args!("casparian: sandbox: {missing}"));
    }
    Ok(())
}

fn open_sentinel(
    queue: &mut Queue<'_>,
    progress: &Progress,
    options: &sentinel::Options,
) -> Result<Sentinel, End> {
    queue.wait_for(progress, |_| {
        Sentinel::open(options.clone()).map_err(|error| match error {
            sentinel::Error::Store(error) => Stop::Queue(error),
            other => Stop::Other(failed(other)),
        })
    })
}

/// Resolves what the plugin needs and creates its environment. Returns the lockfile and the interpreter.
fn provision(
    request: &Request,
    build: &environment::Build,
    progress: &Progress,
    interrupted: &AtomicBool,
) -> Result<(String, PathBuf), Failure> {
    adopt();
    let home = environment::home().map_err(failed)?;
    let mut message = |line: &str| progress.message(line);
    let lockfile = lockfile(
        &home,
        request,
        Hosts::This,
        build,
        interrupted,
        &mut message,
    )
    .map_err(tool_failed)?;
    let made = environment::provision(&home, &lockfile, None, build, interrupted, &mut message);
    let made = made.map_err(tool_failed)?;
    Ok((lockfile, made.interpreter))
}

/// A private folder for the control socket. Workers remove those of killed runs.
struct SocketFolder {
    folder: tempfile::TempDir,
    _lock: fs::File,
}

impl SocketFolder {
    fn new() -> Result<Self, Failure> {
        let made = worker::private_folder();
        let (folder, lock) =
            made.map_err(|error| failed(format!("folder of the control socket: {error}")))?;
        Ok(SocketFolder {
            folder,
            _lock: lock,
        })
    }
}
