//! The command `submit`, and what commands for plugins share.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::args::{Command, Values, flags, values};
use super::content::{Fingerprint, Reader};
use super::folder::{self, Others};
use super::input::{Choice, Input};
use super::operate::{DatabaseFlag, warn_of_owner};
use super::plugin_file::{NOT_UTF_8, PluginFile, read_text};
use super::stderr::print_line;
use super::table::one_line;
use super::{Failure, failed, failed_in, print_done, usage_error};
use crate::input_file;
use crate::job::Parameters;
use crate::limits;
use crate::plugin::environment::{self, Build};
use crate::plugin::request::{Known, Request};
use crate::plugin::resolve::{self, Hosts};
use crate::plugin::{self, metadata, strays, syntax};
use crate::sentinel::clock::unix_ms;
use crate::store::{
    self, Code, FileVersion, ManifestSink, Open, Store, Transaction, check_deploy_size,
    read_manifest,
};

flags! {
    /// What `deploy` and `sign` need besides a plugin's source.
    pub(super) struct PluginFlags {
        /// uv.lock or requirements of its environment (default:
        /// the plugin's PEP 723 metadata, pinned; else pyarrow)
        lockfile: Option<PathBuf> = "lockfile" | 'l', "FILE" => values::path;
        /// Its version (default: that of its MANIFEST, else the next
        /// patch number)
        version: Option<String> = "version" | 'V', "V" => values::text;
    }
}

flags! {
    /// Parameters of a plugin.
    pub(super) struct ParamFlag {
        /// A parameter that the plugin's `configure` gets (repeatable).
        /// VALUE is JSON (5, true, [1]), else a string
        param: Parameters = "param", "NAME=VALUE" => parameters;
    }
}

flags! {
    /// Which files of folders are inputs.
    pub(super) struct FolderFlags {
        /// In folders no files or folders with such names, e.g. '*.crc'
        /// (repeatable; _SUCCESS, _temporary and *._COPYING_ always)
        ignore: Vec<String> = "ignore", "GLOB" => values::texts;
        /// Follow symbolic links that lead out of a folder, too
        follow: bool = "follow" | 'L';
    }
}

flags! {
    /// The flags of `submit`.
    pub(super) struct SubmitFlags {
        /// The database.
        location: DatabaseFlag;
        /// The plugin that is to run over them
        plugin: Option<String> = "plugin" | 'p', "NAME" => values::text;
        /// Higher ones run first (default 0)
        priority: Option<u32> = "priority", "N" => values::number(0..=1_000_000);
        /// Parameters of the jobs.
        parameters: ParamFlag;
        /// In folders only files with such names
        pattern: Option<String> = "pattern", "GLOB" => values::text;
        /// Other rules for folders.
        folders: FolderFlags;
    }
}

pub(super) const SUBMIT: Command<SubmitFlags> = Command {
    name: "casparian submit",
    about: "Queues files for a deployed plugin",
    usage: "--plugin NAME FILE... --database DB [OPTIONS]",
    flags: SubmitFlags::TABLE,
    notes: "FILE is a file, a folder or a glob. Prints the jobs' IDs, a line each, as they are queued,\nin the order of the files' paths.\nBelow a folder, names that begin with '.' are skipped; a line on stderr reports how many.\nA folder becomes the source root of the files below it, unless one above it is known.",
};

/// Reads a plugin's file, or its folder without the paths in `others`.
pub(super) fn read(path: &Path, others: &Others) -> Result<PluginFile, Failure> {
    let fail =
        |reason: &dyn std::fmt::Display| failed(format!("plugin {}: {reason}", path.display()));
    if path.is_dir() {
        return folder::read(path, others).map_err(|reason| fail(&reason));
    }
    let name = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .filter(|stem| !stem.is_empty() && stem.len() <= 100)
        .ok_or_else(|| fail(&"its name is not usable"))?
        .to_owned();
    let mut bytes = Vec::new();
    let size_max = limits::SOURCE_SIZE_MAX as u64;
    input_file::open(path)
        .and_then(|file| file.take(size_max + 1).read_to_end(&mut bytes))
        .map_err(|error| fail(&error))?;
    if bytes.len() as u64 > size_max {
        return Err(fail(&format_args!("larger than {size_max} bytes")));
    }
    let source = String::from_utf8(bytes).map_err(|_| fail(&NOT_UTF_8))?;
    let whole = std::path::absolute(path).map_err(|error| fail(&error))?;
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    Ok(PluginFile {
        name,
        source,
        folder: whole.parent().unwrap_or(Path::new("/")).to_owned(),
        locks: vec![lock.into()],
    })
}

/// Makes SIGINT and SIGTERM set the flag. A second signal ends the process at once.
pub(super) fn interruptible(interrupted: &Arc<AtomicBool>) -> Result<(), Failure> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Registered first, so that only a second signal ends the process.
        signal_hook::flag::register_conditional_shutdown(
            signal,
            super::INTERRUPTED.into(),
            interrupted.clone(),
        )
        .map_err(failed)?;
        signal_hook::flag::register(signal, interrupted.clone()).map_err(failed)?;
    }
    Ok(())
}

/// Converts a tool's error to a failure or an interruption.
pub(super) fn tool_failed(error: environment::Error) -> Failure {
    match error {
        environment::Error::Cancelled => Failure::Interrupted("interrupted"),
        other => failed(format!("Python environment: {other}")),
    }
}

/// Fails if a plugin's source is not valid Python.
pub(super) fn check_syntax(
    python: &Path,
    how: &Build,
    path: &Path,
    plugin: &PluginFile,
    cancel: &AtomicBool,
) -> Result<(), Failure> {
    let limit = limits::SYNTAX_CHECK_TIMEOUT;
    let source = plugin::folder::entry_source(&plugin.source);
    match syntax::error(python, how, &plugin.name, source, limit, cancel) {
        Ok(None) => Ok(()),
        Ok(Some(reason)) => Err(failed(format!("plugin {}: {reason}", path.display()))),
        Err(error) => Err(tool_failed(error)),
    }
}

/// Version and sinks that a plugin's MANIFEST declares.
pub(super) fn declared(
    path: &Path,
    plugin: &PluginFile,
) -> Result<(Option<String>, Vec<ManifestSink>), Failure> {
    let fail = |reason: String| failed(format!("plugin {}: {reason}", path.display()));
    let manifest = read_manifest(&plugin.source).map_err(|error| fail(error.to_string()))?;
    let Some(manifest) = manifest else {
        return Ok(Default::default());
    };
    for sink in &manifest.sinks {
        crate::job::parse_uri(&sink.uri)
            .map_err(|error| fail(format!("MANIFEST: sink of {:?}: {error}", sink.topic)))?;
    }
    Ok((manifest.version, manifest.sinks))
}

/// The request for a plugin's environment: from the requirements in `file`, else from its own metadata.
pub(super) fn request(
    file: Option<&Path>,
    path: &Path,
    plugin: &PluginFile,
) -> Result<Request, Failure> {
    let fail =
        |error: &dyn std::fmt::Display| failed(format!("plugin {}: {error}", path.display()));
    let script = metadata::of_plugin(&plugin.source)
        .map_err(|error| fail(&error))?
        .unwrap_or_default();
    let folder = &plugin.folder;
    let read = |path: &Path| read_text(path, limits::SOURCE_SIZE_MAX as u64);
    match file {
        Some(file) => Request::of_requirements(file, &read, &script, folder).map_err(failed),
        None => {
            let mut known = None;
            for lock in &plugin.locks {
                match read(lock) {
                    Ok(text) => {
                        known = Some(Known {
                            path: lock.clone(),
                            text,
                        });
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(fail(&format_args!("{}: {error}", lock.display()))),
                }
            }
            Request::of_script(&script, folder, known).map_err(|error| fail(&error))
        }
    }
}

fn read_lockfile(file: &Path) -> Result<String, Failure> {
    let fail = |reason: String| failed(format!("lockfile {}: {reason}", file.display()));
    let text =
        read_text(file, limits::SOURCE_SIZE_MAX as u64).map_err(|error| fail(error.to_string()))?;
    environment::check_lockfile(&text).map_err(fail)?;
    resolve::check_portable(&text).map_err(|error| fail(error.to_string()))?;
    Ok(text)
}

/// Registers a file under the longest known source root that contains it, else under its own.
pub(super) fn register(
    transaction: &mut Transaction<'_>,
    input: &Input,
    print: &Fingerprint,
    now_ms: i64,
) -> Result<FileVersion, store::Error> {
    let root = match transaction.root_of(&input.path)? {
        Some(root) => root,
        None => input.root.clone(),
    };
    let rel_path = input.path.strip_prefix(&root).unwrap_or(&input.path);
    transaction.register_file(
        &root.to_string_lossy(),
        &rel_path.to_string_lossy(),
        print.size_bytes,
        print.mtime_s,
        &print.hash,
        now_ms,
    )
}

/// A plugin ready to be deployed: with its lockfile, and checked as far as possible on this host.
pub(super) struct Prepared {
    pub(super) plugin: PluginFile,
    pub(super) lockfile: String,
    /// The version of the command line, else that of its MANIFEST.
    pub(super) version: Option<String>,
    pub(super) sinks: Vec<ManifestSink>,
}

fn check_size(path: &Path, plugin: &PluginFile, lockfile: &str) -> Result<(), Failure> {
    check_deploy_size(&plugin.source, lockfile)
        .map_err(|reason| failed(format!("plugin {}: {reason}", path.display())))
}

/// Makes this process a subreaper, so that it can kill orphans of tools. If that fails, only a tool's process
/// group is killed.
pub(super) fn adopt() {
    if let Err(error) = strays::adopt() {
        log::warn!("what tools leave behind is not killed: {error}");
    }
}

/// The values of `--param`.
fn parameters(values: &Values) -> Result<Parameters, Failure> {
    let read = Parameters::of_words(&values::texts(values)?);
    read.map_err(|error| usage_error(format!("--param {error}")))
}

/// Reads the plugin that a command line names, and resolves its lockfile. `others` = paths that the command
/// line names besides it.
pub(super) fn prepare(
    positionals: &[OsString],
    flags: &PluginFlags,
    others: &Others,
) -> Result<Prepared, Failure> {
    let [path] = positionals else {
        return Err(usage_error("expected one plugin"));
    };
    let path = PathBuf::from(path);
    let plugin = read(&path, others)?;
    check_size(&path, &plugin, "")?;
    let home = environment::home().map_err(failed)?;
    adopt();
    let cancel = Arc::new(AtomicBool::new(false));
    interruptible(&cancel)?;
    let mut message = |line: &str| print_line(line);
    let lockfile = match flags.lockfile.as_deref() {
        Some(file) if environment::is_uv_lock(file) => read_lockfile(file)?,
        file => {
            let request = request(file, &path, &plugin)?;
            let (hosts, build) = (Hosts::Any, Build::default());
            resolve::lockfile(&home, &request, hosts, &build, &cancel, &mut message)
                .map_err(tool_failed)?
        }
    };
    check_size(&path, &plugin, &lockfile)?;
    let python = environment::python().map_err(failed)?;
    check_syntax(&python, &Build::default(), &path, &plugin, &cancel)?;
    let (declared_version, sinks) = declared(&path, &plugin)?;
    Ok(Prepared {
        plugin,
        lockfile,
        version: flags.version.clone().or(declared_version),
        sinks,
    })
}

/// Text about jobs whose IDs could not be printed. `left` = number of files that are not queued.
fn queued(jobs: &[i64], left: usize) -> String {
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for &job in jobs {
        match ranges.last_mut() {
            Some((_, last)) if job.checked_sub(1) == Some(*last) => *last = job,
            _ => ranges.push((job, job)),
        }
    }
    let ids: Vec<String> = ranges
        .iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    let rest = match left {
        0 => String::new(),
        left => format!("; {left} more files are not queued"),
    };
    format!("the jobs are queued (IDs {}){rest}", ids.join(", "))
}

/// The error if a plugin's file is given instead of its name.
fn file_for_name(text: &str) -> Option<String> {
    let file = Path::new(text);
    let is_file = text.contains('/') || file.extension().is_some_and(|extension| extension == "py");
    let name = file.file_stem().filter(|_| is_file)?.to_string_lossy();
    Some(format!(
        "--plugin {text}: expected the plugin's name (`{name}`), not its file; `casparian deploy \
         {text}` registers it first, and `casparian run {text}` runs it without that"
    ))
}

pub(super) fn submit(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let (flags, positionals) = SUBMIT.parse(arguments)?;
    let missing = || usage_error("--plugin is missing");
    let plugin = flags.plugin.ok_or_else(missing)?;
    if positionals.is_empty() {
        return Err(usage_error("expected at least one file"));
    }
    let location = flags.location.required()?;
    let priority = i64::from(flags.priority.unwrap_or(0));
    let parameters = flags.parameters.param;
    warn_of_owner(&location);
    let mut store = Store::open(&location, Open::Existing).map_err(failed_in(&location))?;
    let not_now = |reason| {
        let reason = file_for_name(&plugin).unwrap_or(reason);
        failed(format!("database {}: {reason}", location.display()))
    };
    let mut transaction = store.begin().map_err(failed_in(&location))?;
    if let Code::Waits(reason) = transaction
        .plugin_code(&plugin)
        .map_err(failed_in(&location))?
    {
        return Err(not_now(reason));
    }
    drop(transaction);
    let choice = Choice {
        pattern: flags.pattern.as_deref(),
        skip: None,
        follow: flags.folders.follow,
        ignore: &flags.folders.ignore,
    };
    let found = super::input::collect(&positionals, choice).map_err(failed)?;
    if let Some(without) = found.without.first() {
        return Err(failed(&without.reason));
    }
    let left_out = found.left_out.iter().map(|out| &out.reason);
    for line in found.warnings.iter().chain(left_out) {
        print_line(format_args!("casparian: {line}"));
    }
    for line in found.ignored_lines() {
        print_line(format_args!("casparian: {}", one_line(&line)));
    }
    let mut unreadable = found.left_out.len();
    let mut done = 0;
    let never = AtomicBool::new(false);
    let note = |text: &str| print_line(format_args!("casparian: {}", one_line(text)));
    let mut reader = Reader::new(&never);
    for batch in found.files.chunks(limits::SUBMIT_BATCH) {
        done += batch.len();
        // The files are read before the transaction begins, so that it does not block other programs
        // meanwhile.
        let mut prints = Vec::with_capacity(batch.len());
        for input in batch {
            match reader.fingerprint(&input.path, &note) {
                Ok(print) => prints.push((input, print)),
                Err(Failure::Failed(reason)) => {
                    print_line(format_args!("casparian: {reason}"));
                    unreadable += 1;
                }
                Err(other) => return Err(other),
            }
        }
        let now_ms = unix_ms();
        let mut transaction = store.begin().map_err(failed_in(&location))?;
        if let Code::Waits(reason) = transaction
            .plugin_code(&plugin)
            .map_err(failed_in(&location))?
        {
            return Err(not_now(reason));
        }
        let mut jobs = Vec::with_capacity(prints.len());
        for (input, print) in &prints {
            let version =
                register(&mut transaction, input, print, now_ms).map_err(failed_in(&location))?;
            let job = transaction
                .enqueue(&plugin, version.version_id, priority, now_ms)
                .map_err(failed_in(&location))?;
            if !parameters.is_empty() {
                transaction
                    .set_parameters(job, &parameters)
                    .map_err(failed_in(&location))?;
            }
            jobs.push(job);
        }
        transaction.commit().map_err(failed_in(&location))?;
        let out: String = jobs.iter().map(|job| format!("{job}\n")).collect();
        print_done(&out, queued(&jobs, found.files.len() - done))?;
    }
    match unreadable {
        0 => Ok(()),
        count => Err(failed(format!(
            "{count} of {} files could not be read and are not queued; the others are",
            found.files.len() + found.left_out.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requested(text: &str) -> Request {
        let dir = tempfile::tempdir().unwrap();
        let plugin = PluginFile {
            name: "p".to_owned(),
            source: "class Handler: pass\n".to_owned(),
            folder: dir.path().to_owned(),
            locks: Vec::new(),
        };
        let file = dir.path().join("requirements.txt");
        std::fs::write(&file, text).unwrap();
        request(Some(&file), &dir.path().join("p.py"), &plugin).unwrap()
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_requirements_file() {
        let list = requested;
        assert_eq!(list("\u{feff}pyarrow\nnumpy\n"), list("pyarrow\nnumpy\n"));
        assert_eq!(list("\u{feff}# a comment\n"), list(""));
    }

    #[test]
    fn lines_of_a_requirements_file_end_by_any_convention() {
        let want = requested("# a comment\npyarrow # why\n\nnumpy\n");
        for end in ["\r\n", "\r"] {
            let text = ["# a comment", "pyarrow # why", "", "numpy", ""].join(end);
            assert_eq!(requested(&text), want, "{end:?}");
        }
    }
}
