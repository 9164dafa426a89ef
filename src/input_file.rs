//! Opens, reads and hashes inputs. Their storage may not respond, so a thread of its own calls this.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use rustix::path::Arg;
use sha2::{Digest, Sha256};

use crate::job::text::hex;

/// Opens a regular file. Anything else is refused at once, because a FIFO or a device could block.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    regular(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// Opens a regular file of a folder, never through a symbolic link.
pub(crate) fn open_at(folder: impl AsFd, name: impl Arg) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(folder, name, flags | OFlags::NOFOLLOW, Mode::empty());
    regular(File::from(file?))
}

/// The text of a file of at most `size_max` bytes.
pub(crate) fn text(file: File, size_max: usize) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(size_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > size_max {
        let reason = format!("it has more than {size_max} bytes");
        return Err(io::Error::other(reason));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))
}

fn regular(file: File) -> io::Result<File> {
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

/// The reason why [`hash`] has no result for a file.
pub(crate) const CHANGED: &str = "it changed while it was read";

/// The size of a file's content in bytes and its SHA-256 in hex. None where the file grows meanwhile, because
/// it may grow as fast as it is read. Ends with an error when `goes_on`, called before each read, returns
/// false.
pub(crate) fn hash(
    file: &mut File,
    goes_on: impl Fn() -> bool,
) -> io::Result<Option<(u64, String)>> {
    let mut hasher = Sha256::new();
    let mut space = vec![0u8; 256 << 10];
    let mut size_bytes = 0;
    let size_before = file.metadata()?.len();
    loop {
        if !goes_on() {
            return Err(io::Error::other("interrupted"));
        }
        match file.read(&mut space)? {
            0 => return Ok(Some((size_bytes, hex(&hasher.finalize())))),
            count => {
                hasher.update(space.get(..count).unwrap_or(&[]));
                size_bytes += count as u64;
            }
        }
        // Files with generated content, as in /proc, are larger than their reported size.
        if size_bytes > size_before && file.metadata()?.len() != size_before {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_grows_as_fast_as_it_is_read_has_no_hash() {
        const STEP: u64 = 1 << 20;
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(STEP).unwrap();
        let steps = std::cell::Cell::new(0);
        let hashed = hash(&mut open(file.path()).unwrap(), || {
            steps.set(steps.get() + 1);
            file.as_file().set_len(STEP * (1 + steps.get())).unwrap();
            steps.get() < 100
        });
        assert_eq!(hashed.unwrap(), None);
    }

    #[test]
    fn a_file_of_unknown_size_is_hashed_whole() {
        let path = Path::new("/proc/self/limits");
        assert_eq!(std::fs::metadata(path).unwrap().len(), 0);
        let (size, _) = hash(&mut open(path).unwrap(), || true).unwrap().unwrap();
        assert!(size > 0);
    }
}
