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
            // Names of PLAIN, which have no key before them.
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
