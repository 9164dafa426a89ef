//! Records of what jobs have published: `.casparian/outputs/<database>/<job / 1000>/<job>`, JSON.
//!
//! A record is written with the state `intent` before the first change, and names what is
//! published, what was before, and what goes afterwards. The state `committed` means that the
//! output stands. Where one operation makes everything visible it is the commit itself: one
//! rename, or the last SQLite transaction.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::{self, Identity};
use super::folder::{Folder, Name};
use super::location::{self, FileId};
use super::names::Holder;
use super::{Artifact, Error, Root, names, sqlite};
use crate::job::Attempt;
use crate::limits;

const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Intent,
    Committed,
}

/// A file, published or to be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileOutput {
    pub(super) topic: String,
    /// Path below the root, with the links of its folders followed.
    pub(super) path: String,
    /// Its path in another layout, while it is moved there or back: until the move has ended it may
    /// be at either, or at both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) also: Option<String>,
    pub(super) identity: Identity,
    pub(super) rows: u64,
    /// Its content's hash in hex digits. None where it is not known, as in records of earlier
    /// releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sha256: Option<String>,
    pub(super) mode: String,
    /// Number in the names of its files in the attempt's folder.
    #[serde(default)]
    pub(super) index: usize,
    /// Where the attempt holds its files for this path: a bay, or its folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bay: Option<String>,
}

/// Rows in a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TableOutput {
    pub(super) topic: String,
    /// Path of the SQLite database, for the worker that reads or writes the record.
    pub(super) database: String,
    /// Its path below the root, which is the same for every worker. None outside the root, and in
    /// records of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) below: Option<String>,
    pub(super) table: String,
    pub(super) rows: u64,
    pub(super) mode: String,
    /// As receipts have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) columns: Option<String>,
}

impl TableOutput {
    /// A table of which no more than the place is known.
    pub(super) fn named(database: String, below: Option<String>, table: &str) -> Self {
        TableOutput {
            topic: String::new(),
            database,
            below,
            table: table.to_owned(),
            rows: 0,
            mode: String::new(),
            columns: None,
        }
    }

    /// What distinguishes the table from every other, whatever path leads to its database.
    pub(super) fn identity(&self) -> (FileId, String) {
        let place = FileId::of(Path::new(&self.database));
        (place, self.table.to_ascii_lowercase())
    }

    /// Finds the database of a record that another worker may have written.
    fn locate(&mut self, root: &Root) {
        if let Some(below) = self.below.as_deref().filter(|below| files::is_below(below)) {
            self.database = root.path().join(below).to_string_lossy().into_owned();
        }
        (self.database, self.below) = location::database(root.path(), &self.database);
    }
}

/// What an attempt published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outputs {
    pub(super) files: Vec<FileOutput>,
    pub(super) tables: Vec<TableOutput>,
}

impl Outputs {
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.tables.is_empty()
    }
}

/// A job's record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// The attempt's number.
    pub(super) attempt: i64,
    /// The attempt's key ([`History::key`](crate::job::History)).
    #[serde(default)]
    pub(super) key: i64,
    /// It took the place of output with a receipt, its own job's or another's, which cannot be
    /// had again: so it stays, though its own receipt may be missing.
    #[serde(default)]
    pub(super) replaces: bool,
    /// The worker process that wrote it.
    #[serde(default)]
    pub(super) worker: String,
    /// Name of its folder in staging.
    pub(super) run: String,
    pub(super) state: State,
    pub(super) outputs: Outputs,
    /// The attempt that had published before.
    #[serde(default)]
    pub(super) previous_attempt: i64,
    /// Its key, and its `replaces`.
    #[serde(default)]
    pub(super) previous_key: i64,
    #[serde(default)]
    pub(super) previous_replaces: bool,
    /// What it had published.
    #[serde(default)]
    pub(super) previous: Outputs,
    /// Files that go after the commit: earlier ones that this attempt lacks, and replaced ones.
    #[serde(default)]
    pub(super) removes: Vec<FileOutput>,
    /// Tables that lose the job's rows after the commit.
    #[serde(default)]
    pub(super) clears: Vec<TableOutput>,
    /// Some of `removes` and `clears` could not be removed: the next attempt tries again.
    #[serde(default)]
    pub(super) has_leftovers: bool,
}

/// How much of a record's output is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remains {
    Nothing,
    /// Others have replaced or removed the rest.
    Part,
    All,
}

impl Record {
    /// The intent of an attempt.
    pub(super) fn intent(root: &Root, name: &Name, outputs: Outputs) -> Self {
        Record {
            version: VERSION,
            attempt: name.attempt.number,
            key: 0,
            replaces: false,
            worker: root.worker().to_owned(),
            run: name.run(),
            state: State::Intent,
            outputs,
            previous_attempt: 0,
            previous_key: 0,
            previous_replaces: false,
            previous: Outputs::default(),
            removes: Vec::new(),
            clears: Vec::new(),
            has_leftovers: false,
        }
    }

    /// True when the intent is carried out by one rename, which is the commit then.
    pub(super) fn is_one_rename(&self) -> bool {
        self.outputs.tables.is_empty() && self.outputs.files.len() == 1
    }

    /// An error when what was mounted above an output is not any more: it cannot be checked.
    fn check_mounts(&self, root: &Root) -> Result<(), Error> {
        let files = self.outputs.files.iter();
        let files = files.map(|file| root.path().join(&file.path));
        let tables = self.outputs.tables.iter();
        let mut all = files.chain(tables.map(|table| PathBuf::from(&table.database)));
        all.try_for_each(|file| root.anchor().check_mounts(&file))
    }

    /// True when the attempt's output stands.
    pub(super) fn is_committed(&self, root: &Root, name: &Name) -> Result<bool, Error> {
        if self.state == State::Committed {
            return Ok(true);
        }
        self.check_mounts(root)?;
        if !self.outputs.tables.is_empty() {
            for table in &self.outputs.tables {
                if !sqlite::is_published(table, name, self.key, root.access())? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        match self.outputs.files.as_slice() {
            [only] => {
                let found = files::identity(&root.path().join(&only.path))?;
                Ok(found == Some(only.identity))
            }
            // Without output the record itself is the commit.
            [] => Ok(true),
            _ => Ok(false),
        }
    }

    /// How much output of a committed record is still what was published.
    pub(super) fn remains(&self, root: &Root, name: &Name) -> Result<Remains, Error> {
        let mut name = name.clone();
        name.attempt.number = self.attempt;
        if self.outputs.is_empty() || !self.is_committed(root, &name)? {
            return Ok(Remains::Nothing);
        }
        self.check_mounts(root)?;
        let mut all = Vec::new();
        for file in &self.outputs.files {
            let found = files::identity(&root.path().join(&file.path))?;
            all.push(found == Some(file.identity));
        }
        for table in &self.outputs.tables {
            all.push(sqlite::is_published(table, &name, self.key, root.access())?);
        }
        Ok(match (all.contains(&true), all.contains(&false)) {
            (false, _) => Remains::Nothing,
            (true, true) => Remains::Part,
            (true, false) => Remains::All,
        })
    }

    /// True when all output of a committed record is still what was published.
    pub(super) fn stands(&self, root: &Root, name: &Name) -> Result<bool, Error> {
        Ok(self.remains(root, name)? == Remains::All)
    }

    /// What the record's attempt published.
    pub(super) fn artifacts(&self, root: &Root) -> Vec<Artifact> {
        let files = self.outputs.files.iter().map(|file| Artifact {
            topic: file.topic.clone(),
            uri: names::file_uri(&root.path().join(&file.path)),
            rows: file.rows,
            size_bytes: file.identity.size,
            sha256: file.sha256.clone(),
            columns: None,
        });
        let tables = self.outputs.tables.iter().map(|table| Artifact {
            topic: table.topic.clone(),
            uri: names::table_uri(table.database.as_ref(), &table.table),
            rows: table.rows,
            size_bytes: 0,
            sha256: None,
            columns: table.columns.clone(),
        });
        files.chain(tables).collect()
    }

    /// What stands of the job, or may: in a record without a folder both attempts' files.
    pub(super) fn standing(&self) -> Outputs {
        let mut outputs = self.outputs.clone();
        if self.state == State::Intent {
            for file in &self.previous.files {
                outputs.files.push(file.clone());
            }
            let mut found: HashSet<_> = outputs.tables.iter().map(TableOutput::identity).collect();
            for table in &self.previous.tables {
                if found.insert(table.identity()) {
                    outputs.tables.push(table.clone());
                }
            }
        }
        outputs
    }

    /// Tables that lose the job's rows after the commit. Never one that the record publishes.
    pub(super) fn cleared(&self) -> Vec<&TableOutput> {
        let tables = self.outputs.tables.iter();
        let published: HashSet<_> = tables.map(TableOutput::identity).collect();
        let is_other = |table: &&TableOutput| !published.contains(&table.identity());
        self.clears.iter().filter(is_other).collect()
    }

    /// Writes and syncs the record of the folder's job. It is renamed from the folder, so a barred
    /// attempt cannot.
    pub(super) fn write(&self, root: &Root, folder: &Folder) -> Result<(), Error> {
        root.check()?;
        let path = path(root, &folder.name);
        let new = folder.path("record");
        let text = serde_json::to_vec(self).map_err(|error| Error::Record {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let parent = path.parent().unwrap_or(root.base());
        files::create_own(root.path(), parent)?;
        files::write_synced(&new, &text).map_err(|error| folder.refusal(error))?;
        files::rename(&new, &path).map_err(|error| folder.refusal(error))?;
        files::sync_folder(parent)
    }
}

/// The record of a job; none when it has published nothing.
pub(super) fn read(root: &Root, name: &Name) -> Result<Option<Record>, Error> {
    let mut record = read_files(root, name)?;
    if let Some(record) = &mut record {
        let lists = [
            &mut record.outputs.tables,
            &mut record.previous.tables,
            &mut record.clears,
        ];
        for list in lists {
            for table in list.iter_mut() {
                table.locate(root);
            }
            // The folder may come from elsewhere.
            list.retain(|table| root.may_hold(table.database.as_ref(), table.below.as_deref()));
        }
    }
    Ok(record)
}

/// The record of a job, of which only the files are used: its databases may be on storage that
/// does not respond.
fn read_files(root: &Root, name: &Name) -> Result<Option<Record>, Error> {
    let path = &path(root, name);
    let fail = |reason: String| Error::Record {
        path: path.to_owned(),
        reason,
    };
    let bytes = match files::read(path, limits::RECORD_SIZE_MAX) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        // Something else is in its place: no fault of the worker's.
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::InvalidData => {
            return Err(fail(source.to_string()));
        }
        Err(error) => return Err(error),
    };
    let mut record: Record =
        serde_json::from_slice(&bytes).map_err(|error| fail(error.to_string()))?;
    let lists = [
        &record.outputs.tables,
        &record.previous.tables,
        &record.clears,
    ];
    for table in lists.into_iter().flatten() {
        let below = table.below.as_deref().unwrap_or("");
        if [&table.database, &table.table, below]
            .iter()
            .any(|text| text.contains('\0'))
        {
            return Err(fail(format!("{:?}: a name contains a NUL", table.database)));
        }
    }
    // An output folder may come from elsewhere.
    let lists = [
        &mut record.outputs.files,
        &mut record.previous.files,
        &mut record.removes,
    ];
    for file in lists.into_iter().flatten() {
        let mut others = file.bay.iter().chain(&file.also);
        if !files::is_below(&file.path) || others.any(|other| !files::is_below(other)) {
            return Err(fail(format!(
                "{:?} is no path below the output folder",
                file.path
            )));
        }
        if let Some(below) = location::below(root.path(), &root.path().join(&file.path)) {
            file.path = below;
        }
    }
    match record.version {
        VERSION => Ok(Some(record)),
        other => Err(fail(format!(
            "version {other}, this release reads version {VERSION}"
        ))),
    }
}

/// Removes the record of the folder's job.
pub(super) fn remove(root: &Root, folder: &Folder) -> Result<(), Error> {
    let path = path(root, &folder.name);
    match files::rename(&path, &folder.path("record")) {
        Err(_) if files::identity(&path)?.is_none() => Ok(()),
        Err(error) => Err(folder.refusal(error)),
        Ok(()) => files::sync_folder(path.parent().unwrap_or(root.base())),
    }
}

/// Path of a job's record. Jobs of an old sentinel have records of their own.
pub(super) fn path(root: &Root, name: &Name) -> PathBuf {
    let job = name.attempt.job_id;
    let file = match name.attempt.incarnation() {
        0 => job.to_string(),
        incarnation => format!("{job}r{incarnation}"),
    };
    let outputs = root.base().join("outputs").join(&name.database);
    outputs.join(job.div_euclid(1000).to_string()).join(file)
}

/// The attempt that published a file at a path below the root, by the record of a job of the same
/// database. Number 0 of its incarnation where only a receipt knows the attempt.
pub(super) fn publisher(
    root: &Root,
    name: &Name,
    holder: &Holder,
    (path, identity): (&str, Identity),
) -> Option<Attempt> {
    let record = of_other(root, name, holder.job_id, holder.incarnation)?;
    let has = |files: &[FileOutput]| {
        let mut files = files.iter();
        files.any(|file| file.path == path && file.identity == identity)
    };
    let number = if has(&record.outputs.files) || has(&record.removes) {
        record.attempt
    } else if has(&record.previous.files) {
        record.previous_attempt.max(holder.incarnation << 32)
    } else {
        return None;
    };
    Some(Attempt::new(holder.job_id, number))
}

/// True when a record of a job says that it published this file, in whatever database the job is.
pub(super) fn is_published_by(
    root: &Root,
    holder: &Holder,
    file: (&str, Identity),
) -> Result<bool, Error> {
    let outputs = root.base().join("outputs");
    let entries = fs::read_dir(&outputs).map_err(|error| Error::io(&outputs, error))?;
    for entry in entries.flatten() {
        let database = entry.file_name();
        let Some(database) = database.to_str() else {
            continue;
        };
        let is_its = |suffix: &String| names::suffix(database) == *suffix;
        if !holder.suffix.as_ref().is_none_or(is_its) {
            continue;
        }
        let Ok(name) = Name::numbered(database, Attempt::new(holder.job_id, 0)) else {
            continue;
        };
        if publisher(root, &name, holder, file).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The record of another job of the same database.
pub(super) fn of_other(root: &Root, name: &Name, job: i64, incarnation: i64) -> Option<Record> {
    let mut other = name.clone();
    other.attempt = Attempt::new(job, incarnation << 32);
    read_files(root, &other).ok().flatten()
}
