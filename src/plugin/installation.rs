//! Which files belong to the installation of a Python. Plugins must not change them, or they could change
//! what the Python runs.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::uses;

/// Paths that plugins and build code cannot change.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Files, and folders with everything below them.
    pub whole: Vec<PathBuf>,
    /// Folders whose own files and links cannot be changed, and in which nothing can be added or renamed. The
    /// folders in them may be changed.
    pub entries: Vec<PathBuf>,
}

/// Entries of a prefix: programs, libraries, and the file that marks a virtual environment.
const PARTS: [&str; 8] = [
    "bin",
    "sbin",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "libexec",
    "pyvenv.cfg",
];

/// True for the names that installations give to their Pythons.
pub(super) fn is_python(name: &str) -> bool {
    let begins = ["python", "pypy", "graalpy"];
    let version = begins.iter().find_map(|begin| name.strip_prefix(begin));
    // `3.13t` is a Python without a global interpreter lock, `3.13d` is a debug build.
    let version = version.map(|version| version.trim_end_matches(['t', 'd']));
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    version.is_some_and(|version| {
        version.is_empty()
            || version
                .split('.')
                .all(|part| !part.is_empty() && is_number(part))
    })
}

/// True for an ELF file, so not for a script.
pub(super) fn is_binary(program: &Path) -> bool {
    let mut magic = [0; 4];
    let read = File::open(program).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *b"\x7fELF"
}

/// The installation of a Python that is in its `bin`, or of the version manager that has it in its `shims`.
/// Data in the same prefix stays changeable. Where the prefix is shared, only the program and its library.
pub(super) fn of(program: &Path) -> Kept {
    let alone = Kept {
        whole: vec![program.to_owned()],
        entries: Vec::new(),
    };
    let (Some(folder), Some(prefix)) = (program.parent(), prefix(program)) else {
        return alone;
    };
    if is_shared(prefix) {
        return Kept {
            whole: alone.whole.into_iter().chain(library(prefix)).collect(),
            ..alone
        };
    }
    if folder.ends_with("shims") {
        return Kept {
            whole: vec![prefix.to_owned()],
            ..alone
        };
    }
    let parts = PARTS.map(|name| prefix.join(name));
    let is_venv = prefix.join("pyvenv.cfg").exists();
    Kept {
        whole: parts.into_iter().filter(|part| part.exists()).collect(),
        // A user who can add a `pyvenv.cfg` to the prefix can select another library.
        entries: (!is_venv).then(|| prefix.to_owned()).into_iter().collect(),
    }
}

/// The folder of an installation: the parent of the program's `bin` or `shims`.
pub(super) fn prefix(program: &Path) -> Option<&Path> {
    let folder = program.parent()?;
    let is_usual = folder.ends_with("bin") || folder.ends_with("shims");
    folder.parent().filter(|_| is_usual)
}

/// True if a prefix is used for other things than an installation.
fn is_shared(prefix: &Path) -> bool {
    let homes = uses::homes();
    let is_homes = homes.iter().any(|home| {
        let holds_home = |name: &str| home.starts_with(prefix.join(name));
        prefix == home || prefix == home.join(".local") || PARTS.iter().any(|name| holds_home(name))
    });
    let is_manager =
        || prefix.join("shims").is_dir() && !homes.iter().any(|home| home.starts_with(prefix));
    let has_input = || uses::has_input_beside(prefix);
    prefix == Path::new("/")
        || is_homes
        || uses::is_temporary(prefix)
        || has_input()
        || !is_manager() && uses::has_too_many_folders(prefix)
}

/// The files and folders of a Python's library below a prefix.
fn library(prefix: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(prefix.join("lib")).into_iter().flatten();
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        let begins = |begin: &str| name.is_some_and(|name| name.starts_with(begin));
        path.join("os.py").is_file() || begins("libpython") && path.is_file()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_have_their_names_alone() {
        for name in [
            "python",
            "python3",
            "python3.13",
            "python3.13t",
            "pypy3.10",
            "graalpy",
        ] {
            assert!(is_python(name), "{name}");
        }
        for name in [
            "python3-work",
            "python3-config",
            "python-argcomplete-check-easy-install-script",
            "pythonw.sh",
            "python3.",
            "python.py",
            "ipython",
            "env",
        ] {
            assert!(!is_python(name), "{name}");
        }
    }

    #[test]
    fn an_installation_is_its_programs_and_libraries() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["bin", "lib/python3.11", "data", "shims", "libexec"] {
            fs::create_dir_all(path("a").join(name)).unwrap();
        }
        for name in ["bin", "lib", "data"] {
            fs::create_dir_all(path("venv").join(name)).unwrap();
        }
        fs::write(path("venv/pyvenv.cfg"), "").unwrap();
        fs::create_dir_all(path("tools")).unwrap();
        let home = PathBuf::from(std::env::var_os("HOME").unwrap());
        let (under, beside) = (home.join("bin/python3"), home.join(".local/bin/python3"));
        let [under, beside] = [&under, &beside].map(|path| path.to_str().unwrap());
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("a/bin/python3", &["a/bin", "a/lib", "a/libexec"], &["a"]),
            ("a/shims/python3", &["a"], &[]),
            (
                "venv/bin/python3",
                &["venv/bin", "venv/lib", "venv/pyvenv.cfg"],
                &[],
            ),
            ("tools/python3", &["tools/python3"], &[]),
            ("/bin/python3", &["/bin/python3"], &[]),
            (under, &[under], &[]),
            (beside, &[beside], &[]),
        ];
        for (program, whole, entries) in cases {
            let found = of(&path(program));
            let all = |names: &[&str]| names.iter().map(|name| path(name)).collect::<Vec<_>>();
            assert!(found.whole.starts_with(&all(whole)), "{program}: {found:?}");
            assert_eq!(found.entries, all(entries), "{program}");
        }
    }
}
