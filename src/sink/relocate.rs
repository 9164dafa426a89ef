//! Moves published files to the paths of another layout: from `<plugin>_<topic>_<job>.parquet` into the
//! folders of their topics, or back. For a program with exclusive use of root and database.
//!
//! The steps:
//! 1. A journal of the moves is written.
//! 2. The records get both paths of each file.
//! 3. Each file gets its new name, a hard link, in addition to the old one. Where a file system has no
//!    hard links, the file is renamed.
//! 4. The database is changed. The journal is renamed before and after it.
//! 5. The old names are removed.
//! 6. The records get only the new paths.
//! 7. The journal is removed.
//!
//! A move that stopped is ended by [`super::moving`].

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use super::files::{self, Identity};
use super::folder::{Folder, Name};
use super::moving::{self, Move};
use super::names::{self, Holder};
use super::published::is_by;
use super::record::{self, FileOutput, Record, State};
use super::{Error, Root, datasets, recover};
use crate::job::{Attempt, Mode, Sink, Target};

/// The moves of one job's files.
pub struct Relocation {
    folder: Folder,
    record: Record,
    moves: Vec<Move>,
}

/// A job that has published, by the rows of its database.
#[derive(Clone, Copy, Debug)]
pub struct PublishedJob<'a> {
    /// The attempt.
    pub attempt: Attempt,
    /// Its key; 0 if unknown.
    pub key: i64,
    /// The job's plugin.
    pub plugin: &'a str,
    /// The job's input.
    pub input: &'a str,
    /// The plugin's sinks.
    pub sinks: &'a [Sink],
}

impl Relocation {
    /// The job's ID.
    pub fn job_id(&self) -> i64 {
        self.folder.name.attempt.job_id
    }

    /// Number of files to move.
    pub fn count(&self) -> usize {
        self.moves.len()
    }
}

impl Root {
    /// False if none of these files is at a path of the other layout. True does not mean that one is.
    pub fn may_be_misplaced(&self, uris: &[String]) -> bool {
        let mut paths = uris.iter().filter_map(|uri| names::file_of(uri));
        paths.any(|path| (path.parent() == Some(self.path())) == self.has_datasets())
    }

    /// The files of a job that are at paths of the other layout than the root's. `None` if there are
    /// none, or if the record is not of this attempt or not complete.
    pub fn misplaced(
        &self,
        database: &str,
        publisher: PublishedJob<'_>,
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
        let folder = recover::create(self, of_record)?;
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

    /// Present and new path of a file, below the root. `None` if it need not be moved.
    fn misplaced_file(
        &self,
        folder: &Folder,
        publisher: PublishedJob<'_>,
        file: &FileOutput,
    ) -> Result<Option<(String, String)>, Error> {
        let PublishedJob { plugin, input, .. } = publisher;
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

    /// Writes the journal of the moves.
    pub fn begin_moves(&self, database: &str, jobs: &[Relocation]) -> Result<(), Error> {
        self.check()?;
        let moves = jobs.iter().flat_map(|job| job.moves.iter().cloned());
        moving::write(self, database, moves.collect())
    }

    /// Adds the new name of each file of a job. It may be called again after a failure.
    /// [`Root::end_moves`] can undo it.
    pub fn add_names(&self, job: &mut Relocation) -> Result<(), Error> {
        if !moving::is_moving(&job.record) {
            let mut record = job.record.clone();
            for step in &job.moves {
                let mut files = record.outputs.files.iter_mut();
                if let Some(file) = files.find(|file| file.path == step.from) {
                    file.also = Some(step.to.clone());
                }
            }
            record.state = State::Committed;
            record.run = job.folder.name.run();
            self.check_names(&record)?;
            // From here on the folder must stay: it is how other processes find that files of the job may
            // have two names.
            job.folder.leave();
            record.write(self, &job.folder)?;
            job.record = record;
        }
        for file in &job.record.outputs.files {
            if let Some(also) = &file.also {
                self.add_name(&file.path, also, file.identity)?;
            }
        }
        Ok(())
    }

    /// Syncs the folders of all names, so that added names are durable.
    pub fn sync_names(&self, jobs: &[Relocation]) -> Result<(), Error> {
        let records = jobs.iter().map(|job| &job.record);
        moving::sync(self, records.flat_map(moving::paths))
    }

    /// URIs of a job's files: pairs of old and new URI.
    pub fn renamed(&self, job: &Relocation) -> Vec<(String, String)> {
        let uri = |below: &str| names::file_uri(&self.path().join(below));
        let moves = job.moves.iter();
        moves.map(|step| (uri(&step.from), uri(&step.to))).collect()
    }

    /// Must be called before the database is changed.
    pub fn note_deciding(&self, database: &str) -> Result<(), Error> {
        self.check()?;
        moving::note_deciding(self, database)
    }

    /// Must be called after the database was changed.
    pub fn note_moved(&self, database: &str) -> Result<(), Error> {
        self.check()?;
        moving::note_moved(self, database)
    }

    /// Removes the old names of files if `is_moved`, else the new ones. It may be called again after a
    /// failure.
    pub fn end_moves(&self, jobs: &mut [Relocation], is_moved: bool) -> Result<(), Error> {
        let mut ended = Vec::with_capacity(jobs.len());
        for job in &*jobs {
            ended.push(moving::leave_one_name(self, &job.record, is_moved)?);
        }
        self.sync_names(jobs)?;
        for (job, ended) in jobs.iter_mut().zip(ended) {
            if moving::is_moving(&job.record) {
                ended.write(self, &job.folder)?;
                job.record = ended;
                job.folder.remove_on_drop();
            }
        }
        Ok(())
    }

    /// Removes the journal when all moves have ended.
    pub fn forget_moves(&self, database: &str) -> Result<(), Error> {
        self.check()?;
        moving::remove(self, database)
    }

    /// Finishes or undoes moves that stopped, so that files have the names that the database has. `named`
    /// returns the URIs of a job in the database. True when there were such moves.
    pub fn finish_moves<E: From<Error>>(
        &self,
        database: &str,
        named: &mut dyn FnMut(i64) -> Result<Vec<String>, E>,
    ) -> Result<bool, E> {
        let Some((_, journal)) = moving::read(self, database)? else {
            return Ok(false);
        };
        let mut jobs: BTreeMap<(i64, i64), Vec<Move>> = BTreeMap::new();
        for step in journal.moves.into_iter().filter(moving::is_plain) {
            let moves = jobs.entry((step.job, step.attempt)).or_default();
            moves.push(step);
        }
        for ((job, attempt), moves) in jobs {
            let uris = named(job)?;
            self.finish_move(database, Attempt::new(job, attempt), &moves, &uris)?;
        }
        moving::remove(self, database)?;
        Ok(true)
    }

    /// The same for one job. Does nothing if the record is of a later attempt, which has replaced or
    /// removed both names.
    fn finish_move(
        &self,
        database: &str,
        attempt: Attempt,
        moves: &[Move],
        uris: &[String],
    ) -> Result<(), Error> {
        let name = Name::numbered(database, attempt)?;
        let is_its = |record: &Record| record.attempt == attempt.number;
        if !record::read(self, &name)?.is_some_and(|record| is_its(&record)) {
            return Ok(());
        }
        // Creating the folder first finishes or undoes what a dead program left.
        let folder = recover::create(self, name.clone())?;
        let Some(mut record) = record::read(self, &name)?.filter(is_its) else {
            return Ok(());
        };
        let mut is_moved = false;
        for step in moves {
            let uri = names::file_uri(&self.path().join(&step.to));
            is_moved |= uris.contains(&uri);
            for file in &mut record.outputs.files {
                if [&step.from, &step.to].contains(&&file.path) {
                    file.path.clone_from(&step.from);
                    file.also = Some(step.to.clone());
                }
            }
        }
        let ended = moving::leave_one_name(self, &record, is_moved)?;
        moving::sync(self, moving::paths(&record))?;
        ended.write(self, &folder)
    }

    /// An error if a file is not as it was published, or another file is at its new path.
    fn check_names(&self, record: &Record) -> Result<(), Error> {
        for file in &record.outputs.files {
            let Some(also) = &file.also else { continue };
            let (from, to) = (self.path().join(&file.path), self.path().join(also));
            files::inside(self.path(), &from)?;
            files::inside(self.path(), &to)?;
            if files::identity(&from)? != Some(file.identity) {
                return Err(Error::not_ours(from));
            }
            if files::identity(&to)?.is_some_and(|found| found != file.identity) {
                return Err(Error::not_ours(to));
            }
        }
        Ok(())
    }

    fn add_name(&self, from: &str, to: &str, identity: Identity) -> Result<(), Error> {
        let (from, to) = (self.path().join(from), self.path().join(to));
        // Nothing may be created in another folder at the root's path.
        self.check()?;
        files::inside(self.path(), &to)?;
        if let Some(folder) = to.parent() {
            files::create_folders(self.path(), folder, files::PUBLIC_MODE)?;
        }
        match files::identity(&to)? {
            Some(found) if found == identity => return Ok(()),
            Some(_) => return Err(Error::not_ours(to)),
            None => {}
        }
        if files::identity(&from)? != Some(identity) {
            return Err(Error::not_ours(from));
        }
        match fs::hard_link(&from, &to) {
            Ok(()) => Ok(()),
            Err(error) if is_of_target_folder(&error) => Err(Error::io(&to, error)),
            // The file system has no hard links.
            Err(_) => match files::rename_new(&from, &to)? {
                true => Ok(()),
                false => Err(Error::not_ours(to)),
            },
        }
    }
}

/// True for an error of a hard link that a rename would have, too.
fn is_of_target_folder(error: &io::Error) -> bool {
    use io::ErrorKind::{CrossesDevices, QuotaExceeded, StorageFull};
    matches!(error.kind(), CrossesDevices | StorageFull | QuotaExceeded)
}

/// The sink that is configured for a file's topic.
fn sink_of<'a>(sinks: &'a [Sink], file: &FileOutput) -> Option<&'a Sink> {
    let mut sinks = sinks.iter();
    sinks.find(|sink| names::topic(&sink.topic) == file.topic)
}

/// True for a file of a topic without a configured sink.
fn is_default(sinks: &[Sink], file: &FileOutput) -> bool {
    let sink = sink_of(sinks, file);
    file.mode == Mode::Append.as_str() && sink.is_none_or(|sink| sink.is_default)
}
