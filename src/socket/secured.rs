//! Key files of any kind: the checks when they are read, how they are written, and how a list of
//! keys is reloaded while a program runs.
//!
//! Only its owner may have access to a secret file. Only its owner may change a list. Lines that
//! begin with `# ` are comments.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use crate::limits;

/// Why a key file was refused: one line with the file, the problem and the remedy. Its source is an error of
/// the operating system or a [`KeyError`](super::curve::KeyError), if one is the reason.
#[derive(Clone, Debug)]
pub struct KeyFileError {
    path: PathBuf,
    what: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl KeyFileError {
    /// The file; a text in parentheses where the path may contain a secret.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Errors are equal if their texts are.
impl PartialEq for KeyFileError {
    fn eq(&self, other: &Self) -> bool {
        (&self.path, &self.what) == (&other.path, &other.what)
    }
}

impl Eq for KeyFileError {}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

impl std::error::Error for KeyFileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}

pub(crate) fn fail(path: &Path) -> impl Fn(String) -> KeyFileError {
    let path = path.to_path_buf();
    move |what| KeyFileError {
        path: path.clone(),
        what,
        source: None,
    }
}

/// Like [`fail`], because of another error. `doing` precedes its text.
pub(crate) fn fail_by<E>(path: &Path, doing: &'static str) -> impl Fn(E) -> KeyFileError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = path.to_path_buf();
    move |error| {
        let source = error.into();
        KeyFileError {
            path: path.clone(),
            what: format!("{doing}{source}"),
            source: Some(source.into()),
        }
    }
}

/// The path of the public key file of a secret key file: the same name with `.pub` appended.
pub fn public_path(secret: &Path) -> PathBuf {
    let mut name = secret.as_os_str().to_owned();
    name.push(".pub");
    PathBuf::from(name)
}

/// Writes a file under a temporary name and then renames it, so that after a crash either the old
/// or the new file exists. Without `replace`, the write fails if a file exists at `path`.
pub(crate) fn write(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    replace: bool,
) -> Result<(), KeyFileError> {
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
        // The temporary file may contain a secret.
        if let Err(error) = fs::remove_file(&staged)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("{}: cannot be removed: {error}", staged.display());
        }
        fail_by(path, "cannot be written: ")(error)
    })
}

/// The trimmed lines that are neither empty nor comments.
pub(crate) fn key_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && *line != "#" && !line.starts_with("# "))
}

/// Reads a regular file of at most `size_max` bytes. Its mode must not have any bit of `forbidden`.
/// The file must belong to our own user or root; if `path` is a symbolic link, so must the link.
pub(crate) fn read(
    path: &Path,
    forbidden: u32,
    size_max: u64,
) -> Result<(Zeroizing<String>, fs::Metadata), KeyFileError> {
    let fail = fail(path);
    let unreadable = fail_by::<io::Error>(path, "cannot be read: ");
    let us = rustix::process::geteuid().as_raw();
    let is_strangers = |owner: u32| owner != us && owner != 0;
    let link = path.symlink_metadata().map_err(&unreadable)?;
    if link.is_symlink() && is_strangers(link.uid()) {
        return Err(fail(format!(
            "is a link of user {}, who can let it lead elsewhere; name the file itself",
            link.uid()
        )));
    }
    // Without this, opening a FIFO would wait for a writer.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(&unreadable)?;
    let metadata = file.metadata().map_err(&unreadable)?;
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
    // The buffer is never reallocated, so no copy of a secret stays in freed memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(size_max.min(metadata.len() + 1) as usize));
    (&mut file)
        .take(metadata.len())
        .read_to_end(&mut bytes)
        .map_err(&unreadable)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok((Zeroizing::new(text.to_owned()), metadata)),
        Err(_) => Err(fail("is not text".to_owned())),
    }
}

/// Identifies a version of a file's content and attributes.
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
            // Also changes when the mode or the owner changes.
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// True if the file was modified in the last 2 s. Then a further change may leave the same
    /// stamp, because file systems store time coarsely.
    fn is_fresh(&self, now: SystemTime) -> bool {
        let settled = |at: SystemTime| at.checked_add(Duration::from_secs(2));
        self.modified
            .and_then(settled)
            .is_none_or(|settled| settled > now)
    }
}

/// Refuses a secret key file, which begins with `mark`, where public keys are expected.
pub(crate) fn refuse_secret(path: &Path, text: &str, mark: &str) -> Result<(), KeyFileError> {
    match text.starts_with(mark) {
        true => Err(fail(path)(format!(
            "is the file of a secret key; the public one is in {}",
            public_path(path).display()
        ))),
        false => Ok(()),
    }
}

/// Fails if one of the two files of a key pair exists.
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

/// A list of keys that can be parsed from a file.
pub trait KeyList: PartialEq + Sized {
    /// The comment that begins a file of secret keys of this kind.
    const SECRET_MARK: &'static str;

    /// Parses a list. The error is one line with the number of the wrong line.
    fn parse(text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>>;

    /// Whether this list contains every key of the other list.
    fn has_all_of(&self, other: &Self) -> bool;
}

/// A list of keys that is reloaded when its file changes.
///
/// A file that other users can change is refused. If the file cannot be read or has an invalid
/// line, the list stays unchanged. A key is revoked only after two consecutive reads omit it, so
/// that a partly written file revokes no key.
#[derive(Clone, Debug)]
pub struct KeyListFile<L> {
    path: PathBuf,
    keys: Arc<L>,
    /// The stamp of the file that was read last. `None`: the next poll reads the file.
    stamp: Option<Stamp>,
    /// A list that omits keys. It is adopted if the next read returns it again.
    smaller: Option<L>,
    /// The last error, so that it is returned only once.
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

    /// The current list.
    pub fn keys(&self) -> Arc<L> {
        self.keys.clone()
    }

    /// The path of its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file again if it has changed. Returns the list if it differs from the current one.
    /// With `force` the file is read in any case, and omitted keys are revoked at once. An error is
    /// returned once for as long as it stays the same, and again with `force`.
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
        let keys = L::parse(&text).map_err(fail_by(path, ""))?;
        let stamp = Stamp::of(&metadata);
        let stable = !stamp.is_fresh(SystemTime::now());
        Ok((keys, stable.then_some(stamp)))
    }
}
