//! Parses the location of a database: a path or a `sqlite://` URL.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::Error;

/// The path of a location: `sqlite://rel.db` is relative, `sqlite:///abs.db` absolute, a text without a
/// scheme is a path. It need not be UTF-8.
pub fn parse(text: impl AsRef<OsStr>) -> Result<PathBuf, Error> {
    let text = text.as_ref();
    let fail = |reason| Error::Location {
        text: text.to_string_lossy().chars().take(200).collect(),
        reason,
    };
    let bytes = text.as_bytes();
    let (is_url, path) = match bytes.strip_prefix(b"sqlite://") {
        Some(path) => (true, path),
        None if bytes.windows(3).any(|part| part == b"://") => {
            return Err(fail("only sqlite databases are supported"));
        }
        None => match bytes.strip_prefix(b"sqlite:") {
            Some(path) => (true, path),
            None => (false, bytes),
        },
    };
    if path.is_empty() {
        return Err(fail("it names no file"));
    }
    if path.contains(&0) {
        return Err(fail("it contains a NUL"));
    }
    if is_url && path.contains(&b'?') {
        return Err(fail("URL parameters are not supported"));
    }
    if path == b":memory:" {
        return Err(fail("a queue in memory would not survive"));
    }
    // SQLAlchemy writes four slashes for an absolute path.
    let slashes = path.iter().take_while(|byte| **byte == b'/').count();
    let path = path.get(slashes.saturating_sub(1)..).unwrap_or(path);
    Ok(PathBuf::from(OsStr::from_bytes(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_mean_files() {
        for (text, want) in [
            ("sqlite://casparian_flow.db", "casparian_flow.db"),
            ("sqlite:///abs/path.db", "/abs/path.db"),
            ("sqlite:////abs/path.db", "/abs/path.db"),
            ("sqlite:rel.db", "rel.db"),
            ("dir/q.sqlite", "dir/q.sqlite"),
            ("/abs/q", "/abs/q"),
            ("//abs/q", "/abs/q"),
            ("sqlite:////abs/q", "/abs/q"),
        ] {
            assert_eq!(parse(text).unwrap(), PathBuf::from(want), "{text}");
        }
        let odd = OsStr::from_bytes(b"sqlite:///a\xff?");
        assert!(parse(odd).is_err());
        let odd = OsStr::from_bytes(b"sqlite:///a\xff");
        assert_eq!(parse(odd).unwrap().as_os_str().as_bytes(), b"/a\xff");
        for text in [
            "",
            "sqlite://",
            "postgres://h/db",
            "sqlite:///x?mode=ro",
            ":memory:",
            "a\0b",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
