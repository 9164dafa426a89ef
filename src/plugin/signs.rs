//! Signs by which an environment on the disk is what was created. They cost a few system calls.
//!
//! An environment breaks without a change in it when the Python changes that its `bin/python` leads to, as by an
//! upgrade of the host: packages are in a folder with the version of that Python. It breaks in itself when
//! files are removed, as by cleaners of old files and by restored backups that lack some.
//!
//! Other faults show only when pyarrow is imported: see [`super::environment::verify`].

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{input_file, limits};

/// What is compared each time that an environment is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signs {
    /// `bin/python`, which leads to a file of the host, with that file's device and inode.
    python: PathBuf,
    file: (u64, u64),
    settings: PathBuf,
    pyarrow: PathBuf,
}

impl Signs {
    /// The signs of the environment in a folder. The error names how it is broken.
    pub fn of(folder: &Path) -> Result<Self, String> {
        let python = folder.join("bin/python");
        let file = file(&python).ok_or("its bin/python leads to no file")?;
        let settings = folder.join("pyvenv.cfg");
        let text = input_file::open(&settings)
            .and_then(|file| input_file::text(file, limits::PYVENV_SIZE_MAX))
            .map_err(|error| format!("its pyvenv.cfg: {error}"))?;
        let made_for = version(&text).ok_or("its pyvenv.cfg has no version of Python")?;
        let base = fs::canonicalize(&python).map_err(|error| format!("its bin/python: {error}"))?;
        let name = base.file_name().and_then(|name| name.to_str());
        if let Some(now) = name.and_then(|name| minor(name.strip_prefix("python")?))
            && now != made_for
        {
            return Err(format!(
                "it was made for Python {made_for}, and its bin/python leads to {}",
                base.display()
            ));
        }
        // Where Python has no global lock, the folder's name ends with `t`.
        let folders = ["python", "pypy"].map(|name| format!("{name}{made_for}"));
        let folders = folders
            .iter()
            .flat_map(|name| [name.clone(), format!("{name}t")]);
        let packages = folders.map(|name| folder.join("lib").join(name).join("site-packages"));
        let pyarrow = packages
            .map(|packages| packages.join("pyarrow/__init__.py"))
            .find(|pyarrow| pyarrow.is_file())
            .ok_or_else(|| format!("it has no pyarrow for Python {made_for}"))?;
        Ok(Signs {
            python,
            file,
            settings,
            pyarrow,
        })
    }

    /// True if the files are still there, and `bin/python` leads to the same one.
    pub fn hold(&self) -> bool {
        file(&self.python) == Some(self.file) && self.settings.is_file() && self.pyarrow.is_file()
    }
}

/// Device and inode of the regular file that a path leads to.
fn file(path: &Path) -> Option<(u64, u64)> {
    let found = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some((found.dev(), found.ino()))
}

/// Major and minor version that a `pyvenv.cfg` names. uv writes `version_info`, the module venv `version`.
fn version(text: &str) -> Option<&str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        let is_version = ["version_info", "version"].contains(&key.trim());
        is_version.then(|| minor(value.trim()))?
    })
}

/// `3.11` at the beginning of `3.11`, `3.11.7` or `3.11t`.
fn minor(text: &str) -> Option<&str> {
    let dot = text.find('.')?;
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (major, rest) = (text.get(..dot)?, text.get(dot + 1..)?);
    let is_version = digits(major) == major.len() && dot > 0 && digits(rest) > 0;
    text.get(..dot + 1 + digits(rest)).filter(|_| is_version)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const PYARROW: &str = "venv/lib/python3.11/site-packages/pyarrow/__init__.py";

    fn environment() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("host/3.11/python3.11", ""),
            ("host/3.12/python3.12", ""),
            ("host/other/python", ""),
            (PYARROW, ""),
            ("venv/pyvenv.cfg", "home = /x\nversion_info = 3.11.7\n"),
            ("venv/bin/other", ""),
        ] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        symlink("3.11", dir.path().join("host/current")).unwrap();
        for (version, name) in [
            ("3.11", "python3.11"),
            ("3.12", "python3.12"),
            ("other", "python"),
        ] {
            symlink(name, dir.path().join("host").join(version).join("python3")).unwrap();
        }
        let python = dir.path().join("venv/bin/python");
        symlink("../../host/current/python3", python).unwrap();
        dir
    }

    #[test]
    fn an_environment_that_is_no_longer_what_was_created_is_seen() {
        type Change<'a> = &'a dyn Fn(&Path);
        let point = |link: &str, to: &str| {
            let (link, to) = (link.to_owned(), to.to_owned());
            move |dir: &Path| {
                fs::remove_file(dir.join(&link)).unwrap();
                symlink(&to, dir.join(&link)).unwrap();
            }
        };
        let gone = |name: &'static str| {
            move |dir: &Path| {
                let path = dir.join(name);
                match path.is_dir() {
                    true => fs::remove_dir_all(path).unwrap(),
                    false => fs::remove_file(path).unwrap(),
                }
            }
        };
        let writes = |name: &'static str, text: &'static str| {
            move |dir: &Path| fs::write(dir.join(name), text).unwrap()
        };
        let cases: &[(&str, Change<'_>, Option<&str>)] = &[
            ("nothing", &|_| {}, None),
            (
                "upgrade",
                &point("host/current", "3.12"),
                Some("made for Python 3.11, and its"),
            ),
            (
                "another of the same version",
                &|dir| {
                    fs::rename(dir.join("host/3.11"), dir.join("host/3.11b")).unwrap();
                    point("host/current", "3.11b")(dir);
                },
                None,
            ),
            (
                "one whose name has no version",
                &point("host/current", "other"),
                None,
            ),
            (
                "no Python",
                &gone("host/3.11"),
                Some("bin/python leads to no file"),
            ),
            (
                "a folder as Python",
                &point("venv/bin/python", "."),
                Some("leads to no file"),
            ),
            ("no settings", &gone("venv/pyvenv.cfg"), Some("pyvenv.cfg")),
            (
                "empty settings",
                &writes("venv/pyvenv.cfg", "x"),
                Some("no version of Python"),
            ),
            (
                "of venv",
                &writes("venv/pyvenv.cfg", "version = 3.11.2\n"),
                None,
            ),
            (
                "of 3.1",
                &writes("venv/pyvenv.cfg", "version_info = 3.1.0\n"),
                Some("Python 3.1,"),
            ),
            (
                "no packages",
                &gone("venv/lib"),
                Some("no pyarrow for Python 3.11"),
            ),
            (
                "no pyarrow",
                &gone(PYARROW),
                Some("no pyarrow for Python 3.11"),
            ),
            (
                "without a global lock",
                &|dir| {
                    let lib = dir.join("venv/lib");
                    fs::rename(lib.join("python3.11"), lib.join("python3.11t")).unwrap();
                },
                None,
            ),
        ];
        for (name, change, want) in cases {
            let dir = environment();
            let folder = dir.path().join("venv");
            let before = Signs::of(&folder).unwrap();
            assert!(before.hold(), "{name}");
            change(dir.path());
            match (Signs::of(&folder), want) {
                (Ok(found), None) => assert!(found.hold(), "{name}"),
                (Err(reason), Some(want)) => {
                    assert!(reason.contains(want), "{name}: {reason}");
                    let is_text = name.contains("settings") || *name == "of 3.1";
                    assert!(is_text || !before.hold(), "{name}");
                }
                (found, want) => panic!("{name}: {found:?}, not {want:?}"),
            }
        }
    }
}
