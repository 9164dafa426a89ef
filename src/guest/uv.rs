//! Finding uv, or installing it once from PyPI.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use super::environment::{self, Error};
use super::folders::{Building, displace};
use super::home::{check, program};
use super::lock::Lock;
use super::tool::{Build, Tools, guarded, made};
use crate::limits;

/// The file that is locked while uv is installed.
pub fn lock_file(home: &Path) -> PathBuf {
    home.join("uv.lock")
}

/// Refuses a home where uv cannot work, before it is begun.
fn check_text(home: &Path) -> Result<(), Error> {
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

/// uv on PATH where it is at least the pinned version; else the private one below `home`, installed
/// there when it is missing or older.
pub fn find_or_install(
    home: &Path,
    cancel: &AtomicBool,
    message: &mut dyn FnMut(&str),
) -> Result<PathBuf, Error> {
    check_text(home)?;
    let mut reason = "uv is not on PATH".to_owned();
    if let Some(found) = program("uv") {
        match version_of(&found, cancel)? {
            version if suffices(&version) => return Ok(found),
            version => reason = format!("{} is {version:?}", found.display()),
        }
    }
    let place = home.join("uv");
    let own = place.join("bin/uv");
    check(home, &place.join("bin"))?;
    let is_there = || Ok(own.exists() && suffices(&version_of(&own, cancel)?));
    if is_there()? {
        return Ok(own);
    }
    let _lock = Lock::take(&lock_file(home), cancel, message)?;
    if is_there()? {
        return Ok(own);
    }
    let python = environment::python()?;
    message(&format!(
        "{reason}: installing {} from PyPI into {}",
        pinned(),
        place.display()
    ));
    // The program appears under its name only when the installation is whole.
    let prefix = "uv.new";
    let fresh = Building::new(home, prefix)?;
    let build = Build::default();
    install(&Tools::new(home, &build, cancel)?, &python, &fresh.path())?;
    displace(&place, prefix)?;
    fresh.finish(&place)?;
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
fn version_of(uv: &Path, cancel: &AtomicBool) -> Result<String, Error> {
    let mut command = Command::new(uv);
    command.arg("--version");
    let what = format!("{} --version", uv.display());
    guarded(&command, &what, limits::UV_VERSION_TIMEOUT, cancel)
}

/// True for a printed version (`uv 1.2.3 (…)`) that is the pinned one or a later one.
fn suffices(printed: &str) -> bool {
    let numbers = |text: &str| -> Option<Vec<u32>> {
        text.split('.').map(|part| part.parse().ok()).collect()
    };
    let printed = printed.split_whitespace().nth(1).and_then(numbers);
    let least = pinned().strip_prefix("uv==").and_then(numbers);
    matches!((printed, least), (Some(printed), Some(least)) if printed >= least)
}

fn install(tools: &Tools<'_>, python: &Path, place: &Path) -> Result<(), Error> {
    let mut venv = Command::new(python);
    venv.args(["-m", "venv"]).arg(place);
    tools
        .run(&tools.step()?, &venv, "python3 -m venv")
        .map_err(|error| match error {
            Error::Failed { tail, .. } => Error::Tool(format!(
                "python3 -m venv failed (on Debian and Ubuntu, install python3-venv): {tail}"
            )),
            other => other,
        })?;
    let step = tools.step()?;
    let list = step.write("uv.txt", PINNED)?;
    let mut pip = Command::new(place.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--no-input"])
        .args(["--disable-pip-version-check", "--only-binary", ":all:"])
        .args(["--no-deps", "--require-hashes", "-r"])
        .arg(&list);
    tools.run(&step, &pip, "pip install uv")?;
    made(place, "bin/uv", "pip install uv")
}

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
