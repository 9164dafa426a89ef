//! Records of what jobs have published: JSON files `.casparian/outputs/<database>/<job / 1000>/<job>`.
//!
//! A record is written with the state `intent` before the first visible change. It names the output, the
//! previous output, and what is removed after the commit. The state `committed` means that the output is
//! published. If one operation makes everything visible, that operation is the commit: the only rename,
//! or the last SQLite transaction.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::files::{self, Identity};
use super::folder::{Folder, Name};
use super::location;
use super::names::Holder;
use super::table_output::TableOutput;
use super::{Artifact, Error, Root, names, sqlite};
use crate::job::text::hex;
use crate::job::{Attempt, Parameters};
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
    /// Its path in another layout, while it is being moved there or back. Until the move has ended, the
    /// file may be at either path or at both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) also: Option<String>,
    pub(super) identity: Identity,
    pub(super) rows: u64,
    /// SHA-256 of its content in hex digits. `None` where it is unknown, as in records of earlier
    /// releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sha256: Option<String>,
    pub(super) mode: String,
    /// Number in the names of its staged and kept files in the attempt's folder; see [`super::recover`].
    #[serde(default)]
    pub(super) index: usize,
    /// The bay with the attempt's files for this path. `None` for the attempt's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bay: Option<String>,
}

impl FileOutput {
    /// True if the file at a path, which has another identity, is a copy of this one: it has the size and
    /// content. Without a recorded hash it must have the time of modification.
    pub(super) fn is_copy(&self, path: &Path, found: Identity) -> Result<bool, Error> {
        if found.inode == 0 || found.size != self.identity.size {
            return Ok(false);
        }
        match &self.sha256 {
            Some(hash) => Ok(files::sha256(path)? == *hash),
            None => Ok(found.has_time_of(self.identity)),
        }
    }

    /// True if another record has the same path and content.
    pub(super) fn is_as(&self, other: &FileOutput) -> bool {
        self.path == other.path
            && self.identity.size == other.identity.size
            && self.sha256.is_some()
            && self.sha256 == other.sha256
    }

    /// If a copy of this file is at its path, takes the identity of the copy. True if that was so.
    pub(super) fn recognize(&mut self, root: &Root) -> Result<bool, Error> {
        let path = root.path().join(&self.path);
        let found = files::identity(&path)?.filter(|found| *found != self.identity);
        match found {
            Some(found) if self.is_copy(&path, found)? => {
                self.identity = found;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

/// The code and parameters that made an output, as hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeWith {
    /// SHA-256 of the plugin's source and lockfile.
    artifact: String,
    /// SHA-256 of the parameters.
    parameters: String,
}

impl MadeWith {
    /// `artifact_hash` is that of [`Plugin`](crate::job::Plugin). `None` where it is empty, which means
    /// that it is unknown.
    pub fn new(artifact_hash: &str, parameters: &Parameters) -> Option<Self> {
        (!artifact_hash.is_empty()).then(|| MadeWith {
            artifact: artifact_hash.to_owned(),
            parameters: hex(&Sha256::digest(parameters.to_json())),
        })
    }
}

/// What an attempt published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outputs {
    pub(super) files: Vec<FileOutput>,
    pub(super) tables: Vec<TableOutput>,
    /// `None` where it is unknown, as in records of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) made_with: Option<MadeWith>,
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
    /// The output replaced output with a receipt, of its own job or of another. The replaced output
    /// cannot be restored, so this output stays even without a receipt of its own.
    #[serde(default)]
    pub(super) replaces: bool,
    /// The worker process that wrote it.
    #[serde(default)]
    pub(super) worker: String,
    /// Name of its folder in staging, without a claim.
    pub(super) run: String,
    pub(super) state: State,
    pub(super) outputs: Outputs,
    /// The attempt that published the previous output.
    #[serde(default)]
    pub(super) previous_attempt: i64,
    /// Key of that attempt.
    #[serde(default)]
    pub(super) previous_key: i64,
    #[serde(default)]
    pub(super) previous_replaces: bool,
    /// The previous output.
    #[serde(default)]
    pub(super) previous: Outputs,
    /// Files of the record of the previous output that were not as recorded when this attempt published, such
    /// as files that mode `replace` of another job has removed. The record that is put back when the
    /// attempt is undone names them again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) previous_changed: Vec<FileOutput>,
    /// Files to remove after the commit: earlier files that this attempt lacks, and files that mode
    /// `replace` replaces.
    #[serde(default)]
    pub(super) removes: Vec<FileOutput>,
    /// Tables from which the job's rows are deleted after the commit.
    #[serde(default)]
    pub(super) clears: Vec<TableOutput>,
    /// Some of `removes` and `clears` could not be removed. The next attempt tries again.
    #[serde(default)]
    pub(super) has_leftovers: bool,
}

/// How much of a record's output is still as it was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remains {
    Nothing,
    /// Other jobs or programs have replaced or removed the rest.
    Part,
    All,
}

impl Record {
    /// A record in state `intent` for an attempt.
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
            previous_changed: Vec::new(),
            removes: Vec::new(),
            clears: Vec::new(),
            has_leftovers: false,
        }
    }

    /// True when one rename carries out the intent. Then this rename is the commit.
    pub(super) fn is_one_rename(&self) -> bool {
        self.outputs.tables.is_empty() && self.outputs.files.len() == 1
    }

    /// An error when a file system above an output is no longer mounted, because then the output cannot
    /// be checked.
    fn check_mounts(&self, root: &Root) -> Result<(), Error> {
        let files = self.outputs.files.iter();
        let files = files.map(|file| root.path().join(&file.path));
        let tables = self.outputs.tables.iter();
        let mut all = files.chain(tables.map(|table| PathBuf::from(&table.database)));
        all.try_for_each(|file| root.anchor().check_mounts(&file))
    }

    /// True when the attempt's output is committed.
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
            // Without output, writing the record is the commit.
            [] => Ok(true),
            _ => Ok(false),
        }
    }

    /// How much of a committed record's output is still as it was published. `Nothing` if it is not
    /// committed.
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

    /// True when all output of a committed record is still as it was published.
    pub(super) fn is_unchanged(&self, root: &Root, name: &Name) -> Result<bool, Error> {
        Ok(self.remains(root, name)? == Remains::All)
    }

    /// The outputs of the previous attempt as its record had them.
    pub(super) fn earlier(&self) -> Outputs {
        let mut earlier = self.previous.clone();
        earlier.files.extend(self.previous_changed.iter().cloned());
        earlier
    }

    /// Gives the published files that are copies of the recorded ones the identities of these copies. True if
    /// there are any.
    pub(super) fn recognize(&mut self, root: &Root) -> Result<bool, Error> {
        self.check_mounts(root)?;
        let mut is_changed = false;
        for file in &mut self.outputs.files {
            is_changed |= file.recognize(root)?;
        }
        Ok(is_changed)
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

    /// The outputs of the job that exist or may exist. With the state `intent` these include the previous
    /// output.
    pub(super) fn possible_outputs(&self) -> Outputs {
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

    /// Tables from which the job's rows are deleted after the commit. Never a table that the record
    /// publishes.
    pub(super) fn cleared(&self) -> Vec<&TableOutput> {
        let tables = self.outputs.tables.iter();
        let published: HashSet<_> = tables.map(TableOutput::identity).collect();
        let is_other = |table: &&TableOutput| !published.contains(&table.identity());
        self.clears.iter().filter(is_other).collect()
    }

    /// Writes and syncs the record of the folder's job. It is renamed from the attempt's folder, so a
    /// barred attempt cannot write it.
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

/// The record of a job. `None` when the job has published nothing.
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
            // The output folder may be a copy from another system, so its paths are not trusted.
            list.retain(|table| root.may_contain(table.database.as_ref(), table.below.as_deref()));
        }
    }
    Ok(record)
}

/// The record of a job, for uses of its files only. Paths of its databases are not resolved, because they
/// may be on storage that does not respond.
fn read_files(root: &Root, name: &Name) -> Result<Option<Record>, Error> {
    let path = &path(root, name);
    let fail = |reason: String| Error::Record {
        path: path.to_owned(),
        reason,
    };
    let bytes = match files::read(path, limits::RECORD_SIZE_MAX) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        // It is no regular file, or too large. That is not a fault of the worker.
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
    // The output folder may be a copy from another system, so its paths are not trusted.
    let lists = [
        &mut record.outputs.files,
        &mut record.previous.files,
        &mut record.previous_changed,
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

/// Path of a job's record. Jobs of an old sentinel have their records below `old`.
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
/// database. Its number is 0 in its incarnation where the record does not have it.
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

/// True when the record of a job of any database shows that the job published this file.
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
