//! Compares the schemas of the outputs of a run and of other files in their folders, by topic and column.
//! Readers of a folder use the columns and types of one of its files for all files, or fail. A table has
//! values of several types in one column.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::queue::Queue;
use crate::cli::summary::Item;
use crate::cli::table::{one_line, thousands};
use crate::job::{Sink, Target};
use crate::sink::{columns_of_file, columns_of_receipt};
use crate::store::Inspector;

/// Limits of the number of files whose footers or receipts are read, and of the time for that.
const FILES_MAX: usize = 10_000;
const TIME_MAX: Duration = Duration::from_secs(5);
/// Limit of the files beside the run's own that are compared.
const NEIGHBOURS_MAX: usize = 1_000;
/// Limits of the columns in the text, and of the types of a column.
const COLUMNS_MAX: usize = 100;
const TYPES_MAX: usize = 10;
/// Text for the type of a column that a file does not have.
const MISSING: &str = "missing";

/// Files in which a column has the same type.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// None if the files do not have the column.
    kind: Option<String>,
    files: usize,
    example: String,
}

/// A column whose type differs between files.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Column {
    topic: String,
    name: String,
    seen: Vec<Seen>,
}

/// Differences between the schemas of a run's outputs.
#[derive(Debug, Default)]
pub(super) struct Drift {
    columns: Vec<Column>,
    compared: usize,
    files: usize,
}

impl Drift {
    /// Compares the outputs of the inputs: Parquet files by their footers, rows in tables by their jobs'
    /// receipts. Other files in the same folders (of inputs that failed or do not exist any more, or not of
    /// this run) are compared, too, because readers of the dataset read them. `sinks` are those of the plugin,
    /// `root` is the output folder.
    pub(super) fn of(items: &[Item], queue: &Queue<'_>, sinks: &[Sink], root: &Path) -> Self {
        let mut topics: BTreeMap<&str, Vec<Output<'_>>> = BTreeMap::new();
        for item in items.iter().filter(|item| item.has_output()) {
            for (topic, uris) in &item.topics {
                let output = Output::of(item, uris);
                topics.entry(topic).or_default().extend(output);
            }
        }
        let left_out = add_neighbours(&mut topics, items, sinks, root);
        topics.retain(|_, outputs| outputs.len() > 1);
        let mut drift = Drift {
            files: topics.values().map(Vec::len).sum::<usize>() + left_out,
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
                // A file without a readable footer is compared, but has no columns: readers cannot read it
                // either.
                drift.compared += usize::from(columns.is_some() || output.is_file());
                if let Some(columns) = columns {
                    schemas.add(&output.name(), columns);
                }
            }
            drift.columns.extend(schemas.differing(topic));
        }
        drift
    }

    /// The differences as lines of text. Empty if there are none.
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

    /// Adds the differences to a JSON summary, if there are any or if some outputs were not compared.
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

/// An input's output for a topic. All sinks of a topic get the same rows; a file is preferred, because it has
/// more exact types.
enum Output<'a> {
    File(&'a Path),
    /// A file that does not belong to the run, in the folder of one that does.
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

    /// The name in the report. For rows in a table it is the path of the input.
    fn name(&self) -> Cow<'_, str> {
        match self {
            Output::Neighbour(path) => path.to_string_lossy(),
            Output::File(path) => path.to_string_lossy(),
            Output::Table { input, .. } => input.to_string_lossy(),
        }
    }
}

/// Files of a folder that a topic's output belongs to: all, or those whose names begin with the sink's stem.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Dataset {
    folder: PathBuf,
    /// `NAME_` for a sink `parquet://DIR/NAME.parquet`, whose files are `NAME_<job>.parquet`.
    prefix: Option<String>,
}

impl Dataset {
    /// The dataset of an output. None if files of other topics cannot be distinguished from its own.
    fn of(topic: &str, path: &Path, sinks: &[Sink], root: &Path) -> Option<Self> {
        let folder = path.parent()?.to_owned();
        let name = path.file_name()?.to_str()?;
        let prefix_of = |sink: &Sink| {
            let (_, prefix) = folder_and_prefix(sink, root)?;
            // A topic without a configured sink has a folder of its own, except in the flat layout.
            let counts = !sink.is_default || folder == root;
            prefix.filter(|prefix| counts && name.starts_with(prefix))
        };
        let mut own = sinks.iter().filter(|sink| sink.topic == topic);
        let prefix = own.find_map(prefix_of);
        let is_of_other = |sink: &Sink| {
            let found = folder_and_prefix(sink, root).filter(|_| sink.topic != topic);
            found.is_some_and(|(other, _)| other == folder)
        };
        let is_shared = folder == root || sinks.iter().any(is_of_other);
        (prefix.is_some() || !is_shared).then_some(Dataset { folder, prefix })
    }

    fn has(&self, name: &str) -> bool {
        let is_named = match &self.prefix {
            Some(prefix) => name
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())),
            None => !name.starts_with(['.', '_']),
        };
        is_named && name.ends_with(".parquet")
    }
}

/// The folder of a Parquet sink, and the beginning of its files' names if the sink is a file.
fn folder_and_prefix(sink: &Sink, root: &Path) -> Option<(PathBuf, Option<String>)> {
    let Target::Parquet { path, .. } = &sink.target else {
        return None;
    };
    let path = root.join(path);
    match path.extension().is_some_and(|end| end == "parquet") {
        true => {
            let stem = path.file_stem()?.to_str()?;
            Some((path.parent()?.to_owned(), Some(format!("{stem}_"))))
        }
        false => Some((path, None)),
    }
}

/// Adds Parquet files of the outputs' datasets that are not outputs of the items. Returns how many are not
/// added because of [`NEIGHBOURS_MAX`].
fn add_neighbours(
    topics: &mut BTreeMap<&str, Vec<Output<'_>>>,
    items: &[Item],
    sinks: &[Sink],
    root: &Path,
) -> usize {
    let items = items.iter().filter(|item| item.has_output());
    let uris = items.flat_map(|item| item.topics.values().flatten());
    let own: BTreeSet<&Path> = uris
        .filter_map(|uri| uri.strip_prefix("file://"))
        .map(Path::new)
        .collect();
    let mut datasets: BTreeMap<Dataset, &str> = BTreeMap::new();
    for (topic, outputs) in &*topics {
        for output in outputs {
            if let Output::File(path) = output
                && let Some(dataset) = Dataset::of(topic, path, sinks, root)
            {
                datasets.insert(dataset, topic);
            }
        }
    }
    let (mut added, mut left_out) = (0, 0);
    for (dataset, topic) in datasets {
        let entries = std::fs::read_dir(&dataset.folder);
        for entry in entries.into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let is_of_it = name.to_str().is_some_and(|name| dataset.has(name));
            if !is_of_it || own.contains(path.as_path()) {
                continue;
            }
            if added == NEIGHBOURS_MAX {
                left_out += 1;
            } else if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                added += 1;
                let outputs = topics.entry(topic).or_default();
                outputs.push(Output::Neighbour(path));
            }
        }
    }
    left_out
}

/// Receipts of jobs. The database is opened when the first one is read.
enum Receipts<'a> {
    Closed(&'a Queue<'a>),
    Open(Inspector),
    /// The database could not be opened.
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

/// The columns of all files of one topic.
#[derive(Default)]
struct Schemas {
    files: usize,
    columns: BTreeMap<String, Vec<Seen>>,
    /// For each set of columns, the first file with it and the number of files.
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

    /// Columns with several types, and columns that some files lack.
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
