//! Dependencies that are folders and archives on this host: building wheels from folders, and detecting
//! changes.
//!
//! A folder is built into a wheel, `<home>/wheels/<SHA-256>/<name>.whl`, and the lockfile names this wheel.
//! So the text of the lockfile depends on what is installed, and an environment can be created after the
//! folder has changed. Builds do not depend on the time, so the same content gives the same wheel.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use rustix::fs::{Dir, renameat};
use sha2::{Digest, Sha256};
use toml::Table;

use super::error::Error;
use super::folders::{self, soon, sweep};
use super::home;
use super::tool::Tools;
use crate::job::text;
use crate::{input_file, limits};

/// A wheel in the store.
pub(super) struct Wheel {
    pub(super) path: PathBuf,
    /// SHA-256 as hex.
    pub(super) hash: String,
}

impl Wheel {
    pub(super) fn file_name(&self) -> &str {
        let name = self.path.file_name().and_then(|name| name.to_str());
        name.unwrap_or_default()
    }

    /// `name-VERSION-…`
    pub(super) fn version(&self) -> &str {
        self.file_name().split('-').nth(1).unwrap_or_default()
    }
}

/// How uv is run.
pub(super) struct Uv<'a> {
    pub(super) program: &'a Path,
    /// uv's configuration.
    pub(super) settings: &'a Table,
    /// The version of the Python that the environment is for.
    pub(super) python: Option<&'a str>,
}

/// 1980-01-01 UTC, the earliest time that a zip archive can represent, in seconds since the epoch.
const BUILD_TIME: &str = "315532800";

/// Builds the wheel of a folder.
pub(super) fn build(
    home: &Path,
    tools: &Tools<'_>,
    uv: &Uv<'_>,
    source: &Path,
) -> Result<Wheel, Error> {
    let what = format!("uv build of {}", source.display());
    let step = tools.step()?;
    let out = step.create("out")?;
    let info = step.create("info")?;
    // Without these settings setuptools writes into the folder, and installs what earlier builds left there.
    let lines = format!(
        "[build]\nbuild_base = {}/build\n[egg_info]\negg_base = {}\n",
        step.path().display(),
        info.display()
    );
    let settings = step.write("setuptools.cfg", &lines)?;
    let mut command = Command::new(uv.program);
    // Without `--quiet`, which would suppress what a failing backend printed.
    command.args(["build", "--no-progress", "--color", "never", "--wheel"]);
    command.arg("--out-dir");
    command.arg(&out);
    if let Some(version) = uv.python {
        command.args(["--python", version]);
    }
    command
        .args(step.configure(uv.settings)?)
        .arg(source)
        .env("SOURCE_DATE_EPOCH", BUILD_TIME)
        .env("DIST_EXTRA_CONFIG", &settings);
    tools.run(&step, &command, &what)?;
    let folder = step.open("out")?;
    let failed = |error| Error::io(&out, error);
    let name = wheel_in(&folder).map_err(failed)?;
    let name = name.ok_or_else(|| Error::Failed {
        what,
        tail: "it ended with success and left no wheel".to_owned(),
    })?;
    keep(home, &folder, &name).map_err(|error| match error {
        Kept::Wheel(error) => Error::io(&out.join(&name), error),
        Kept::Store(error) => error,
    })
}

/// The name of a wheel in a folder.
fn wheel_in(folder: &File) -> io::Result<Option<String>> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_str().unwrap_or_default();
        if name.ends_with(".whl") {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

/// Why a wheel is not in the wheel store: reading the wheel failed, or the store did.
enum Kept {
    Wheel(io::Error),
    Store(Error),
}

/// Moves a wheel from a folder into the wheel store, unless it is there already. Removes wheels from the
/// store that have not been used for `WHEEL_KEPT`.
fn keep(home: &Path, from: &File, name: &str) -> Result<Wheel, Kept> {
    let hash = wheel_hash(from, name).map_err(Kept::Wheel)?;
    let store = home.join("wheels");
    home::create(&store).map_err(Kept::Store)?;
    let until = soon();
    for entry in fs::read_dir(&store).into_iter().flatten().flatten() {
        let changed = entry.metadata().and_then(|found| found.modified());
        let age = changed.ok().and_then(|changed| changed.elapsed().ok());
        if age.is_some_and(|age| age > limits::WHEEL_KEPT) {
            sweep(&entry.path(), until);
        }
    }
    let folder = store.join(&hash);
    let path = folder.join(name);
    if !file_hash(&path).is_ok_and(|there| there == hash) {
        let (fresh, opened) = folders::fresh(&store, ".new-").map_err(Kept::Store)?;
        let moved = renameat(from, name, &opened, name).map_err(io::Error::from);
        let stored = moved.map_err(Kept::Wheel).and_then(|()| {
            // A power failure may have left the folder empty.
            sweep(&folder, until);
            match fs::rename(&fresh, &folder) {
                // Another program has created it in the meantime.
                Err(_) if path.exists() => Ok(()),
                result => result.map_err(|error| Kept::Store(Error::io(&folder, error))),
            }
        });
        sweep(&fresh, until);
        stored?;
    }
    // The modification time is the time of last use.
    if let Ok(opened) = folders::open(&folder) {
        let _ = opened.set_modified(SystemTime::now());
    }
    Ok(Wheel { path, hash })
}

fn wheel_hash(folder: &File, name: &str) -> io::Result<String> {
    let file = input_file::open_at(folder, name)?;
    if file.metadata()?.len() > limits::WHEEL_SIZE_MAX {
        let size = limits::WHEEL_SIZE_MAX;
        return Err(io::Error::other(format!("it has more than {size} bytes")));
    }
    hash_of(file)
}

/// SHA-256 of a file as hex.
pub(super) fn file_hash(path: &Path) -> io::Result<String> {
    hash_of(input_file::open(path)?)
}

fn hash_of(mut file: File) -> io::Result<String> {
    match input_file::hash(&mut file, || true)? {
        Some((_, hash)) => Ok(hash),
        None => Err(io::Error::other(input_file::CHANGED)),
    }
}

/// A hash of the content of a file or folder. None if it cannot be read, is too large to be compared, or if
/// its build reads files outside the folder. Files that builds and caches write are left out.
pub(super) fn fingerprint(path: &Path) -> Option<String> {
    let mut found = Found::default();
    match fs::metadata(path).ok()?.is_dir() {
        true if leads_out(path) => return None,
        true => found.folder(path, Path::new(""))?,
        false => found.file(path, Path::new(""))?,
    }
    let mut hasher = Sha256::new();
    for (name, content) in &found.files {
        // The length separates a name from what follows it.
        hasher.update((name.len() as u64).to_be_bytes());
        hasher.update(name);
        hasher.update(content);
    }
    Some(text::hex(&hasher.finalize()))
}

/// True for a package whose build files contain the path component `..`, as in `../shared`.
fn leads_out(folder: &Path) -> bool {
    let files = ["pyproject.toml", "setup.py", "setup.cfg", "MANIFEST.in"];
    files.iter().any(|name| {
        let text = input_file::open(&folder.join(name)).and_then(|file| {
            let mut text = Vec::new();
            file.take(limits::LOCAL_SIZE_MAX).read_to_end(&mut text)?;
            Ok(text)
        });
        let text = text.unwrap_or_default();
        let parts =
            text.split(|byte| !matches!(byte, b'.' | b'_' | b'-') && !byte.is_ascii_alphanumeric());
        parts.into_iter().any(|part| part == b"..")
    })
}

#[derive(Default)]
struct Found {
    /// Mode and hash of the content by relative path.
    files: BTreeMap<Vec<u8>, String>,
    size: u64,
}

impl Found {
    fn folder(&mut self, folder: &Path, below: &Path) -> Option<()> {
        for entry in fs::read_dir(folder).ok()? {
            let entry = entry.ok()?;
            let (path, name) = (entry.path(), entry.file_name());
            let below = below.join(&name);
            let kind = entry.file_type().ok()?;
            if kind.is_dir() {
                if !is_generated(&path) {
                    self.folder(&path, &below)?;
                }
            } else {
                // Also `*.pyc`: Python imports them outside `__pycache__` where there is no source. A link to
                // a folder cannot be compared, and fails here.
                self.file(&path, &below)?;
            }
        }
        Some(())
    }

    fn file(&mut self, path: &Path, below: &Path) -> Option<()> {
        let mut file = input_file::open(path).ok()?;
        let found = file.metadata().ok()?;
        self.size = self.size.saturating_add(found.len());
        if self.size > limits::LOCAL_SIZE_MAX || self.files.len() >= limits::LOCAL_FILES_MAX {
            return None;
        }
        let (_, hash) = input_file::hash(&mut file, || true).ok()??;
        let mode = found.permissions().mode() & 0o111;
        let name = below.as_os_str().as_encoded_bytes().to_vec();
        self.files.insert(name, format!("{mode:o} {hash}"));
        Some(())
    }
}

/// True for a folder that tools have generated: caches, environments, repositories' histories, output of
/// runs.
fn is_generated(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().as_encoded_bytes();
    let names: [&[u8]; 5] = [b"__pycache__", b".git", b".hg", b".svn", b".casparian"];
    names.contains(&name)
        || name.ends_with(b".egg-info")
        || ["CACHEDIR.TAG", "pyvenv.cfg", ".casparian"]
            .iter()
            .any(|mark| folder.join(mark).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_changes_with_content_names_and_modes_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let write = |name: &str, text: &str| {
            let path = at(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let print = || fingerprint(dir.path()).unwrap();
        write("m/a.py", "1");
        write("m/b.py", "2");
        let first = print();
        for made in [
            "m/__pycache__/a.pyc",
            ".git/HEAD",
            "m.egg-info/x",
            ".venv/pyvenv.cfg",
            "out/.casparian/q",
        ] {
            write(made, "x");
        }
        fs::File::open(at("m/a.py"))
            .unwrap()
            .set_modified(SystemTime::UNIX_EPOCH)
            .unwrap();
        assert_eq!(print(), first);
        let mut seen = vec![first];
        let change = |seen: &mut Vec<String>| {
            let now = print();
            assert!(!seen.contains(&now));
            seen.push(now);
        };
        write("m/a.py", "3");
        change(&mut seen);
        write("m/without_source.pyc", "1");
        change(&mut seen);
        write("m/without_source.pyc", "2");
        change(&mut seen);
        fs::rename(at("m/b.py"), at("m/c.py")).unwrap();
        change(&mut seen);
        fs::set_permissions(at("m/a.py"), fs::Permissions::from_mode(0o755)).unwrap();
        change(&mut seen);
        std::os::unix::fs::symlink(at("m"), at("link")).unwrap();
        assert_eq!(fingerprint(dir.path()), None);
        fs::remove_file(at("link")).unwrap();
        for (name, text, leads_out) in [
            ("pyproject.toml", "\"../shared/t.csv\" = \"m/t.csv\"", true),
            ("pyproject.toml", "description = \"and so on...\"", false),
            ("setup.py", "open(join(here, '..', 'VERSION'))", true),
            ("setup.cfg", "[metadata]\nversion = file: ../VERSION", true),
            ("MANIFEST.in", "graft m", false),
        ] {
            write(name, text);
            assert_eq!(fingerprint(dir.path()).is_none(), leads_out, "{name}");
            fs::remove_file(at(name)).unwrap();
        }
        assert_eq!(fingerprint(&at("missing")), None);
        assert!(fingerprint(&at("m/a.py")).is_some());
    }
}
