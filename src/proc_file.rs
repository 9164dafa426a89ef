//! Files of `/proc` that contain the name of a process. A process may give itself any bytes as its name
//! (`PR_SET_NAME`).

use std::io;
use std::path::Path;

/// The text of such a file. Bytes of a name that are not UTF-8 are replaced.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let bytes = std::fs::read(path)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
