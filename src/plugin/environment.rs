//! Python environments: `<home>/venvs/<hash>/bin/python`, created by uv.
//!
//! The name of an environment is the SHA-256 of its lockfile. A lockfile is either a `uv.lock`, or a
//! requirements list that begins with [`REQUIREMENTS_MARK`]. An environment is built in another folder and
//! renamed to its path, so `bin/python` exists only when the environment is complete. One that has become broken
//! since ([`Signs`]) is replaced in the same way, as soon as no process uses it. There is a file lock for each
//! environment. So programs and threads that request the same environment at the same time create it
//! once. Each build has a folder of its own, because the tools of a killed program may write in theirs until
//! they have ended.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};
use toml::{Table, Value};

use super::folders::{BEGUN, Building, Step, displace, sweep_killed};
use super::home::{check, create};
use super::lock::{self, Lock};
use super::tool::{Tools, made};
use super::{operator, programs, python, uv};
use crate::job::text;

pub use super::error::Error;
pub use super::folders::FIXED;
pub use super::home::home;
pub use super::programs::python;
pub use super::signs::Signs;
pub use super::tool::{Build, sleep};

/// First line of a lockfile that is a requirements list.
pub const REQUIREMENTS_MARK: &str = "# casparian requirements 1";
const PYTHON_MARK: &str = "# requires-python: ";
pub(super) const PRELOAD_MARK: &str = "# preload: ";
/// Name of the project that replaces the plugin where uv resolves its dependencies.
pub(super) const ROOT: &str = "casparian-environment";

/// An existing environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// Its `bin/python`.
    pub interpreter: PathBuf,
    /// True if it existed before.
    pub cached: bool,
    /// Modules that a warm fork server imports.
    pub preload: Vec<String>,
}

/// SHA-256 of a lockfile as lower-case hex.
pub fn hash(lockfile: &str) -> String {
    text::hex(&Sha256::digest(lockfile.as_bytes()))
}

/// The lockfile of a requirements list in canonical form: sorted, without duplicates. It always includes
/// pyarrow, since the plugin process needs it.
pub fn requirements_lockfile(
    requirements: &[String],
    requires_python: Option<&str>,
    preload: &[String],
) -> String {
    let mut lines: BTreeSet<&str> = requirements
        .iter()
        .map(|line| line.trim())
        .filter(|line| !line.is_empty())
        .collect();
    if !lines.iter().any(|line| is_pyarrow(line)) {
        lines.insert("pyarrow");
    }
    let mut out = format!("{REQUIREMENTS_MARK}\n");
    if let Some(version) = requires_python {
        out.push_str(&format!("{PYTHON_MARK}{version}\n"));
    }
    if !preload.is_empty() {
        out.push_str(&format!("{PRELOAD_MARK}{}\n", preload.join(" ")));
    }
    for line in lines {
        out.push_str(line);
        out.push('\n');
    }
    out
}

fn is_pyarrow(requirement: &str) -> bool {
    let name: String = requirement
        .chars()
        .take_while(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .collect();
    name.eq_ignore_ascii_case("pyarrow")
}

fn header<'a>(lockfile: &'a str, mark: &str) -> Option<&'a str> {
    lockfile
        .lines()
        .take_while(|line| line.starts_with('#'))
        .find_map(|line| line.strip_prefix(mark))
}

/// The Python that an environment was created from: the target of the environment's own link. Build code may
/// have replaced that link: see [`kept_interpreter`].
pub fn base_interpreter(interpreter: &Path) -> Result<PathBuf, Error> {
    let failed = |reason: String| Error::Failed {
        what: interpreter.display().to_string(),
        tail: reason,
    };
    let whole = |path: &Path| fs::canonicalize(path).map_err(|error| failed(error.to_string()));
    let base = whole(interpreter)?;
    let own = interpreter.parent().and_then(Path::parent);
    match base.starts_with(whole(own.unwrap_or(interpreter))?) {
        true => Err(failed(
            "it is no link to a Python outside its environment, so that a package may have \
             replaced it; remove the environment, and it is made again"
                .to_owned(),
        )),
        false => Ok(base),
    }
}

/// As [`base_interpreter`], for a program that runs unrestricted.
///
/// # Errors
///
/// Also an error where plugins or build code can have changed the Python.
pub fn kept_interpreter(interpreter: &Path) -> Result<PathBuf, Error> {
    let base = base_interpreter(interpreter)?;
    match programs::is_kept(&base) {
        true => Ok(base),
        false => Err(Error::Failed {
            what: interpreter.display().to_string(),
            tail: format!(
                "it leads to {}, which plugins or build code could change: it is in no folder of PATH, nor \
                 installed by uv. Where it is a Python of yours, put its folder into the worker's PATH; else \
                 remove the environment, and it is made again",
                base.display()
            ),
        }),
    }
}

/// The modules that a warm fork server imports, as a lockfile lists them: at the beginning of a requirements
/// list, at the end of a uv.lock.
pub fn preload(lockfile: &str) -> Vec<String> {
    let last = || lockfile.lines().next_back()?.strip_prefix(PRELOAD_MARK);
    header(lockfile, PRELOAD_MARK)
        .or_else(last)
        .map(|names| names.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// The interpreter of an environment, if the environment exists.
pub fn find(home: &Path, hash: &str) -> Option<PathBuf> {
    let interpreter = home.join("venvs").join(hash).join("bin/python");
    (is_hash(hash) && interpreter.exists()).then_some(interpreter)
}

/// The interpreter of an environment, if the environment exists and is whole as far as [`Signs`] show.
pub fn find_whole(home: &Path, hash: &str) -> Option<PathBuf> {
    let interpreter = find(home, hash)?;
    Signs::of(&folder(home).join(hash)).ok()?;
    Some(interpreter)
}

/// Refuses an environment if another user could change the programs in it.
pub fn check_owners(home: &Path, hash: &str) -> Result<(), Error> {
    check(home, &home.join("venvs").join(hash).join("bin"))
}

/// The folder of all environments and of their locks.
pub fn folder(home: &Path) -> PathBuf {
    home.join("venvs")
}

/// The file that is locked while an environment is created.
fn lock_file(home: &Path, hash: &str) -> PathBuf {
    folder(home).join(format!(".{hash}.lock"))
}

/// The other process that the creation of an environment waits for.
pub fn waits_for(home: &Path, hash: &str) -> Option<String> {
    let locks = [lock_file(home, hash), uv::lock_file(home)];
    locks.iter().find_map(|path| lock::held_by_another(path))
}

pub(super) fn is_hash(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Creates the environment of a lockfile, or returns the existing one if [`Signs`] show that it is whole. Blocks
/// while uv runs, at most [`PROVISION_TIMEOUT`](crate::limits::PROVISION_TIMEOUT) for each step, and while
/// processes use one that is to be replaced.
pub fn provision(
    home: &Path,
    lockfile: &str,
    expected_hash: Option<&str>,
    how: &Build,
    cancel: &AtomicBool,
    message: &mut dyn FnMut(&str),
) -> Result<Environment, Error> {
    let hash = hash(lockfile);
    if let Some(expected) = expected_hash {
        if !is_hash(expected) {
            let reason = "not a SHA-256 in lower-case hex";
            return Err(Error::Hash {
                hash: expected.chars().take(80).collect(),
                reason,
            });
        }
        if expected != hash {
            let reason = "it is not the SHA-256 of the lockfile that came with it";
            return Err(Error::Hash {
                hash: expected.to_owned(),
                reason,
            });
        }
    }
    check_owners(home, &hash)?;
    sweep_killed(home);
    if let Some(interpreter) = find_whole(home, &hash) {
        return Ok(Environment {
            interpreter,
            cached: true,
            preload: preload(lockfile),
        });
    }
    create_unless(home, lockfile, how, cancel, message, &|_, folder| {
        Signs::of(folder)
    })
}

/// As [`provision`]. An existing environment is also created again if its Python cannot import pyarrow.
pub fn verify(
    home: &Path,
    lockfile: &str,
    how: &Build,
    cancel: &AtomicBool,
    message: &mut dyn FnMut(&str),
) -> Result<Environment, Error> {
    check_owners(home, &hash(lockfile))?;
    create_unless(home, lockfile, how, cancel, message, &|tools, folder| {
        let signs = Signs::of(folder)?;
        let python = folder.join("bin/python");
        match import_pyarrow(tools, &python) {
            Ok(()) => Ok(signs),
            Err(error) => Err(error.to_string()),
        }
    })
}

/// Creates an environment, unless it exists and is whole by `signs`. Only one program does this at a time.
fn create_unless(
    home: &Path,
    lockfile: &str,
    how: &Build,
    cancel: &AtomicBool,
    message: &mut dyn FnMut(&str),
    signs: &dyn Fn(&Tools<'_>, &Path) -> Result<Signs, String>,
) -> Result<Environment, Error> {
    let hash = hash(lockfile);
    let (venvs, preload) = (folder(home), preload(lockfile));
    let target = venvs.join(&hash);
    let interpreter = target.join("bin/python");
    uv::check_text(home)?;
    create(&venvs)?;
    let _lock = Lock::take(&lock_file(home, &hash), cancel, message)?;
    let tools = Tools::new(home, how, cancel)?;
    let exists = find(home, &hash).is_some();
    let mut broken = None;
    if exists {
        match signs(&tools, &target) {
            Ok(_) => {
                return Ok(Environment {
                    interpreter,
                    cached: true,
                    preload,
                });
            }
            Err(_) if cancel.load(Ordering::Relaxed) => return Err(Error::Cancelled),
            Err(reason) => broken = Some(reason),
        }
    }
    let again = |error| match &broken {
        Some(reason) if !matches!(error, Error::Cancelled) => Error::Broken {
            folder: target.clone(),
            reason: reason.clone(),
            error: Box::new(error),
        },
        _ => error,
    };
    let mut make = || {
        let uv = uv::find(home, how, cancel, message)?;
        let short = hash.get(..12).unwrap_or(&hash);
        match &broken {
            Some(reason) => message(&format!(
                "making Python environment {short} again: {reason}"
            )),
            None => message(&format!("making Python environment {short}")),
        }
        let prefix = format!(".{hash}{BEGUN}");
        let fresh = Building::new(&venvs, &prefix)?;
        build(&tools, &uv, lockfile, &fresh.path(), message)?;
        // Processes that use a broken environment may work on with the modules that it still has.
        let _unused = Lock::take_folder(&target, cancel, message)?;
        displace(&target, &prefix)?;
        fresh.finish(&target)
    };
    make().map_err(again)?;
    Ok(Environment {
        interpreter,
        cached: false,
        preload,
    })
}

/// Fails if an interpreter cannot import what the shim needs.
fn import_pyarrow(tools: &Tools<'_>, python: &Path) -> Result<(), Error> {
    let mut check = Command::new(python);
    check.args(["-c", "import pyarrow"]);
    tools.run(&tools.step()?, &check, "import pyarrow")
}

fn build(
    tools: &Tools<'_>,
    uv: &Path,
    lockfile: &str,
    target: &Path,
    message: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let is_requirements = lockfile.starts_with(REQUIREMENTS_MARK);
    let requires_python = match is_requirements {
        true => header(lockfile, PYTHON_MARK).map(str::to_owned),
        false => uv_lock(lockfile)?.requires_python,
    };
    let settings = operator::settings()?;
    let step = tools.step()?;
    let mut venv = Command::new(uv);
    venv.args(["venv", "--quiet", "--relocatable", "--no-project"])
        .args(step.configure(&settings)?);
    venv.args(["--python", &python::supported(requires_python.as_deref())]);
    tools
        .run_trusted(&step, venv.arg(target), "uv venv")
        .map_err(|error| python::explained(uv, tools, requires_python.as_deref(), None, error))?;
    made(target, "bin/python", "uv venv")?;
    let python = target.join("bin/python");
    let pip_install = |step: &Step| {
        let mut install = Command::new(uv);
        install
            .args(["pip", "install", "--quiet"])
            .args(step.configure(&settings)?)
            .arg("--python")
            .arg(&python);
        Ok(install)
    };
    let step = tools.step()?;
    if is_requirements {
        let list = step.write("requirements.txt", lockfile)?;
        let mut install = pip_install(&step)?;
        tools.install(&step, install.arg("-r").arg(&list), "uv pip install")?;
    } else {
        sync(tools, &step, uv, lockfile, target, &settings)?;
    }
    let checked = import_pyarrow(tools, &python);
    if matches!(checked, Err(Error::Failed { .. })) {
        message("the lockfile has no pyarrow, which every plugin needs: adding it");
        let step = tools.step()?;
        let mut install = pip_install(&step)?;
        tools.install(&step, install.arg("pyarrow"), "uv pip install pyarrow")?;
        import_pyarrow(tools, &python)?;
    } else {
        checked?;
    }
    compile(tools, &python, &target.join("lib"))
}

/// Compiles the modules of an environment to bytecode, except for tests. Plugin processes may not write in
/// the environment, so each would compile every module that it imports (pandas: 1.5 s of CPU). Files that are
/// not valid Python of this version, which packages may have, are left out.
fn compile(tools: &Tools<'_>, python: &Path, modules: &Path) -> Result<(), Error> {
    let mut compile = Command::new(python);
    compile
        .args(["-I", "-m", "compileall", "-qq", "-x", "/tests?/"])
        .arg(modules);
    match tools.run(&tools.step()?, &compile, "compileall") {
        Err(Error::Failed { .. }) => Ok(()),
        ended => ended,
    }
}

/// Refuses a text that is neither a requirements lockfile nor a uv.lock. The error is the reason.
pub fn check_lockfile(lockfile: &str) -> Result<(), String> {
    if lockfile.starts_with(REQUIREMENTS_MARK) {
        return Ok(());
    }
    let table: toml::Table = toml::from_str(lockfile)
        .map_err(|error| format!("it is not a uv.lock: {}", error.message()))?;
    match table.get("version").is_some_and(toml::Value::is_integer) {
        true => Ok(()),
        false => Err("it is not a uv.lock: it has no version".to_owned()),
    }
}

struct UvLock {
    requires_python: Option<String>,
    /// Name of the root package, for which the lockfile was created.
    root: Option<String>,
}

/// Parses a uv.lock as TOML.
pub(super) fn parse_lock(lockfile: &str) -> Result<Table, Error> {
    toml::from_str(lockfile).map_err(|error| Error::Failed {
        what: "reading the lockfile".to_owned(),
        tail: error.message().to_owned(),
    })
}

/// True for the root package of a uv.lock, for which the lockfile was created.
pub(super) fn is_root(package: &Table) -> bool {
    let source = package.get("source").and_then(Value::as_table);
    let folder = |key: &str| source.and_then(|source| source.get(key)?.as_str());
    ["virtual", "editable", "directory"]
        .iter()
        .any(|key| folder(key) == Some("."))
}

fn uv_lock(lockfile: &str) -> Result<UvLock, Error> {
    let table = parse_lock(lockfile)?;
    let packages = table.get("package").and_then(Value::as_array);
    let packages: Vec<&Table> = packages
        .into_iter()
        .flatten()
        .filter_map(Value::as_table)
        .collect();
    let is_local = |package: &&&Table| {
        let source = package.get("source").and_then(Value::as_table);
        source
            .is_some_and(|source| source.contains_key("virtual") || source.contains_key("editable"))
    };
    let root = packages.iter().find(|package| is_root(package));
    let root = root.or_else(|| packages.iter().find(is_local));
    let name = root.and_then(|package| package.get("name")?.as_str());
    let requires_python = table.get("requires-python").and_then(Value::as_str);
    Ok(UvLock {
        requires_python: requires_python.map(str::to_owned),
        root: name.map(str::to_owned),
    })
}

/// The `pyproject.toml` of a project without code. The project belongs to no workspace in the folders above.
pub(super) fn project(
    name: &str,
    dependencies: &[String],
    requires_python: Option<&str>,
    mut uv: Table,
) -> String {
    let mut project = Table::new();
    project.insert("name".to_owned(), name.into());
    project.insert("version".to_owned(), "0".into());
    if let Some(version) = requires_python {
        project.insert("requires-python".to_owned(), version.into());
    }
    let dependencies = dependencies.iter().cloned().map(Value::String).collect();
    project.insert("dependencies".to_owned(), Value::Array(dependencies));
    uv.insert("package".to_owned(), false.into());
    uv.insert("workspace".to_owned(), Value::Table(Table::new()));
    let mut tool = Table::new();
    tool.insert("uv".to_owned(), Value::Table(uv));
    let mut whole = Table::new();
    whole.insert("project".to_owned(), Value::Table(project));
    whole.insert("tool".to_owned(), Value::Table(tool));
    whole.to_string()
}

/// Installs a uv.lock. `uv sync --frozen` needs the project that the lockfile was created for. A project with
/// only the name of the root replaces it, since a frozen sync takes everything else from the lockfile.
fn sync(
    tools: &Tools<'_>,
    step: &Step,
    uv: &Path,
    lockfile: &str,
    target: &Path,
    settings: &Table,
) -> Result<(), Error> {
    let lock = uv_lock(lockfile)?;
    let Some(root) = lock.root else {
        // The lockfile has no packages.
        return Ok(());
    };
    let requires = lock.requires_python.unwrap_or_else(|| ">=3.8".to_owned());
    let project = project(&root, &[], Some(&requires), Table::new());
    step.write("pyproject.toml", &project)?;
    step.write("uv.lock", lockfile)?;
    let mut command = Command::new(uv);
    command
        .args([
            "sync",
            "--quiet",
            "--frozen",
            "--no-dev",
            "--no-install-project",
        ])
        .args(step.configure(settings)?)
        .arg("--project")
        .arg(step.path())
        .env("UV_PROJECT_ENVIRONMENT", target);
    tools.install(step, &mut command, "uv sync")
}

/// True for a file named like a uv lockfile.
pub fn is_uv_lock(path: &Path) -> bool {
    path.file_name() == Some(OsStr::new("uv.lock")) || path.extension() == Some(OsStr::new("lock"))
}

#[cfg(test)]
mod tests;
