//! Recovery of an attempt that cannot continue: it is finished when its output is committed, and undone
//! otherwise. Also used after a failure, and at the end of a job that failed finally.
//!
//! Everything here may stop at any point. Another worker can repeat it from the record and the attempt's
//! folder. Names in the folder: `s<i>` is the staged file of sink *i*, `k<i>` the file that was at its
//! path, `r<i>` the *i*th file that is removed after the commit.

use std::collections::HashMap;
use std::path::Path;

use super::files::{self, Identity};
use super::folder::{Folder, Name, WORKER};
use super::record::{self, FileOutput, Outputs, Record, State};
use super::{Error, Root, moving, names, sqlite};

/// Claims the folder of an attempt, and finishes or undoes the attempt.
pub(super) fn recover(root: &Root, name: &Name) -> Result<(), Error> {
    let Some(folder) = Folder::claim(root, name)? else {
        return Ok(());
    };
    let settled = settle(root, &folder);
    match settled {
        Ok(()) => {
            folder.settled();
            Ok(())
        }
        // Another worker has claimed the folder and continues.
        Err(_) if !folder.exists() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Creates the folder of an attempt that starts. What a worker that has ended left of the same attempt is
/// recovered first.
pub(super) fn create(root: &Root, name: Name) -> Result<Folder, Error> {
    Folder::create(root, name, recover_dead)
}

/// Recovers the attempt of the folder at a path when its worker has ended.
fn recover_dead(root: &Root, path: &Path, name: &Name) -> Result<(), Error> {
    let worker = files::read_short(&path.join(WORKER))?.unwrap_or_default();
    match root.is_alive(&worker) {
        true => Ok(()),
        false => recover(root, name),
    }
}

fn settle(root: &Root, folder: &Folder) -> Result<(), Error> {
    let Some(mut record) = record::read(root, &folder.name)? else {
        return Ok(());
    };
    if record.run != folder.name.run() {
        return Ok(());
    }
    if moving::is_decided(root, &record, &folder.name.database)? {
        moving::end(root, folder, &mut record)?;
    }
    let is_copied = recognize_copies(root, folder, &mut record)?;
    if record.is_committed(root, &folder.name)? {
        if is_copied {
            record.state = State::Committed;
            record.write(root, folder)?;
        }
        // The record lists what could not be removed.
        finish(root, folder, &mut record).map(drop)
    } else {
        undo(root, folder, &record)
    }
}

/// In a root that was copied or restored, files have other inodes than their records have. Gives an attempt
/// that is not committed, and the files that are to be removed, the identities of the copies. Returns whether
/// there are copies of the attempt's output.
fn recognize_copies(root: &Root, folder: &Folder, record: &mut Record) -> Result<bool, Error> {
    let previous = record.previous.files.iter();
    let previous: HashMap<String, Identity> = previous
        .map(|file| (file.path.clone(), file.identity))
        .collect();
    let (mut has_copies, mut has_originals) = (false, false);
    for file in &mut record.outputs.files {
        let path = root.path().join(&file.path);
        let staged = folder.path_in(file.bay.as_deref(), &format!("s{}", file.index));
        let found = [files::identity(&path)?, files::identity(&staged)?];
        if found.contains(&Some(file.identity)) {
            has_originals = true;
            continue;
        }
        if record.state == State::Committed {
            continue;
        }
        // An attempt that is being undone has its file at both paths. The one that is visible counts.
        for (path, found) in [&path, &staged].into_iter().zip(found) {
            let is_earlier = found.is_some() && previous.get(&file.path) == found.as_ref();
            let Some(found) = found.filter(|_| !is_earlier) else {
                continue;
            };
            if file.is_copy(path, found)? {
                file.identity = found;
                has_copies = true;
                break;
            }
        }
    }
    // Another attempt may have published the same content at such a path since, in a root that is no copy.
    let is_copied = !has_originals && !record.outputs.files.is_empty();
    for (index, file) in record.removes.iter_mut().enumerate() {
        let aside = folder.path_in(file.bay.as_deref(), &format!("r{index}"));
        let path = match files::identity(&aside)? {
            Some(_) => aside,
            None => root.path().join(&file.path),
        };
        let found = files::identity(&path)?.filter(|found| *found != file.identity);
        let Some(found) = found else { continue };
        if (is_copied || found.has_time_of(file.identity)) && file.is_copy(&path, found)? {
            file.identity = found;
        }
    }
    Ok(has_copies)
}

/// What [`finish`] did.
#[derive(Debug, Default)]
pub(super) struct Finished {
    /// URIs of what was removed.
    pub(super) removed: Vec<String>,
    /// The last failure to remove something. The record has `has_leftovers` then, and the next attempt
    /// tries again.
    pub(super) left: Option<Error>,
}

/// After the commit: removes the files and rows that the record lists. A failure to remove one does not
/// stop the removal of the others.
pub(super) fn finish(root: &Root, folder: &Folder, record: &mut Record) -> Result<Finished, Error> {
    let mut finished = Finished::default();
    let mut note = |result: Result<bool, Error>, uri: String| match result {
        Ok(true) => finished.removed.push(uri),
        Ok(false) => {}
        Err(error) => {
            log::warn!("{uri}: earlier output cannot be removed: {error}");
            finished.left = Some(error);
        }
    };
    for (index, file) in record.removes.iter().enumerate() {
        let uri = names::file_uri(&root.path().join(&file.path));
        note(remove_recorded(root, folder, index, file), uri);
    }
    for table in record.cleared() {
        let uri = names::table_uri(Path::new(&table.database), &table.table);
        let mounted = root.anchor().check_mounts(Path::new(&table.database));
        let cleared = mounted.and_then(|()| sqlite::clear(table, &folder.name, record.attempt));
        note(cleared, uri);
    }
    sync_parents(root, record.removes.iter())?;
    let has_leftovers = finished.left.is_some();
    let is_open = record.state == State::Intent && !record.is_one_rename();
    if is_open || has_leftovers != record.has_leftovers {
        record.state = State::Committed;
        record.has_leftovers = has_leftovers;
        record.write(root, folder)?;
    }
    Ok(finished)
}

/// Moves a file into the attempt's folder and removes it there, if it is the file that the record names.
/// True when it was removed.
fn remove_recorded(
    root: &Root,
    folder: &Folder,
    index: usize,
    file: &FileOutput,
) -> Result<bool, Error> {
    let path = root.path().join(&file.path);
    files::inside(root.path(), &path)?;
    let aside = folder.path_in(file.bay.as_deref(), &format!("r{index}"));
    let stopped_before = files::identity(&aside)?;
    if stopped_before.is_none() {
        if files::identity(&path)? != Some(file.identity) {
            return Ok(false);
        }
        match files::rename(&path, &aside) {
            Ok(()) => {}
            Err(_) if files::identity(&path)?.is_none() => return Ok(false),
            Err(error) => return Err(folder.refusal(error)),
        }
    }
    if files::identity(&aside)? == Some(file.identity) {
        files::remove(&aside)?;
        return Ok(true);
    }
    // Another file was created at this path between the check and the rename. It is moved back.
    log::warn!("{} is another file now and stays", path.display());
    if !files::rename_new(&aside, &path)? {
        log::warn!("{} was replaced once more", path.display());
    }
    Ok(false)
}

/// Before the commit: restores the previous files and record. Afterwards staged files are in the
/// attempt's folder again.
pub(super) fn undo(root: &Root, folder: &Folder, record: &Record) -> Result<(), Error> {
    root.check()?;
    let mut restored = record.earlier();
    let previous = record.previous.files.iter().enumerate();
    let indexes: HashMap<&str, usize> = previous
        .map(|(at, file)| (file.path.as_str(), at))
        .collect();
    for file in record.outputs.files.iter().rev() {
        let at = indexes.get(file.path.as_str());
        let earlier = at.and_then(|at| restored.files.get_mut(*at));
        let known = earlier.as_ref().map(|earlier| earlier.identity);
        let kept = undo_file(root, folder, file, known)?;
        // A kept copy (without hard links, or in a copied root) has another inode than the recorded file.
        if let (Some(kept), Some(earlier)) = (kept, earlier) {
            earlier.identity = kept;
        }
    }
    sync_parents(root, record.outputs.files.iter())?;
    for table in &record.outputs.tables {
        root.anchor().check_mounts(Path::new(&table.database))?;
        sqlite::clear_exact(table, &folder.name, record.key)?;
    }
    let before = Before {
        attempt: record.previous_attempt,
        key: record.previous_key,
        replaces: record.previous_replaces,
    };
    put_back_record(root, folder, before, restored)
}

/// Restores the earlier file of a path. `known` is its recorded identity. Returns its present identity.
fn undo_file(
    root: &Root,
    folder: &Folder,
    file: &FileOutput,
    known: Option<Identity>,
) -> Result<Option<Identity>, Error> {
    let path = root.path().join(&file.path);
    files::inside(root.path(), &path)?;
    let bay = file.bay.as_deref();
    let staged = folder.path_in(bay, &format!("s{}", file.index));
    let kept = folder.path_in(bay, &format!("k{}", file.index));
    let refusal = |error| folder.refusal(error);
    let before = files::identity(&kept)?;
    let Some(found) = files::identity(&path)? else {
        if before.is_some() {
            files::rename_new(&kept, &path).map_err(refusal)?;
        }
        return Ok(before);
    };
    if found == file.identity {
        if before.is_some() {
            if files::identity(&staged)?.is_none() {
                files::keep(&path, &staged).map_err(refusal)?;
            }
            files::rename(&kept, &path).map_err(refusal)?;
        } else {
            files::rename(&path, &staged).map_err(refusal)?;
        }
        return Ok(before);
    }
    let is_earlier = known == Some(found)
        || match before {
            Some(before) => found == before || has_same_content((&path, found), (&kept, before))?,
            None => false,
        };
    // Nothing shows whether it is the attempt's file, so the record and the kept file must stay.
    if !is_earlier && file.sha256.is_none() && found.size == file.identity.size {
        return Err(Error::not_ours(path));
    }
    // The earlier file was not replaced yet, and the kept file is a second name or a copy of it; or another
    // program has put a file of its own there, which stays.
    files::remove(&kept)?;
    Ok(is_earlier.then_some(found))
}

fn has_same_content(
    (one, of_one): (&Path, Identity),
    (other, of_other): (&Path, Identity),
) -> Result<bool, Error> {
    Ok(of_one.inode != 0
        && of_one.size == of_other.size
        && files::sha256(one)? == files::sha256(other)?)
}

/// The attempt whose record is restored; number 0 for none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Before {
    pub(super) attempt: i64,
    pub(super) key: i64,
    pub(super) replaces: bool,
}

/// Writes the record of the previous attempt. Removes the record when there was no previous attempt.
pub(super) fn put_back_record(
    root: &Root,
    folder: &Folder,
    attempt: Before,
    outputs: Outputs,
) -> Result<(), Error> {
    if outputs.is_empty() && attempt.attempt == 0 {
        return record::remove(root, folder);
    }
    let mut before = Record::intent(root, &folder.name, outputs);
    before.attempt = attempt.attempt;
    before.key = attempt.key;
    before.replaces = attempt.replaces;
    before.run = String::new();
    before.state = State::Committed;
    before.write(root, folder)
}

/// Syncs the folders of the files, so that their renames are durable.
pub(super) fn sync_parents<'a>(
    root: &Root,
    outputs: impl Iterator<Item = &'a FileOutput>,
) -> Result<(), Error> {
    let paths = outputs.map(|file| root.path().join(&file.path));
    let mut folders: Vec<_> = paths
        .filter_map(|path| path.parent().map(Path::to_owned))
        .collect();
    folders.sort();
    folders.dedup();
    for folder in folders {
        if folder.is_dir() {
            files::sync_folder(&folder)?;
        }
    }
    Ok(())
}
