//! The lockfile of a request: a `uv.lock` with exact versions, hashes and commits.
//!
//! uv resolves a project without code that has the dependencies of the request. So uv itself applies
//! `[tool.uv]`, as it does in a script. No configuration of the current folder is read (see `operator.rs`).
//! The lockfile names the content of local dependencies by hash (see `local.rs`).
//!
//! The result is stored as `<home>/resolved/<hash of the request>.<hash of the lockfile>`. It is used as long
//! as its environment exists and its local dependencies have not changed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use super::direct;
use super::environment::{self, PRELOAD_MARK, ROOT, is_root, project};
use super::error::Error;
use super::folders::{soon, sweep};
use super::local::{self, Uv, fingerprint};
use super::operator;
use super::request::Request;
use super::tool::{Build, Tools, made};
use super::{home, programs, python, uv};
use crate::job::text;
use crate::{input_file, limits};

/// Hosts on which the environment may be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// Only this host: for its Python, and with local dependencies.
    This,
    /// Any host: local dependencies are refused.
    Any,
}

/// Resolves a request. Blocks for as long as uv takes, at most
/// [`PROVISION_TIMEOUT`](crate::limits::PROVISION_TIMEOUT) a step.
pub fn lockfile(
    home: &Path,
    request: &Request,
    hosts: Hosts,
    build: &Build,
    cancel: &AtomicBool,
    message: &mut dyn FnMut(&str),
) -> Result<String, Error> {
    if request.is_default() && hosts == Hosts::This {
        let python = request.requires_python.as_deref();
        return Ok(environment::requirements_lockfile(
            &[],
            python,
            &request.preload,
        ));
    }
    let operator = operator::settings()?;
    let key = key(request, &operator, build);
    if hosts == Hosts::This
        && let Some(lockfile) = Resolved::find(home, &key)
    {
        return Ok(lockfile);
    }
    let program = uv::find(home, build, cancel, message)?;
    let tools = Tools::new(home, build, cancel)?;
    let mut resolver = Resolver {
        home,
        program: &program,
        tools: &tools,
        request,
        operator: &operator,
        hosts,
        requires_python: request.requires_python.clone(),
        download_failure: None,
    };
    resolver.choose_python()?;
    let mut lock = resolver.lock()?;
    if hosts == Hosts::Any {
        refuse_local(&lock.table)?;
    }
    let locals = resolver.fix(&mut lock, message)?;
    let mut lockfile = lock.text;
    if !request.preload.is_empty() {
        lockfile.push_str(&format!("\n{PRELOAD_MARK}{}\n", request.preload.join(" ")));
    }
    if let Some(local) = locals {
        Resolved {
            lockfile: lockfile.clone(),
            local,
        }
        .keep(home, &key)?;
    }
    Ok(lockfile)
}

struct Resolver<'a> {
    home: &'a Path,
    program: &'a Path,
    tools: &'a Tools<'a>,
    request: &'a Request,
    operator: &'a Table,
    hosts: Hosts,
    requires_python: Option<String>,
    /// Why uv could not download a Python.
    download_failure: Option<String>,
}

/// A uv.lock, as text and parsed.
struct Lock {
    text: String,
    table: Table,
}

const LOCK_HINT: &str = "only versions are taken from this file: remove it to have them chosen anew, or write it again, \
    by a uv no newer than the one that reads it here (for a script: `uv lock --script PLUGIN`)";

impl Resolver<'_> {
    /// Chooses the Python to resolve for. For this host that is the Python that `uv run` would use for the
    /// script; requirements for other Pythons are ignored. For any host all Pythons count that the plugin
    /// allows.
    fn choose_python(&mut self) -> Result<(), Error> {
        let step = self.tools.step()?;
        let mut find = Command::new(self.program);
        find.args(["python", "find", "--no-project", "--show-version"])
            .args(step.configure(self.operator)?);
        find.arg(python::supported(self.requires_python.as_deref()));
        let found = match self.tools.ask(&step, &find, "uv python find") {
            Ok(printed) => printed,
            // uv may download a Python. It cannot do that in a step in which code of dependencies runs.
            Err(Error::Failed { .. }) => {
                self.download_failure = self.download_python()?;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let minor = found.lines().find_map(|line| {
            let mut numbers = line.trim().split('.');
            let (major, minor) = (numbers.next()?, numbers.next()?);
            let are_digits =
                |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            (are_digits(major) && are_digits(minor)).then(|| format!("{major}.{minor}"))
        });
        self.requires_python = match (self.hosts, self.requires_python.take(), minor) {
            (Hosts::This, Some(own), Some(minor)) => Some(format!("{own},=={minor}.*")),
            (Hosts::This, None, Some(minor)) => Some(format!("=={minor}.*")),
            (Hosts::Any, None, Some(minor)) => Some(format!(">={minor}")),
            (_, own, _) => own,
        };
        Ok(())
    }

    /// Lets uv download a Python, if its configuration allows that. Returns the reason if uv could not: the
    /// steps that need a Python then fail with it.
    fn download_python(&self) -> Result<Option<String>, Error> {
        let step = self.tools.step()?;
        let mut venv = Command::new(self.program);
        venv.args(["venv", "--quiet", "--no-project"])
            .args(step.configure(self.operator)?)
            .args([
                "--python",
                &python::supported(self.requires_python.as_deref()),
            ])
            .arg(step.path().join("it"));
        match self.tools.run_trusted(&step, &venv, "uv venv") {
            Ok(()) => Ok(None),
            Err(Error::Failed { tail, .. }) => Ok(Some(tail)),
            Err(error) => Err(error),
        }
    }

    fn lock(&self) -> Result<Lock, Error> {
        let mut dependencies = self.request.dependencies.clone();
        let has_pyarrow = dependencies
            .iter()
            .any(|one| direct::name(one) == "pyarrow");
        if !has_pyarrow {
            dependencies.push(self.own_pyarrow());
        }
        let mut refreshed = Vec::new();
        loop {
            let lock = match self.lock_once(&dependencies, &refreshed) {
                // The plugin's own index may lack pyarrow. It is added when the environment is created.
                Err(Error::Failed { tail, .. }) if !has_pyarrow && tail.contains("pyarrow") => {
                    dependencies.pop();
                    self.lock_once(&dependencies, &refreshed)?
                }
                lock => lock?,
            };
            // uv caches the dependencies of a folder and does not detect all changes. So they are refreshed.
            let folders = packages(&lock.table).filter(|package| folder_of(package).is_some());
            let names: Vec<String> = folders.filter_map(name_of).map(str::to_owned).collect();
            if names.iter().all(|name| refreshed.contains(name)) {
                return Ok(lock);
            }
            refreshed.extend(names);
        }
    }

    /// The requirement for the pyarrow that the shim needs. Where the plugin selects a resolution (lowest
    /// versions), it is one that does not need numpy.
    fn own_pyarrow(&self) -> String {
        match self.request.settings.contains_key("resolution") {
            true => "pyarrow>=18".to_owned(),
            false => "pyarrow".to_owned(),
        }
    }

    /// The settings with which the plugin's dependencies are resolved. The plugin's `exclude-newer` does not
    /// apply to a pyarrow that only the shim needs.
    fn settings(&self) -> Table {
        let mut own = self.request.settings.clone();
        let asks_for = |one: &String| direct::name(one) == "pyarrow";
        if own.contains_key("exclude-newer") && !self.request.dependencies.iter().any(asks_for) {
            let packages = own.entry("exclude-newer-package");
            let packages = packages.or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(packages) = packages {
                packages.entry("pyarrow").or_insert(false.into());
            }
        }
        operator::merged(own, self.operator.clone())
    }

    fn lock_once(&self, dependencies: &[String], refreshed: &[String]) -> Result<Lock, Error> {
        let step = self.tools.step()?;
        let python = self.requires_python.as_deref();
        let mut uv = self.request.project.clone();
        if let Some(index) = self.request.settings.get("index") {
            uv.insert("index".to_owned(), index.clone());
        }
        // Workers need Linux.
        uv.entry("environments")
            .or_insert_with(|| Value::Array(vec!["sys_platform == 'linux'".into()]));
        step.write("pyproject.toml", &project(ROOT, dependencies, python, uv))?;
        if let Some(known) = &self.request.known {
            step.write("uv.lock", &known.text)?;
        }
        let mut command = Command::new(self.program);
        command
            .args(["lock", "--quiet"])
            .args(step.configure(&self.settings())?);
        for name in refreshed {
            command.args(["--refresh-package", name]);
        }
        if let Err(error) = self.tools.install(&step, &mut command, "uv lock") {
            return Err(self.explained(error));
        }
        made(step.path(), "uv.lock", "uv lock")?;
        let text = step.read("uv.lock", limits::SOURCE_SIZE_MAX)?;
        let table = environment::parse_lock(&text)?;
        Ok(Lock { text, table })
    }

    /// A failure that names the lockfile beside the plugin if uv refuses that, or has the list of this host's
    /// Pythons if none of them is suitable.
    fn explained(&self, error: Error) -> Error {
        let error = match (error, &self.request.known) {
            // The known lockfile is the only file here with that name.
            (Error::Failed { tail, .. }, Some(known)) if tail.contains("`uv.lock`") => {
                let path = known.path.display();
                return Error::Failed {
                    what: format!("reading the lockfile {path}"),
                    tail: format!(
                        "{}\n{LOCK_HINT}",
                        tail.replace("`uv.lock`", &format!("`{path}`"))
                    ),
                };
            }
            (error, _) => error,
        };
        python::explained(
            self.program,
            self.tools,
            self.requires_python.as_deref(),
            self.download_failure.as_deref(),
            error,
        )
    }

    /// Puts hashes of the content of local dependencies into a lockfile, and removes files that the request
    /// does not allow. Returns the local dependencies with their fingerprints. Returns none where the same
    /// request may resolve differently later.
    fn fix(
        &self,
        lock: &mut Lock,
        message: &mut dyn FnMut(&str),
    ) -> Result<Option<Vec<(PathBuf, String)>>, Error> {
        let uv = Uv {
            program: self.program,
            settings: self.operator,
            python: self.requires_python.as_deref(),
        };
        let mut locals = Some(Vec::new());
        let mut note = |path: PathBuf| match (fingerprint(&path), &mut locals) {
            (Some(print), Some(known)) => known.push((path, print)),
            _ => locals = None,
        };
        let mut moves = false;
        let before = lock.table.clone();
        let list = lock.table.get_mut("package").and_then(Value::as_array_mut);
        let list = list.into_iter().flatten().filter_map(Value::as_table_mut);
        for package in list {
            if let Some(folder) = folder_of(package) {
                // Before the build reads it, so that the next run detects a change during the build.
                note(folder.clone());
                if self.tools.no_build() {
                    let name = name_of(package).unwrap_or_default();
                    return Err(Error::Failed {
                        what: format!("the local dependency {name} ({})", folder.display()),
                        tail:
                            "--no-build allows dependencies with wheels alone: name a wheel of it"
                                .to_owned(),
                    });
                }
                message(&format!("building {}", folder.display()));
                let wheel = local::build(self.home, self.tools, &uv, &folder)?;
                take_wheel(package, &wheel);
            } else if let Some(path) = local_path(package) {
                note(path.into());
                add_hashes(package)?;
            }
            moves |= moves_on(package);
            self.keep_allowed(package)?;
        }
        if lock.table != before {
            lock.text = lock.table.to_string();
        }
        Ok(locals.filter(|_| !moves))
    }

    /// Keeps only the files of a package that `--hash`, `--no-binary` and `--only-binary` allow.
    fn keep_allowed(&self, package: &mut Table) -> Result<(), Error> {
        let name = name_of(package).unwrap_or_default().to_owned();
        let settings = &self.request.settings;
        let has_setting = |key: &str| {
            let list = settings.get(&format!("{key}-package"));
            let list = list.and_then(Value::as_array).into_iter().flatten();
            settings.get(key).and_then(Value::as_bool) == Some(true)
                || list
                    .filter_map(Value::as_str)
                    .any(|one| direct::name(one) == name)
        };
        let is_of_index = source(package).is_some_and(|source| source.contains_key("registry"));
        let mut reason = String::new();
        if is_of_index && has_setting("no-build") {
            package.remove("sdist");
            reason = "no-build (--only-binary) allows wheels alone".to_owned();
        }
        if is_of_index && has_setting("no-binary") {
            package.remove("wheels");
            reason = "no-binary allows its source alone".to_owned();
        }
        if let Some(hashes) = self.request.hashes.get(&name) {
            let is_allowed = |file: &Value| {
                let hash = file.get("hash").and_then(Value::as_str);
                hash.is_some_and(|hash| hashes.allowed.contains(hash))
            };
            if !package.get("sdist").is_some_and(is_allowed) {
                package.remove("sdist");
            }
            if let Some(Value::Array(wheels)) = package.get_mut("wheels") {
                wheels.retain(is_allowed);
            }
            reason = format!("none of its files has a hash of {}", hashes.at);
        } else if let Some(by) = &self.request.hashes_needed_by
            && name != ROOT
            && name != "pyarrow"
        {
            let version = package.get("version").and_then(Value::as_str);
            return Err(Error::Failed {
                what: format!("the dependency {name} {}", version.unwrap_or_default()),
                tail: format!(
                    "it has no --hash, and {by} asks for one of each package: list it, too \
                     (`uv pip compile --generate-hashes` lists all)"
                ),
            });
        }
        let has_wheel = package
            .get("wheels")
            .and_then(Value::as_array)
            .is_some_and(|wheels| !wheels.is_empty());
        if reason.is_empty() || has_wheel || package.contains_key("sdist") {
            return Ok(());
        }
        let version = package.get("version").and_then(Value::as_str);
        Err(Error::Failed {
            what: format!("the dependency {name} {}", version.unwrap_or_default()),
            tail: reason,
        })
    }
}

fn packages(lock: &Table) -> impl Iterator<Item = &Table> {
    let list = lock.get("package").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_table)
}

fn name_of(package: &Table) -> Option<&str> {
    package.get("name").and_then(Value::as_str)
}

fn source(package: &Table) -> Option<&Table> {
    package.get("source").and_then(Value::as_table)
}

/// The folder that a package is built from.
fn folder_of(package: &Table) -> Option<PathBuf> {
    let source = source(package)?;
    let folder = source.get("directory").or_else(|| source.get("editable"));
    Some(folder?.as_str()?.into())
}

/// The path on this host that a package comes from.
fn local_path(package: &Table) -> Option<String> {
    let source = source(package)?;
    if is_root(package) {
        return None;
    }
    let text = |key: &str| source.get(key).and_then(Value::as_str);
    let path = ["directory", "editable", "virtual", "path"];
    if let Some(path) = path.iter().find_map(|key| text(key)) {
        return Some(path.to_owned());
    }
    let file = |url: &str| url.strip_prefix("file://").map(str::to_owned);
    match text("registry") {
        Some(index) if index.contains("://") => file(index),
        Some(index) => Some(index.to_owned()),
        None => text("git").or_else(|| text("url")).and_then(file),
    }
}

/// Refuses a lockfile with a package that other hosts cannot install. The error names the package.
pub fn check_portable(lockfile: &str) -> Result<(), Error> {
    match lockfile.starts_with(environment::REQUIREMENTS_MARK) {
        true => Ok(()),
        false => refuse_local(&environment::parse_lock(lockfile)?),
    }
}

fn refuse_local(lock: &Table) -> Result<(), Error> {
    let local: Vec<String> = packages(lock)
        .filter_map(|package| Some(format!("{} ({})", name_of(package)?, local_path(package)?)))
        .collect();
    match local.is_empty() {
        true => Ok(()),
        false => Err(Error::Tool(format!(
            "other hosts cannot install what is on this one: {}; publish it to an index, or name a \
             repository (`git+https://…@COMMIT`)",
            local.join(", ")
        ))),
    }
}

/// True for a package of a git repository whose request names no commit: it may resolve to another commit
/// later.
fn moves_on(package: &Table) -> bool {
    let git = source(package).and_then(|source| source.get("git")?.as_str());
    let asked = |url: &str| {
        let query = url.split('#').next()?.split_once('?')?.1;
        let rev = query
            .split('&')
            .find_map(|word| word.strip_prefix("rev="))?;
        (rev.len() == 40 && rev.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(())
    };
    git.is_some_and(|url| asked(url).is_none())
}

/// Replaces the source of a package by a wheel.
fn take_wheel(package: &mut Table, wheel: &local::Wheel) {
    let mut source = Table::new();
    let path = wheel.path.to_string_lossy().into_owned();
    source.insert("path".to_owned(), Value::String(path));
    let mut file = Table::new();
    file.insert("filename".to_owned(), wheel.file_name().into());
    file.insert("hash".to_owned(), format!("sha256:{}", wheel.hash).into());
    package.insert("version".to_owned(), wheel.version().into());
    package.insert("source".to_owned(), Value::Table(source));
    let files = Value::Array(vec![Value::Table(file)]);
    package.insert("wheels".to_owned(), files);
}

/// Adds the hashes of files of a local index, which have none in a lockfile.
fn add_hashes(package: &mut Table) -> Result<(), Error> {
    let add = |file: &mut Value| {
        let file = file.as_table_mut();
        let Some(file) = file.filter(|file| !file.contains_key("hash")) else {
            return Ok(());
        };
        if let Some(path) = file.get("path").and_then(Value::as_str).map(PathBuf::from) {
            let hash = local::file_hash(&path).map_err(|error| Error::io(&path, error))?;
            file.insert("hash".to_owned(), format!("sha256:{hash}").into());
        }
        Ok(())
    };
    if let Some(sdist) = package.get_mut("sdist") {
        add(sdist)?;
    }
    let wheels = package.get_mut("wheels").and_then(Value::as_array_mut);
    wheels.into_iter().flatten().try_for_each(add)
}

/// A hash of all that a resolution depends on, except the contents of indexes and folders.
fn key(request: &Request, operator: &Table, build: &Build) -> String {
    let mut hasher = Sha256::new();
    let text = format!(
        "{request:?}\n{operator:?}\n{}\n{:?}\n{:?}",
        build.no_build,
        operator::variables(),
        programs::path(),
    );
    hasher.update(text.as_bytes());
    text::hex(&hasher.finalize())
}

/// Prefix of the name of a stored resolution that is being written.
const UNFINISHED: &str = ".tmp";

/// True for a file that another program is writing at the moment.
fn is_being_written(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    let written = fs::symlink_metadata(path).and_then(|found| found.modified());
    let is_new = written.is_ok_and(|at| {
        at.elapsed()
            .is_ok_and(|age| age < limits::RESOLUTION_WRITE_MAX)
    });
    name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) && is_new
}

/// A stored resolution.
#[derive(Deserialize, Serialize)]
struct Resolved {
    lockfile: String,
    /// Local dependencies with their fingerprints.
    local: Vec<(PathBuf, String)>,
}

impl Resolved {
    /// The lockfile of a request, if its environment exists, is whole and none of its local dependencies has changed.
    fn find(home: &Path, key: &str) -> Option<String> {
        let entries = fs::read_dir(home.join("resolved")).ok()?;
        let names = entries.flatten().map(|entry| entry.path());
        let mut found = names.filter(|path| path.file_stem().is_some_and(|stem| stem == key));
        let file = input_file::open(&found.next()?).ok()?;
        let text = input_file::text(file, 2 * limits::SOURCE_SIZE_MAX).ok()?;
        let found: Resolved = serde_json::from_str(&text).ok()?;
        environment::find_whole(home, &environment::hash(&found.lockfile))?;
        let is_same = |(path, print): &(PathBuf, String)| fingerprint(path).as_ref() == Some(print);
        found.local.iter().all(is_same).then_some(found.lockfile)
    }

    /// Stores the resolution in place of an earlier one. Removes stored resolutions whose environments do not
    /// exist or are broken.
    fn keep(&self, home: &Path, key: &str) -> Result<(), Error> {
        let folder = home.join("resolved");
        home::create(&folder)?;
        let until = soon();
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if is_being_written(&path) {
                continue;
            }
            let hash = path.extension().and_then(|hash| hash.to_str());
            let is_there = hash.is_some_and(|hash| environment::find_whole(home, hash).is_some());
            if !is_there || path.file_stem().is_some_and(|stem| stem == key) {
                sweep(&path, until);
            }
        }
        let failed = |error| Error::io(&folder, error);
        let fresh = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(&folder);
        let mut fresh = fresh.map_err(failed)?;
        let text = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        fresh.write_all(&text).map_err(failed)?;
        let name = format!("{key}.{}", environment::hash(&self.lockfile));
        let kept = fresh.persist(folder.join(name));
        kept.map(|_| ()).map_err(|error| failed(error.error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_store_resolutions_at_the_same_time_leave_each_others_files() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("resolved");
        home::create(&folder).unwrap();
        let (new, old) = (folder.join(".tmpNew"), folder.join(".tmpOld"));
        for path in [&new, &old] {
            fs::write(path, "").unwrap();
        }
        let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        let file = fs::File::options().write(true).open(&old).unwrap();
        file.set_times(times).unwrap();
        let resolved = Resolved {
            lockfile: "lock".to_owned(),
            local: Vec::new(),
        };
        resolved.keep(home.path(), "key").unwrap();
        assert!(new.exists() && !old.exists());
        let count = fs::read_dir(&folder).unwrap().count();
        assert_eq!(count, 2, "the other program's and the stored one");
    }
}
