//! Where a job's output goes. Sinks are texts in databases and messages; they are parsed here.

use std::fmt;
use std::path::{Component, Path, PathBuf};

/// A sink of a job: its topic, the target to which the topic's batches are written, and what
/// happens to output of other jobs at the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sink {
    /// The topic.
    pub topic: String,
    /// The configured URI.
    pub uri: String,
    /// The target that the URI describes.
    pub target: Target,
    /// What happens to output of other jobs.
    pub mode: Mode,
    /// JSON schema text, passed through.
    pub schema_def: Option<String>,
    /// No sink is configured for the topic. If the output root has a folder for each topic, the
    /// output is written there instead.
    pub is_default: bool,
}

impl Sink {
    /// Parses a sink's texts. An empty mode is `append`.
    pub fn parse(topic: &str, uri: &str, mode: &str) -> Result<Self, SinkError> {
        Ok(Sink {
            topic: topic.to_owned(),
            uri: uri.to_owned(),
            target: parse_uri(uri)?,
            mode: Mode::parse(mode)?,
            schema_def: None,
            is_default: false,
        })
    }

    /// The sink of a topic for which no sink is configured.
    pub fn default_of(plugin: &str, topic: &str) -> Result<Self, SinkError> {
        let mut sink = Sink::parse(topic, &default_uri(plugin, topic), "")?;
        sink.is_default = true;
        Ok(sink)
    }
}

/// What happens to output of other jobs in a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It stays.
    Append,
    /// It is removed when this job's output is published.
    Replace,
    /// The job fails.
    Error,
}

impl Mode {
    /// Parses a mode's name.
    pub fn parse(word: &str) -> Result<Self, SinkError> {
        match word {
            "append" | "" => Ok(Mode::Append),
            "replace" => Ok(Mode::Replace),
            "error" => Ok(Mode::Error),
            other => Err(SinkError::Mode {
                mode: other.chars().take(200).collect(),
            }),
        }
    }

    /// The name in messages and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Append => "append",
            Mode::Replace => "replace",
            Mode::Error => "error",
        }
    }
}

/// Why a sink's text is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkError {
    /// The URI is not a valid URI of a sink.
    Uri {
        /// The first 200 characters of the URI.
        uri: String,
        /// What is wrong.
        reason: String,
    },
    /// A mode other than append, replace and error.
    Mode {
        /// The first 200 characters of the mode.
        mode: String,
    },
}

impl fmt::Display for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SinkError::Uri { uri, reason } => write!(f, "sink {uri:?}: {reason}"),
            SinkError::Mode { mode } => {
                write!(f, "sink mode {mode:?}: expected append, replace or error")
            }
        }
    }
}

impl std::error::Error for SinkError {}

/// Compression of Parquet pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Snappy, the default.
    Snappy,
    /// Zstandard, level 3.
    Zstd,
    /// LZ4 (`LZ4_RAW`).
    Lz4,
    /// No compression.
    None,
}

/// The target to which a sink's batches are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `parquet://relative/path.parquet?compression=…`
    Parquet {
        /// Path below the output root, as in the URI.
        path: PathBuf,
        /// Page compression.
        compression: Compression,
    },
    /// `sqlite:///abs/path.db/table` or `sqlite://rel.db/table`
    Sqlite {
        /// Path of the database, absolute or relative to the output root.
        database: PathBuf,
        /// The table.
        table: String,
    },
}

/// A table that every job queue has, also one of the reference system.
pub const QUEUE_TABLE: &str = "cf_processing_queue";

/// Maximum size of a path component in bytes. It leaves space for adding a job's ID.
const COMPONENT_SIZE_MAX: usize = 200;

/// Parses a sink's URI.
pub fn parse_uri(uri: &str) -> Result<Target, SinkError> {
    let fail = |reason: &str| SinkError::Uri {
        uri: uri.chars().take(200).collect(),
        reason: reason.to_owned(),
    };
    let (scheme, rest) = uri
        .split_once("://")
        .ok_or_else(|| fail("no scheme; expected parquet:// or sqlite://"))?;
    if rest.contains('\0') {
        return Err(fail("it contains a NUL"));
    }
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    match scheme {
        "parquet" => {
            let path = relative(path).map_err(fail)?;
            let mut compression = Compression::Snappy;
            for pair in query.into_iter().flat_map(|query| query.split('&')) {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                compression = match (key, value) {
                    ("compression", "snappy") => Compression::Snappy,
                    ("compression", "zstd") => Compression::Zstd,
                    ("compression", "lz4") => Compression::Lz4,
                    ("compression", "none") => Compression::None,
                    ("compression", _) => {
                        return Err(fail("compression is none of snappy, zstd, lz4, none"));
                    }
                    _ => return Err(fail("unknown parameter; expected compression=…")),
                };
            }
            Ok(Target::Parquet { path, compression })
        }
        "sqlite" => {
            if query.is_some() {
                return Err(fail(
                    "a sqlite sink takes no parameters; expected sqlite://FILE/TABLE",
                ));
            }
            let (database, table) = path
                .rsplit_once('/')
                .ok_or_else(|| fail("no table; expected sqlite://FILE/TABLE"))?;
            if table.is_empty() || table.len() > COMPONENT_SIZE_MAX {
                return Err(fail("the table's name is empty or too long"));
            }
            // SQLite ignores the case of ASCII letters in names.
            let lower = table.to_ascii_lowercase();
            if lower.starts_with("sqlite_") {
                return Err(fail("table names that begin with sqlite_ are SQLite's own"));
            }
            if lower.starts_with("_casparian_") {
                return Err(fail(
                    "table names that begin with _casparian_ are Casparian's own",
                ));
            }
            if lower == QUEUE_TABLE {
                return Err(fail(
                    "a table of this name makes a database a job queue, which takes no output",
                ));
            }
            let database = match database.strip_prefix('/') {
                Some(inner) => Path::new("/").join(relative(inner).map_err(fail)?),
                None => relative(database).map_err(fail)?,
            };
            Ok(Target::Sqlite {
                database,
                table: table.to_owned(),
            })
        }
        _ => Err(fail("unknown scheme; expected parquet:// or sqlite://")),
    }
}

fn relative(text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() {
        return Err("no path");
    }
    let mut path = PathBuf::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(name) if name.len() > COMPONENT_SIZE_MAX => {
                return Err("a name in the path is longer than 200 bytes");
            }
            // This folder is reserved for Casparian's own files.
            Component::Normal(name) if name == ".casparian" => {
                return Err("the path leads into .casparian");
            }
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err("the path has a part `..`, which is not allowed"),
            Component::RootDir | Component::Prefix(_) => {
                return Err("the path must be relative to the output folder");
            }
        }
    }
    if path.as_os_str().is_empty() {
        Err("no path")
    } else {
        Ok(path)
    }
}

/// The folder, stem and extension of a sink's files.
#[cfg(feature = "worker")]
pub(crate) fn name_parts(path: &Path) -> (PathBuf, String, String) {
    let text = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
    match (path.file_stem(), path.extension()) {
        (Some(stem), Some(extension)) => {
            let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
            (folder, text(stem), text(extension))
        }
        _ => (path.to_path_buf(), "data".to_owned(), "parquet".to_owned()),
    }
}

/// The URI of a topic for which no sink is configured. A hash is added to long names and to names
/// with characters other than ASCII letters, digits, `_` and `-`, so that different topics get
/// different files.
pub fn default_uri(plugin: &str, topic: &str) -> String {
    let clean = |text: &str| -> String {
        let mut out: String = text
            .chars()
            .take(64)
            .map(|c| {
                if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        if out != text || out.is_empty() {
            out.push_str(&format!("-{:016x}", hash(text)));
        }
        out
    };
    format!("parquet://{}_{}.parquet", clean(plugin), clean(topic))
}

/// 64-bit FNV-1a. File names contain it, so it must be the same in every release.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_with_like_names_get_different_files() {
        let long = "x".repeat(300);
        let longer = "x".repeat(301);
        let topics = ["東京", "大阪", "a/b", "a_b", "a b", "", "_", &long, &longer];
        let mut uris: Vec<String> = topics.iter().map(|topic| default_uri("p", topic)).collect();
        for uri in &uris {
            assert!(parse_uri(uri).is_ok(), "{uri}");
        }
        assert_eq!(
            uris.get(3).map(String::as_str),
            Some("parquet://p_a_b.parquet")
        );
        uris.sort();
        uris.dedup();
        assert_eq!(uris.len(), topics.len());
    }
}
