//! The output of a job while its batches arrive.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::SchemaRef;

use super::budget::{self, Bounds};
use super::columns::{Columns, check_table};
use super::folder::{Folder, Name};
use super::location::{self, FileId};
use super::logical::Slices;
use super::names::{self, Holder};
use super::parquet::{Memory, ParquetFile};
use super::segments::Segments;
use super::sqlite::{self, Rows, Stage};
use super::staged::{STAGE, StagedSink};
use super::types::{check_complete, check_parquet};
use super::{Error, Root, Staged, datasets, files, json, named, plan, recover, schema, siblings};
use crate::job::text::prefix;
use crate::job::{self, Job, Mode, Target};
use crate::limits;

/// The parts of a file's memory that are counted.
#[derive(Clone, Copy, Default)]
struct Counted {
    memory: Memory,
    footer: usize,
}

impl Counted {
    fn of(file: &ParquetFile) -> Self {
        Counted {
            memory: file.memory(),
            footer: file.memory_of_footer(),
        }
    }
}

fn parquet_files(sinks: &mut [Sink]) -> impl Iterator<Item = &mut ParquetFile> {
    let open = sinks.iter_mut().filter_map(|sink| sink.open.as_mut());
    open.filter_map(|open| match &mut open.writer {
        Writer::Parquet(file) => Some(&mut **file),
        Writer::Table(_) => None,
    })
}

/// Checks that a job's memory suffices for one more schema. `others` is the bytes of the other schemas.
/// The error is the reason why it does not.
fn check_columns(
    schema: &SchemaRef,
    is_parquet: bool,
    others: usize,
    bounds: &Bounds,
) -> Result<(), String> {
    let count = budget::columns(schema);
    let limit = bounds.row_groups() / limits::COLUMN_MEMORY;
    if is_parquet && count > limit {
        return Err(format!(
            "it has {count} columns, with the 2 of the engine; the limit of a Parquet file is {limit}"
        ));
    }
    let size = budget::schema_size(schema);
    let limit = bounds.files();
    match others.saturating_add(size) {
        sum if sum > limit => Err(format!(
            "its {count} columns, their names and metadata need {size} bytes of memory, beside \
             {others} of other topics; the limit is {limit}"
        )),
        _ => Ok(()),
    }
}

enum Writer {
    Parquet(Box<ParquetFile>),
    Table(Rows),
}

/// The state of a sink that has received a batch.
struct Open {
    columns: Columns,
    writer: Writer,
    /// Bytes of memory of its schema.
    schema_size: usize,
    /// Bytes of the metadata of its schema.
    metadata_size: usize,
}

struct Sink {
    topic: String,
    target: Target,
    mode: Mode,
    /// True for a configured sink, which also receives batches without a topic. False for a sink that was
    /// created for its topic.
    configured: bool,
    /// The bay in which its file is staged. `None` for the attempt's folder.
    bay: Option<String>,
    open: Option<Open>,
    /// Files with the rows that were written before the schema changed.
    segments: Segments,
    rows: u64,
}

/// The output of a job while its batches arrive. Dropping it removes what is staged.
pub struct JobOutput {
    root: Arc<Root>,
    job: Arc<Job>,
    folder: Folder,
    sinks: Vec<Sink>,
    /// Files of the sinks; true for a database, in which several sinks may have tables.
    files: HashMap<FileId, bool>,
    /// Indices of the sinks of each topic.
    topics: HashMap<String, Vec<usize>>,
    stage: Option<Stage>,
    bounds: Bounds,
    /// Bytes of memory of all row groups that are being written.
    memory: Memory,
    /// Limit of the bytes of data in these row groups. Above it, row groups are written out.
    data_max: usize,
    /// Bytes of memory of all schemas.
    schemas: usize,
    /// Bytes of memory of all footers.
    footers: usize,
}

impl JobOutput {
    /// The output of a job with default bounds.
    pub fn new(root: Arc<Root>, job: Arc<Job>) -> Result<Self, Error> {
        Self::bounded(root, job, Bounds::default())
    }

    /// Checks the sinks of a job and creates its folder in staging. No lease is needed.
    pub fn bounded(root: Arc<Root>, job: Arc<Job>, bounds: Bounds) -> Result<Self, Error> {
        let name = Name::new(&job, &root)?;
        let is_file = |sink: &job::Sink| matches!(sink.target, Target::Parquet { .. });
        // Checked early, so that a plugin does not run in vain. A job without sinks gets files.
        let has_file = job.sinks.is_empty() || job.sinks.iter().any(is_file);
        if name.is_numbered() && has_file {
            root.check_owner(&name.database)?;
        }
        let mut output = JobOutput {
            folder: recover::create(&root, name)?,
            root,
            job: job.clone(),
            sinks: Vec::new(),
            files: HashMap::new(),
            topics: HashMap::new(),
            stage: None,
            bounds,
            data_max: limits::ROW_GROUPS_SIZE_MAX.min(bounds.row_groups() / 2),
            memory: Memory::default(),
            schemas: 0,
            footers: 0,
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
        let target = match sink.is_default && self.root.has_datasets() {
            true => datasets::target(&self.root, &self.folder, &self.job, &sink.topic)?,
            false => sink.target.clone(),
        };
        let (file, is_database) = match &target {
            Target::Parquet { path, .. } => (Some(names::file(path, &holder)), false),
            // Databases outside the root are compared with other sinks when the job publishes.
            Target::Sqlite { database, .. } if database.is_absolute() => (None, true),
            Target::Sqlite { database, .. } => {
                (Some(location::real(&self.root.path().join(database))), true)
            }
        };
        if let Some(file) = file {
            let id = FileId::of_name(&self.root.path().join(&file));
            let other = self.files.insert(id, is_database);
            if other.is_some_and(|is_other_database| !(is_database && is_other_database)) {
                return Err(Error::SameFile { path: file });
            }
        }
        if let Target::Parquet { path, .. } = &target
            && sink.mode == Mode::Error
        {
            let name = &self.folder.name;
            let own = Holder::new(name.attempt, self.root.mark(name)?);
            siblings::refuse(&self.root, name, path, &own)?;
        }
        if let Target::Sqlite { database, table } = &target
            && sink.mode == Mode::Error
        {
            self.refuse_taken(database, table)?;
        }
        let topic = names::topic(&sink.topic);
        let indices = self.topics.entry(topic.clone()).or_default();
        indices.push(self.sinks.len());
        self.sinks.push(Sink {
            topic,
            target,
            mode: sink.mode,
            configured,
            bay: None,
            open: None,
            segments: Segments::default(),
            rows: 0,
        });
        Ok(())
    }

    /// An error when the table of a sink of mode `error` has output of another job. Other faults of the
    /// sink are reported when the job publishes.
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
        match sqlite::check(&path, table, &self.folder.name, share) {
            Ok(Some(by)) => Err(Error::Exists {
                path: path.join(table),
                by,
            }),
            _ => Ok(()),
        }
    }

    /// Writes a batch to the sinks of its topic; without a topic to every configured sink. A topic
    /// without a configured sink gets a file of its own, named after plugin and topic, so that no rows
    /// are lost. A topic longer than 255 bytes is cut, and a hash is appended.
    pub fn write(&mut self, topic: Option<&str>, batch: &RecordBatch) -> Result<(), Error> {
        self.write_while(topic, batch, &|| true)
    }

    /// The same while `goes_on` returns true. It is called before each slice. When it returns false, the
    /// error is [`Error::Stopped`].
    pub fn write_while(
        &mut self,
        topic: Option<&str>,
        batch: &RecordBatch,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let indices = match topic.map(names::topic) {
            Some(topic) => {
                if !self.topics.contains_key(&topic) {
                    let sink = job::Sink::default_of(&self.job.plugin.name, &topic)?;
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
            let batch = self.accept(index, batch)?;
            self.write_slices(index, &batch, goes_on)?;
            self.close_some();
        }
        Ok(())
    }

    fn write_slices(
        &mut self,
        index: usize,
        batch: &RecordBatch,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let open = self.sinks.get(index).and_then(|sink| sink.open.as_ref());
        let schema = open.map(|open| open.columns.schema().clone());
        let mut slices = Slices::new(batch, schema, self.bounds.row());
        while let Some((slice, size)) = slices.next()? {
            if !goes_on() {
                return Err(Error::Stopped);
            }
            self.write_to(index, &slice, size)?;
        }
        Ok(())
    }

    /// Closes all Parquet files when the job has more than `FILES_OPEN_MAX` sinks. They are opened again
    /// for the next write.
    fn close_some(&mut self) {
        if self.sinks.len() > limits::FILES_OPEN_MAX {
            parquet_files(&mut self.sinks).for_each(ParquetFile::close);
        }
    }

    fn write_to(&mut self, index: usize, batch: &RecordBatch, size: usize) -> Result<(), Error> {
        self.make_room(index)?;
        let Some(sink) = self.sinks.get_mut(index) else {
            return Ok(());
        };
        let Some(Open {
            columns, writer, ..
        }) = &mut sink.open
        else {
            return Ok(());
        };
        let schema = columns.schema().clone();
        let rows = batch.num_rows();
        // The footer stays in memory and grows with each row group. So large outputs get larger row
        // groups.
        let files_max = self.bounds.files();
        let mut arrays = columns.convert(&sink.topic, batch)?;
        if matches!(writer, Writer::Parquet(_)) {
            columns.check_geometries(&arrays)?;
        }
        let id = self.job.attempt.job_id;
        arrays.push(Arc::new(Int64Array::from_value(id, rows)));
        let version = self.job.file_version_id;
        arrays.push(Arc::new(Int64Array::from_value(version, rows)));
        let batch = RecordBatch::try_new(schema, arrays).map_err(|error| Error::SchemaChanged {
            topic: sink.topic.clone(),
            expected: "the schema of the first batch".to_owned(),
            got: error.to_string(),
        })?;
        sink.rows += rows as u64;
        match (writer, &self.stage) {
            (Writer::Parquet(file), _) => {
                json::check(&batch)?;
                let before = Counted::of(file);
                let grown = file.row_group_max() << (4 * self.footers / files_max.max(1)).min(2);
                let row_group_max = grown.min(self.bounds.row_groups() / 4);
                self.data_max = self.data_max.max(row_group_max);
                file.write(&batch, size, row_group_max)?;
                let after = Counted::of(file);
                self.count(before, after);
            }
            (Writer::Table(rows), Some(stage)) => {
                let written = stage.write(rows, &batch);
                written.map_err(|error| self.folder.refusal(error))?;
            }
            (Writer::Table(_), None) => {}
        }
        self.bound_memory()
    }

    /// Opens a sink's writer at its first batch, and a new one where a later batch changes the types of
    /// its columns. Returns the batch with its columns in the sink's order.
    fn accept(&mut self, index: usize, batch: &RecordBatch) -> Result<RecordBatch, Error> {
        let Some(sink) = self.sinks.get_mut(index) else {
            return Ok(batch.clone());
        };
        let (columns, batch, is_new, before) = match sink.open.take() {
            None => (Columns::new(batch)?, batch.clone(), true, None),
            Some(mut open) => {
                let (batch, has_changed) = open.columns.accept(&sink.topic, batch)?;
                if !has_changed {
                    let size = open.columns.metadata_size();
                    let grown = size.saturating_sub(open.metadata_size);
                    open.metadata_size += grown;
                    open.schema_size += grown;
                    self.schemas += grown;
                    sink.open = Some(open);
                    return Ok(batch);
                }
                if sink.segments.count() >= limits::SEGMENTS_MAX {
                    return Err(Error::Segments {
                        topic: sink.topic.clone(),
                        limit: limits::SEGMENTS_MAX,
                    });
                }
                self.schemas = self.schemas.saturating_sub(open.schema_size);
                (open.columns, batch, false, Some(open.writer))
            }
        };
        self.check(index, columns.schema(), columns.metadata_size())?;
        if let Some(Writer::Parquet(file)) = before {
            self.set_aside(index, *file)?;
        }
        self.open(index, columns, is_new)?;
        Ok(batch)
    }

    /// Checks the columns of a sink before a file or table is created.
    fn check(
        &mut self,
        index: usize,
        schema: &SchemaRef,
        metadata_size: usize,
    ) -> Result<(), Error> {
        let Some(sink) = self.sinks.get(index) else {
            return Ok(());
        };
        let is_parquet = matches!(sink.target, Target::Parquet { .. });
        match is_parquet {
            true => {
                named::check_schema(schema)?;
                check_parquet(schema)?;
            }
            false => check_table(schema)?,
        }
        let others = self.schemas.saturating_add(metadata_size);
        let checked = check_columns(schema, is_parquet, others, &self.bounds);
        checked.map_err(|reason| Error::Columns {
            topic: sink.topic.clone(),
            reason,
        })
    }

    /// Completes the current file of a Parquet sink as a segment, which is kept until the output is
    /// complete.
    fn set_aside(&mut self, index: usize, file: ParquetFile) -> Result<(), Error> {
        let (before, path) = (Counted::of(&file), self.staged(index));
        let Some(sink) = self.sinks.get_mut(index) else {
            return Ok(());
        };
        let added = sink.segments.add(file, &path);
        added.map_err(|error| self.folder.refusal(error))?;
        self.count(before, Counted::default());
        Ok(())
    }

    /// Creates the writer of a sink for its columns.
    fn open(&mut self, index: usize, columns: Columns, is_new: bool) -> Result<(), Error> {
        let Some(sink) = self.sinks.get_mut(index) else {
            return Ok(());
        };
        let schema = columns.schema();
        let writer = match &sink.target {
            Target::Parquet { path, compression } => {
                let compression = *compression;
                if is_new {
                    let target = self.root.path().join(path);
                    files::inside(self.root.path(), &target)?;
                    let below = location::below(self.root.path(), &target);
                    location::check_below(&target, below.as_deref())?;
                    let holder = Holder::new(self.folder.name.attempt, None);
                    sink.bay = self.folder.bay(&names::file(path, &holder))?;
                }
                let staged = self.staged(index);
                let file = ParquetFile::create(&staged, schema, compression);
                Writer::Parquet(Box::new(file.map_err(|error| self.folder.refusal(error))?))
            }
            Target::Sqlite { .. } => {
                let stage = match self.stage.take() {
                    Some(stage) => stage,
                    None => {
                        let stage = Stage::create(&self.folder.path(STAGE));
                        stage.map_err(|error| self.folder.refusal(error))?
                    }
                };
                let stage = self.stage.insert(stage);
                Writer::Table(match is_new {
                    true => stage.table(index, schema)?,
                    false => stage.change(index, schema)?,
                })
            }
        };
        let metadata_size = columns.metadata_size();
        let schema_size = budget::schema_size(schema).saturating_add(metadata_size);
        self.schemas = self.schemas.saturating_add(schema_size);
        if let Some(sink) = self.sinks.get_mut(index) {
            sink.open = Some(Open {
                columns,
                writer,
                schema_size,
                metadata_size,
            });
        }
        Ok(())
    }

    fn staged(&self, index: usize) -> PathBuf {
        let bay = self.sinks.get(index).and_then(|sink| sink.bay.as_deref());
        self.folder.path_in(bay, &format!("s{index}"))
    }

    /// Writes out row groups of other sinks when the columns of this one need their memory.
    fn make_room(&mut self, index: usize) -> Result<(), Error> {
        let open = self.sinks.get(index).and_then(|sink| sink.open.as_ref());
        let Some(Writer::Parquet(file)) = open.map(|open| &open.writer) else {
            return Ok(());
        };
        let needed = match file.memory().total() {
            0 => file.memory_of_columns(),
            _ => 0,
        };
        let max = self.bounds.row_groups().saturating_sub(needed);
        self.flush_down_to(max)
    }

    /// Keeps memory and output of all topics within the job's bounds.
    fn bound_memory(&mut self) -> Result<(), Error> {
        self.flush_down_to(self.bounds.row_groups())?;
        self.check_footers()?;
        self.check_size()
    }

    /// Writes out the largest row groups until the total memory is at most `max` and the data at most
    /// `data_max`.
    fn flush_down_to(&mut self, max: usize) -> Result<(), Error> {
        let data_max = self.data_max;
        while self.memory.total() > max || self.memory.data > data_max {
            let by_data = self.memory.data > data_max;
            let files = parquet_files(&mut self.sinks);
            let largest = files.max_by_key(|file| match by_data {
                true => file.memory().data,
                false => file.memory().total(),
            });
            let Some(largest) = largest else {
                return Ok(());
            };
            let before = Counted::of(largest);
            largest.flush()?;
            let after = Counted::of(largest);
            self.count(before, after);
            if after.memory.total() >= before.memory.total() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn count(&mut self, before: Counted, after: Counted) {
        let of = |all: usize, before: usize, after: usize| all.saturating_sub(before) + after;
        self.memory.data = of(self.memory.data, before.memory.data, after.memory.data);
        self.memory.columns = of(
            self.memory.columns,
            before.memory.columns,
            after.memory.columns,
        );
        self.footers = of(self.footers, before.footer, after.footer);
    }

    /// An error when schemas and footers take more memory than files may keep.
    fn check_footers(&mut self) -> Result<(), Error> {
        let limit = self.bounds.files();
        if self.schemas.saturating_add(self.footers) <= limit {
            return Ok(());
        }
        let sinks = self
            .sinks
            .iter()
            .filter_map(|sink| match &sink.open.as_ref()?.writer {
                Writer::Parquet(file) => Some((sink, file)),
                Writer::Table(_) => None,
            });
        let largest = sinks.max_by_key(|(_, file)| file.memory_of_footer());
        let Some((sink, file)) = largest else {
            return Ok(());
        };
        Err(Error::Columns {
            topic: sink.topic.clone(),
            reason: format!(
                "{} columns in {} row groups need more memory than all files of a job may keep, \
                 which is {limit} bytes; publish fewer columns, or more rows in one batch",
                file.columns(),
                file.row_groups()
            ),
        })
    }

    /// An error when the job has more output than it may have.
    fn check_size(&mut self) -> Result<(), Error> {
        let limit = self.bounds.output;
        if limit == 0 {
            return Ok(());
        }
        let segments: u64 = self.sinks.iter().map(|sink| sink.segments.size()).sum();
        let files = parquet_files(&mut self.sinks).map(|file| file.size());
        let files = files.fold(segments, u64::saturating_add);
        let stage = match &self.stage {
            Some(stage) => stage.size()?,
            None => 0,
        };
        match files.saturating_add(stage) {
            size if size > limit => Err(Error::Output {
                size,
                limit,
                of: self.bounds.output_of,
            }),
            _ => Ok(()),
        }
    }

    /// Writes the rows of a sink's segments as one file.
    fn join(&mut self, index: usize, goes_on: &dyn Fn() -> bool) -> Result<(), Error> {
        let Some(sink) = self.sinks.get_mut(index) else {
            return Ok(());
        };
        if sink.segments.count() == 0 {
            return Ok(());
        }
        if let Some(open) = sink.open.take() {
            self.schemas = self.schemas.saturating_sub(open.schema_size);
            if let Writer::Parquet(file) = open.writer {
                self.set_aside(index, *file)?;
            }
            self.open(index, open.columns, false)?;
        }
        let Some(sink) = self.sinks.get_mut(index) else {
            return Ok(());
        };
        sink.rows = 0;
        for segment in std::mem::take(&mut sink.segments).into_list() {
            segment.read(|batch| self.write_slices(index, &batch, goes_on))?;
        }
        Ok(())
    }

    /// Finishes and syncs all files. They are not visible yet.
    pub fn stage(self) -> Result<Staged, Error> {
        self.stage_while(&|| true)
    }

    /// The same while `goes_on` returns true. It is called before each slice of rows that are written
    /// again because the types of their columns have changed.
    pub fn stage_while(mut self, goes_on: &dyn Fn() -> bool) -> Result<Staged, Error> {
        for sink in &self.sinks {
            if let Some(open) = &sink.open
                && matches!(open.writer, Writer::Parquet(_))
            {
                check_complete(open.columns.schema())?;
            }
        }
        for index in 0..self.sinks.len() {
            self.join(index, goes_on)?;
        }
        let size_max = self.bounds.output;
        if size_max > 0 {
            self.flush_down_to(0)?;
            self.check_size()?;
        }
        let mut staged = Vec::new();
        let mut notes = Vec::new();
        let mut columns_room = limits::TABLES_COLUMNS_SIZE_MAX;
        for (index, sink) in self.sinks.into_iter().enumerate() {
            let Some(Open {
                columns, writer, ..
            }) = sink.open
            else {
                continue;
            };
            let (sha256, columns) = match writer {
                Writer::Parquet(mut file) => {
                    let (metadata, left_out) = columns.metadata();
                    let topic = prefix(&sink.topic, 80);
                    notes.extend(
                        left_out
                            .iter()
                            .map(|note| format!("topic {topic:?}: {note}")),
                    );
                    file.set_metadata(metadata);
                    let finished = file.finish();
                    (
                        Some(finished.map_err(|error| self.folder.refusal(error))?),
                        None,
                    )
                }
                Writer::Table(_) => {
                    let size_max = columns_room.min(limits::TABLE_COLUMNS_SIZE_MAX);
                    let columns = schema::columns_of_table(columns.schema(), size_max);
                    columns_room -= columns.as_ref().map_or(0, String::len);
                    (None, columns)
                }
            };
            staged.push(StagedSink {
                topic: sink.topic,
                target: sink.target,
                mode: sink.mode,
                bay: sink.bay,
                index,
                rows: sink.rows,
                sha256,
                columns,
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
            notes,
        })
    }
}
