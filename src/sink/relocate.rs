//! The move of published files to the paths of another layout: from `<plugin>_<topic>_<job>.parquet`
//! into the folders of their topics, or back. For a program that has root and database to itself.
//!
//! The order: a journal of the moves is written; each file gets its new name beside the old one; the
//! records are written; the database is changed; the old names are removed; the journal is removed.
//! Moves that stopped before the database was changed are taken back, others are finished. Where a file
//! system has no hard links, files are renamed instead.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::{self, Identity};
use super::folder::{Folder, Name, checked};
use super::names::{self, Holder};
use super::record::{self, FileOutput, Record, State};
use super::standing::is_by;
use super::{Error, Root, datasets};
use crate::job::{Attempt, Mode, Sink, Target};
use crate::limits;

/// A file that gets another path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Move {
    job: i64,
    /// The attempt whose record names it.
    attempt: i64,
    /// Paths below the root.
    from: String,
    to: String,
}

/// A job's files that get other paths.
pub struct Relocation {
    folder: Folder,
    record: Record,
    moves: Vec<Move>,
}

/// A job that has published, as its database knows it.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// The attempt.
    pub attempt: Attempt,
    /// Its key, 0 where it is not known.
    pub key: i64,
    /// What it has published.
    pub uris: &'a [String],
    /// The job's plugin.
    pub plugin: &'a str,
    /// The job's input.
    pub input: &'a str,
    /// The plugin's sinks.
    pub sinks: &'a [Sink],
}

/// A job, and the URIs of its files before and after their move.
pub type Renamed = (i64, Vec<(String, String)>);

/// What became of moves.
#[derive(Debug, Default)]
pub struct Relocated {
    /// Files that were moved.
    pub count: usize,
    /// Jobs whose files stay, and why.
    pub left: Vec<(i64, Error)>,
}

impl Root {
    /// False where no file of these is at a path that another layout may have.
    pub fn may_be_misplaced(&self, uris: &[String]) -> bool {
        let mut paths = uris.iter().filter_map(|uri| names::file_of(uri));
        paths.any(|path| (path.parent() == Some(self.path())) == self.has_datasets())
    }

    /// The files of a job that are at the paths of another layout than the root's; none where there
    /// are none, or where what is there is not as it was published.
    pub fn misplaced(
        &self,
        database: &str,
        publisher: Placed<'_>,
    ) -> Result<Option<Relocation>, Error> {
        let name = Name::numbered(database, publisher.attempt)?;
        let Some(record) = record::read(self, &name)? else {
            return Ok(None);
        };
        if !is_by(&record, publisher.attempt, publisher.key) || record.has_leftovers {
            return Ok(None);
        }
        let mut of_record = name.clone();
        of_record.attempt.number = record.attempt;
        let is_open = record.state != State::Committed && !record.is_one_rename();
        let mut files = record.outputs.files.iter();
        if is_open || !files.any(|file| is_default(publisher.sinks, file)) {
            return Ok(None);
        }
        let folder = Folder::create(self, of_record)?;
        let mut moves = Vec::new();
        for file in &record.outputs.files {
            if let Some((from, to)) = self.misplaced_file(&folder, publisher, file)? {
                moves.push(Move {
                    job: publisher.attempt.job_id,
                    attempt: record.attempt,
                    from,
                    to,
                });
            }
        }
        Ok((!moves.is_empty()).then_some(Relocation {
            folder,
            record,
            moves,
        }))
    }

    /// Where a file is and where it is to be, below the root.
    fn misplaced_file(
        &self,
        folder: &Folder,
        publisher: Placed<'_>,
        file: &FileOutput,
    ) -> Result<Option<(String, String)>, Error> {
        let Placed { plugin, input, .. } = publisher;
        if !is_default(publisher.sinks, file) {
            return Ok(None);
        }
        let at = Path::new(&file.path);
        let suffixes = [None, Some(names::suffix(&folder.name.database))];
        let mut holders = suffixes
            .map(|mark| Holder::new(folder.name.attempt, mark))
            .into_iter();
        let Some(holder) = holders.find(|holder| names::is_of(at, holder)) else {
            return Ok(None);
        };
        let flat = match sink_of(publisher.sinks, file) {
            Some(sink) => sink.clone(),
            None => Sink::default_of(plugin, &file.topic)?,
        };
        let Target::Parquet { path: flat, .. } = flat.target else {
            return Ok(None);
        };
        let flat = names::file(&flat, &holder);
        let dataset = match self.has_datasets() {
            true => Some(datasets::file(self, folder, plugin, &file.topic, input)?),
            false => datasets::known_file(self, plugin, &file.topic, input)?,
        };
        let Some(dataset) = dataset else {
            return Ok(None);
        };
        let dataset = names::file(&dataset, &holder);
        let is_in_dataset =
            |path: &Path| path.parent() == dataset.parent() && names::is_of(path, &holder);
        let (to, is_other): (&Path, &dyn Fn(&Path) -> bool) = match self.has_datasets() {
            true => (&dataset, &|path| path == flat),
            false => (&flat, &is_in_dataset),
        };
        if at == to || !is_other(at) {
            return Ok(None);
        }
        let text = |path: &Path| path.to_str().map(str::to_owned);
        Ok(text(at).zip(text(to)))
    }

    /// Moves files. `commit` changes the database for the jobs that it gets.
    pub fn relocate<E: From<Error>>(
        &self,
        database: &str,
        jobs: Vec<Relocation>,
        commit: &mut dyn FnMut(&[Renamed]) -> Result<(), E>,
    ) -> Result<Relocated, E> {
        let mut relocated = Relocated::default();
        if jobs.is_empty() {
            return Ok(relocated);
        }
        self.check()?;
        let all = jobs.iter().flat_map(|job| &job.moves);
        self.write_journal(database, &all.collect::<Vec<_>>())?;
        let mut linked = Vec::with_capacity(jobs.len());
        for job in jobs {
            match self.link_all(&job) {
                Ok(()) => linked.push(job),
                Err(error) => {
                    let Relocation {
                        record,
                        moves,
                        folder,
                    } = job;
                    self.take_back(folder.name.clone(), record, &moves)?;
                    relocated.left.push((folder.name.attempt.job_id, error));
                }
            }
        }
        self.sync(
            linked
                .iter()
                .flat_map(|job| &job.moves)
                .map(|step| &step.to),
        )?;
        let mut renamed = Vec::with_capacity(linked.len());
        for job in &mut linked {
            for file in &mut job.record.outputs.files {
                let mut moves = job.moves.iter();
                if let Some(step) = moves.find(|step| step.from == file.path) {
                    file.path.clone_from(&step.to);
                    file.bay = None;
                }
            }
            job.record.state = State::Committed;
            job.record.write(self, &job.folder)?;
            let uri = |below: &str| names::file_uri(&self.path().join(below));
            let moves = job.moves.iter();
            let uris = moves.map(|step| (uri(&step.from), uri(&step.to)));
            renamed.push((job.folder.name.attempt.job_id, uris.collect()));
        }
        commit(&renamed)?;
        for job in &linked {
            relocated.count += job.moves.len();
            self.remove_names(&job.record, &job.moves)?;
        }
        self.sync(
            linked
                .iter()
                .flat_map(|job| &job.moves)
                .map(|step| &step.from),
        )?;
        self.remove_journal(database)?;
        Ok(relocated)
    }

    /// Finishes moves that stopped after the database was changed, and takes the others back. `named`
    /// gives the URIs that the database has of a job.
    pub fn finish_moves<E: From<Error>>(
        &self,
        database: &str,
        named: &mut dyn FnMut(i64) -> Result<Vec<String>, E>,
    ) -> Result<(), E> {
        let journal = self.journal(database)?;
        let Some(text) = files::read(&journal, limits::RECORD_SIZE_MAX)? else {
            return Ok(());
        };
        // A journal that cannot be read was not finished, and nothing was moved.
        let moves: Vec<Move> = serde_json::from_slice(&text).unwrap_or_default();
        let is_plain = |step: &&Move| files::is_below(&step.from) && files::is_below(&step.to);
        let mut jobs: BTreeMap<(i64, i64), Vec<Move>> = BTreeMap::new();
        for step in moves.iter().filter(is_plain) {
            let moves = jobs.entry((step.job, step.attempt)).or_default();
            moves.push(step.clone());
        }
        for ((job_id, attempt), moves) in jobs {
            let name = Name::numbered(database, Attempt::new(job_id, attempt))?;
            let record = record::read(self, &name)?;
            let Some(record) = record.filter(|record| record.attempt == attempt) else {
                continue;
            };
            let uris = named(job_id)?;
            let is_known = |step: &Move| {
                let uri = names::file_uri(&self.path().join(&step.to));
                uris.contains(&uri)
            };
            match moves.iter().any(is_known) {
                true => self.remove_names(&record, &moves)?,
                false => self.take_back(name, record, &moves)?,
            }
        }
        self.sync(moves.iter().filter(is_plain).map(|step| &step.from))?;
        Ok(self.remove_journal(database)?)
    }

    /// Removes the old names of files.
    fn remove_names(&self, record: &Record, moves: &[Move]) -> Result<(), Error> {
        for step in moves {
            if let Some(identity) = identity_in(record, &step.to) {
                self.remove_name(&step.from, identity)?;
            }
        }
        Ok(())
    }

    /// Gives files their old names again.
    fn take_back(&self, name: Name, mut record: Record, moves: &[Move]) -> Result<(), Error> {
        let mut is_changed = false;
        for step in moves {
            let (from, to) = (self.path().join(&step.from), self.path().join(&step.to));
            files::inside(self.path(), &from)?;
            files::inside(self.path(), &to)?;
            let known = identity_in(&record, &step.to);
            let known = known.or_else(|| identity_in(&record, &step.from));
            if known.is_some()
                && files::identity(&from)?.is_none()
                && files::identity(&to)? == known
                && fs::hard_link(&to, &from).is_err()
            {
                files::rename_new(&to, &from)?;
            }
            for file in &mut record.outputs.files {
                if file.path == step.to {
                    file.path.clone_from(&step.from);
                    is_changed = true;
                }
            }
        }
        self.sync(moves.iter().map(|step| &step.from))?;
        if is_changed {
            let folder = Folder::create(self, name)?;
            record.write(self, &folder)?;
        }
        for step in moves {
            if let Some(identity) = identity_in(&record, &step.from)
                && files::identity(&self.path().join(&step.from))? == Some(identity)
            {
                self.remove_name(&step.to, identity)?;
            }
        }
        self.sync(moves.iter().map(|step| &step.to))
    }

    /// Gives each file its new name.
    fn link_all(&self, job: &Relocation) -> Result<(), Error> {
        for step in &job.moves {
            let (from, to) = (self.path().join(&step.from), self.path().join(&step.to));
            files::inside(self.path(), &from)?;
            files::inside(self.path(), &to)?;
            if let Some(folder) = to.parent() {
                files::create_folders(self.path(), folder, files::PUBLIC_MODE)?;
            }
            let known = identity_in(&job.record, &step.from);
            let is_it = |path: &Path| Ok::<_, Error>(files::identity(path)? == known);
            match (is_it(&to)?, files::identity(&to)?) {
                (true, Some(_)) => continue,
                (_, Some(_)) => return Err(Error::not_ours(to)),
                (_, None) => {}
            }
            if !is_it(&from)? {
                return Err(Error::not_ours(from));
            }
            match fs::hard_link(&from, &to) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                    return Err(Error::io(&to, error));
                }
                Err(_) => {
                    files::rename_new(&from, &to)?;
                }
            }
        }
        Ok(())
    }

    /// Removes a name of a file.
    fn remove_name(&self, below: &str, identity: Identity) -> Result<(), Error> {
        let path = self.path().join(below);
        // An output folder may come from elsewhere.
        files::inside(self.path(), &path)?;
        match files::identity(&path)? == Some(identity) {
            true => files::remove(&path),
            false => Ok(()),
        }
    }

    fn sync<'a>(&self, paths: impl Iterator<Item = &'a String>) -> Result<(), Error> {
        let paths = paths.map(|below| self.path().join(below));
        let mut folders: Vec<PathBuf> = paths
            .filter_map(|path| Some(path.parent()?.into()))
            .collect();
        folders.sort();
        folders.dedup();
        let mut folders = folders.iter().filter(|folder| folder.is_dir());
        folders.try_for_each(|folder| files::sync_folder(folder))
    }

    fn journal(&self, database: &str) -> Result<PathBuf, Error> {
        Ok(self.base().join(format!("moves.{}", checked(database)?)))
    }

    fn write_journal(&self, database: &str, moves: &[&Move]) -> Result<(), Error> {
        let path = self.journal(database)?;
        let text = serde_json::to_vec(moves).map_err(|error| Error::Record {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        files::write_synced(&path, &text)?;
        files::sync_folder(self.base())
    }

    fn remove_journal(&self, database: &str) -> Result<(), Error> {
        files::remove(&self.journal(database)?)?;
        files::sync_folder(self.base())
    }
}

/// The sink that is configured for a file's topic.
fn sink_of<'a>(sinks: &'a [Sink], file: &FileOutput) -> Option<&'a Sink> {
    let mut sinks = sinks.iter();
    sinks.find(|sink| names::topic(&sink.topic) == file.topic)
}

/// True for a file of a topic without a sink of its own.
fn is_default(sinks: &[Sink], file: &FileOutput) -> bool {
    let sink = sink_of(sinks, file);
    file.mode == Mode::Append.as_str() && sink.is_none_or(|sink| sink.is_default)
}

fn identity_in(record: &Record, below: &str) -> Option<Identity> {
    let mut files = record.outputs.files.iter();
    files
        .find(|file| file.path == below)
        .map(|file| file.identity)
}
