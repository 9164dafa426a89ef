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
use super::args::{Command, Flag};
use super::content::Reader;
use super::folder::{self, Others};
use super::input::Choice;
use super::plugin::{
    FOLLOW_FLAG, IGNORE_FLAG, PARAM_FLAG, adopt, check_syntax, declared, interruptible, parameters,
    read, request, tool_failed,
};
use super::progress::Progress;
use super::stderr::print_line;
use super::summary::{Item, Summary};
use super::{Failure, failed, log_lines, print};
use crate::plugin::environment;
use crate::plugin::request::Request;
use crate::plugin::resolve::{Hosts, lockfile};
use crate::reactor::Endpoint;
use crate::sandbox::Mode;
use crate::sentinel::{self, Sentinel};
use crate::sink::{Root, RootOptions};
use crate::store::Deploy;
use crate::worker::{self, SandboxOptions, Worker};

pub(super) const COMMAND: Command = Command {
    name: "casparian run",
    about: "Runs a plugin over files and leaves Parquet in a folder",
    usage: "PLUGIN INPUT... --output DIR [OPTIONS]",
    flags: &[
        Flag {
            long: "output",
            short: Some('o'),
            value: Some("DIR"),
            help: "Where the Parquet goes; made when it is missing",
        },
        Flag {
            long: "pattern",
            short: Some('p'),
            value: Some("GLOB"),
            help: "In folders only files with such names, e.g. '*.csv'",
        },
        IGNORE_FLAG,
        FOLLOW_FLAG,
        Flag {
            long: "slots",
            short: None,
            value: Some("N"),
            help: "Files at a time (default: the number of cores)",
        },
        Flag {
            long: "requirements",
            short: Some('r'),
            value: Some("FILE"),
            help: "Packages the plugin needs (default: its PEP 723\nmetadata, else pyarrow)",
        },
        PARAM_FLAG,
        Flag {
            long: "force",
            short: Some('f'),
            value: None,
            help: "Run over files that have not changed, too",
        },
        Flag {
            long: "layout",
            short: None,
            value: Some("HOW"),
            help: "datasets: a folder for each topic, PLUGIN_TOPIC or PLUGIN\n(default); flat: files in DIR, as in earlier releases",
        },
        Flag {
            long: "failed-output",
            short: None,
            value: Some("WHAT"),
            help: "keep: a file that fails keeps its earlier output (default);\nremove: not when that is stale: of other content, code or\nparameters, or of the file's earlier name",
        },
        Flag {
            long: "prune",
            short: None,
            value: None,
            help: "Remove the output of files that are missing in the folders and\nglobs of the command line",
        },
        Flag {
            long: "share-output",
            short: None,
            value: None,
            help: "Publish into an output folder of another database too; the\nnames of the files then end with 8 digits of the database's ID",
        },
        Flag {
            long: "job-timeout",
            short: None,
            value: Some("SECONDS"),
            help: "A file that takes longer fails (default 3600)",
        },
        Flag {
            long: "outage-timeout",
            short: None,
            value: Some("SECONDS"),
            help: "How long the run waits at a time, from its start to its end, while\nits queue cannot be written, or its worker cannot work (full disk,\nlocked database, broken environment; default 300)",
        },
        Flag {
            long: "plugin-start",
            short: None,
            value: Some("HOW"),
            help: "warm: fork from an interpreter that has done its imports\n(default); spawn: a fresh interpreter each",
        },
        super::services::QUOTA_FLAGS[0],
        super::services::QUOTA_FLAGS[1],
        super::services::QUOTA_FLAGS[2],
        super::services::QUOTA_FLAGS[3],
        super::services::QUOTA_FLAGS[4],
        super::services::QUOTA_FLAGS[5],
        super::services::QUOTA_FLAGS[6],
        super::services::ENV_CACHE_FLAG,
        super::services::NO_BUILD_FLAG,
        super::services::JOB_BUFFER_FLAG,
        super::services::CELL_MAX_FLAG,
        super::services::SANDBOX_FLAG,
        super::services::PROTECT_FLAG,
        Flag {
            long: "json",
            short: None,
            value: None,
            help: "The summary as one JSON value on stdout, no progress",
        },
    ],
    notes: "PLUGIN is a file, or a folder with all its files but the inputs and DIR (docs/plugins.md).\nINPUT is a file, a folder or a glob. Below a folder, names that begin with '.' are skipped;\na line on stderr reports how many.\nA file whose content, plugin, parameters, packages and sinks have not\nchanged since it was done, and whose output is as it was published, is skipped; failed ones\nare run again. A file that is run again replaces its own earlier output. One that\nfails keeps it, and the summary lists stale output. A file that is missing\nin a folder or glob of the command line keeps its output, too, and is listed, unless --prune. A renamed\nfile with the same content is run again and replaces its earlier output. Where a sink has mode replace, the\noutput of the file that was published last is kept, and the other files are skipped.\nA folder of another database is refused, unless --share-output. Ctrl-C stops; the next run goes on where it was.\nJobs of DIR that the command line does not ask for (of an interrupted run with other inputs, or of\n`casparian submit`) are set aside as PENDING.\n\nSinks are those of the plugin's MANIFEST, as for `casparian deploy`; a topic for which a sink is\nconfigured in DIR's queue (cf_topic_config) keeps that one. All of them are below DIR.\nA topic without a sink has a folder, DIR/PLUGIN_TOPIC (what the plugin returns: DIR/PLUGIN), with a\nfile STEM_JOB.parquet for each input. Files of the flat layout are moved there on first use.\n\nA queue that another program locks, or whose disk is full, is waited for at any time.\nStorage of DIR that does not respond is reported after 10 s and waited for likewise; a run that is\ninterrupted meanwhile, or waits too long, ends without its summary.\nA run that cannot go on (its queue or DIR is removed or replaced, or fails for longer than\n--outage-timeout) ends with its summary; the same command goes on with the rest. One that ends\nbefore its files are queued has no summary (with --json stdout is empty), only its reason on stderr.\n\nExit code: 0 all done, 1 some failed or the run could not go on, 2 the command line is wrong, 130 interrupted.",
};

/// How long queue and worker may fail by default. In this time a user may free disk space.
const OUTAGE_MAX: Duration = Duration::from_secs(300);

pub(super) fn main(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let started = Instant::now();
    let typed = COMMAND.parse(arguments)?;
    let [plugin_path, inputs @ ..] = typed.positionals.as_slice() else {
        return Err(COMMAND
            .usage_error("expected a plugin and its inputs")
            .into());
    };
    if inputs.is_empty() {
        return Err(COMMAND.usage_error("expected at least one input").into());
    }
    let output = COMMAND
        .path(&typed, "output")?
        .ok_or_else(|| COMMAND.usage_error("--output is missing"))?;
    let pattern = COMMAND.text(&typed, "pattern")?;
    let ignore = COMMAND.texts(&typed, "ignore")?;
    let removes_failed = match COMMAND.text(&typed, "failed-output")?.as_deref() {
        None | Some("keep") => false,
        Some("remove") => true,
        Some(other) => {
            let message = format!("--failed-output {other}: expected keep or remove");
            return Err(COMMAND.usage_error(message).into());
        }
    };
    let prune = typed.has("prune");
    let parameters = parameters(&COMMAND, &typed)?;
    let requirements = COMMAND.path(&typed, "requirements")?;
    let json = typed.has("json");
    let outage_max = match COMMAND.number(&typed, "outage-timeout", 1..=31_536_000)? {
        Some(seconds) => Duration::from_secs(seconds),
        None => OUTAGE_MAX,
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    silence::watch(&output, outage_max, interrupted.clone())?;
    let nowhere = Endpoint::Ipc(PathBuf::new());
    let mut worker_options = worker::Options::new(nowhere, output.clone());
    super::services::worker_options(&COMMAND, &typed, &mut worker_options)?;
    worker_options.share_output = typed.has("share-output");
    worker_options.closed_output = true;
    worker_options.owns_process = true;
    worker_options.datasets = match COMMAND.text(&typed, "layout")?.as_deref() {
        None | Some("datasets") => true,
        Some("flat") => false,
        Some(other) => {
            let message = format!("--layout {other}: expected datasets or flat");
            return Err(COMMAND.usage_error(message).into());
        }
    };
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
    let request = request(requirements.as_deref(), &plugin_path, &plugin)?;
    let (output, _lock) = open_output(&output)?;
    let database = output.join(".casparian").join("queue.sqlite");
    let share = worker_options.share_output;
    let choice = Choice {
        pattern: pattern.as_deref(),
        skip: Some(&output),
        follow: typed.has("follow"),
        ignore: &ignore,
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
    sentinel_options.handshakes_max = crate::limits::RUN_HANDSHAKES_MAX;
    sentinel_options.signals = false;
    sentinel_options.exclusive = true;
    sentinel_options.attempt_timeout = crate::limits::ATTEMPT_TIMEOUT_MAX;
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
    let force = typed.has("force");
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
        force,
        &root,
    )?;
    worker_options.connect = endpoint;
    worker_options.security = worker_security;
    worker_options.signals = false;
    for item in &items {
        report(&mut progress, item);
    }
    super::services::raise_worker_descriptor_limit();
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
            frees |= missing::settle(&mut missing, prune, &mut queue, progress, &root)?;
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
