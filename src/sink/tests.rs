//! Tests of the sinks:
//! - writing: `writing`, `columns`, `types`, `tables`;
//! - identity of outputs: `identity`, `locations` (several paths of one file), `old_peers` (output of the
//!   reference system);
//! - publishing: `modes`, `fence`, `steps` (failures at each step), `settle`, `published`;
//! - roots: `roots`, `moved_roots` (roots that are removed or replaced), `copied_roots`;
//! - databases of other programs: `strangers` (their tables), `moved` (databases that are moved).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use arrow::array::{ArrayRef, Int64Array, RecordBatch};

use super::*;
use crate::job::{Attempt, Job, Plugin, Sink};

mod columns;
mod copied_roots;
mod fence;
mod identity;
mod locations;
mod modes;
mod moved;
mod moved_roots;
mod moves;
mod old_peers;
mod published;
mod roots;
mod settle;
mod steps;
mod strangers;
mod tables;
mod types;
mod writing;

/// UUID of the databases in tests.
const A: &str = "aaaaaaaa000000000000000000000001";
const B: &str = "bbbbbbbb000000000000000000000002";

/// A root in a temporary folder.
struct Fixture {
    dir: tempfile::TempDir,
    root: Arc<Root>,
}

impl Fixture {
    fn new() -> Self {
        // The tests sync thousands of times, so the root is in memory where that is possible.
        let memory = Path::new("/dev/shm");
        let dir = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let dir = dir.unwrap();
        let root = open(dir.path());
        Fixture { dir, root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    /// The output of a job that an old sentinel sent.
    fn output(&self, job_id: i64, sinks: &[(&str, &str, &str)]) -> Result<JobOutput, Error> {
        let job = job(None, Attempt::new(job_id, 0), sinks);
        JobOutput::new(self.root.clone(), Arc::new(job))
    }

    /// Writes one batch of a job that an old sentinel sent to one sink, and publishes it.
    fn publish(&self, job_id: i64, uri: &str, mode: &str) -> Result<Vec<Artifact>, Error> {
        let sink = Sink::parse("output", uri, mode)?;
        let mut output = self.output(job_id, &[(&sink.topic, uri, mode)])?;
        output.write(None, &numbers(&[1, 2, 3]))?;
        finish(output)
    }

    /// Paths of the visible files, relative to the root.
    fn files(&self) -> Vec<String> {
        visible(&self.path(""))
    }

    /// Names in the staging folder.
    fn staged(&self) -> Vec<String> {
        names_in(&self.path(".casparian/staging"))
    }
}

fn open(path: &Path) -> Arc<Root> {
    Arc::new(Root::open(path, RootOptions::default()).unwrap())
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<String> = entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn visible(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for name in names_in(&folder) {
            let path = folder.join(&name);
            if name == ".casparian" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap();
                found.push(name.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

fn job(database: Option<&str>, attempt: Attempt, sinks: &[(&str, &str, &str)]) -> Job {
    let sinks = sinks
        .iter()
        .map(|(topic, uri, mode)| Sink::parse(topic, uri, mode).unwrap());
    Job {
        attempt,
        file_path: String::new(),
        file_version_id: 42,
        content: None,
        sinks: sinks.collect(),
        parameters: Default::default(),
        plugin: Arc::new(Plugin {
            name: "plug_in".into(),
            ..Plugin::default()
        }),
        database: database.map(Arc::from),
        previous: Vec::new(),
        history: Default::default(),
    }
}

/// Staged output of a job, with these values in all its sinks.
fn stage(root: &Arc<Root>, job: &Job, values: &[i64]) -> Result<Staged, Error> {
    let mut output = JobOutput::new(root.clone(), Arc::new(job.clone()))?;
    output.write(None, &numbers(values))?;
    output.stage()
}

/// Publishes with a lease.
fn publish(root: &Arc<Root>, job: &Job, values: &[i64]) -> Result<Published, Error> {
    granted(stage(root, job, values)?)
}

fn granted(staged: Staged) -> Result<Published, Error> {
    staged
        .publish(&[], &|| true)
        .map_err(|refused| match refused {
            Refused::Failed(error) => error,
            Refused::NotGranted(_) => panic!("the lease was granted"),
        })
}

fn finish(output: JobOutput) -> Result<Vec<Artifact>, Error> {
    Ok(granted(output.stage()?)?.artifacts)
}

/// Values of the column `x` of a Parquet file, which must be complete.
fn values(path: &Path) -> Vec<i64> {
    let batches = read(path);
    let column = |batch: &RecordBatch| -> Vec<i64> {
        let column = batch.column(0).as_any().downcast_ref::<Int64Array>();
        column.unwrap().values().to_vec()
    };
    batches.iter().flat_map(column).collect()
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(
        columns
            .into_iter()
            .map(|(name, column)| (name, column, true)),
    )
    .unwrap()
}

fn numbers(values: &[i64]) -> RecordBatch {
    batch(vec![("x", Arc::new(Int64Array::from(values.to_vec())))])
}

fn read(path: &Path) -> Vec<RecordBatch> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    builder.build().unwrap().map(Result::unwrap).collect()
}

fn rows(path: &Path) -> usize {
    read(path).iter().map(RecordBatch::num_rows).sum()
}
