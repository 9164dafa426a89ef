//! Files that are inputs, read by a thread whose storage may not respond.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use crate::job::text;

/// Opens a regular file. Anything else is refused at once: a FIFO or a device would be waited for.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

/// The size of a file's content and its SHA-256 in hex. `goes_on` is asked before each step.
pub(crate) fn hash(file: &mut File, goes_on: impl Fn() -> bool) -> io::Result<(u64, String)> {
    let mut hasher = Sha256::new();
    let mut space = vec![0u8; 256 << 10];
    let mut size_bytes = 0;
    loop {
        if !goes_on() {
            return Err(io::Error::other("interrupted"));
        }
        match file.read(&mut space)? {
            0 => return Ok((size_bytes, text::hex(&hasher.finalize()))),
            count => {
                hasher.update(space.get(..count).unwrap_or(&[]));
                size_bytes += count as u64;
            }
        }
    }
}
