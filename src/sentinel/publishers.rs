//! Publishers, whose plugins clients may deploy over the wire: their Ed25519 keys (RFC 8032), and the
//! verification of their signatures.
//!
//! A signature is over the 32 bytes of `artifact_hash`, the SHA-256 of source and lockfile. It is
//! verified strictly: no key or point of small order, no second form of a number. A key is valid only for
//! the name that follows it in the list.
//!
//! Keys and signatures are text: hexadecimal, which this module writes, or Base64.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use crate::job::text;
use crate::limits;
use crate::socket::secured::{KeyList, KeyListFile};

mod files;

pub use files::{SECRET_MARK, read_publisher, write_publisher};

/// A file with trusted publishers, which is polled for changes.
pub type PublishersFile = KeyListFile<Publishers>;

/// The bytes of a hexadecimal or Base64 text, if there are `N` of them.
fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() == 2 * N {
        let mut bytes = [0; N];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let [high, low] = pair else { return None };
            let digit = |digit: &u8| char::from(*digit).to_digit(16);
            *byte = u8::try_from(digit(high)? << 4 | digit(low)?).ok()?;
        }
        return Some(bytes);
    }
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    // Longer texts are not decoded.
    let fits = text.len() <= N.div_ceil(3) * 4;
    let decoded = fits.then(|| GeneralPurpose::new(&STANDARD, config).decode(text));
    decoded?.ok()?.try_into().ok()
}

/// The bytes of a SHA-256 as hexadecimal text.
pub(super) fn decode_hash(text: &str) -> Option<[u8; 32]> {
    let is_hex = text.len() == 64;
    is_hex.then(|| decode(text)).flatten()
}

/// True for a valid name in a list: not empty, one line, no blanks at its ends.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= limits::NAME_SIZE_MAX
        && name.trim() == name
        && !name.contains(char::is_control)
}

/// Parses a publisher's public key in a list. The error is the reason why it is invalid.
fn public_key(text: &str) -> Result<VerifyingKey, String> {
    let bytes: [u8; 32] = decode(text).ok_or_else(|| {
        format!(
            "a publisher's key is 64 hexadecimal digits or Base64 of 32 bytes, this is {} characters",
            text.chars().count()
        )
    })?;
    let key = VerifyingKey::from_bytes(&bytes).map_err(|_| "no Ed25519 public key".to_owned())?;
    let is_canonical = key.to_edwards().compress().to_bytes() == bytes;
    match key.is_weak() || !is_canonical {
        true => Err(
            "no usable Ed25519 public key: its order is small, or it has another form".to_owned(),
        ),
        false => Ok(key),
    }
}

/// A publisher's secret key and name. The key is never printed, and is wiped when it is dropped.
pub struct Publisher {
    key: SigningKey,
    name: String,
}

impl Publisher {
    /// A publisher with this secret key of 32 bytes. None when [`is_name`] refuses the name.
    pub fn new(secret: &[u8; 32], name: &str) -> Option<Self> {
        is_name(name).then(|| Publisher {
            key: SigningKey::from_bytes(secret),
            name: name.to_owned(),
        })
    }

    /// The publisher's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `KEY NAME`, the line of a public file and of a list of trusted publishers.
    pub fn public_line(&self) -> String {
        let key = self.key.verifying_key();
        format!("{} {}", text::hex(key.as_bytes()), self.name)
    }

    /// The signature over an artifact hash, as text. None when the hash is no SHA-256.
    pub fn sign(&self, artifact_hash: &str) -> Option<String> {
        let hash = decode_hash(artifact_hash)?;
        Some(text::hex(&self.key.sign(&hash).to_bytes()))
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Trusted publishers: names with their keys. The text of a list has a key and a name in each line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publishers {
    keys: BTreeMap<String, Vec<VerifyingKey>>,
}

impl Publishers {
    /// Number of keys.
    pub fn len(&self) -> usize {
        self.keys.values().map(Vec::len).sum()
    }

    /// True when no publisher is trusted.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl KeyList for Publishers {
    const SECRET_MARK: &'static str = SECRET_MARK;

    fn parse(text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut list = Publishers::default();
        let mut seen = std::collections::BTreeSet::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fail = |what: String| format!("line {}: {what}", index + 1);
            let (key, name) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let key = public_key(key).map_err(fail)?;
            let name = name.trim();
            if !is_name(name) {
                return Err(fail("a key and the publisher's name are expected".to_owned()).into());
            }
            if !seen.insert(key.to_bytes()) {
                return Err(fail("the key is listed there twice".to_owned()).into());
            }
            let keys = list.keys.entry(name.to_owned()).or_default();
            keys.push(key);
            // A signature is verified with each of them.
            if keys.len() > limits::PUBLISHER_KEYS_MAX {
                let most = limits::PUBLISHER_KEYS_MAX;
                return Err(fail(format!("{name} has more than {most} keys")).into());
            }
        }
        Ok(list)
    }

    fn has_all_of(&self, other: &Self) -> bool {
        other.keys.iter().all(|(name, theirs)| {
            let ours = self.keys.get(name);
            theirs
                .iter()
                .all(|key| ours.is_some_and(|ours| ours.contains(key)))
        })
    }
}

/// Which deployments over the wire are accepted. By default none.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The trusted publishers. None = there is no list.
    pub publishers: Option<Arc<Publishers>>,
    /// Deployments without a signature of a listed publisher are accepted, too.
    pub allow_unsigned: bool,
}

impl Trust {
    /// True when any deployments can be accepted.
    pub fn takes_any(&self) -> bool {
        self.publishers.is_some() || self.allow_unsigned
    }

    /// Checks the publisher of a deployment. Returns the verified signature of a listed publisher in
    /// hexadecimal form, or none where unsigned deployments are allowed. The error is the reason why it is
    /// refused.
    pub fn check(
        &self,
        name: &str,
        artifact_hash: &[u8; 32],
        signature: &str,
    ) -> Result<Option<String>, String> {
        let listed = self
            .publishers
            .as_ref()
            .and_then(|list| list.keys.get(name));
        let Some(keys) = listed else {
            return match self.allow_unsigned {
                true => Ok(None),
                false => Err(format!(
                    "{name:?} is not one of the sentinel's trusted publishers"
                )),
            };
        };
        // The name of a listed publisher always requires a signature, also where unsigned deployments are
        // allowed.
        if signature.is_empty() {
            return Err(format!(
                "{name:?} is a trusted publisher, and its signature is missing"
            ));
        }
        let bytes: [u8; 64] = decode(signature)
            .ok_or("the signature is not 64 bytes as hexadecimal or Base64 text")?;
        let parsed = Signature::from_bytes(&bytes);
        let is_theirs = |key: &&VerifyingKey| key.verify_strict(artifact_hash, &parsed).is_ok();
        match keys.iter().find(is_theirs) {
            Some(_) => Ok(Some(text::hex(&bytes))),
            None => Err(format!(
                "the signature is not one by {name:?} over the 32 bytes of artifact_hash"
            )),
        }
    }
}

#[cfg(test)]
mod tests;
