//! Z85 keys and lists of authorized keys: formatting and parsing a parsed key again must give the
//! same key, and no error may contain a secret.

use casparian::socket::keyfile;
use casparian::zmtp::curve::{AuthorizedKeys, PublicKey, SecretKey};

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match text.parse::<PublicKey>() {
        Ok(key) => {
            assert!(!key.is_low_order());
            assert_eq!(key.to_string(), text);
            assert_eq!(PublicKey::from_bytes(*key.as_bytes()), key);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match text.parse::<SecretKey>() {
        Ok(key) => {
            assert_eq!(*key.to_z85(), text);
            assert!(!key.public().is_low_order());
            assert!(!format!("{key:?}").contains(text));
        }
        Err(error) => {
            let message = error.to_string();
            // Short texts and texts with spaces may also occur in the error message itself.
            assert!(text.len() < 20 || text.contains(' ') || !message.contains(text));
        }
    }
    files(text);
    match AuthorizedKeys::parse(text) {
        Ok(keys) => {
            assert!(keys.len() <= text.lines().count());
            for line in text.lines() {
                let word = line.split_whitespace().next().unwrap_or("");
                if let Ok(key) = word.parse::<PublicKey>() {
                    let name = keys.name(&key).expect("a listed key");
                    assert!(!name.is_empty() && !name.contains(char::is_control));
                }
            }
        }
        Err(error) => assert!(error.to_string().starts_with("line ")),
    }
}

thread_local! {
    static DIR: std::cell::RefCell<Option<tempfile::TempDir>> = const { std::cell::RefCell::new(None) };
}

fn set_mode(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Writes key pairs and reads them back. Files that other users can read or change, and files of
/// the wrong kind, must be refused. A list with fewer keys must be adopted only after the second
/// read.
fn pairs_and_lists(dir: &std::path::Path, text: &str) {
    let name: String = text.chars().filter(|c| !c.is_control()).take(40).collect();
    let secret = SecretKey::from_bytes([text.len() as u8 | 1; 32]);
    let path = dir.join("pair");
    let public = keyfile::public_path(&path);
    // Names that a list would read as limits must be refused.
    let name = match keyfile::public_line(&secret, &name) {
        Ok(_) => name.as_str(),
        Err(_) => "",
    };
    let line = keyfile::write_key_pair(&path, &secret, name, true).unwrap();
    assert_eq!(keyfile::public_line(&secret, name).as_ref(), Ok(&line));
    assert!(keyfile::write_key_pair(&path, &secret, "", false).is_err());
    let read = keyfile::read_secret_key(&path).unwrap();
    assert_eq!(read.public(), secret.public());
    let shown = public.to_str().unwrap();
    assert_eq!(keyfile::read_public_key(shown).unwrap(), secret.public());
    for wrong in [&public, &dir.to_path_buf(), &dir.join("none")] {
        assert!(keyfile::read_secret_key(wrong).is_err());
    }
    let as_text = secret.to_z85();
    for wrong in [as_text.as_str(), text.get(..20).unwrap_or("x")] {
        if let Err(error) = keyfile::read_secret_key(std::path::Path::new(wrong)) {
            assert!(!error.to_string().contains(as_text.as_str()));
        }
    }
    assert!(
        keyfile::read_public_key(path.to_str().unwrap()).is_err(),
        "a secret"
    );
    assert!(keyfile::read_public_key("neither").is_err());
    for mode in [0o640, 0o602] {
        set_mode(&path, mode);
        assert!(keyfile::read_secret_key(&path).is_err());
    }
    // Keys are revoked at the second read without them, and added at the first read with them.
    let other = SecretKey::from_bytes([0xFE; 32]).public();
    std::fs::write(&public, format!("{line}\n{other}\n")).unwrap();
    let mut list = keyfile::AuthorizedKeysFile::open(&public).unwrap();
    assert_eq!((list.path(), list.keys().len()), (public.as_path(), 2));
    std::fs::write(&public, format!("{other}\n")).unwrap();
    assert!(list.poll(false).unwrap().is_none());
    assert_eq!(list.poll(false).unwrap().unwrap().len(), 1);
    std::fs::write(&public, format!("{line}\n{other}\n")).unwrap();
    assert_eq!(list.poll(false).unwrap().unwrap().len(), 2);
    set_mode(&public, 0o666);
    assert!(list.poll(false).is_err());
    assert!(list.poll(false).unwrap().is_none(), "reported once");
    set_mode(&public, 0o644);
    std::fs::write(&public, [0xFF; 50]).unwrap();
    assert!(list.poll(true).is_err());
    std::fs::write(&path, vec![b'#'; 5000]).unwrap();
    set_mode(&path, 0o600);
    assert!(keyfile::read_secret_key(&path).is_err());
    let nowhere = dir.join("no folder/key");
    assert!(keyfile::write_key_pair(&nowhere, &secret, "", false).is_err());
}

/// Tests the same text as the content of key files.
fn files(text: &str) {
    use std::os::unix::fs::PermissionsExt;
    DIR.with_borrow_mut(|slot| {
        let dir = slot.get_or_insert_with(crate::memory_dir);
        // This needs several system calls, so it is not done for every text.
        if text.len() % 4 == 1 {
            pairs_and_lists(dir.path(), text);
        }
        let path = dir.path().join("key");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let shown = path.to_str().unwrap();
        match keyfile::read_secret_key(&path) {
            Ok(key) => assert!(text.contains(key.to_z85().as_str())),
            Err(error) => assert!(error.to_string().starts_with(shown)),
        }
        match keyfile::read_public_key(shown) {
            Ok(key) => assert!(text.contains(&key.to_string())),
            Err(error) => assert!(error.to_string().starts_with(shown)),
        }
        let listed = AuthorizedKeys::parse(text);
        match keyfile::AuthorizedKeysFile::open(&path) {
            Ok(mut file) => {
                assert_eq!(Ok(&*file.keys()), listed.as_ref());
                assert!(file.poll(true).unwrap().is_none());
                std::fs::write(&path, "nonsense").unwrap();
                assert!(file.poll(false).is_err());
                assert_eq!(Ok(&*file.keys()), listed.as_ref());
            }
            Err(error) => assert!(
                listed.is_err() || text.starts_with("# CURVE secret key of Casparian"),
                "{error}"
            ),
        }
        // A path that is also a valid key is read as a path if the file exists.
        let named = format!("{:a<40}", dir.path().join("k").display());
        if named.len() == 40 {
            let named = std::path::Path::new(&named);
            std::fs::write(named, text).unwrap();
            std::fs::set_permissions(named, std::fs::Permissions::from_mode(0o600)).unwrap();
            let error = keyfile::read_secret_key(named).err();
            let message = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(!message.contains("on a command line"), "{message}");
        }
    });
}
