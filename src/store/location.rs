//! Where a database is: a path or a `sqlite://` URL.

use std::path::PathBuf;

use super::Error;

/// The path a text means: `sqlite://rel.db` is relative, `sqlite:///abs.db` absolute, anything
/// without a scheme is a path as it stands.
pub fn parse(text: &str) -> Result<PathBuf, Error> {
    let fail = |reason| Error::Location {
        text: text.chars().take(200).collect(),
        reason,
    };
    let path = match text.split_once("://") {
        Some(("sqlite", path)) => path,
        Some(_) => return Err(fail("only sqlite databases are supported")),
        None => match text.strip_prefix("sqlite:") {
            Some(path) => path,
            None => text,
        },
    };
    if path.is_empty() {
        return Err(fail("it names no file"));
    }
    if path.contains('\0') {
        return Err(fail("it contains a NUL"));
    }
    if text.starts_with("sqlite:") && path.contains('?') {
        return Err(fail("URL parameters are not supported"));
    }
    if path == ":memory:" {
        return Err(fail("a queue in memory would not survive"));
    }
    // Four slashes are what SQLAlchemy writes for an absolute path.
    let path = if path.starts_with("//") {
        path.trim_start_matches('/')
    } else {
        path
    };
    Ok(if text.starts_with("sqlite:////") {
        PathBuf::from(format!("/{path}"))
    } else {
        PathBuf::from(path)
    })
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
        ] {
            assert_eq!(parse(text).unwrap(), PathBuf::from(want), "{text}");
        }
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
