//! Which files a command line means: files, folders and globs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use globset::{Glob, GlobMatcher};
use walkdir::WalkDir;

/// A file that a command line means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Input {
    /// Its path: absolute, without symbolic links.
    pub(crate) path: PathBuf,
    /// The folder that was given, or that of the file: the file's source root, unless the database
    /// has one above it already.
    pub(crate) root: PathBuf,
}

/// The files that `inputs` mean, absolute, sorted, each once.
///
/// A folder means every file below it whose name matches `pattern` (hidden ones and those in
/// `skip` left out); a glob (`*`, `?`, `[`, `{`) means every file whose path matches; anything
/// else must be a file. One that means nothing is an error: it is most likely a typing mistake.
pub(crate) fn collect(
    inputs: &[OsString],
    pattern: Option<&str>,
    skip: Option<&Path>,
) -> Result<Vec<Input>, String> {
    let pattern = pattern.map(glob).transpose()?;
    let wanted = |path: &Path| match (&pattern, path.file_name()) {
        (Some(matcher), Some(name)) => matcher.is_match(Path::new(name)),
        _ => true,
    };
    let mut absolute = Vec::new();
    for input in inputs {
        let mut files = Vec::new();
        let mut folder = None;
        let path = PathBuf::from(input);
        match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => {
                walk(&path, skip, &mut |file| {
                    if wanted(&file) {
                        files.push(file);
                    }
                })?;
                folder = Some(path);
            }
            // A file that is named is meant, whatever the pattern.
            Ok(found) if found.is_file() => files.push(path),
            Ok(_) => {
                return Err(format!(
                    "input {}: it is neither a file nor a folder",
                    path.display()
                ));
            }
            Err(error) => match input
                .to_str()
                .filter(|text| text.contains(['*', '?', '[', '{']))
            {
                Some(text) => {
                    let matcher = glob(text)?;
                    let base = fixed_part(text);
                    if base.exists() {
                        walk(&base, skip, &mut |file| {
                            if matcher.is_match(&file) && wanted(&file) {
                                files.push(file);
                            }
                        })?;
                        folder = Some(base);
                    }
                }
                None => return Err(format!("input {}: {error}", path.display())),
            },
        }
        if files.is_empty() {
            return Err(match &pattern {
                Some(pattern) => format!(
                    "input {}: no file in it matches {}",
                    Path::new(input).display(),
                    pattern.glob()
                ),
                None => format!("input {}: no file found", Path::new(input).display()),
            });
        }
        let real = |path: &Path| {
            std::fs::canonicalize(path)
                .map_err(|error| format!("input {}: {error}", path.display()))
        };
        let folder = folder.as_deref().map(real).transpose()?;
        for file in files {
            let path = real(&file)?;
            if path.to_str().is_none() {
                return Err(format!("input {}: the path is not UTF-8", path.display()));
            }
            let root = match &folder {
                // A symbolic link may lead out of the folder.
                Some(folder) if path.starts_with(folder) => folder.clone(),
                _ => path.parent().unwrap_or(Path::new("/")).to_path_buf(),
            };
            absolute.push(Input { path, root });
        }
    }
    // Of several roots the highest sorts first and stays.
    absolute.sort();
    absolute.dedup_by(|later, earlier| later.path == earlier.path);
    Ok(absolute)
}

fn glob(text: &str) -> Result<GlobMatcher, String> {
    globset::GlobBuilder::new(text.strip_prefix("./").unwrap_or(text))
        .literal_separator(true)
        .build()
        .map(|glob: Glob| glob.compile_matcher())
        .map_err(|error| format!("pattern {text:?}: {}", error.kind()))
}

/// The folder above the first component with a glob character.
fn fixed_part(text: &str) -> PathBuf {
    let mut base = PathBuf::new();
    for part in Path::new(text.strip_prefix("./").unwrap_or(text)).components() {
        let part = part.as_os_str();
        if part
            .to_str()
            .is_none_or(|part| part.contains(['*', '?', '[', '{']))
        {
            break;
        }
        base.push(part);
    }
    if base.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        base
    }
}

fn walk(base: &Path, skip: Option<&Path>, found: &mut dyn FnMut(PathBuf)) -> Result<(), String> {
    let hidden = |entry: &walkdir::DirEntry| {
        entry.depth() > 0
            && entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with('.'))
    };
    let skipped = |entry: &walkdir::DirEntry| {
        skip.is_some_and(|skip| {
            entry.file_type().is_dir()
                && std::fs::canonicalize(entry.path()).is_ok_and(|path| path == skip)
        })
    };
    let entries = WalkDir::new(base)
        .follow_links(true)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|entry| !hidden(entry) && !skipped(entry));
    for entry in entries {
        let entry = entry.map_err(|error| format!("input {}: {error}", base.display()))?;
        if entry.file_type().is_file() {
            let path = entry.into_path();
            found(
                path.strip_prefix(".")
                    .map(Path::to_path_buf)
                    .unwrap_or(path),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[Input]) -> Vec<&str> {
        files
            .iter()
            .map(|file| file.path.file_name().unwrap().to_str().unwrap())
            .collect()
    }

    #[test]
    fn files_folders_and_globs_are_found_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for file in [
            "b.csv",
            "a.csv",
            "c.txt",
            "sub/d.csv",
            ".hidden/e.csv",
            "out/f.csv",
        ] {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let out = root.join("out");
        let find = |input: &str, pattern: Option<&str>| {
            collect(&[root.join(input).into()], pattern, Some(&out))
        };
        assert_eq!(
            names(&find("", None).unwrap()),
            ["a.csv", "b.csv", "c.txt", "d.csv"]
        );
        assert_eq!(
            names(&find("", Some("*.csv")).unwrap()),
            ["a.csv", "b.csv", "d.csv"]
        );
        assert_eq!(names(&find("*.csv", None).unwrap()), ["a.csv", "b.csv"]);
        assert_eq!(
            names(&find("**/*.csv", None).unwrap()),
            ["a.csv", "b.csv", "d.csv"]
        );
        assert_eq!(names(&find("c.txt", Some("*.csv")).unwrap()), ["c.txt"]);
        let twice = collect(
            &[root.join("a.csv").into(), root.clone().into()],
            None,
            Some(&out),
        );
        let twice = twice.unwrap();
        assert_eq!(names(&twice), ["a.csv", "b.csv", "c.txt", "d.csv"]);
        // The folder that was given is the root of what is below it.
        let roots = |input: &str| -> Vec<PathBuf> {
            let files = find(input, None).unwrap();
            files.into_iter().map(|file| file.root).collect()
        };
        assert_eq!(roots(""), vec![root.clone(); 4]);
        assert_eq!(roots("**/d.csv"), std::slice::from_ref(&root));
        assert_eq!(roots("sub/d.csv"), [root.join("sub")]);
        std::os::unix::fs::symlink(root.join("a.csv"), root.join("sub/link")).unwrap();
        assert_eq!(roots("sub"), [root.clone(), root.join("sub")]);
        std::fs::remove_file(root.join("sub/link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("fifo"), rustix::fs::Mode::RWXU).unwrap();
        assert_eq!(names(&find("", Some("fifo*")).unwrap_or_default()), [""; 0]);
        for (input, pattern, want) in [
            ("fifo", None, "neither a file nor a folder"),
            ("nothing.csv", None, "No such file"),
            ("*.parquet", None, "no file found"),
            ("", Some("*.xml"), "no file in it matches"),
            ("", Some("[x"), "pattern"),
        ] {
            let error = find(input, pattern).unwrap_err();
            assert!(error.contains(want), "{input}: {error}");
        }
    }
}
