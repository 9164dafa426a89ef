//! All output of one job.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::parquet::ParquetFile;
use super::sqlite::{SqliteRows, SqliteTarget};
use super::{Error, Staging};
use crate::job::{self, Job, Mode, Target, default_uri, name_parts};
use crate::limits;

/// Schema metadata that is the bridge's, not the data's.
const TOPIC_KEY: &str = "casparian.topic";
const JOB_ID: &str = "_job_id";
const FILE_VERSION_ID: &str = "_file_version_id";

/// What a job published to one sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// The sink's topic.
    pub topic: String,
    /// `file:///…` or `sqlite:///…/table`.
    pub uri: String,
    /// Rows.
    pub rows: u64,
    /// Octets of the file; 0 for a table.
    pub size_bytes: u64,
}

enum Writer {
    Parquet(ParquetFile),
    Sqlite(SqliteRows),
}

struct Sink {
    topic: String,
    target: Target,
    mode: Mode,
    /// Configured, so it takes batches without a topic; otherwise made for its topic.
    configured: bool,
    staged: PathBuf,
    open: Option<(SchemaRef, Writer)>,
    rows: u64,
}

/// Removes staged files that were not published.
struct Cleanup {
    paths: Vec<PathBuf>,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        for path in &self.paths {
            match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    log::warn!("cannot remove {}: {error}", path.display());
                }
                _ => {}
            }
        }
    }
}

/// The output of a job while its batches come. Dropping it removes what is staged.
pub struct JobOutput {
    staging: Arc<Staging>,
    job: Arc<Job>,
    sinks: Vec<Sink>,
    cleanup: Cleanup,
}

impl JobOutput {
    /// Checks the sinks of a job; no file is made before the first batch.
    pub fn new(staging: Arc<Staging>, job: Arc<Job>) -> Result<Self, Error> {
        let mut output = JobOutput {
            staging,
            job: job.clone(),
            sinks: Vec::new(),
            cleanup: Cleanup { paths: Vec::new() },
        };
        for sink in job.sinks.iter() {
            output.add(sink, true)?;
        }
        Ok(output)
    }

    fn add(&mut self, sink: &job::Sink, configured: bool) -> Result<(), Error> {
        let (target, mode) = (sink.target.clone(), sink.mode);
        let job_id = self.job.attempt.job_id;
        if let Target::Parquet { path, .. } = &target {
            let file = job_file(path, job_id);
            let same = self.sinks.iter().any(|other| match &other.target {
                Target::Parquet { path, .. } => job_file(path, job_id) == file,
                Target::Sqlite { .. } => false,
            });
            if same {
                return Err(Error::SameFile { path: file });
            }
            if mode == Mode::Error
                && let Some(other) = siblings(&self.staging.root().join(path), job_id).pop()
            {
                return Err(Error::Exists { path: other });
            }
        }
        let staged = self.staging.fresh(job_id);
        self.cleanup.paths.push(staged.clone());
        self.sinks.push(Sink {
            topic: sink.topic.clone(),
            target,
            mode,
            configured,
            staged,
            open: None,
            rows: 0,
        });
        Ok(())
    }

    /// Writes a batch to the sinks of its topic; without a topic to every configured sink. A
    /// topic that no sink is configured for gets a file of its own, named after plugin and
    /// topic, so nothing is lost.
    pub fn write(&mut self, topic: Option<&str>, batch: &RecordBatch) -> Result<(), Error> {
        if let Some(topic) = topic
            && !self.sinks.iter().any(|sink| sink.topic == topic)
        {
            let uri = default_uri(&self.job.plugin.name, topic);
            let sink = job::Sink::parse(topic, &uri, "")?;
            self.add(&sink, false)?;
        }
        let (job_id, version) = (self.job.attempt.job_id, self.job.file_version_id);
        for sink in &mut self.sinks {
            let takes = match topic {
                Some(topic) => sink.topic == topic,
                None => sink.configured,
            };
            if takes {
                // In slices: the columns that are added take octets where the guest's may not.
                let mut at = 0;
                loop {
                    let rows = (batch.num_rows() - at).min(limits::SINK_ROWS_MAX);
                    sink.write(&batch.slice(at, rows), job_id, version)?;
                    at += rows;
                    if at >= batch.num_rows() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Finishes and syncs all files. Nothing is visible yet.
    pub fn stage(self) -> Result<Staged, Error> {
        let JobOutput {
            staging,
            job,
            sinks,
            cleanup,
        } = self;
        let job_id = job.attempt.job_id;
        let mut staged = Vec::new();
        for mut sink in sinks {
            let Some((_, writer)) = sink.open.take() else {
                continue;
            };
            let size_bytes = match writer {
                Writer::Parquet(file) => file.finish()?,
                Writer::Sqlite(rows) => {
                    rows.finish()?;
                    0
                }
            };
            staged.push(StagedSink {
                topic: sink.topic,
                target: sink.target,
                mode: sink.mode,
                path: sink.staged,
                rows: sink.rows,
                size_bytes,
            });
        }
        Ok(Staged {
            staging,
            job_id,
            sinks: staged,
            _cleanup: cleanup,
        })
    }
}

impl Sink {
    fn write(&mut self, batch: &RecordBatch, job_id: i64, version: i64) -> Result<(), Error> {
        let rows = batch.num_rows();
        if self.open.is_none() {
            let schema = with_ids(&batch.schema())?;
            let writer = match &self.target {
                Target::Parquet { compression, .. } => {
                    Writer::Parquet(ParquetFile::create(&self.staged, &schema, *compression)?)
                }
                Target::Sqlite { .. } => Writer::Sqlite(SqliteRows::create(&self.staged, &schema)?),
            };
            self.open = Some((schema, writer));
        }
        let Some((schema, writer)) = &mut self.open else {
            return Ok(());
        };
        let mut columns = conform(&self.topic, schema, batch)?;
        columns.push(Arc::new(Int64Array::from_value(job_id, rows)));
        columns.push(Arc::new(Int64Array::from_value(version, rows)));
        let batch = RecordBatch::try_new(schema.clone(), columns).map_err(|error| {
            Error::SchemaChanged {
                topic: self.topic.clone(),
                expected: "the schema of the first batch".to_owned(),
                got: error.to_string(),
            }
        })?;
        self.rows += rows as u64;
        match writer {
            Writer::Parquet(file) => file.write(&batch),
            Writer::Sqlite(rows) => rows.write(&batch),
        }
    }
}

/// The sink's schema: the batch's, with the two ids behind it.
fn with_ids(schema: &SchemaRef) -> Result<SchemaRef, Error> {
    let mut fields: Vec<Arc<Field>> = schema
        .fields()
        .iter()
        .map(|field| {
            let stored = stored_type(field.data_type());
            Arc::new(field.as_ref().clone().with_data_type(stored))
        })
        .collect();
    let mut names = BTreeSet::new();
    for field in &fields {
        if [JOB_ID, FILE_VERSION_ID].contains(&field.name().as_str()) {
            return Err(Error::Column {
                column: field.name().clone(),
                reason: "the engine adds a column of this name; rename yours".to_owned(),
            });
        }
        if !names.insert(field.name()) {
            return Err(Error::Column {
                column: field.name().clone(),
                reason: "there is more than one column of this name".to_owned(),
            });
        }
    }
    fields.push(Arc::new(Field::new(JOB_ID, DataType::Int64, false)));
    fields.push(Arc::new(Field::new(
        FILE_VERSION_ID,
        DataType::Int64,
        false,
    )));
    let mut metadata = schema.metadata().clone();
    metadata.remove(TOPIC_KEY);
    Ok(Arc::new(Schema::new_with_metadata(fields, metadata)))
}

/// Parquet has no timestamps in seconds: the writer would store bare integers.
fn stored_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Timestamp(TimeUnit::Second, zone) => {
            DataType::Timestamp(TimeUnit::Millisecond, zone.clone())
        }
        other => other.clone(),
    }
}

/// The batch's columns as the sink's schema wants them. A column that is null-typed in this
/// batch (pandas gives one where every value is missing) becomes nulls of the sink's type.
fn conform(topic: &str, schema: &SchemaRef, batch: &RecordBatch) -> Result<Vec<ArrayRef>, Error> {
    let got = batch.schema();
    let expected = schema.fields().len() - 2;
    let changed = |expected: String, got: String| Error::SchemaChanged {
        topic: topic.to_owned(),
        expected,
        got,
    };
    if got.fields().len() != expected {
        let names = |fields: &mut dyn Iterator<Item = &Arc<Field>>| {
            fields
                .map(|field| field.name().as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        return Err(changed(
            format!(
                "{expected} columns ({})",
                names(&mut schema.fields().iter().take(expected))
            ),
            format!(
                "{} ({})",
                got.fields().len(),
                names(&mut got.fields().iter())
            ),
        ));
    }
    let mut columns = Vec::with_capacity(expected + 2);
    for ((want, field), column) in schema
        .fields()
        .iter()
        .zip(got.fields())
        .zip(batch.columns())
    {
        let same_name = want.name() == field.name();
        if same_name && want.data_type() == field.data_type() {
            columns.push(column.clone());
        } else if same_name && want.data_type() == &stored_type(field.data_type()) {
            // An instant that milliseconds cannot hold is an error, not a null.
            let exact = CastOptions {
                safe: false,
                ..CastOptions::default()
            };
            let stored = cast_with_options(column, want.data_type(), &exact);
            columns.push(stored.map_err(|error| Error::Column {
                column: want.name().clone(),
                reason: error.to_string(),
            })?);
        } else if same_name && field.data_type() == &DataType::Null && want.is_nullable() {
            columns.push(new_null_array(want.data_type(), column.len()));
        } else {
            return Err(changed(
                format!("column {:?} of type {}", want.name(), want.data_type()),
                format!("{:?} of type {}", field.name(), field.data_type()),
            ));
        }
    }
    Ok(columns)
}

struct StagedSink {
    topic: String,
    target: Target,
    mode: Mode,
    path: PathBuf,
    rows: u64,
    size_bytes: u64,
}

/// Output that is complete on disk and not visible. Dropping it removes it.
pub struct Staged {
    staging: Arc<Staging>,
    job_id: i64,
    sinks: Vec<StagedSink>,
    _cleanup: Cleanup,
}

impl Staged {
    /// Rows over all sinks.
    pub fn rows(&self) -> u64 {
        self.sinks.iter().map(|sink| sink.rows).sum()
    }

    /// Makes the output visible, all of it or (after an error) none of it.
    pub fn publish(self) -> Result<Vec<Artifact>, Error> {
        let mut done: Vec<PathBuf> = Vec::new();
        let mut artifacts = Vec::with_capacity(self.sinks.len());
        for sink in &self.sinks {
            let published = match &sink.target {
                Target::Parquet { path, .. } => self.publish_file(sink, path).map(|file| {
                    done.push(file.clone());
                    format!("file://{}", file.display())
                }),
                Target::Sqlite { database, table } => {
                    let path = self.staging.root().join(database);
                    let target = SqliteTarget {
                        database: &path,
                        table,
                        mode: sink.mode,
                    };
                    if database.is_relative() {
                        self.inside_root(&path)?;
                    }
                    target
                        .publish(&sink.path, self.job_id)
                        .map(|()| format!("sqlite://{}/{table}", path.display()))
                }
            };
            match published {
                Ok(uri) => artifacts.push(Artifact {
                    topic: sink.topic.clone(),
                    uri,
                    rows: sink.rows,
                    size_bytes: sink.size_bytes,
                }),
                Err(error) => {
                    for file in done {
                        if let Err(error) = fs::remove_file(&file) {
                            log::error!("cannot take back {}: {error}", file.display());
                        }
                    }
                    return Err(error);
                }
            }
        }
        // Only now is it sure that the new output stands.
        for sink in &self.sinks {
            if let (Target::Parquet { path, .. }, Mode::Replace) = (&sink.target, sink.mode) {
                for old in siblings(&self.staging.root().join(path), self.job_id) {
                    fs::remove_file(&old).map_err(|error| Error::io(&old, error))?;
                }
            }
        }
        Ok(artifacts)
    }

    fn publish_file(&self, sink: &StagedSink, path: &Path) -> Result<PathBuf, Error> {
        let file = self.staging.root().join(job_file(path, self.job_id));
        self.inside_root(&file)?;
        fs::rename(&sink.path, &file).map_err(|error| Error::io(&file, error))?;
        if let Some(folder) = file.parent() {
            fs::File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|error| Error::io(folder, error))?;
        }
        Ok(file)
    }

    /// Makes the folder of `file` and refuses one that symbolic links lead out of the root.
    fn inside_root(&self, file: &Path) -> Result<(), Error> {
        let Some(folder) = file.parent() else {
            return Ok(());
        };
        let root = self.staging.root();
        let outside = || Error::Outside {
            path: file.to_owned(),
        };
        // The deepest folder that exists decides where new ones would be made.
        let mut existing = folder;
        while !existing.exists() {
            existing = existing.parent().ok_or_else(outside)?;
        }
        let real = fs::canonicalize(existing).map_err(|error| Error::io(existing, error))?;
        if !real.starts_with(root) {
            return Err(outside());
        }
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))
    }
}

/// The file of a job: `o.parquet` → `o_<job>.parquet`; without an extension the path is a
/// dataset's folder and gets `data_<job>.parquet`.
fn job_file(path: &Path, job_id: i64) -> PathBuf {
    let (folder, stem, extension) = name_parts(path);
    folder.join(format!("{stem}_{job_id}.{extension}"))
}

/// Files that other jobs made for the sink at `path`.
fn siblings(path: &Path, job_id: i64) -> Vec<PathBuf> {
    let (folder, stem, extension) = name_parts(path);
    let own = job_file(path, job_id);
    let Ok(entries) = fs::read_dir(&folder) else {
        return Vec::new();
    };
    let prefix = format!("{stem}_");
    let suffix = format!(".{extension}");
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let number = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(&suffix));
            *path != own
                && number.is_some_and(|number| {
                    !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
                })
        })
        .collect()
}
