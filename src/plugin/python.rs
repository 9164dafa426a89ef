//! Which Python an environment gets, and the error message if no suitable one is found.

use std::path::Path;
use std::process::Command;

use super::error::Error;
use super::tool::Tools;

/// The Python versions on which plugin processes run.
const PYTHONS: &str = ">=3.9";

/// The Python versions that both the plugin and Casparian require.
pub(super) fn supported(requires_python: Option<&str>) -> String {
    match requires_python {
        Some(version) => format!("{version},{PYTHONS}"),
        None => PYTHONS.to_owned(),
    }
}

/// Adds the Pythons of this host to a failure, if none of them is suitable.
pub(super) fn explained(
    uv: &Path,
    tools: &Tools<'_>,
    requires_python: Option<&str>,
    download_failure: Option<&str>,
    error: Error,
) -> Error {
    let Error::Failed { what, tail } = &error else {
        return error;
    };
    let version = supported(requires_python);
    let ask = |words: &[&str]| {
        let mut command = Command::new(uv);
        command.arg("python").args(words).arg("--no-config");
        tools.ask(&tools.step()?, &command, "uv python")
    };
    if ask(&["find", "--no-project", &version]).is_ok() {
        return error;
    }
    let listed = ask(&["list", "--only-installed"]).unwrap_or_default();
    let is_python = |line: &&str| {
        let names = ["cpython-", "pypy-", "graalpy-"];
        names.iter().any(|name| line.starts_with(name))
    };
    let mut pythons: Vec<String> = listed
        .lines()
        .filter(is_python)
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    pythons.dedup();
    if pythons.is_empty() {
        pythons.push("none".to_owned());
    }
    // The step cannot write into the folder to which uv downloads, so its own error is not the cause.
    let tail = download_failure.unwrap_or(tail);
    Error::Failed {
        what: what.clone(),
        tail: format!(
            "{tail}\nPython {version} is required (by requires-python, and {PYTHONS} by us), and uv finds \
             none on this host. There is: {}. Install one that fits (`uv python install`), or change \
             requires-python",
            pythons.join(", ")
        ),
    }
}
