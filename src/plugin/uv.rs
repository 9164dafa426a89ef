//! Finds uv, or installs it once from PyPI.

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use super::error::Error;
use super::home::check;
use super::lock::Lock;
use super::operator;
use super::programs::{program, python};
use super::tool::{Build, Tools, made};
use crate::limits;

/// The file that is locked while uv is installed.
pub fn lock_file(home: &Path) -> PathBuf {
    home.join("uv.lock")
}

/// Refuses a home whose path uv cannot process, before anything is created there.
pub(super) fn check_text(home: &Path) -> Result<(), Error> {
    match home.to_str() {
        Some(_) => Ok(()),
        None => Err(Error::Tool(format!(
            "{}: the path is not UTF-8, which uv needs; set HOME to another folder",
            home.display()
        ))),
    }
}

/// The version that is installed, with the hashes of its files.
const PINNED: &str = include_str!("uv.txt");

/// Returns the uv on PATH if it is at least the pinned version. Else returns the private one below `home`,
/// which is installed first if it is missing or older.
pub fn find_or_install(
    home: &Path,
    cancel: &AtomicBool,
    message: &mut dyn FnMut(&str),
) -> Result<PathBuf, Error> {
    find(home, &Build::default(), cancel, message)
}

/// As [`find_or_install`], with tools that are restricted as builds are. So a user who can change such a uv
/// gets no more rights by it than build code has.
pub(super) fn find(
    home: &Path,
    build: &Build,
    cancel: &AtomicBool,
    message: &mut dyn FnMut(&str),
) -> Result<PathBuf, Error> {
    check_text(home)?;
    let tools = Tools::new(home, build, cancel)?;
    let mut reason = "uv is not on PATH".to_owned();
    if let Some(found) = program("uv") {
        match version_of(&found, &tools)? {
            version if suffices(&version) => return Ok(found),
            version => reason = format!("{} is {version:?}", found.display()),
        }
    }
    let target = home.join("uv");
    let own = target.join("bin/uv");
    check(home, &target.join("bin"))?;
    let is_there = || Ok(own.exists() && suffices(&version_of(&own, &tools)?));
    if is_there()? {
        return Ok(own);
    }
    let _lock = Lock::take(&lock_file(home), cancel, message)?;
    if is_there()? {
        return Ok(own);
    }
    let python = python()?;
    message(&format!(
        "{reason}: installing {} from PyPI into {}",
        pinned(),
        target.display()
    ));
    install(&tools, &python, &target.join("bin"))?;
    Ok(own)
}

/// `uv==1.2.3`.
fn pinned() -> &'static str {
    let words = PINNED.lines().find(|line| line.starts_with("uv=="));
    words
        .and_then(|line| line.split_whitespace().next())
        .unwrap_or_default()
}

/// What `uv --version` prints.
fn version_of(uv: &Path, tools: &Tools<'_>) -> Result<String, Error> {
    let mut command = Command::new(uv);
    command.arg("--version");
    let what = format!("{} --version", uv.display());
    tools.ask_within(&tools.step()?, &command, &what, limits::UV_VERSION_TIMEOUT)
}

/// True for a printed version (`uv 1.2.3 (…)`) that is at least the pinned one.
fn suffices(printed: &str) -> bool {
    let numbers = |text: &str| -> Option<Vec<u32>> {
        text.split('.').map(|part| part.parse().ok()).collect()
    };
    let printed = printed.split_whitespace().nth(1).and_then(numbers);
    let least = pinned().strip_prefix("uv==").and_then(numbers);
    matches!((printed, least), (Some(printed), Some(least)) if printed >= least)
}

/// Installs uv in the step of one tool, where build code that runs at the same time cannot find it. Then only
/// the program is copied to `target`.
fn install(tools: &Tools<'_>, python: &Path, target: &Path) -> Result<(), Error> {
    let step = tools.step()?;
    let installed = step.path().join(VENV);
    let mut venv = Command::new(python);
    // Isolated, so that the user's packages and variables have no effect.
    venv.args(["-I", "-m", "venv"]).arg(&installed);
    tools
        .run(&step, &venv, "python3 -m venv")
        .map_err(|error| match error {
            Error::Failed { tail, .. } => Error::Tool(format!(
                "python3 -m venv failed (on Debian and Ubuntu, install python3-venv): {tail}"
            )),
            other => other,
        })?;
    let list = step.write("uv.txt", PINNED)?;
    let mut pip = Command::new(installed.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--no-input"])
        .args(["--disable-pip-version-check", "--only-binary", ":all:"])
        .args(["--no-deps", "--require-hashes", "-r"])
        .arg(&list);
    // If PIP_CONFIG_FILE is the null device, pip reads no settings file at all.
    if !operator::is_pip_without_files() {
        pip.env(
            "PIP_CONFIG_FILE",
            step.write("pip.conf", operator::pip_settings())?,
        );
    }
    tools.run(&step, &pip, "pip install uv")?;
    made(&installed, "bin/uv", "pip install uv")?;
    let made = step.take(&[VENV, "bin"], "uv");
    let mut made = made.map_err(|error| Error::io(&installed.join("bin/uv"), error))?;
    keep(&mut made, target).map_err(|error| Error::io(target, error))
}

const VENV: &str = "it";

/// Copies the program into its folder. It gets its name only when the copy is complete.
fn keep(made: &mut File, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut copy = tempfile::NamedTempFile::new_in(folder)?;
    io::copy(&mut made.take(PROGRAM_SIZE_MAX), copy.as_file_mut())?;
    copy.as_file()
        .set_permissions(Permissions::from_mode(0o755))?;
    copy.as_file().sync_all()?;
    copy.persist(folder.join("uv"))?;
    Ok(())
}

/// Bytes; far above the size of uv.
const PROGRAM_SIZE_MAX: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_version_and_later_ones_suffice() {
        let least = pinned().strip_prefix("uv==").unwrap();
        assert!(PINNED.matches("--hash=sha256:").count() > 10);
        for good in [least, "0.13.10", "0.100.0", "1.0.0", "1.0"] {
            assert!(suffices(&format!("uv {good} (abc 2026-01-01)")), "{good}");
        }
        for bad in ["0.12.99", "0.9.30", "", "x", "0.13.x"] {
            assert!(!suffices(&format!("uv {bad}")), "{bad}");
        }
        assert!(!suffices(""));
    }
}
