//! The output of a job while its batches come.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::SchemaRef;

use super::columns::{check_table, conform, with_ids};
use super::folder::{Folder, Name};
use super::names::{self, Holder};
use super::parquet::ParquetFile;
use super::place::{self, Place};
use super::publish::StagedSink;
use super::sqlite::{self, Rows, Stage};
use super::types::check_parquet;
use super::{Error, Root, Staged, files, plan, siblings};
use crate::job::{self, Job, Mode, Target, default_uri};
use crate::limits;

enum Writer {
    Parquet(Box<ParquetFile>),
    Table(Rows),
}

struct Sink {
    topic: String,
    target: Target,
    mode: Mode,
    /// Configured, so it takes batches without a topic; otherwise created for its topic.
    configured: bool,
    /// Where its file is staged, when it is not in the attempt's folder.
    bay: Option<String>,
    open: Option<(SchemaRef, Writer)>,
    rows: u64,
}

/// The output of a job while its batches come. Dropping it removes what is staged.
pub struct JobOutput {
    root: Arc<Root>,
    job: Arc<Job>,
    folder: Folder,
    sinks: Vec<Sink>,
    /// Files of the sinks; true for databases, which may have several tables.
    files: HashMap<Place, bool>,
    /// Indices of the sinks of each topic.
    topics: HashMap<String, Vec<usize>>,
    stage: Option<Stage>,
    /// Memory of all Parquet writers, in bytes.
    memory: usize,
}

/// Name of a job's SQLite file in its folder.
pub(super) const STAGE: &str = "stage";

impl JobOutput {
    /// Checks the sinks of a job and creates its folder in staging. No lease is needed.
    pub fn new(root: Arc<Root>, job: Arc<Job>) -> Result<Self, Error> {
        let name = Name::new(&job, &root)?;
        let mut output = JobOutput {
            folder: Folder::create(&root, name)?,
            root,
            job: job.clone(),
            sinks: Vec::new(),
            files: HashMap::new(),
            topics: HashMap::new(),
            stage: None,
            memory: 0,
        };
        for sink in job.sinks.iter() {
            output.add(sink, true)?;
        }
        Ok(output)
    }

    fn add(&mut self, sink: &job::Sink, configured: bool) -> Result<(), Error> {
        if self.sinks.len() >= limits::TOPICS_MAX {
            return Err(Error::Topics {
                limit: limits::TOPICS_MAX,
            });
        }
        let holder = Holder::new(self.folder.name.attempt, None);
        let (file, is_database) = match &sink.target {
            Target::Parquet { path, .. } => (Some(names::file(path, &holder)), false),
            // Storage outside the root is compared when the job publishes.
            Target::Sqlite { database, .. } if database.is_absolute() => (None, true),
            Target::Sqlite { database, .. } => {
                (Some(place::real(&self.root.path().join(database))), true)
            }
        };
        if let Some(file) = file {
            let place = Place::of_name(&self.root.path().join(&file));
            let other = self.files.insert(place, is_database);
            if other.is_some_and(|is_other_database| !(is_database && is_other_database)) {
                return Err(Error::SameFile { path: file });
            }
        }
        if let Target::Parquet { path, .. } = &sink.target
            && sink.mode == Mode::Error
        {
            let name = &self.folder.name;
            let own = Holder::new(name.attempt, self.root.mark(name)?);
            siblings::refuse(&self.root, name, path, &own)?;
        }
        if let Target::Sqlite { database, table } = &sink.target
            && sink.mode == Mode::Error
        {
            self.refuse_taken(database, table)?;
        }
        let topic = names::topic(&sink.topic);
        let indices = self.topics.entry(topic.clone()).or_default();
        indices.push(self.sinks.len());
        self.sinks.push(Sink {
            topic,
            target: sink.target.clone(),
            mode: sink.mode,
            configured,
            bay: None,
            open: None,
            rows: 0,
        });
        Ok(())
    }

    /// An error when the table of a sink of mode `error` has output of another job. What else is wrong
    /// with the sink is found when the job publishes.
    fn refuse_taken(&self, database: &Path, table: &str) -> Result<(), Error> {
        let path = self.root.path().join(database);
        if !path.exists() {
            return Ok(());
        }
        let Ok((path, _)) = plan::locate(&self.root, database) else {
            return Ok(());
        };
        let path = PathBuf::from(path);
        let share = self.root.shares();
        match sqlite::look(&path, table, &self.folder.name, share) {
            Ok(Some(by)) => Err(Error::Exists {
                path: path.join(table),
                by,
            }),
            _ => Ok(()),
        }
    }

    /// Writes a batch to the sinks of its topic; without a topic to every configured sink. A
    /// topic that no sink is configured for gets a file of its own, named after plugin and
    /// topic, so nothing is lost. Of a topic longer than 255 bytes the first are kept, with a
    /// hash.
    pub fn write(&mut self, topic: Option<&str>, batch: &RecordBatch) -> Result<(), Error> {
        let indices = match topic.map(names::topic) {
            Some(topic) => {
                if !self.topics.contains_key(&topic) {
                    let uri = default_uri(&self.job.plugin.name, &topic);
                    let sink = job::Sink::parse(&topic, &uri, "")?;
                    self.add(&sink, false)?;
                }
                self.topics.get(&topic).cloned().unwrap_or_default()
            }
            None => {
                let sinks = self.sinks.iter().enumerate();
                let configured = sinks.filter(|(_, sink)| sink.configured);
                configured.map(|(index, _)| index).collect()
            }
        };
        for index in indices {
            // In slices: the columns that are added take bytes where the plugin's may not.
            let mut at = 0;
            loop {
                let rows = (batch.num_rows() - at).min(limits::SINK_ROWS_MAX);
                self.write_to(index, &batch.slice(at, rows))?;
                at += rows;
                if at >= batch.num_rows() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn write_to(&mut self, index: usize, batch: &RecordBatch) -> Result<(), Error> {
        self.open(index, batch)?;
        let Some(sink) = self.sinks.get_mut(index) else {
            return Ok(());
        };
        let Some((schema, writer)) = &mut sink.open else {
            return Ok(());
        };
        let rows = batch.num_rows();
        let mut columns = conform(&sink.topic, schema, batch)?;
        let id = self.job.attempt.job_id;
        columns.push(Arc::new(Int64Array::from_value(id, rows)));
        let version = self.job.file_version_id;
        columns.push(Arc::new(Int64Array::from_value(version, rows)));
        let batch = RecordBatch::try_new(schema.clone(), columns).map_err(|error| {
            Error::SchemaChanged {
                topic: sink.topic.clone(),
                expected: "the schema of the first batch".to_owned(),
                got: error.to_string(),
            }
        })?;
        sink.rows += rows as u64;
        match (writer, &self.stage) {
            (Writer::Parquet(file), _) => {
                let before = file.memory();
                file.write(&batch)?;
                self.memory = self.memory.saturating_sub(before) + file.memory();
            }
            (Writer::Table(rows), Some(stage)) => {
                let written = stage.write(rows, &batch);
                written.map_err(|error| self.folder.refusal(error))?;
            }
            (Writer::Table(_), None) => {}
        }
        self.bound_memory()
    }

    /// Opens a sink's writer at its first batch.
    fn open(&mut self, index: usize, batch: &RecordBatch) -> Result<(), Error> {
        let Some(sink) = self.sinks.get_mut(index) else {
            return Ok(());
        };
        if sink.open.is_some() {
            return Ok(());
        }
        let schema = with_ids(&batch.schema())?;
        let writer = match &sink.target {
            Target::Parquet { path, compression } => {
                check_parquet(&schema)?;
                let compression = *compression;
                let target = self.root.path().join(path);
                files::inside(self.root.path(), &target)?;
                let below = place::below(self.root.path(), &target);
                place::check_below(&target, below.as_deref())?;
                let holder = Holder::new(self.folder.name.attempt, None);
                sink.bay = self.folder.bay(&names::file(path, &holder))?;
                let staged = self.staged(index);
                let file = ParquetFile::create(&staged, &schema, compression);
                Writer::Parquet(Box::new(file.map_err(|error| self.folder.refusal(error))?))
            }
            Target::Sqlite { .. } => {
                check_table(&schema)?;
                let stage = match self.stage.take() {
                    Some(stage) => stage,
                    None => {
                        let stage = Stage::create(&self.folder.path(STAGE));
                        stage.map_err(|error| self.folder.refusal(error))?
                    }
                };
                Writer::Table(self.stage.insert(stage).table(index, &schema)?)
            }
        };
        if let Some(sink) = self.sinks.get_mut(index) {
            sink.open = Some((schema, writer));
        }
        Ok(())
    }

    fn staged(&self, index: usize) -> PathBuf {
        let bay = self.sinks.get(index).and_then(|sink| sink.bay.as_deref());
        self.folder.path_in(bay, &format!("s{index}"))
    }

    /// Many topics share one bound: the largest row group is written out first.
    fn bound_memory(&mut self) -> Result<(), Error> {
        while self.memory > limits::ROW_GROUPS_SIZE_MAX {
            let files = self
                .sinks
                .iter_mut()
                .filter_map(|sink| match &mut sink.open {
                    Some((_, Writer::Parquet(file))) => Some(file),
                    _ => None,
                });
            let Some(largest) = files.max_by_key(|file| file.memory()) else {
                return Ok(());
            };
            let before = largest.memory();
            largest.flush()?;
            let after = largest.memory();
            self.memory = self.memory.saturating_sub(before) + after;
            if after >= before {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Finishes and syncs all files. Nothing is visible yet.
    pub fn stage(self) -> Result<Staged, Error> {
        let mut staged = Vec::new();
        for (index, sink) in self.sinks.into_iter().enumerate() {
            let Some((_, writer)) = sink.open else {
                continue;
            };
            let sha256 = match writer {
                Writer::Parquet(file) => {
                    Some(file.finish().map_err(|error| self.folder.refusal(error))?)
                }
                Writer::Table(_) => None,
            };
            staged.push(StagedSink {
                topic: sink.topic,
                target: sink.target,
                mode: sink.mode,
                bay: sink.bay,
                index,
                rows: sink.rows,
                sha256,
            });
        }
        if let Some(stage) = self.stage {
            let finished = stage.finish();
            finished.map_err(|error| self.folder.refusal(error))?;
        }
        Ok(Staged {
            root: self.root,
            job: self.job,
            folder: self.folder,
            sinks: staged,
        })
    }
}
