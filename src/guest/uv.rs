//! Finding uv, or installing it once from PyPI.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use super::environment::{self, Error};
use super::home::{check, program};
use super::lock::Lock;
use super::tool::{Build, Building, Tools, displace, made};

/// The file that is locked while uv is installed.
pub(super) fn lock_file(home: &Path) -> PathBuf {
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

/// uv on PATH; else the private one below `home`, installed there when it is missing.
pub fn find_or_install(
    home: &Path,
    cancel: &AtomicBool,
    message: &mut dyn FnMut(&str),
) -> Result<PathBuf, Error> {
    check_text(home)?;
    if let Some(found) = program("uv") {
        return Ok(found);
    }
    let place = home.join("uv");
    let own = place.join("bin/uv");
    check(home, &place.join("bin"))?;
    if own.exists() {
        return Ok(own);
    }
    let _lock = Lock::take(&lock_file(home), cancel, message)?;
    if own.exists() {
        return Ok(own);
    }
    let python = environment::python()?;
    message(&format!(
        "uv is not on PATH: installing it from PyPI into {}",
        place.display()
    ));
    // The program appears under its name only when the installation is whole.
    let fresh = Building::new(home, "uv.new")?;
    let build = Build::default();
    install(&Tools::new(home, &build, cancel)?, &python, &fresh.path())?;
    displace(&place)?;
    fresh.finish(&place)?;
    Ok(own)
}

fn install(tools: &Tools<'_>, python: &Path, place: &Path) -> Result<(), Error> {
    let mut venv = Command::new(python);
    venv.args(["-m", "venv"]).arg(place);
    tools
        .run(&venv, "python3 -m venv")
        .map_err(|error| match error {
            Error::Failed { tail, .. } => Error::Tool(format!(
                "python3 -m venv failed (on Debian and Ubuntu, install python3-venv): {tail}"
            )),
            other => other,
        })?;
    let mut pip = Command::new(place.join("bin/python"));
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "uv",
    ]);
    tools.run(&pip, "pip install uv")?;
    made(place, "bin/uv", "pip install uv")
}
