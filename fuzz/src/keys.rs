//! Z85 keys and lists of authorized keys: what is parsed is shown and parsed to the same, and an
//! error never shows a secret.

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
