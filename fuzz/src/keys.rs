//! Z85 keys and lists of authorized keys: what is parsed is shown and parsed to the same, and an
//! error never shows a secret.

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
            let said = error.to_string();
            // Words of the message itself have spaces between them, or are short.
            assert!(text.len() < 20 || text.contains(' ') || !said.contains(text));
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

/// The same text in files.
fn files(text: &str) {
    use std::os::unix::fs::PermissionsExt;
    DIR.with_borrow_mut(|slot| {
        let dir = slot.get_or_insert_with(crate::memory_dir);
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
                assert!(file.look(true).unwrap().is_none());
                std::fs::write(&path, "nonsense").unwrap();
                assert!(file.look(false).is_err());
                assert_eq!(Ok(&*file.keys()), listed.as_ref());
            }
            Err(error) => assert!(
                listed.is_err() || text.starts_with("# CURVE secret key of Casparian"),
                "{error}"
            ),
        }
        // A path that looks like a key is a path as long as there is such a file.
        let named = format!("{:a<40}", dir.path().join("k").display());
        if named.len() == 40 {
            let named = std::path::Path::new(&named);
            std::fs::write(named, text).unwrap();
            std::fs::set_permissions(named, std::fs::Permissions::from_mode(0o600)).unwrap();
            let error = keyfile::read_secret_key(named).err();
            let said = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(!said.contains("on a command line"), "{said}");
        }
    });
}
