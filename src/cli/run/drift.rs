//! Outputs of one run, and files beside them, whose schemas differ, by topic and column. Readers of a folder take the columns and
//! types of one of its files for all, or fail; a table has values of several types in one column.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::queue::Queue;
use crate::cli::summary::Item;
use crate::cli::table::{one_line, thousands};
use crate::sink::{columns_of_file, columns_of_receipt};
use crate::store::Inspector;

/// Most files whose footers or receipts are read, and most time for it.
const FILES_MAX: usize = 10_000;
const TIME_MAX: Duration = Duration::from_secs(5);
/// Most entries of the outputs' folders that are listed for files that are not of the run.
const NEIGHBOURS_MAX: usize = 1_000;
/// Most columns that are listed in the text, and most types of one.
const COLUMNS_MAX: usize = 100;
const TYPES_MAX: usize = 10;
/// The type of a column that a file does not have.
const MISSING: &str = "missing";

/// Files in which a column has a type.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// None where the file does not have the column.
    kind: Option<String>,
    files: usize,
    example: String,
}

/// A column that differs between files.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Column {
    topic: String,
    name: String,
    seen: Vec<Seen>,
}

/// What differs between the files of a run.
#[derive(Debug, Default)]
pub(super) struct Drift {
    columns: Vec<Column>,
    compared: usize,
    files: usize,
}

impl Drift {
    /// Compares the inputs' outputs: Parquet files by their footers, rows in tables by their jobs' receipts.
    /// Files that stand beside them (of files that failed, are gone or are not of this run) are
    /// compared, too: who reads the folder reads them. `root` is the output folder.
    pub(super) fn of(items: &[Item], queue: &Queue<'_>, root: &Path) -> Self {
        let mut topics: BTreeMap<&str, Vec<Output<'_>>> = BTreeMap::new();
        for item in items.iter().filter(|item| item.has_output()) {
            for (topic, uris) in &item.topics {
                let output = Output::of(item, uris);
                topics.entry(topic).or_default().extend(output);
            }
        }
        add_neighbours(&mut topics, items, root);
        topics.retain(|_, outputs| outputs.len() > 1);
        let mut drift = Drift {
            files: topics.values().map(Vec::len).sum(),
            ..Drift::default()
        };
        let until = Instant::now() + TIME_MAX;
        let mut read = 0;
        let mut receipts = Receipts::Closed(queue);
        for (topic, outputs) in topics {
            let mut schemas = Schemas::default();
            for output in outputs {
                if read == FILES_MAX || Instant::now() >= until {
                    break;
                }
                read += 1;
                let columns = match output {
                    Output::File(path) => columns_of_file(path),
                    Output::Neighbour(ref path) => columns_of_file(path),
                    Output::Table { uri, job_id, .. } => receipts.columns(job_id, uri),
                };
                // A file that is no Parquet file any more is no reader's.
                drift.compared += usize::from(columns.is_some() || output.is_file());
                if let Some(columns) = columns {
                    schemas.add(&output.name(), columns);
                }
            }
            drift.columns.extend(schemas.differing(topic));
        }
        drift
    }

    /// Lines for people; empty where nothing differs.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        for column in self.columns.iter().take(COLUMNS_MAX) {
            let seen = column.seen.iter().map(|seen| {
                let files = match seen.files {
                    1 => "1 file".to_owned(),
                    count => format!("{} files", thousands(count as u64)),
                };
                let name = Path::new(&seen.example).file_name().unwrap_or_default();
                let name = one_line(&name.to_string_lossy());
                let kind = seen.kind.as_deref().unwrap_or(MISSING);
                format!("{} in {files} ({name})", one_line(kind))
            });
            let seen: Vec<String> = seen.collect();
            let (name, topic) = (one_line(&column.name), one_line(&column.topic));
            out.push_str(&format!(
                "Column {name} of topic {topic} differs: {}.\n",
                seen.join(", ")
            ));
        }
        let more = self.columns.len().saturating_sub(COLUMNS_MAX);
        if more > 0 {
            out.push_str(&format!(
                "{} more columns differ.\n",
                thousands(more as u64)
            ));
        }
        if !self.columns.is_empty() {
            out.push_str(
                "Readers of such files take the columns and types of one of them for all, or fail, and \
                 a table has values of all types in one column: give each column one type in the \
                 plugin.\n",
            );
        }
        if self.compared < self.files {
            let (compared, files) = (
                thousands(self.compared as u64),
                thousands(self.files as u64),
            );
            out.push_str(&format!(
                "The schemas of {compared} of {files} outputs were compared.\n"
            ));
        }
        out
    }

    /// Adds it to a summary, where something differs or was not compared.
    pub(super) fn add_to(&self, summary: &mut Value) {
        let columns = self.columns.iter().map(|column| {
            let types = column.seen.iter().map(
                |seen| json!({"type": seen.kind, "files": seen.files, "example": seen.example}),
            );
            let types: Vec<Value> = types.collect();
            json!({"topic": column.topic, "column": column.name, "types": types})
        });
        let columns: Vec<Value> = columns.collect();
        let Some(summary) = summary.as_object_mut() else {
            return;
        };
        if !columns.is_empty() {
            summary.insert("drift".to_owned(), columns.into());
        }
        if self.compared < self.files {
            let compared = json!({"compared": self.compared, "files": self.files});
            summary.insert("schemas".to_owned(), compared);
        }
    }
}

/// An input's output for a topic. Sinks of one topic get the same rows; a file says more of their types.
enum Output<'a> {
    File(&'a Path),
    /// A file that is not of the run, in the folder of one that is.
    Neighbour(PathBuf),
    Table {
        uri: &'a str,
        job_id: i64,
        input: &'a Path,
    },
}

impl<'a> Output<'a> {
    fn of(item: &'a Item, uris: &'a [String]) -> Option<Self> {
        let file = uris.iter().find_map(|uri| uri.strip_prefix("file://"));
        match (file, uris.first(), item.output_of) {
            (Some(file), ..) => Some(Output::File(Path::new(file))),
            (None, Some(uri), Some(job_id)) => Some(Output::Table {
                uri,
                job_id,
                input: &item.path,
            }),
            _ => None,
        }
    }

    fn is_file(&self) -> bool {
        matches!(self, Output::File(_) | Output::Neighbour(_))
    }

    /// Rows in a table are named by their input.
    fn name(&self) -> Cow<'_, str> {
        match self {
            Output::Neighbour(path) => path.to_string_lossy(),
            Output::File(path) => path.to_string_lossy(),
            Output::Table { input, .. } => input.to_string_lossy(),
        }
    }
}

/// Adds Parquet files that are not the items' own, in folders below `root` that hold outputs of one
/// topic alone.
fn add_neighbours(topics: &mut BTreeMap<&str, Vec<Output<'_>>>, items: &[Item], root: &Path) {
    let uris = items.iter().flat_map(|item| item.topics.values().flatten());
    let own: BTreeSet<&Path> = uris
        .filter_map(|uri| uri.strip_prefix("file://"))
        .map(Path::new)
        .collect();
    let mut folders: BTreeMap<PathBuf, BTreeSet<&str>> = BTreeMap::new();
    for (topic, outputs) in &*topics {
        for output in outputs {
            if let Output::File(path) = output
                && let Some(folder) = path.parent()
                && folder != root
            {
                folders.entry(folder.to_owned()).or_default().insert(topic);
            }
        }
    }
    let mut left = NEIGHBOURS_MAX;
    for (folder, of) in folders {
        let mut of = of.into_iter();
        let (Some(topic), None) = (of.next(), of.next()) else {
            continue;
        };
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        for entry in entries.take(left) {
            left -= 1;
            let path = entry.path();
            let is_parquet = path.extension().is_some_and(|end| end == "parquet");
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if is_parquet && is_file && !own.contains(path.as_path()) {
                topics
                    .entry(topic)
                    .or_default()
                    .push(Output::Neighbour(path));
            }
        }
    }
}

/// Receipts of jobs; the queue is opened for the first one.
enum Receipts<'a> {
    Closed(&'a Queue<'a>),
    Open(Inspector),
    /// It could not be opened.
    None,
}

impl Receipts<'_> {
    fn columns(&mut self, job_id: i64, uri: &str) -> Option<Vec<(String, String)>> {
        if let Receipts::Closed(queue) = self {
            *self = match Inspector::open(queue.database()) {
                Ok(found) => Receipts::Open(found),
                Err(_) => Receipts::None,
            };
        }
        let Receipts::Open(queue) = self else {
            return None;
        };
        columns_of_receipt(&queue.receipt(job_id).ok()??, uri)
    }
}

/// The columns of the files of one topic.
#[derive(Default)]
struct Schemas {
    files: usize,
    columns: BTreeMap<String, Vec<Seen>>,
    /// Files by the columns that they have: the first, and how many.
    sets: BTreeMap<Vec<String>, (String, usize)>,
}

impl Schemas {
    fn add(&mut self, file: &str, columns: Vec<(String, String)>) {
        self.files += 1;
        let mut names: Vec<String> = columns.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        let set = self
            .sets
            .entry(names)
            .or_insert_with(|| (file.to_owned(), 0));
        set.1 += 1;
        for (name, kind) in columns {
            let seen = self.columns.entry(name).or_default();
            let same = |seen: &&mut Seen| seen.kind.as_ref() == Some(&kind);
            if let Some(seen) = seen.iter_mut().find(same) {
                seen.files += 1;
            } else if seen.len() < TYPES_MAX {
                seen.push(Seen {
                    kind: Some(kind),
                    files: 1,
                    example: file.to_owned(),
                });
            }
        }
    }

    /// Columns of several types, and those that some files lack.
    fn differing(self, topic: &str) -> Vec<Column> {
        let mut differing = Vec::new();
        for (name, mut seen) in self.columns {
            let lacking = self
                .sets
                .iter()
                .filter(|(names, _)| names.binary_search(&name).is_err());
            let mut missing: Option<Seen> = None;
            for (_, (example, files)) in lacking {
                let missing = missing.get_or_insert_with(|| Seen {
                    kind: None,
                    files: 0,
                    example: example.clone(),
                });
                missing.files += files;
            }
            seen.extend(missing);
            if seen.len() > 1 {
                let topic = topic.to_owned();
                differing.push(Column { topic, name, seen });
            }
        }
        differing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_several_types_and_missing_ones_are_found() {
        let mut schemas = Schemas::default();
        let files: [(&str, &[(&str, &str)]); 4] = [
            ("a", &[("id", "int64"), ("x", "int64")]),
            ("b", &[("id", "int64"), ("x", "double")]),
            ("c", &[("x", "double"), ("id", "int64"), ("y", "string")]),
            ("d", &[("y", "string"), ("x", "double"), ("id", "int64")]),
        ];
        for (file, columns) in files {
            let columns = columns
                .iter()
                .map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned()));
            schemas.add(file, columns.collect());
        }
        let seen = |kind: Option<&str>, files, example: &str| Seen {
            kind: kind.map(str::to_owned),
            files,
            example: example.to_owned(),
        };
        let column = |name: &str, seen| Column {
            topic: "t".to_owned(),
            name: name.to_owned(),
            seen,
        };
        let x = vec![seen(Some("int64"), 1, "a"), seen(Some("double"), 3, "b")];
        let y = vec![seen(Some("string"), 2, "c"), seen(None, 2, "a")];
        assert_eq!(schemas.differing("t"), [column("x", x), column("y", y)]);
    }
}
