//! Files that hold keys, whatever the keys are: how they are checked when they are read, how they
//! are written, and how a list of keys is followed while a program runs.
//!
//! A secret file is its owner's alone. A list is changed by its owner alone. Lines that begin with
//! `# ` are comments.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use crate::limits;

/// Why a key file was not taken: one line with the file, what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFileError {
    pub(super) path: PathBuf,
    pub(super) what: String,
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

impl std::error::Error for KeyFileError {}

pub(crate) fn fail(path: &Path) -> impl Fn(String) -> KeyFileError {
    let path = path.to_path_buf();
    move |what| KeyFileError {
        path: path.clone(),
        what,
    }
}

/// The file of the public key that belongs to a secret one: the same name and `.pub`.
pub fn public_path(secret: &Path) -> PathBuf {
    let mut name = secret.as_os_str().to_owned();
    name.push(".pub");
    PathBuf::from(name)
}

/// Through a file of another name, so that a crash leaves the old file or the new one. Without
/// `replace` a file that came meanwhile is kept as well.
pub(crate) fn write(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    replace: bool,
) -> Result<(), KeyFileError> {
    let fail = fail(path);
    let mut staged = path.as_os_str().to_owned();
    staged.push(format!(".{}.tmp", std::process::id()));
    let staged = PathBuf::from(staged);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&staged)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        if replace {
            fs::rename(&staged, path)
        } else {
            fs::hard_link(&staged, path)?;
            fs::remove_file(&staged)
        }
    };
    write().map_err(|error| {
        // What is left of the attempt may hold a secret.
        if let Err(error) = fs::remove_file(&staged)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("{}: cannot be removed: {error}", staged.display());
        }
        fail(format!("cannot be written: {error}"))
    })
}

/// Lines that are no comments.
pub(crate) fn key_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && *line != "#" && !line.starts_with("# "))
}

/// Reads a plain file of at most `size_max` bytes, none of whose permission bits is in
/// `forbidden`. It must belong to us or to root, and so must a link that leads to it.
pub(crate) fn read(
    path: &Path,
    forbidden: u32,
    size_max: u64,
) -> Result<(Zeroizing<String>, fs::Metadata), KeyFileError> {
    let fail = fail(path);
    let unreadable = |error: io::Error| fail(format!("cannot be read: {error}"));
    let us = rustix::process::geteuid().as_raw();
    let is_strangers = |owner: u32| owner != us && owner != 0;
    let link = path.symlink_metadata().map_err(unreadable)?;
    if link.is_symlink() && is_strangers(link.uid()) {
        return Err(fail(format!(
            "is a link of user {}, who can let it lead elsewhere; name the file itself",
            link.uid()
        )));
    }
    // Opening a FIFO would wait for a writer otherwise.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(fail("is not a file".to_owned()));
    }
    let owner = metadata.uid();
    if is_strangers(owner) {
        return Err(fail(format!(
            "belongs to user {owner}, who can read and change it; run `chown {us} {}`",
            path.display()
        )));
    }
    let mode = metadata.mode() & 0o777;
    if mode & forbidden != 0 {
        let (who, fix) = match forbidden {
            0o022 => ("others can change it", "go-w"),
            _ => ("others can read it", "600"),
        };
        return Err(fail(format!(
            "{who} (mode {mode:03o}); run `chmod {fix} {}`",
            path.display()
        )));
    }
    if metadata.len() > size_max {
        return Err(fail(format!("larger than {size_max} bytes")));
    }
    // Read into a buffer that never moves, so that no copy of a secret stays behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(size_max.min(metadata.len() + 1) as usize));
    (&mut file)
        .take(metadata.len())
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok((Zeroizing::new(text.to_owned()), metadata)),
        Err(_) => Err(fail("is not text".to_owned())),
    }
}

/// Identifies a state of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: metadata.modified().ok(),
            // Follows the mode and the owner as well.
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// A later change might have left the same stamp, as file systems count time coarsely.
    fn is_fresh(&self, now: SystemTime) -> bool {
        let settled = |at: SystemTime| at.checked_add(Duration::from_secs(2));
        self.modified
            .and_then(settled)
            .is_none_or(|settled| settled > now)
    }
}

/// Refuses a secret file, which begins with `mark`, where public keys are wanted.
pub(crate) fn refuse_secret(path: &Path, text: &str, mark: &str) -> Result<(), KeyFileError> {
    match text.starts_with(mark) {
        true => Err(fail(path)(format!(
            "is the file of a secret key; the public one is in {}",
            public_path(path).display()
        ))),
        false => Ok(()),
    }
}

/// Fails when one of the two files of a key pair is there already.
pub(crate) fn refuse_existing(secret: &Path, public: &Path) -> Result<(), KeyFileError> {
    match [secret, public]
        .into_iter()
        .find(|path| path.symlink_metadata().is_ok())
    {
        Some(path) => Err(fail(path)(
            "is there already, and is replaced only when asked to (--force)".to_owned(),
        )),
        None => Ok(()),
    }
}

/// A list of keys, as a file holds it.
pub trait KeyList: PartialEq + Sized {
    /// The comment that begins a file of secret keys of this kind.
    const SECRET_MARK: &'static str;

    /// Reads a list; the error is one line that names the line of the list.
    fn parse(text: &str) -> Result<Self, String>;

    /// Whether every key of another list is here, too.
    fn has_all_of(&self, other: &Self) -> bool;
}

/// A list of keys that is read again when its file changes.
///
/// A file that others can change is refused. One that cannot be read or has a wrong line keeps
/// the list as it was, and keys are revoked only after two consecutive reads omit them: neither a slip of an
/// editor nor a file caught half-written shuts anybody out.
#[derive(Clone, Debug)]
pub struct KeyListFile<L> {
    path: PathBuf,
    keys: Arc<L>,
    /// None: to be read at the next poll.
    stamp: Option<Stamp>,
    /// A list with fewer keys, to be seen once more.
    smaller: Option<L>,
    /// The last complaint, so that it is made once.
    complaint: Option<KeyFileError>,
}

impl<L: KeyList> KeyListFile<L> {
    /// Reads the list for the first time.
    pub fn open(path: &Path) -> Result<Self, KeyFileError> {
        let (keys, stamp) = Self::load(path)?;
        Ok(KeyListFile {
            path: path.to_path_buf(),
            keys: Arc::new(keys),
            stamp,
            smaller: None,
            complaint: None,
        })
    }

    /// The list as it was read last.
    pub fn keys(&self) -> Arc<L> {
        self.keys.clone()
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks whether the file has changed and reads it again: the list when it is another one.
    /// `force` reads it in any case. A complaint is given once for as long as it stays the same,
    /// or again with `force`.
    pub fn poll(&mut self, force: bool) -> Result<Option<Arc<L>>, KeyFileError> {
        let stamp = fs::metadata(&self.path)
            .ok()
            .map(|metadata| Stamp::of(&metadata));
        if !force && stamp.is_some() && stamp == self.stamp {
            return Ok(None);
        }
        match Self::load(&self.path) {
            Ok((keys, stamp)) => {
                self.stamp = stamp;
                self.complaint = None;
                let seen_before = self.smaller.take();
                if keys == *self.keys {
                    return Ok(None);
                }
                if !force && !keys.has_all_of(&self.keys) && seen_before.as_ref() != Some(&keys) {
                    self.stamp = None;
                    self.smaller = Some(keys);
                    return Ok(None);
                }
                self.keys = Arc::new(keys);
                Ok(Some(self.keys()))
            }
            Err(error) => {
                self.stamp = None;
                if !force && self.complaint.as_ref() == Some(&error) {
                    return Ok(None);
                }
                self.complaint = Some(error.clone());
                Err(error)
            }
        }
    }

    fn load(path: &Path) -> Result<(L, Option<Stamp>), KeyFileError> {
        let (text, metadata) = read(path, 0o022, limits::AUTHORIZED_KEYS_SIZE_MAX)?;
        refuse_secret(path, &text, L::SECRET_MARK)?;
        let keys = L::parse(&text).map_err(fail(path))?;
        let stamp = Stamp::of(&metadata);
        let stable = !stamp.is_fresh(SystemTime::now());
        Ok((keys, stable.then_some(stamp)))
    }
}
