//! Files: their identity, and the file operations of publishing.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, CWD, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Error;
use crate::job::text;
use crate::limits;

/// Identifies a file together with its path. A file system may use an inode number again soon after a
/// file is deleted, so size and modification time are included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) modified_s: i64,
    pub(super) modified_ns: i64,
}

impl Identity {
    /// True if both have the same time of modification.
    pub(super) fn has_time_of(self, other: Identity) -> bool {
        (self.modified_s, self.modified_ns) == (other.modified_s, other.modified_ns)
    }
}

/// Identity of the regular file at a path. Anything else has [`Identity::default`], which equals the
/// identity of no regular file. `None` when the path does not exist.
pub(super) fn identity(path: &Path) -> Result<Option<Identity>, Error> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => Ok(Some(Identity {
            inode: found.ino(),
            size: found.size(),
            modified_s: found.mtime(),
            modified_ns: found.mtime_nsec(),
        })),
        Ok(_) => Ok(Some(Identity::default())),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(Error::io(path, error)),
    }
}

/// True for errors of paths that do not exist.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Opens a regular file to read. Anything else is refused without blocking: opening a FIFO would wait for
/// a writer.
pub(super) fn open(path: &Path) -> io::Result<File> {
    regular(fs::OpenOptions::new().read(true), path)
}

/// Creates or empties a regular file. Anything else is refused without blocking.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    let file = regular(options.write(true).create(true), path)?;
    file.set_len(0)?;
    Ok(file)
}

/// Opens a regular file to append. Anything else is refused without blocking.
pub(super) fn append(path: &Path) -> io::Result<File> {
    regular(fs::OpenOptions::new().append(true), path)
}

fn regular(options: &mut fs::OpenOptions, path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let refusal = || io::Error::new(ErrorKind::InvalidData, "it is not a regular file");
    let file = match options.custom_flags(flags.bits().cast_signed()).open(path) {
        Ok(file) => file,
        // LOOP: a symbolic link. NXIO: a FIFO or socket without a peer.
        Err(error)
            if matches!(
                Errno::from_io_error(&error),
                Some(Errno::LOOP | Errno::NXIO)
            ) =>
        {
            return Err(refusal());
        }
        Err(error) => return Err(error),
    };
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(refusal()),
    }
}

/// A regular file's content. `None` when the file does not exist. The error is [`ErrorKind::InvalidData`]
/// for anything but a regular file, and for a file of more than `size_max` bytes.
pub(super) fn read(path: &Path, size_max: u64) -> Result<Option<Vec<u8>>, Error> {
    let fail = |error| Error::io(path, error);
    let file = match open(path) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let mut bytes = Vec::new();
    file.take(size_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    match bytes.len() as u64 > size_max {
        true => Err(fail(io::Error::new(
            ErrorKind::InvalidData,
            format!("it has more than {size_max} bytes"),
        ))),
        false => Ok(Some(bytes)),
    }
}

/// A small file's text; `None` when it does not exist.
pub(super) fn read_short(path: &Path) -> Result<Option<String>, Error> {
    let bytes = read(path, limits::SHORT_FILE_SIZE_MAX)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|error| Error::io(to, error))
}

/// Renames to a path that does not exist. False when it exists.
pub(super) fn rename_new(from: &Path, to: &Path) -> Result<bool, Error> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        // The file system does not support NOREPLACE. Then check and rename are not atomic.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            if identity(to)?.is_some() {
                return Ok(false);
            }
            rename(from, to).map(|()| true)
        }
        Err(error) => Err(Error::io(to, error.into())),
    }
}

/// Gives a file a second name, or copies it where the file system has no hard links.
pub(super) fn keep(from: &Path, to: &Path) -> Result<(), Error> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(error) if is_absent(&error) || error.kind() == ErrorKind::AlreadyExists => {
            Err(Error::io(to, error))
        }
        Err(_) => copy(from, to),
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let copied = fs::copy(from, to).and_then(|_| open(to)?.sync_all());
    copied.map_err(|error| Error::io(to, error))
}

/// Removes a file. A missing file is no error.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if !is_absent(&error) => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

/// Syncs a folder, so that the names in it are durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), Error> {
    let flags = OFlags::DIRECTORY | OFlags::NONBLOCK;
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io(folder, error))
}

/// Writes and syncs a new file.
pub(super) fn write_synced(path: &Path, content: &[u8]) -> Result<(), Error> {
    let written = create(path).and_then(|mut file| {
        io::Write::write_all(&mut file, content)?;
        file.sync_all()
    });
    written.map_err(|error| Error::io(path, error))
}

/// Creates a folder below the root with its missing parents, but never the root. Syncs the parents, so
/// that the folders are durable.
pub(super) fn create_folders(root: &Path, folder: &Path, mode: u32) -> Result<(), Error> {
    let mut missing: Vec<PathBuf> = Vec::new();
    let mut at = folder;
    while at != root && !at.is_dir() {
        missing.push(at.to_owned());
        match at.parent() {
            Some(parent) => at = parent,
            None => break,
        }
    }
    for folder in missing.iter().rev() {
        match fs::DirBuilder::new().mode(mode).create(folder) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::io(folder, io::Error::other("it is not a folder")));
            }
            Err(error) => return Err(Error::io(folder, error)),
        }
        if let Some(parent) = folder.parent() {
            sync_folder(parent)?;
        }
    }
    Ok(())
}

/// Mode of Casparian's own folders, before the umask: only owner and group may write.
pub(super) const OWN_MODE: u32 = 0o775;
/// Mode of other folders, before the umask, which the operator chooses.
pub(super) const PUBLIC_MODE: u32 = 0o777;

/// Creates one of Casparian's own folders below the root, with its missing parents. Its path may have no
/// symbolic links, because an output folder that is a copy from another system could have links to other
/// folders.
pub(super) fn create_own(root: &Path, folder: &Path) -> Result<(), Error> {
    let there = match folder.exists() {
        true => folder,
        false => existing_folder(folder),
    };
    let real = fs::canonicalize(there).map_err(|error| Error::io(there, error))?;
    if real != there {
        let reason = format!("a symbolic link leads to {}", real.display());
        return Err(Error::at_path(there, reason));
    }
    create_folders(root, folder, OWN_MODE)
}

/// True for a relative path that stays below the folder that it is joined to, as far as its text shows.
pub(super) fn is_below(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.is_empty()
        && !path.contains('\0')
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// The nearest existing parent of a path.
pub(super) fn existing_folder(path: &Path) -> &Path {
    let mut at = path.parent().unwrap_or(path);
    while !at.exists() {
        match at.parent() {
            Some(parent) => at = parent,
            None => break,
        }
    }
    at
}

/// Refuses a file below the root whose parent folders cannot be used, or lead out of the root by symbolic
/// links.
pub(super) fn inside(root: &Path, file: &Path) -> Result<(), Error> {
    check_root(root)?;
    check_folders(root, file)?;
    let folder = existing_folder(file);
    let real = fs::canonicalize(folder).map_err(|error| Error::io(folder, error))?;
    if !real.starts_with(root) {
        // The root may have been removed or replaced meanwhile.
        check_root(root)?;
        return Err(Error::Outside {
            path: file.to_owned(),
        });
    }
    match may_create(&real) {
        Err(errno @ (Errno::ACCESS | Errno::PERM)) if real != root => {
            Err(sink_failure(folder, file, errno.into()))
        }
        _ => Ok(()),
    }
}

fn check_root(root: &Path) -> Result<(), Error> {
    match fs::metadata(root) {
        Ok(found) if found.is_dir() => Ok(()),
        Err(error) if !is_absent(&error) => Err(Error::io(root, error)),
        _ => Err(Error::RootMissing {
            path: root.to_owned(),
        }),
    }
}

/// An error when a parent of a file, below the root, exists and is not a folder.
fn check_folders(root: &Path, file: &Path) -> Result<(), Error> {
    let folder = file
        .parent()
        .and_then(|folder| folder.strip_prefix(root).ok());
    let mut at = root.to_owned();
    for part in folder.into_iter().flatten() {
        at.push(part);
        if !is_folder(&at)? {
            return Ok(());
        }
    }
    Ok(())
}

/// False when the path does not exist; an error for anything but a folder.
fn is_folder(path: &Path) -> Result<bool, Error> {
    let error = match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Ok(true),
        Ok(_) => {
            let reason = "it is not a folder, and a sink needs one there";
            return Err(Error::at_path(path, reason));
        }
        Err(error) => error,
    };
    // If the path is not a link, it may have been created since the first check.
    let is_link = path
        .symlink_metadata()
        .is_ok_and(|found| found.is_symlink());
    match is_absent(&error) && !is_link {
        true => Ok(path.is_dir()),
        false => Err(link_refusal(path, error)),
    }
}

/// The path of a sink's file with all symbolic links followed.
pub(super) fn real(path: &Path) -> Result<PathBuf, Error> {
    fs::canonicalize(path).map_err(|error| link_refusal(path, error))
}

fn link_refusal(path: &Path, error: io::Error) -> Error {
    let reason = match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NOTDIR) => "a symbolic link leads to nothing",
        Some(Errno::LOOP) => "symbolic links lead in a circle",
        Some(Errno::ACCESS) => "this user may not read the folder",
        _ => return Error::io(path, error),
    };
    Error::at_path(path, format!("{reason} where a sink writes"))
}

/// Refuses a file whose folder is missing.
pub(super) fn check_parent(file: &Path) -> Result<(), Error> {
    match file.parent() {
        Some(folder) if !is_folder(folder)? => {
            let reason = format!("the sink's folder {} does not exist", folder.display());
            Err(Error::at_path(file, reason))
        }
        _ => Ok(()),
    }
}

/// An error when this user may not create files in a folder.
fn may_create(folder: &Path) -> rustix::io::Result<()> {
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK)
}

/// Why a database file cannot be created or written; `None` when it can. An existing file is not opened:
/// closing it would release the locks that connections of this process have on the database.
pub(super) fn write_refusal(file: &Path) -> Option<Error> {
    let folder = file.parent().unwrap_or(file);
    if let Err(errno) = may_create(folder) {
        return Some(sink_failure(folder, file, errno.into()));
    }
    let opened = match file.symlink_metadata() {
        // Opening any path shows whether the limit of open files was reached.
        Ok(_) => rustix::fs::access(file, Access::READ_OK | Access::WRITE_OK)
            .map_err(io::Error::from)
            .and_then(|()| File::open("/")),
        Err(_) => File::create_new(file),
    };
    opened.err().map(|error| sink_failure(file, file, error))
}

/// The error for a sink's file that cannot be written, from the error of a call on the file or its
/// folder. Errors that the sink's URI or existing files cause are faults of the operator. For missing
/// permissions [`Root::judged`](super::Root::judged) decides by the path.
pub(super) fn sink_failure(at: &Path, file: &Path, error: io::Error) -> Error {
    let reason = || {
        format!(
            "the sink's file {} cannot be written: {error}",
            file.display()
        )
    };
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Error::at_path(at, reason()),
        Some(Errno::ACCESS | Errno::PERM) => Error::Io {
            path: at.to_owned(),
            source: io::Error::new(ErrorKind::PermissionDenied, reason()),
        },
        _ => Error::io(at, error),
    }
}

/// Device and mount of a folder.
pub(super) type Mount = (u64, u64);

/// Device and mount of a folder. Renames work only within one device and one mount, even when two mounts
/// have the same file system.
pub(super) fn mount(folder: &Path) -> Result<Mount, Error> {
    let found = fs::metadata(folder).map_err(|error| Error::io(folder, error))?;
    let device = found.dev();
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{AtFlags, StatxFlags, statx};
        if let Ok(found) = statx(CWD, folder, AtFlags::empty(), StatxFlags::MNT_ID)
            && StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID)
        {
            return Ok((device, found.stx_mnt_id));
        }
    }
    Ok((device, 0))
}

/// SHA-256 of a file's content in hex digits.
pub(super) fn sha256(path: &Path) -> Result<String, Error> {
    let fail = |error| Error::io(path, error);
    let mut file = open(path).map_err(fail)?;
    let mut hasher = Sha256::new();
    let mut part = vec![0; limits::CHECK_READ_SIZE];
    loop {
        let read = file.read(&mut part).map_err(fail)?;
        match part.get(..read) {
            Some(bytes) if read > 0 => hasher.update(bytes),
            _ => break,
        }
    }
    Ok(text::hex(&hasher.finalize()))
}
