//! Files of CURVE keys: secret keys, public keys, and the list of those who may connect.
//!
//! A secret file holds one secret key as Z85 text (RFC 32), a public file one public key and a
//! name: a line that can stand in a list of authorized keys as it is. Lines that begin with
//! `# ` are comments in all of them.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use super::curve::{AuthorizedKeys, PublicKey, SecretKey};
use crate::limits;

/// Why a key file was not taken: one line with the file, what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFileError {
    path: PathBuf,
    what: String,
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

impl std::error::Error for KeyFileError {}

fn fail(path: &Path) -> impl Fn(String) -> KeyFileError {
    let path = path.to_path_buf();
    move |what| KeyFileError {
        path: path.clone(),
        what,
    }
}

/// Reads a secret key. A file that others than its owner can read, write or run is refused, and
/// one that belongs to another user.
pub fn read_secret_key(path: &Path) -> Result<SecretKey, KeyFileError> {
    // Shown in no error: it may be the secret itself.
    if path.to_str().is_some_and(is_key) && path.symlink_metadata().is_err() {
        return Err(KeyFileError {
            path: PathBuf::from("(a key)"),
            what: "the file of the secret key is wanted, not the key; others can see what \
                   stands on a command line, so make a new one"
                .to_owned(),
        });
    }
    let fail = fail(path);
    if path.extension().is_some_and(|extension| extension == "pub") {
        let secret = path.with_extension("");
        return Err(fail(format!(
            "is the file of a public key; the secret one is in {}",
            secret.display()
        )));
    }
    let (text, _) = read(path, 0o077, limits::KEY_FILE_SIZE_MAX)?;
    let mut lines = key_lines(&text);
    match (lines.next(), lines.next()) {
        (Some(key), None) => key
            .parse()
            .map_err(|error: super::curve::KeyError| fail(error.to_string())),
        (None, _) => Err(fail("no key in it".to_owned())),
        // A public file or a list, most likely.
        _ => Err(fail("more than one key in it".to_owned())),
    }
}

/// A public key as its Z85 text, or the path of a file that begins with one.
pub fn read_public_key(text: &str) -> Result<PublicKey, KeyFileError> {
    let path = Path::new(text);
    let fail = fail(path);
    if path.symlink_metadata().is_err() {
        return text.parse().map_err(|wrong: super::curve::KeyError| {
            fail(format!("neither a file nor a key: {wrong}"))
        });
    }
    let (text, _) = read(path, 0, limits::KEY_FILE_SIZE_MAX)?;
    refuse_secret(path, &text)?;
    let Some(line) = key_lines(&text).next() else {
        return Err(fail("no key in it".to_owned()));
    };
    let key = line.split_whitespace().next().unwrap_or("");
    key.parse()
        .map_err(|error: super::curve::KeyError| fail(error.to_string()))
}

fn is_key(text: &str) -> bool {
    text.parse::<SecretKey>().is_ok()
}

/// The comment that begins a secret file.
const SECRET_MARK: &str = "# CURVE secret key of Casparian";

/// Refuses a secret file where a public key is wanted: both are 40 characters.
fn refuse_secret(path: &Path, text: &str) -> Result<(), KeyFileError> {
    match text.starts_with(SECRET_MARK) {
        true => Err(fail(path)(format!(
            "is the file of a secret key; the public one is in {}",
            public_path(path).display()
        ))),
        false => Ok(()),
    }
}

/// The file of the public key that belongs to a secret one: the same name and `.pub`.
pub fn public_path(secret: &Path) -> PathBuf {
    let mut name = secret.as_os_str().to_owned();
    name.push(".pub");
    PathBuf::from(name)
}

/// Writes a secret key (readable by its owner alone) and its public file. Files that are there
/// already are replaced only when `replace` says so. Gives the public file's line.
pub fn write_key_pair(
    path: &Path,
    secret: &SecretKey,
    name: &str,
    replace: bool,
) -> Result<String, KeyFileError> {
    let public = public_path(path);
    for path in [path, public.as_path()] {
        if !replace && path.symlink_metadata().is_ok() {
            return Err(fail(path)(
                "is there already, and is replaced only when asked to (--force)".to_owned(),
            ));
        }
    }
    let line = public_line(secret, name);
    let mut text = Zeroizing::new(String::with_capacity(256));
    text.push_str(SECRET_MARK);
    text.push_str(": whoever reads it can pose as its owner.\n");
    text.push_str(&secret.to_z85());
    text.push('\n');
    write(path, text.as_bytes(), 0o600, replace)?;
    write(&public, format!("{line}\n").as_bytes(), 0o644, replace)?;
    Ok(line)
}

/// `KEY NAME`, as it stands in a public file and in a list of authorized keys.
pub fn public_line(secret: &SecretKey, name: &str) -> String {
    let key = secret.public();
    match name {
        "" => key.to_string(),
        name => format!("{key} {name}"),
    }
}

/// Through a file of another name, so that a crash leaves the old file or the new one. Without
/// `replace` a file that came meanwhile is kept as well.
fn write(path: &Path, octets: &[u8], mode: u32, replace: bool) -> Result<(), KeyFileError> {
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
        file.write_all(octets)?;
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
fn key_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && *line != "#" && !line.starts_with("# "))
}

/// Reads a plain file of at most `size_max` octets, none of whose permission bits is in
/// `forbidden`.
fn read(
    path: &Path,
    forbidden: u32,
    size_max: u64,
) -> Result<(Zeroizing<String>, fs::Metadata), KeyFileError> {
    let fail = fail(path);
    let unreadable = |error: io::Error| fail(format!("cannot be read: {error}"));
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
    let (owner, us) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if forbidden != 0 && owner != us && owner != 0 {
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
        return Err(fail(format!("larger than {size_max} octets")));
    }
    // Read into a buffer that never moves, so that no copy of a secret stays behind.
    let mut octets = Zeroizing::new(Vec::with_capacity(size_max.min(metadata.len() + 1) as usize));
    (&mut file)
        .take(metadata.len())
        .read_to_end(&mut octets)
        .map_err(unreadable)?;
    match std::str::from_utf8(&octets) {
        Ok(text) => Ok((Zeroizing::new(text.to_owned()), metadata)),
        Err(_) => Err(fail("is not text".to_owned())),
    }
}

/// What tells one state of a file from another.
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

/// A list of authorized keys that is read again when its file changes.
///
/// A file that others can change is refused. One that cannot be read or has a wrong line keeps
/// the list as it was, and keys go only when two looks in a row miss them: neither a slip of an
/// editor nor a file caught half-written shuts anybody out.
#[derive(Clone, Debug)]
pub struct AuthorizedKeysFile {
    path: PathBuf,
    keys: Arc<AuthorizedKeys>,
    /// None: to be read at the next look.
    stamp: Option<Stamp>,
    /// A list with fewer keys, to be seen once more.
    smaller: Option<AuthorizedKeys>,
    /// The last complaint, so that it is made once.
    complaint: Option<KeyFileError>,
}

impl AuthorizedKeysFile {
    /// Reads the list for the first time.
    pub fn open(path: &Path) -> Result<Self, KeyFileError> {
        let (keys, stamp) = Self::load(path)?;
        Ok(AuthorizedKeysFile {
            path: path.to_path_buf(),
            keys: Arc::new(keys),
            stamp,
            smaller: None,
            complaint: None,
        })
    }

    /// The list as it was read last.
    pub fn keys(&self) -> Arc<AuthorizedKeys> {
        self.keys.clone()
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Looks whether the file has changed and reads it again: the list when it is another one.
    /// `force` reads it in any case. A complaint is given once for as long as it stays the same,
    /// or again with `force`.
    pub fn look(&mut self, force: bool) -> Result<Option<Arc<AuthorizedKeys>>, KeyFileError> {
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

    fn load(path: &Path) -> Result<(AuthorizedKeys, Option<Stamp>), KeyFileError> {
        let (text, metadata) = read(path, 0o022, limits::AUTHORIZED_KEYS_SIZE_MAX)?;
        refuse_secret(path, &text)?;
        let keys = AuthorizedKeys::parse(&text).map_err(|error| fail(path)(error.to_string()))?;
        let stamp = Stamp::of(&metadata);
        let stable = !stamp.is_fresh(SystemTime::now());
        Ok((keys, stable.then_some(stamp)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_pair_is_written_and_read_and_never_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let secret = SecretKey::from_bytes([7; 32]);
        let line = write_key_pair(&path, &secret, "w-1", false).unwrap();
        assert_eq!(line, format!("{} w-1", secret.public()));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read_secret_key(&path).unwrap().public(), secret.public());
        let public = public_path(&path);
        assert_eq!(
            read_public_key(public.to_str().unwrap()).unwrap(),
            secret.public()
        );
        assert_eq!(
            read_public_key(&secret.public().to_string()).unwrap(),
            secret.public()
        );
        let listed = AuthorizedKeysFile::open(&public).unwrap();
        assert_eq!(listed.keys().name(&secret.public()), Some("w-1"));
        let other = SecretKey::from_bytes([8; 32]);
        let error = write_key_pair(&path, &other, "", false).unwrap_err();
        assert!(error.to_string().contains("--force"), "{error}");
        assert_eq!(read_secret_key(&path).unwrap().public(), secret.public());
        write_key_pair(&path, &other, "", true).unwrap();
        assert_eq!(read_secret_key(&path).unwrap().public(), other.public());
        let names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn bad_secret_files_are_refused_with_what_to_do_and_without_what_they_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let good = SecretKey::from_bytes([7; 32]).to_z85();
        let wrong = format!("{}\"", &good[..39]);
        for (text, mode, want) in [
            (good.as_str(), 0o640, "chmod 600"),
            (good.as_str(), 0o604, "chmod 600"),
            (good.as_str(), 0o620, "chmod 600"),
            ("", 0o600, "no key in it"),
            ("# only a comment\n", 0o600, "no key in it"),
            (&good[..39], 0o600, "40 characters"),
            (wrong.as_str(), 0o600, "character 40 is not one of Z85"),
            (&format!("{}\n{}\n", *good, *good), 0o600, "more than one"),
        ] {
            fs::write(&path, text).unwrap();
            set_mode(&path, mode);
            let error = read_secret_key(&path).unwrap_err().to_string();
            assert!(error.contains(want), "{text:?}: {error}");
            assert!(!error.contains(&good[..20]), "{error}");
        }
        fs::write(&path, [0xFF; 40]).unwrap();
        set_mode(&path, 0o600);
        assert!(read_secret_key(&path).is_err());
        fs::write(&path, vec![b'#'; 1 << 20]).unwrap();
        assert!(
            read_secret_key(&path)
                .unwrap_err()
                .to_string()
                .contains("larger")
        );
        assert!(read_secret_key(dir.path()).is_err());
        assert!(read_secret_key(Path::new("/dev/null")).is_err());
        assert!(read_secret_key(&dir.path().join("none")).is_err());
        assert!(read_public_key("none").is_err());
    }

    #[test]
    fn a_list_follows_its_file_and_survives_slips() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authorized");
        let [one, two] = [1u8, 2].map(|octet| SecretKey::from_bytes([octet; 32]).public());
        fs::write(&path, format!("# workers\n{one} w-1\n")).unwrap();
        let mut file = AuthorizedKeysFile::open(&path).unwrap();
        assert_eq!(file.keys().len(), 1);
        assert!(file.look(false).unwrap().is_none());
        fs::write(&path, format!("{one} w-1\n{two} w-2\n")).unwrap();
        assert_eq!(file.look(false).unwrap().unwrap().len(), 2);
        fs::write(&path, format!("{one} w-1\nnonsense\n")).unwrap();
        let error = file.look(false).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(file.look(false).unwrap().is_none(), "said once");
        assert!(file.look(true).is_err(), "said again when asked");
        assert_eq!(file.keys().len(), 2);
        fs::remove_file(&path).unwrap();
        assert!(file.look(false).is_err());
        assert_eq!(file.keys().len(), 2);
        // Half-written, then whole again: nobody was shut out.
        fs::write(&path, format!("{one} w-1\n")).unwrap();
        assert!(file.look(false).unwrap().is_none());
        fs::write(&path, format!("{one} w-1\n{two} w-2\n")).unwrap();
        assert!(file.look(false).unwrap().is_none());
        assert_eq!(file.keys().len(), 2);
        fs::write(&path, format!("{two}\n")).unwrap();
        set_mode(&path, 0o666);
        let error = file.look(false).unwrap_err().to_string();
        assert!(error.contains("go-w"), "{error}");
        set_mode(&path, 0o644);
        assert!(file.look(false).unwrap().is_none(), "seen once");
        assert_eq!(
            file.look(false).unwrap().unwrap().name(&two),
            Some(&*two.to_string())
        );
        // Asked for, it counts at once.
        fs::write(&path, "").unwrap();
        assert!(file.look(true).unwrap().unwrap().is_empty());
        // A change of the mode alone is noticed, once the list has settled.
        let old = SystemTime::now() - Duration::from_secs(60);
        fs::write(&path, format!("{two}\n")).unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(old)
            .unwrap();
        assert_eq!(file.look(false).unwrap().unwrap().len(), 1);
        assert!(file.look(false).unwrap().is_none());
        set_mode(&path, 0o666);
        assert!(file.look(false).is_err());
    }

    #[test]
    fn the_wrong_file_is_told_and_a_key_in_place_of_a_file_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let secret = SecretKey::from_bytes([7; 32]);
        write_key_pair(&path, &secret, "", false).unwrap();
        let error = read_secret_key(&public_path(&path)).unwrap_err();
        assert!(
            error.to_string().contains("file of a public key"),
            "{error}"
        );
        let error = read_public_key(path.to_str().unwrap()).unwrap_err();
        assert!(error.to_string().contains("key.pub"), "{error}");
        let error = AuthorizedKeysFile::open(&path).unwrap_err();
        assert!(error.to_string().contains("secret key"), "{error}");
        // A path of 40 characters may look like a key.
        let named = format!("{:a<40}", path.with_file_name("k").display());
        let named = Path::new(named.get(..40).unwrap_or(&named));
        write_key_pair(named, &secret, "", false).unwrap();
        assert_eq!(read_secret_key(named).unwrap().public(), secret.public());
        let text = secret.to_z85();
        let error = read_secret_key(Path::new(text.as_str()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("file") && !error.contains(text.as_str()),
            "{error}"
        );
    }

    /// Only root can make the files of this test.
    #[test]
    fn files_of_another_user_are_refused() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_key_pair(&path, &SecretKey::from_bytes([7; 32]), "", false).unwrap();
        for path in [&path, &public_path(&path)] {
            std::os::unix::fs::chown(path, Some(65_534), None).unwrap();
        }
        let error = read_secret_key(&path).unwrap_err();
        assert!(error.to_string().contains("chown 0"), "{error}");
        assert!(AuthorizedKeysFile::open(&public_path(&path)).is_err());
    }
}
