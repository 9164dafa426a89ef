//! Who a peer has proved to be.

/// A user: a CURVE key with the name that the list of authorized keys gives it, or a PLAIN user
/// name. The same key or the same name is the same user, so that a key may get another name and a
/// name another key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The public key as Z85 text; none with PLAIN.
    pub key: Option<String>,
    /// The name.
    pub name: String,
}

/// Characters of a CURVE key as text.
const KEY_TEXT_SIZE: usize = 40;

impl User {
    /// The user of a text as the socket gives it: a key and a name with a
    /// space between, or a name alone.
    pub fn parse(text: &str) -> Self {
        match text.split_once(' ') {
            Some((key, name)) if key.len() == KEY_TEXT_SIZE => User {
                key: Some(key.to_owned()),
                name: name.to_owned(),
            },
            _ => User {
                key: None,
                name: text.to_owned(),
            },
        }
    }

    /// True when both are one user.
    pub fn is(&self, other: &User) -> bool {
        match (&self.key, &other.key) {
            (Some(key), Some(other_key)) => key == other_key || self.name == other.name,
            (None, None) => self.name == other.name,
            _ => false,
        }
    }
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.key {
            Some(key) => write!(f, "{key} {}", self.name),
            None => f.write_str(&self.name),
        }
    }
}
