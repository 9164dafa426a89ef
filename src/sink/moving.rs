//! Files that are moved to the path of another layout. A file's record has both paths (`also`) before
//! the second name is made, and until one of them is gone. So the next process that works on the job leaves it one
//! name, whatever stopped the move: the workers that finish or undo what an attempt left, the job's
//! next attempt, and the next program that has root and database to itself.
//!
//! `.casparian/moves.<database>` lists what is moved. It is renamed to `deciding.<database>` before the
//! database is changed, and to `moved.<database>` when it names the new paths. Of a move that stopped, files
//! keep the old name in the first state, the new one in the last. Between them only a program that knows what
//! the database names is known: recovery keeps both.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::{self, Identity};
use super::folder::{Folder, checked};
use super::record::{Record, State};
use super::{Error, Root};
use crate::limits;

/// A file that gets another path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Move {
    pub(super) job: i64,
    /// The attempt whose record names it.
    pub(super) attempt: i64,
    /// Paths below the root.
    pub(super) from: String,
    pub(super) to: String,
}

/// What is moved.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Journal {
    /// Who moves it.
    pub(super) worker: String,
    pub(super) moves: Vec<Move>,
}

/// Leaves each file of a job one name, where a move has stopped.
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

/// Whether recovery knows which name of a job's files stays.
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

/// Leaves each file one of its names: the new one where that is wanted. Gives the record that says so,
/// to be written when the folders of both are synced.
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
        file.path = match is_at(root, &wanted, file.identity, &other)? {
            true => wanted,
            false => other,
        };
    }
    Ok(ended)
}

/// Gives a file this name alone; false where it has to keep the other one.
fn is_at(root: &Root, wanted: &str, identity: Identity, other: &str) -> Result<bool, Error> {
    let (to, from) = (root.path().join(wanted), root.path().join(other));
    // An output folder may come from elsewhere.
    files::inside(root.path(), &to)?;
    files::inside(root.path(), &from)?;
    let is_there = files::identity(&from)? == Some(identity);
    match files::identity(&to)? {
        Some(found) if found == identity => {
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
        // Another file has taken its place.
        Some(_) if is_there => Ok(false),
        _ => Ok(true),
    }
}

/// Makes the names in the folders of these paths durable.
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

/// The journal of moves that the database does not know yet.
fn moves(root: &Root, database: &str) -> Result<PathBuf, Error> {
    Ok(root.base().join(format!("moves.{}", checked(database)?)))
}

/// The journal of moves that the database may know.
fn deciding(root: &Root, database: &str) -> Result<PathBuf, Error> {
    Ok(root.base().join(format!("deciding.{}", checked(database)?)))
}

/// The journal of moves that the database knows.
fn moved(root: &Root, database: &str) -> Result<PathBuf, Error> {
    Ok(root.base().join(format!("moved.{}", checked(database)?)))
}

/// Writes the journal of moves that begin.
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

/// The database is about to be changed.
pub(super) fn note_deciding(root: &Root, database: &str) -> Result<(), Error> {
    rename(root, &moves(root, database)?, &deciding(root, database)?)
}

/// The database names the new paths now.
pub(super) fn note_moved(root: &Root, database: &str) -> Result<(), Error> {
    rename(root, &deciding(root, database)?, &moved(root, database)?)
}

/// It may be done again after it has failed.
fn rename(root: &Root, from: &Path, to: &Path) -> Result<(), Error> {
    if files::identity(from)?.is_some() {
        files::rename(from, to)?;
    }
    files::sync_folder(root.base())
}

/// The journal of moves that have not ended, and where it is.
pub(super) fn read(root: &Root, database: &str) -> Result<Option<(PathBuf, Journal)>, Error> {
    let all = [moves, deciding, moved].map(|path| path(root, database));
    for path in all {
        let path = path?;
        let Some(text) = files::read(&path, limits::MOVES_SIZE_MAX)? else {
            continue;
        };
        // One that cannot be read was not finished, and nothing was moved.
        let journal = serde_json::from_slice(&text).unwrap_or_default();
        return Ok(Some((path, journal)));
    }
    Ok(None)
}

/// All moves have ended.
pub(super) fn remove(root: &Root, database: &str) -> Result<(), Error> {
    for path in [moves, deciding, moved] {
        files::remove(&path(root, database)?)?;
    }
    files::sync_folder(root.base())
}

/// True for a move whose paths are below the root as far as their text shows it.
pub(super) fn is_plain(step: &Move) -> bool {
    [&step.from, &step.to]
        .iter()
        .all(|path| files::is_below(path) && !Path::new(path).starts_with(".casparian"))
}
