//! Checks by an interpreter whether a plugin's source is valid Python.

use std::io::{self, Seek, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};

use super::error::Error;
use super::tool::{Build, output, restricted};

const CHECK: &str = "\
import sys
try:
    compile(sys.stdin.buffer.read(), sys.argv[1], 'exec')
except (SyntaxError, ValueError) as error:
    line = getattr(error, 'lineno', None)
    where = f'line {line}: ' if line else ''
    print('syntax: ' + where + (getattr(error, 'msg', None) or str(error)))
    sys.exit(3)
";

/// Prefix of the line that [`CHECK`] prints. Warnings may be printed before it.
const MARK: &str = "syntax: ";

/// Checks a source with an interpreter that is restricted as the tools of a build are. Returns none if the
/// source is valid Python, else the reason. Blocks for at most `limit`.
pub fn error(
    python: &Path,
    how: &Build,
    name: &str,
    source: &str,
    limit: Duration,
    cancel: &AtomicBool,
) -> Result<Option<String>, Error> {
    let what = python.display().to_string();
    let input = input(source).map_err(|error| Error::failed(&what, error))?;
    let mut command = Command::new(python);
    // Without packages, because they would run their own code.
    command.args(["-I", "-S", "-c", CHECK, &format!("{name}.py")]);
    let restricted = restricted(&command, how.untrusted_launcher());
    let mut command = restricted.map_err(|error| Error::failed(&what, error))?;
    command.stdin(input);
    let end = output(&mut command, &what, limit, cancel)?;
    if end.status.success() {
        return Ok(None);
    }
    match end.tail.rsplit_once(MARK) {
        Some((_, reason)) if end.status.code() == Some(3) => Ok(Some(reason.to_owned())),
        _ => Err(Error::Failed {
            what,
            tail: end.reason(),
        }),
    }
}

/// A source as a tool's stdin: a memory file. A pipe would have to be written while the tool reads it.
fn input(source: &str) -> io::Result<Stdio> {
    let mut file = std::fs::File::from(memfd_create("source", MemfdFlags::CLOEXEC)?);
    file.write_all(source.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::plugin::environment;

    fn ask(python: &Path, source: &str, limit: u64) -> Result<Option<String>, Error> {
        let limit = Duration::from_secs(limit);
        error(
            python,
            &Build::default(),
            "p",
            source,
            limit,
            &AtomicBool::new(false),
        )
    }

    #[test]
    fn sources_are_distinguished_from_text() {
        let python = environment::python().unwrap();
        let large = format!("x = {:?}\n", "y".repeat(1 << 20));
        for good in ["", "x = 1\n", "\u{feff}x = 1\n", "x = '\\d'\n", &large] {
            assert_eq!(ask(&python, good, 60).unwrap(), None);
        }
        for (bad, want) in [("x = \n", "line 1: "), ("'\\d'\nx = (\n", "line 2: ")] {
            let reason = ask(&python, bad, 60).unwrap().unwrap();
            assert!(reason.starts_with(want), "{reason}");
            assert!(!reason.contains('\n'), "{reason}");
        }
    }

    #[test]
    fn interpreters_that_do_not_work_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let python = dir.path().join("python");
        let make = |text: &str| {
            std::fs::write(&python, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        let name = python.display();
        for (text, want) in [
            ("echo no codec; exit 1", format!("{name} failed: no codec")),
            ("exit 3", format!("{name} failed: exit status: 3")),
            ("kill -9 $$", format!("{name} failed: signal: 9 (SIGKILL)")),
            (
                "sleep 1000",
                format!("{name} took longer than 1 s and printed nothing"),
            ),
        ] {
            make(text);
            let error = ask(&python, "x = 1\n", 1).unwrap_err();
            assert_eq!(error.to_string(), want);
        }
        let cancel = AtomicBool::new(false);
        let cancelled = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                cancel.store(true, Ordering::Relaxed);
            });
            error(
                &python,
                &Build::default(),
                "p",
                "",
                Duration::from_secs(1000),
                &cancel,
            )
        });
        assert!(matches!(cancelled, Err(Error::Cancelled)));
    }
}
