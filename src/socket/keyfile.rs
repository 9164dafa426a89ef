//! Files of CURVE keys: secret keys, public keys, and the list of authorized keys.
//!
//! A secret file contains one secret key as Z85 text (RFC 32). A public file contains one public
//! key and a name, in a line that can be copied into a list of authorized keys. In all of them,
//! lines that begin with `# ` are comments.

use std::ffi::OsStr;
use std::path::Path;

use zeroize::Zeroizing;

use super::curve::{AuthorizedKeys, KeyError, PublicKey, SecretKey};
use super::secured::{KeyList, KeyListFile};
use super::secured::{fail, fail_by, key_lines, read, refuse_existing, refuse_secret, write};
use crate::limits;

pub use super::secured::{KeyFileError, public_path};

/// Reads a secret key. A file that belongs to another user, or that other users can read, write or
/// execute, is refused.
pub fn read_secret_key(path: &Path) -> Result<SecretKey, KeyFileError> {
    // The path is not shown in the error, because it may be the secret key itself.
    if path.to_str().is_some_and(is_key) && path.symlink_metadata().is_err() {
        return Err(fail(Path::new("(a key)"))(
            "the file of the secret key is wanted, not the key; others can see what \
                   stands on a command line, so make a new one"
                .to_owned(),
        ));
    }
    let not_a_key = fail_by::<KeyError>(path, "");
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
        (Some(key), None) => key.parse().map_err(not_a_key),
        (None, _) => Err(fail("no key in it".to_owned())),
        // Probably a public file or a list.
        _ => Err(fail("more than one key in it".to_owned())),
    }
}

/// Reads a public key. `text` is its Z85 text, or the path of a file that begins with it. A file
/// that other users can change is refused, because it determines which server is trusted.
pub fn read_public_key(text: impl AsRef<OsStr>) -> Result<PublicKey, KeyFileError> {
    let path = Path::new(&text);
    let fail = fail(path);
    if path.symlink_metadata().is_err() {
        let text = text.as_ref().to_string_lossy();
        return text
            .parse()
            .map_err(fail_by::<KeyError>(path, "neither a file nor a key: "));
    }
    let (text, _) = read(path, 0o022, limits::KEY_FILE_SIZE_MAX)?;
    refuse_secret(path, &text, SECRET_MARK)?;
    let Some(line) = key_lines(&text).next() else {
        return Err(fail("no key in it".to_owned()));
    };
    let key = line.split_whitespace().next().unwrap_or("");
    key.parse().map_err(fail_by::<KeyError>(path, ""))
}

fn is_key(text: &str) -> bool {
    text.parse::<SecretKey>().is_ok()
}

/// The comment at the start of a secret file.
const SECRET_MARK: &str = limits::SECRET_KEY_MARKS[0];

/// Writes a secret key file (mode 0600) and its public key file. Existing files are replaced only
/// if `replace` is set. Returns the line of the public file.
pub fn write_key_pair(
    path: &Path,
    secret: &SecretKey,
    name: &str,
    replace: bool,
) -> Result<String, KeyFileError> {
    let public = public_path(path);
    if !replace {
        refuse_existing(path, &public)?;
    }
    let line = public_line(secret, name).map_err(fail_by(&public, ""))?;
    let mut text = Zeroizing::new(String::with_capacity(256));
    text.push_str(SECRET_MARK);
    text.push_str(": a reader can pose as its owner.\n");
    text.push_str(&secret.to_z85());
    text.push('\n');
    write(path, text.as_bytes(), 0o600, replace)?;
    write(&public, format!("{line}\n").as_bytes(), 0o644, replace)?;
    Ok(line)
}

/// The line `KEY NAME` of a public file and of a list of authorized keys. Fails if the list would
/// not read the name as a name, because it contains limits or a line break.
pub fn public_line(secret: &SecretKey, name: &str) -> Result<String, KeyError> {
    let key = secret.public();
    let (line, read_as) = match name.trim() {
        "" => (key.to_string(), key.to_string()),
        name => (format!("{key} {name}"), name.to_owned()),
    };
    let is_name_alone =
        AuthorizedKeys::parse(&line).is_ok_and(|list| list.name(&key) == Some(&read_as));
    match is_name_alone {
        true => Ok(line),
        false => Err(KeyError::Name {
            name: name.to_owned(),
        }),
    }
}

/// The file with the list of authorized keys.
pub type AuthorizedKeysFile = KeyListFile<AuthorizedKeys>;

impl KeyList for AuthorizedKeys {
    const SECRET_MARK: &'static str = SECRET_MARK;

    fn parse(text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AuthorizedKeys::parse(text)?)
    }

    fn has_all_of(&self, other: &Self) -> bool {
        AuthorizedKeys::has_all_of(self, other)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::time::{Duration, SystemTime};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn errors_have_their_reasons_as_sources() {
        use std::error::Error;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let error = read_secret_key(&path).unwrap_err();
        let source = error.source().unwrap().downcast_ref::<std::io::Error>();
        assert_eq!(source.unwrap().kind(), std::io::ErrorKind::NotFound);
        assert_eq!(error.path(), path);
        fs::write(&path, "# a list\nshort\n").unwrap();
        let error = AuthorizedKeysFile::open(&path).unwrap_err();
        let source = error.source().unwrap().downcast_ref();
        let length = KeyError::Length { characters: 5 };
        assert_eq!(
            source,
            Some(&KeyError::Line {
                number: 2,
                error: Box::new(length.clone())
            })
        );
        let source = source.unwrap().source().unwrap();
        assert_eq!(source.downcast_ref(), Some(&length));
        set_mode(&path, 0o666);
        let error = AuthorizedKeysFile::open(&path).unwrap_err();
        assert!(error.source().is_none(), "{error}");
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
            read_public_key(secret.public().to_string()).unwrap(),
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
    fn a_name_that_a_list_would_read_otherwise_is_refused_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let secret = SecretKey::from_bytes([7; 32]);
        for name in [
            "slots=4",
            "w-1 slots=4",
            "plugins=a",
            "plugin=a",
            "w slots=x",
            "slots=1 w",
            "a\nb",
            "a\n# b",
        ] {
            let error = write_key_pair(&path, &secret, name, true).unwrap_err();
            assert!(error.to_string().contains("--name"), "{error}");
            public_line(&secret, name).unwrap_err();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        for (name, want) in [(" w 1 ", "w 1"), ("a=b", "a=b"), ("slots", "slots")] {
            write_key_pair(&path, &secret, name, true).unwrap();
            let listed = AuthorizedKeysFile::open(&public_path(&path)).unwrap();
            assert_eq!(listed.keys().name(&secret.public()), Some(want));
        }
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
        let [one, two] = [1u8, 2].map(|byte| SecretKey::from_bytes([byte; 32]).public());
        fs::write(&path, format!("# workers\n{one} w-1\n")).unwrap();
        let mut file = AuthorizedKeysFile::open(&path).unwrap();
        assert_eq!(file.keys().len(), 1);
        assert!(file.poll(false).unwrap().is_none());
        fs::write(&path, format!("{one} w-1\n{two} w-2\n")).unwrap();
        assert_eq!(file.poll(false).unwrap().unwrap().len(), 2);
        fs::write(&path, format!("{one} w-1\nnonsense\n")).unwrap();
        let error = file.poll(false).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(file.poll(false).unwrap().is_none(), "reported once");
        assert!(file.poll(true).is_err(), "reported again when asked");
        assert_eq!(file.keys().len(), 2);
        fs::remove_file(&path).unwrap();
        assert!(file.poll(false).is_err());
        assert_eq!(file.keys().len(), 2);
        // The file is partly written, then complete: no key was revoked.
        fs::write(&path, format!("{one} w-1\n")).unwrap();
        assert!(file.poll(false).unwrap().is_none());
        fs::write(&path, format!("{one} w-1\n{two} w-2\n")).unwrap();
        assert!(file.poll(false).unwrap().is_none());
        assert_eq!(file.keys().len(), 2);
        fs::write(&path, format!("{two}\n")).unwrap();
        set_mode(&path, 0o666);
        let error = file.poll(false).unwrap_err().to_string();
        assert!(error.contains("go-w"), "{error}");
        set_mode(&path, 0o644);
        assert!(file.poll(false).unwrap().is_none(), "seen once");
        assert_eq!(
            file.poll(false).unwrap().unwrap().name(&two),
            Some(&*two.to_string())
        );
        // With `force`, keys are revoked at once.
        fs::write(&path, "").unwrap();
        assert!(file.poll(true).unwrap().unwrap().is_empty());
        // A change of only the mode is detected, also when the file was not modified recently.
        let old = SystemTime::now() - Duration::from_secs(60);
        fs::write(&path, format!("{two}\n")).unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(old)
            .unwrap();
        assert_eq!(file.poll(false).unwrap().unwrap().len(), 1);
        assert!(file.poll(false).unwrap().is_none());
        set_mode(&path, 0o666);
        assert!(file.poll(false).is_err());
    }

    #[test]
    fn the_wrong_file_is_named_and_a_key_in_place_of_a_file_is_not_shown() {
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
        let odd = dir.path().join(OsStr::from_bytes(b"k\xe9"));
        write_key_pair(&odd, &secret, "", false).unwrap();
        assert_eq!(read_public_key(public_path(&odd)).unwrap(), secret.public());
        let error = AuthorizedKeysFile::open(&path).unwrap_err();
        assert!(error.to_string().contains("secret key"), "{error}");
        // A path of 40 characters may be valid Z85 text of a key.
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

    /// Only root can create the files of this test.
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
        let public = public_path(&path);
        assert!(AuthorizedKeysFile::open(&public).is_err());
        let error = read_public_key(public.to_str().unwrap()).unwrap_err();
        assert!(error.to_string().contains("chown 0"), "{error}");
        // A link that belongs to another user, to a file of ours.
        for path in [&path, &public] {
            std::os::unix::fs::chown(path, Some(0), None).unwrap();
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&public, &link).unwrap();
        assert!(read_public_key(link.to_str().unwrap()).is_ok());
        std::os::unix::fs::lchown(&link, Some(65_534), None).unwrap();
        let error = read_public_key(link.to_str().unwrap()).unwrap_err();
        assert!(error.to_string().contains("link of user 65534"), "{error}");
        assert!(AuthorizedKeysFile::open(&link).is_err());
    }

    #[test]
    fn a_servers_key_is_taken_from_a_plain_file_that_no_others_can_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let secret = SecretKey::from_bytes([7; 32]);
        write_key_pair(&path, &secret, "", false).unwrap();
        let public = public_path(&path);
        let read = || read_public_key(public.to_str().unwrap()).map_err(|error| error.to_string());
        for (mode, allowed) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false)] {
            set_mode(&public, mode);
            let read = read();
            assert_eq!(read.is_ok(), allowed, "{mode:o}: {read:?}");
            assert!(allowed || read.unwrap_err().contains("chmod go-w"));
        }
        fs::write(&public, vec![b'#'; 1 << 20]).unwrap();
        set_mode(&public, 0o644);
        assert!(read().unwrap_err().contains("larger"));
        fs::remove_file(&public).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&public).status();
        assert!(made.unwrap().success());
        assert!(read().unwrap_err().contains("is not a file"));
        fs::remove_file(&public).unwrap();
        std::os::unix::fs::symlink(dir.path().join("none"), &public).unwrap();
        assert!(read().unwrap_err().contains("cannot be read"));
    }
}
