//! Requirements that name a file, a folder or a URL: `name @ URL`, and paths of requirements files.

use std::io::ErrorKind::{NotADirectory, NotFound};
use std::path::{Component, Path, PathBuf};

use crate::{input_file, limits};

/// Suffixes of archives that pip and uv install.
const ARCHIVES: &[&str] = &[
    ".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst",
];

/// The name at the start of a requirement, normalised as in lockfiles: lower case, words separated by `-`.
pub(super) fn name(requirement: &str) -> String {
    let name = split_name(requirement).0;
    let words = name.split(['-', '_', '.']).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

fn split_name(requirement: &str) -> (&str, &str) {
    let text = requirement.trim_start();
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = text.find(|c| !is_of_name(c)).unwrap_or(text.len());
    text.split_at(end)
}

/// The hash at the end of a requirement's URL.
pub(super) fn url_hash(requirement: &str) -> Result<Option<String>, String> {
    let fragment = requirement.split_once('#').map_or("", |(_, rest)| rest);
    let fragment = fragment.split_whitespace().next().unwrap_or_default();
    let mut words = fragment.split('&');
    let found = words.find_map(|word| word.strip_prefix("sha256="));
    let hash = |digits: &str| sha256(&format!("sha256:{digits}"));
    found
        .map(hash)
        .transpose()
        .map_err(|_| format!("{requirement}: expected #sha256= and 64 hex digits"))
}

/// Normalises a hash. Only SHA-256 is supported, because lockfiles have no others.
pub(super) fn sha256(hash: &str) -> Result<String, String> {
    let digits = hash
        .strip_prefix("sha256:")
        .filter(|digits| digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    match digits {
        Some(digits) => Ok(format!("sha256:{}", digits.to_ascii_lowercase())),
        None => Err(format!("--hash={hash}: expected sha256: and 64 hex digits")),
    }
}

/// What follows `name[extras] @`; none for a requirement from an index.
fn url(requirement: &str) -> Option<&str> {
    let rest = split_name(requirement).1.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(extras) => extras.split_once(']')?.1.trim_start(),
        None => rest,
    };
    rest.strip_prefix('@').map(str::trim_start)
}

/// Makes the path of a requirement absolute, if it has one. Relative paths are relative to `folder`.
pub(super) fn absolute(requirement: &str, folder: &Path) -> Result<String, String> {
    let Some(url) = url(requirement) else {
        return Ok(requirement.to_owned());
    };
    let head = requirement
        .get(..requirement.len() - url.len())
        .unwrap_or_default();
    let end = url.find(char::is_whitespace).unwrap_or(url.len());
    let (url, markers) = url.split_at(end);
    Ok(format!("{head}{}{markers}", absolute_url(url, folder)?))
}

/// Makes a URL, or a path, an absolute URL.
fn absolute_url(url: &str, folder: &Path) -> Result<String, String> {
    let own = file_url(folder)?;
    let url = url
        .replace("file://${PROJECT_ROOT}", &own)
        .replace("${PROJECT_ROOT}", &own);
    if let Some(path) = url.strip_prefix("file:") {
        return Ok(match path {
            _ if path.starts_with("//") => url,
            _ if path.starts_with('/') => format!("file://{path}"),
            _ => format!("{own}/{path}"),
        });
    }
    if url.contains(':') {
        return Ok(url);
    }
    let (path, fragment) = split_fragment(&url);
    Ok(format!("{}{fragment}", file_url(&folder.join(path))?))
}

fn split_fragment(url: &str) -> (&str, &str) {
    url.split_at(url.find('#').unwrap_or(url.len()))
}

/// Makes a path absolute, without `.` and `..`. Links are not followed.
pub(super) fn absolute_path(path: &str, folder: &Path) -> Result<String, String> {
    let mut out = PathBuf::new();
    for part in folder.join(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    let text = out.to_str().map(str::to_owned);
    text.ok_or_else(|| format!("the path {} is not UTF-8", out.display()))
}

fn file_url(path: &Path) -> Result<String, String> {
    let mut out = "file://".to_owned();
    for byte in absolute_path("", path)?.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => out.push(char::from(byte)),
            b'/' | b'-' | b'.' | b'_' | b'~' | b'+' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(out.trim_end_matches('/').to_owned())
}

/// The location of a local index or a `find-links` folder: a URL is unchanged, a path becomes absolute.
pub(super) fn absolute_location(location: &str, folder: &Path) -> Result<String, String> {
    match location.strip_prefix("file:") {
        Some(_) => absolute_url(location, folder),
        None if location.contains("://") => Ok(location.to_owned()),
        None => absolute_path(location, folder),
    }
}

/// Parses a line of a requirements file. The result is a requirement with a name and an absolute path.
pub(super) fn named(line: &str, folder: &Path) -> Result<String, String> {
    let (start, rest) = split_name(line);
    let is_archive = ARCHIVES.iter().any(|end| start.ends_with(end));
    let next = rest.trim_start().chars().next();
    let is_named = matches!(
        next,
        None | Some('[' | '<' | '>' | '=' | '!' | '~' | '@' | ';' | '(')
    );
    if is_named && !is_archive && start.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return absolute(line, folder);
    }
    let (location, markers) = split_markers(line);
    let (location, extras) = match location.strip_suffix(']').and_then(|l| l.rsplit_once('[')) {
        Some((location, extras)) => (location, format!("[{extras}]")),
        None => (location, String::new()),
    };
    let url = absolute_url(location, folder)?;
    let path = split_fragment(location).0;
    let path = folder.join(path.strip_prefix("file:").unwrap_or(path));
    let whole = folder.join(line);
    if !markers.is_empty() && !path.exists() && whole.exists() {
        let url = file_url(&whole)?;
        return Err(format!(
            "{line}: a path with spaces is written as a URL: `NAME @ {url}`"
        ));
    }
    let name = name_of(&url, &path)?.ok_or_else(|| {
        format!(
            "the package of {location} has no name that can be read here: write `NAME @ {location}`"
        )
    })?;
    Ok(format!("{name}{extras} @ {url}{markers}"))
}

/// A path or URL, and what follows it: a path ends at white space or a semicolon, a URL at white space or at a
/// semicolon with white space behind it. In pip they end there, too, except that its paths may have white
/// space. uv requires white space before the semicolon.
fn split_markers(line: &str) -> (&str, String) {
    let is_url = line.starts_with("file:")
        || line.split_once("://").is_some_and(|(scheme, _)| {
            scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
        });
    let ends = |c: char| c.is_whitespace() || c == ';' && !is_url;
    let (location, rest) = line.split_at(line.find(ends).unwrap_or(line.len()));
    match (location.strip_suffix(';'), rest.trim_start().is_empty()) {
        (Some(location), false) => (location, format!(" ;{rest}")),
        _ if rest.starts_with(';') => (location, format!(" {rest}")),
        _ => (location, rest.to_owned()),
    }
}

/// The name of a package, from its URL, or from the `pyproject.toml` of its folder.
fn name_of(url: &str, path: &Path) -> Result<Option<String>, String> {
    let (location, fragment) = split_fragment(url);
    let mut words = fragment.trim_start_matches('#').split('&');
    if let Some(name) = words.find_map(|word| word.strip_prefix("egg=")) {
        return Ok(Some(split_name(name).0.to_owned()));
    }
    let file = location.rsplit('/').next().unwrap_or(location);
    if let Some(end) = ARCHIVES.iter().find(|end| file.ends_with(**end)) {
        let stem = file.strip_suffix(end).unwrap_or(file);
        let parts = match *end {
            ".whl" => stem.split_once('-'),
            _ => stem.rsplit_once('-'),
        };
        return Ok(parts.map(|(name, _)| name.to_owned()));
    }
    let path = path.join("pyproject.toml");
    let opened = match input_file::open(&path) {
        Err(error) if [NotFound, NotADirectory].contains(&error.kind()) => return Ok(None),
        opened => opened,
    };
    let text = opened.and_then(|file| input_file::text(file, limits::SOURCE_SIZE_MAX));
    let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
    let name = |table: toml::Table| Some(table.get("project")?.get("name")?.as_str()?.to_owned());
    Ok(toml::from_str(&text).ok().and_then(name))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn paths_lead_from_the_folder_of_the_file_that_has_them() {
        let folder = Path::new("/a b/c");
        for (given, want) in [
            ("six", "six"),
            (
                "six[x]>=1; python_version > '3'",
                "six[x]>=1; python_version > '3'",
            ),
            ("m @ file:./lib", "m @ file:///a%20b/c/./lib"),
            ("m @ file:lib", "m @ file:///a%20b/c/lib"),
            ("m@../lib", "m@file:///a%20b/lib"),
            (
                "m [x] @ ./lib ; os_name == 'x'",
                "m [x] @ file:///a%20b/c/lib ; os_name == 'x'",
            ),
            ("m @ file:///lib", "m @ file:///lib"),
            ("m @ file:/lib", "m @ file:///lib"),
            ("m @ file://${PROJECT_ROOT}/lib", "m @ file:///a%20b/c/lib"),
            (
                "m @ git+https://h/r@main#subdirectory=x",
                "m @ git+https://h/r@main#subdirectory=x",
            ),
            ("m @ https://h/m-1.tar.gz", "m @ https://h/m-1.tar.gz"),
        ] {
            assert_eq!(absolute(given, folder).as_deref(), Ok(want), "{given}");
        }
    }

    #[test]
    fn lines_without_a_name_get_that_of_their_package() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("lib")).unwrap();
        let project = "[project]\nname = \"Own\"\n";
        fs::write(dir.path().join("lib/pyproject.toml"), project).unwrap();
        let base = file_url(dir.path()).unwrap();
        for (given, want) in [
            ("./lib", format!("Own @ {base}/lib")),
            (
                "lib/ ; os_name == 'x'",
                format!("Own @ {base}/lib ; os_name == 'x'"),
            ),
            ("./lib[fast]", format!("Own[fast] @ {base}/lib")),
            ("file:./lib", format!("Own @ {base}/./lib")),
            (
                "my_lib-1.0-py3-none-any.whl",
                format!("my_lib @ {base}/my_lib-1.0-py3-none-any.whl"),
            ),
            (
                "./my-lib-1.0.tar.gz",
                format!("my-lib @ {base}/my-lib-1.0.tar.gz"),
            ),
            (
                "git+https://h/r#egg=mine",
                "mine @ git+https://h/r#egg=mine".to_owned(),
            ),
            ("https://h/x-1.zip", "x @ https://h/x-1.zip".to_owned()),
            // Markers, as pip reads them: a path ends at a semicolon, a URL at one with white space behind it.
            (
                "./lib;os_name == 'x'",
                format!("Own @ {base}/lib ;os_name == 'x'"),
            ),
            (
                "./lib[fast]; os_name == 'x'",
                format!("Own[fast] @ {base}/lib ; os_name == 'x'"),
            ),
            (
                "./my_lib-1.0-py3-none-any.whl; python_version>'3'",
                format!("my_lib @ {base}/my_lib-1.0-py3-none-any.whl ; python_version>'3'"),
            ),
            (
                "file:lib; os_name == 'x'",
                format!("Own @ {base}/lib ; os_name == 'x'"),
            ),
            (
                "https://h/a;b/x-1.zip#sha256=0; os_name == 'x'",
                "x @ https://h/a;b/x-1.zip#sha256=0 ; os_name == 'x'".to_owned(),
            ),
            ("six == 1.0", "six == 1.0".to_owned()),
            ("six", "six".to_owned()),
        ] {
            let found = named(given, dir.path());
            assert_eq!(found.as_ref(), Ok(&want), "{given}");
        }
        assert!(named("git+https://h/r", dir.path()).is_err());
        assert!(named("./missing", dir.path()).is_err());
        fs::create_dir(dir.path().join("a lib")).unwrap();
        let reason = named("./a lib", dir.path()).unwrap_err();
        assert!(
            reason.contains(&format!("`NAME @ {base}/a%20lib`")),
            "{reason}"
        );
        let zero = dir.path().join("zero");
        fs::create_dir(&zero).unwrap();
        std::os::unix::fs::symlink("/dev/zero", zero.join("pyproject.toml")).unwrap();
        let reason = named("./zero", dir.path()).unwrap_err();
        let wanted = "zero/pyproject.toml: it is not a regular file";
        assert!(reason.ends_with(wanted), "{reason}");
        assert_eq!(name("My_Lib.x [a]>1"), "my-lib-x");
    }
}
