//! Long-term keys, their Z85 text (RFC 32), and the list of authorized keys.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use curve25519_dalek::{MontgomeryPoint, Scalar};
use zeroize::Zeroizing;

use super::{KEY_SIZE, random, wiping_stack};
use crate::zmtp::Error;

/// Length of a key as Z85 text, in characters.
const TEXT_SIZE: usize = 40;

/// Why a text is not a valid key or list of keys. No error contains a character of a key, because the
/// key may be secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// A key has 40 characters, this text another number.
    Length {
        /// The number of characters.
        characters: usize,
    },
    /// A character is not one of Z85 (RFC 32).
    Character {
        /// Its position, from 1.
        position: usize,
    },
    /// The text is no Z85.
    NotZ85,
    /// A public key of low order, with which anyone could compute the shared secrets.
    LowOrder,
    /// `slots=` without a whole number.
    Slots,
    /// `plugins=` without names.
    Plugins,
    /// `slots=` or `plugins=` twice in a line.
    LimitTwice,
    /// A word that resembles a limit but is none.
    NotALimit {
        /// The word.
        word: String,
    },
    /// A list contains a key twice.
    KeyTwice,
    /// A name that a list of keys would read otherwise.
    Name {
        /// The name.
        name: String,
    },
    /// A line of a list is wrong.
    Line {
        /// The number of the line, from 1.
        number: usize,
        /// What is wrong.
        error: Box<KeyError>,
    },
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::Length { characters } => write!(
                f,
                "a key is {TEXT_SIZE} characters of Z85, this is {characters}"
            ),
            KeyError::Character { position } => {
                write!(f, "character {position} is not one of Z85")
            }
            KeyError::NotZ85 => f.write_str("not the Z85 text of a key"),
            KeyError::LowOrder => f.write_str("no usable key: its order is low"),
            KeyError::Slots => f.write_str("slots= needs a whole number of jobs, such as slots=4"),
            KeyError::Plugins => {
                f.write_str("plugins= needs names with commas between them, such as plugins=a,b")
            }
            KeyError::LimitTwice => f.write_str("slots= or plugins= stands there twice"),
            KeyError::NotALimit { word } => write!(
                f,
                "{word} is no limit: slots=N and plugins=A,B are the last words of the line, in \
                 lower case and without spaces in them"
            ),
            KeyError::KeyTwice => f.write_str("the key stands there twice"),
            KeyError::Name { name } => write!(
                f,
                "{name:?} cannot be the name of a key: a list of authorized keys would read it \
                 otherwise (slots= and plugins= are limits there); give another --name"
            ),
            KeyError::Line { number, error } => write!(f, "line {number}: {error}"),
        }
    }
}

impl std::error::Error for KeyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            KeyError::Line { error, .. } => Some(&**error),
            _ => None,
        }
    }
}

/// A Curve25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_SIZE]);

impl PublicKey {
    /// The key with these 32 bytes.
    pub fn from_bytes(bytes: [u8; KEY_SIZE]) -> Self {
        PublicKey(bytes)
    }

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_SIZE] {
        &self.0
    }

    /// True for the low-order points of the curve, which include the all-zero key. Their shared
    /// secret with any secret key can be computed by anyone.
    pub fn is_low_order(&self) -> bool {
        (MontgomeryPoint(self.0) * Scalar::from(8u8)).0 == [0; KEY_SIZE]
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&z85::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let key = PublicKey(*decode(text)?);
        if key.is_low_order() {
            return Err(KeyError::LowOrder);
        }
        Ok(key)
    }
}

/// A Curve25519 secret key. It is never printed, and is wiped when its last clone is dropped.
///
/// Its bytes are in memory only once: clones share them, and moving a clone does not copy them.
#[derive(Clone)]
pub struct SecretKey {
    secret: Arc<Zeroizing<[u8; KEY_SIZE]>>,
    public: PublicKey,
}

impl SecretKey {
    /// A new key from the system's randomness.
    pub fn generate() -> Result<Self, Error> {
        wiping_stack(|| Self::made_by(|bytes| random(bytes)))
    }

    /// The key with these 32 bytes. The caller must wipe its own copies.
    pub fn from_bytes(bytes: [u8; KEY_SIZE]) -> Self {
        let bytes = Zeroizing::new(bytes);
        wiping_stack(|| Self::of(&bytes))
    }

    /// The key with a copy of these bytes.
    pub(super) fn of(bytes: &[u8; KEY_SIZE]) -> Self {
        let made: Result<_, Infallible> = Self::made_by(|target| {
            target.copy_from_slice(bytes);
            Ok(())
        });
        made.unwrap_or_else(|never| match never {})
    }

    fn made_by<E>(make: impl FnOnce(&mut [u8; KEY_SIZE]) -> Result<(), E>) -> Result<Self, E> {
        let mut secret = Arc::new(Zeroizing::new([0; KEY_SIZE]));
        // Always `Some`: the `Arc` is not shared yet.
        if let Some(bytes) = Arc::get_mut(&mut secret) {
            make(bytes)?;
        }
        let public = PublicKey(MontgomeryPoint::mul_base_clamped(**secret).0);
        Ok(SecretKey { secret, public })
    }

    pub(super) fn as_bytes(&self) -> &[u8; KEY_SIZE] {
        &self.secret
    }

    /// The public key of this secret key.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Its Z85 text, to be written into a key file.
    pub fn to_z85(&self) -> Zeroizing<String> {
        Zeroizing::new(z85::encode(self.secret.as_slice()))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        wiping_stack(|| decode(text).map(|bytes| SecretKey::of(&bytes)))
    }
}

fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_SIZE]>, KeyError> {
    if text.len() != TEXT_SIZE {
        let characters = text.chars().count();
        return Err(KeyError::Length { characters });
    }
    // The text may be a secret, so the error has the position of the wrong character, but not the
    // character.
    let bytes = Zeroizing::new(z85::decode(text).map_err(|error| match error {
        z85::DecodeError::InvalidByte(at, _) => KeyError::Character { position: at + 1 },
        _ => KeyError::NotZ85,
    })?);
    let mut key = Zeroizing::new([0; KEY_SIZE]);
    if bytes.len() != KEY_SIZE {
        return Err(KeyError::NotZ85);
    }
    key.copy_from_slice(&bytes);
    Ok(key)
}

/// Limits for the workers of a key. `None`: no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Maximum number of slots of all its workers together.
    pub slots: Option<usize>,
    /// The plugins that they may run.
    pub plugins: Option<Vec<String>>,
}

impl KeyLimits {
    /// Parses the limits at the end of a line; returns also the text before them.
    fn parse(mut text: &str) -> Result<(Self, &str), KeyError> {
        let mut limits = KeyLimits::default();
        loop {
            let (before, word) = text.rsplit_once(char::is_whitespace).unwrap_or(("", text));
            let is_twice = match word.split_once('=') {
                Some(("slots", count)) => {
                    let count = count.parse().map_err(|_| KeyError::Slots)?;
                    limits.slots.replace(count).is_some()
                }
                Some(("plugins", names)) => {
                    let names: Vec<String> = names.split(',').map(str::to_owned).collect();
                    if names.iter().any(String::is_empty) {
                        return Err(KeyError::Plugins);
                    }
                    limits.plugins.replace(names).is_some()
                }
                _ => break,
            };
            if is_twice {
                return Err(KeyError::LimitTwice);
            }
            text = before.trim_end();
        }
        // A misspelled limit must not become a part of the name, because the key would have no
        // limit then.
        let is_limit = |word: &str| {
            let word = word.to_ascii_lowercase();
            let name = word.split('=').next().unwrap_or_default();
            word.contains('=') && ["", "slot", "plugin"].contains(&name.trim_end_matches('s'))
        };
        match text.split_whitespace().find(|word| is_limit(word)) {
            Some(word) => Err(KeyError::NotALimit {
                word: word.to_owned(),
            }),
            None => Ok((limits, text)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    limits: KeyLimits,
}

/// The clients that may connect: public keys, with their user names and limits.
///
/// Each line of the text has a key and an optional name, separated by white space. The words
/// `slots=4` and `plugins=a,b` at the end of a line are limits. Empty lines, lines that begin with
/// `# `, and lines that consist of `#` are skipped. (A key may also begin with `#`, but contains no
/// space.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthorizedKeys {
    keys: BTreeMap<PublicKey, Entry>,
}

impl AuthorizedKeys {
    /// Parses a list. An error contains the line number.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut keys = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line == "#" || line.starts_with("# ") {
                continue;
            }
            let fail = |error| KeyError::Line {
                number: index + 1,
                error: Box::new(error),
            };
            let (key, name) = match line.split_once(char::is_whitespace) {
                Some((key, name)) => (key, name.trim()),
                None => (line, ""),
            };
            let key: PublicKey = key.parse().map_err(fail)?;
            let (limits, name) = KeyLimits::parse(name).map_err(fail)?;
            let shown = name.chars().filter(|c| !c.is_control()).take(255);
            let mut name: String = shown.collect();
            if name.is_empty() {
                name = key.to_string();
            }
            if keys.insert(key, Entry { name, limits }).is_some() {
                return Err(fail(KeyError::KeyTwice));
            }
        }
        Ok(AuthorizedKeys { keys })
    }

    /// The name of a listed key.
    pub fn name(&self, key: &PublicKey) -> Option<&str> {
        self.keys.get(key).map(|entry| entry.name.as_str())
    }

    /// Names that several keys have, sorted. Keys with the same name are one user.
    pub fn shared_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .keys
            .values()
            .map(|entry| entry.name.as_str())
            .collect();
        names.sort_unstable();
        let mut shared: Vec<&str> = names
            .windows(2)
            .filter_map(|pair| match pair {
                [one, other] if one == other => Some(*one),
                _ => None,
            })
            .collect();
        shared.dedup();
        shared
    }

    /// The keys that have limits.
    pub fn limited(&self) -> impl Iterator<Item = (&PublicKey, &KeyLimits)> {
        let all = self.keys.iter().map(|(key, entry)| (key, &entry.limits));
        all.filter(|(_, limits)| **limits != KeyLimits::default())
    }

    /// Whether this list contains every key of the other list.
    pub(crate) fn has_all_of(&self, other: &AuthorizedKeys) -> bool {
        other.keys.keys().all(|key| self.keys.contains_key(key))
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// True when no peer may connect.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl FromIterator<(PublicKey, String)> for AuthorizedKeys {
    fn from_iter<I: IntoIterator<Item = (PublicKey, String)>>(keys: I) -> Self {
        AuthorizedKeys {
            keys: keys
                .into_iter()
                .map(|(key, name)| {
                    let limits = KeyLimits::default();
                    (key, Entry { name, limits })
                })
                .collect(),
        }
    }
}
