//! The authenticated user of a peer.

/// A user: a CURVE key with its name in the list of authorized keys, or a PLAIN user name. The same
/// key or the same name is the same user. So an operator can rename a key, or give a name another
/// key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The public key as Z85 text; `None` with PLAIN.
    pub key: Option<String>,
    /// The name.
    pub name: String,
}

/// Length of a CURVE key as Z85 text, in characters.
const KEY_TEXT_SIZE: usize = 40;

impl User {
    /// Parses the text of [`Socket::user`](crate::socket::Socket::user): a key and a name,
    /// separated by a space, or only a name.
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

    /// True if both are the same user.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_the_same_by_key_or_by_name() {
        let key = |digit: &str, name: &str| format!("{} {name}", digit.repeat(40));
        for (one, other, same) in [
            (key("1", "ann"), key("1", "anne"), true),
            (key("1", "ann"), key("3", "ann"), true),
            (key("1", "ann"), key("2", "bob"), false),
            // PLAIN user names, without a key.
            ("bob ops".to_owned(), "eve ops".to_owned(), false),
            ("bob ops".to_owned(), "bob dev".to_owned(), false),
            ("bob ops".to_owned(), "bob ops".to_owned(), true),
            ("ann".to_owned(), key("1", "ann"), false),
        ] {
            let users = (User::parse(&one), User::parse(&other));
            assert_eq!(users.0.is(&users.1), same, "{one} {other}");
            assert_eq!(users.0.to_string(), one);
        }
    }
}
