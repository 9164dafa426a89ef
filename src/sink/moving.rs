//! The state of files that are being moved to the paths of another layout.
//!
//! A file's record has both paths (`also`) before the second name is created, and until one of the names
//! is removed. So wherever a move stopped, the next process that works on the job can leave each file one
//! name. That process is a worker that finishes or undoes what an attempt left, the job's next attempt,
//! or the next program with exclusive use of root and database.
//!
//! The journal `.casparian/moves.<database>` lists the moves. It is renamed to `deciding.<database>`
//! before the database is changed, and to `moved.<database>` after it. When a move has stopped, files
//! keep their old names in the first state and their new names in the last. In the state `deciding` only
//! a program that reads the database can decide, so recovery keeps both names.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::{self, Identity};
use super::folder::{Folder, checked};
use super::record::{FileOutput, Record, State};
use super::{Error, Root};
use crate::limits;

/// A file that gets another path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Move {
    pub(super) job: i64,
    /// The attempt whose record names it.
    pub(super) attempt: i64,
    /// The old path, below the root.
    pub(super) from: String,
    /// The new path, below the root.
    pub(super) to: String,
}

/// The journal of moves.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Journal {
    /// The worker that moves the files.
    pub(super) worker: String,
    pub(super) moves: Vec<Move>,
}

/// Ends a stopped move of a job's files: leaves each file one name and writes the record.
pub(super) fn end(root: &Root, folder: &Folder, record: &mut Record) -> Result<(), Error> {
    if !is_moving(record) {
        return Ok(());
    }
    let is_moved = files::identity(&moved(root, &folder.name.database)?)?.is_some();
    let ended = leave_one_name(root, record, is_moved)?;
    sync(root, paths(record))?;
    ended.write(root, folder)?;
    *record = ended;
    Ok(())
}

/// True when recovery can decide which names of a job's files stay: no move is in the state `deciding`,
/// or the job's files are not being moved.
pub(super) fn is_decided(root: &Root, record: &Record, database: &str) -> Result<bool, Error> {
    Ok(!is_moving(record) || files::identity(&deciding(root, database)?)?.is_none())
}

pub(super) fn is_moving(record: &Record) -> bool {
    record.outputs.files.iter().any(|file| file.also.is_some())
}

/// The paths that files of a record have, or may have.
pub(super) fn paths(record: &Record) -> impl Iterator<Item = &String> {
    let files = record.outputs.files.iter();
    files.flat_map(|file| [Some(&file.path), file.also.as_ref()].into_iter().flatten())
}

/// Leaves each file one of its names: the new name if `is_moved`, else the old one. Returns the new
/// record, which must be written after the folders of both names are synced.
pub(super) fn leave_one_name(
    root: &Root,
    record: &Record,
    is_moved: bool,
) -> Result<Record, Error> {
    let mut ended = record.clone();
    ended.state = State::Committed;
    for file in &mut ended.outputs.files {
        let Some(also) = file.also.take() else {
            continue;
        };
        root.check()?;
        let (wanted, other) = match is_moved {
            true => (also, file.path.clone()),
            false => (file.path.clone(), also),
        };
        let is_at_wanted = is_at(root, file, &wanted, &other)?;
        file.path = match is_at_wanted {
            true => wanted,
            false => other,
        };
    }
    Ok(ended)
}

/// Makes `wanted` the only name of a file. False where the file must keep its other name. Where neither name
/// is that of the recorded file, because the root was copied, copies of it count, and `file` gets the identity
/// of the one that stays.
fn is_at(root: &Root, file: &mut FileOutput, wanted: &str, other: &str) -> Result<bool, Error> {
    let (to, from) = (root.path().join(wanted), root.path().join(other));
    // The output folder may be a copy from another system, so its paths are not trusted.
    files::inside(root.path(), &to)?;
    files::inside(root.path(), &from)?;
    let (at_to, at_from) = (files::identity(&to)?, files::identity(&from)?);
    let recorded = Some(file.identity);
    let is_copied = at_to != recorded && at_from != recorded;
    let is_it = |path: &Path, found: Option<Identity>| match found {
        Some(found) if is_copied => file.is_copy(path, found),
        found => Ok(found == recorded),
    };
    let (is_wanted, is_there) = (is_it(&to, at_to)?, is_it(&from, at_from)?);
    let stays = at_to.filter(|_| is_wanted).or(at_from.filter(|_| is_there));
    file.identity = stays.unwrap_or(file.identity);
    match at_to {
        Some(_) if is_wanted => {
            if is_there {
                files::remove(&from)?;
            }
            Ok(true)
        }
        None if is_there => {
            if let Some(folder) = to.parent() {
                files::create_folders(root.path(), folder, files::PUBLIC_MODE)?;
            }
            files::rename_new(&from, &to)
        }
        // Another file is at the wanted path.
        Some(_) if is_there => Ok(false),
        _ => Ok(true),
    }
}

/// Syncs the folders of these paths, so that the names in them are durable.
pub(super) fn sync<'a>(root: &Root, paths: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    let paths = paths.map(|below| root.path().join(below));
    let mut folders: Vec<PathBuf> = paths
        .filter_map(|path| Some(path.parent()?.into()))
        .collect();
    folders.sort();
    folders.dedup();
    let mut folders = folders.iter().filter(|folder| folder.is_dir());
    folders.try_for_each(|folder| files::sync_folder(folder))
}

/// Path of the journal while the database has the old names.
fn moves(root: &Root, database: &str) -> Result<PathBuf, Error> {
    Ok(root.base().join(format!("moves.{}", checked(database)?)))
}

/// Path of the journal while the database is being changed.
fn deciding(root: &Root, database: &str) -> Result<PathBuf, Error> {
    Ok(root.base().join(format!("deciding.{}", checked(database)?)))
}

/// Path of the journal when the database has the new names.
fn moved(root: &Root, database: &str) -> Result<PathBuf, Error> {
    Ok(root.base().join(format!("moved.{}", checked(database)?)))
}

/// Writes the journal before the moves begin.
pub(super) fn write(root: &Root, database: &str, moves_of: Vec<Move>) -> Result<(), Error> {
    let path = moves(root, database)?;
    let journal = Journal {
        worker: root.worker().to_owned(),
        moves: moves_of,
    };
    let text = serde_json::to_vec(&journal).map_err(|error| Error::Record {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    files::write_synced(&path, &text)?;
    files::sync_folder(root.base())
}

/// Renames the journal before the database is changed.
pub(super) fn note_deciding(root: &Root, database: &str) -> Result<(), Error> {
    rename(root, &moves(root, database)?, &deciding(root, database)?)
}

/// Renames the journal after the database was changed.
pub(super) fn note_moved(root: &Root, database: &str) -> Result<(), Error> {
    rename(root, &deciding(root, database)?, &moved(root, database)?)
}

/// Renames the journal. It may be called again after a failure.
fn rename(root: &Root, from: &Path, to: &Path) -> Result<(), Error> {
    if files::identity(from)?.is_some() {
        files::rename(from, to)?;
    }
    files::sync_folder(root.base())
}

/// The journal of moves that have not ended, and its path. An error if it is damaged.
pub(super) fn read(root: &Root, database: &str) -> Result<Option<(PathBuf, Journal)>, Error> {
    let all = [
        (moves(root, database)?, false),
        (deciding(root, database)?, true),
        (moved(root, database)?, true),
    ];
    for (path, has_begun) in all {
        let Some(text) = files::read(&path, limits::MOVES_SIZE_MAX)? else {
            continue;
        };
        return match serde_json::from_slice(&text) {
            Ok(journal) => Ok(Some((path, journal))),
            // It was not written completely, so nothing was moved.
            Err(_) if !has_begun => Ok(Some((path, Journal::default()))),
            // The journal was complete before it got this name, so the file is damaged.
            Err(error) => Err(Error::Record {
                path,
                reason: error.to_string(),
            }),
        };
    }
    Ok(None)
}

/// Removes the journal when all moves have ended.
pub(super) fn remove(root: &Root, database: &str) -> Result<(), Error> {
    for path in [moves, deciding, moved] {
        files::remove(&path(root, database)?)?;
    }
    files::sync_folder(root.base())
}

/// True if both paths of a move are below the root and outside `.casparian`, as far as their text shows.
pub(super) fn is_plain(step: &Move) -> bool {
    [&step.from, &step.to]
        .iter()
        .all(|path| files::is_below(path) && !Path::new(path).starts_with(".casparian"))
}
