//! Files of publishers' keys. A secret file contains one secret key and the publisher's name. Its
//! public file contains the line for the list of trusted publishers.

use std::path::Path;

use zeroize::Zeroizing;

use super::{Publisher, decode};
use crate::limits;
use crate::socket::secured::{
    KeyFileError, fail, key_lines, public_path, read, refuse_existing, write,
};

/// The comment that begins a secret file.
pub const SECRET_MARK: &str = limits::SECRET_KEY_MARKS[1];

/// Reads a secret key. A file that users other than its owner can read or write is refused.
pub fn read_publisher(path: &Path) -> Result<Publisher, KeyFileError> {
    let fail = fail(path);
    let (text, _) = read(path, 0o077, limits::KEY_FILE_SIZE_MAX)?;
    if !text.starts_with(SECRET_MARK) {
        return Err(fail(
            "is not the secret key of a publisher; `casparian keygen --publisher` makes one"
                .to_owned(),
        ));
    }
    let mut lines = key_lines(&text);
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Err(fail(
            "one line with a key and a name is expected".to_owned(),
        ));
    };
    let (key, name) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    // The error does not contain them, because each may be the secret itself.
    let secret = decode(key).map(Zeroizing::<[u8; 32]>::new);
    secret
        .and_then(|secret| Publisher::new(&secret, name.trim()))
        .ok_or_else(|| fail("its key or its name is not usable".to_owned()))
}

/// Creates a key pair: a secret file, readable only by its owner, and its public file. Existing files are
/// replaced only if `replace` is true. Returns the line of the public file.
pub fn write_publisher(path: &Path, name: &str, replace: bool) -> Result<String, KeyFileError> {
    let public = public_path(path);
    if !replace {
        refuse_existing(path, &public)?;
    }
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *secret)
        .map_err(|error| fail(path)(format!("the system has no randomness: {error}")))?;
    let publisher = Publisher::new(&secret, name)
        .ok_or_else(|| fail(path)("the publisher's name is not usable".to_owned()))?;
    // The buffer never grows, so no copy of the secret stays in freed memory.
    let mut text = Zeroizing::new(String::with_capacity(1024));
    text.push_str(SECRET_MARK);
    text.push_str(": a reader can sign in its owner's name.\n");
    for byte in secret.iter() {
        for digit in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(u32::from(digit), 16));
        }
    }
    text.push(' ');
    text.push_str(name);
    text.push('\n');
    let line = publisher.public_line();
    write(path, text.as_bytes(), 0o600, replace)?;
    write(&public, format!("{line}\n").as_bytes(), 0o644, replace)?;
    Ok(line)
}
