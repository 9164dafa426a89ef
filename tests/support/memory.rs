//! Whether secrets stand in the memory of a process.

use std::io::BufRead;
use std::os::unix::fs::FileExt;

use zeroize::Zeroize;

/// Bytes to look for which do not stand in our own memory while we look.
pub(crate) struct Needle(Vec<u8>);

impl Needle {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Needle(bytes.iter().map(|byte| !byte).collect())
    }

    fn count(&self, bytes: &[u8]) -> usize {
        let (mut count, mut end, mut rest) = (0, 0, bytes);
        // The standard library's search is optimised where this program is not.
        while let Ok(passed @ 1..) = rest.skip_until(!self.0[0]) {
            end += passed;
            let candidate = bytes.get(end - 1..end - 1 + self.0.len());
            count += usize::from(candidate.is_some_and(|candidate| {
                let masked = candidate.iter().map(|byte| !byte);
                masked.eq(self.0.iter().copied())
            }));
        }
        count
    }

    /// How often they stand in what a process may write to.
    pub(crate) fn copies(&self, pid: u32) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
        let (mut count, mut looked_at) = (0, 0);
        let mut buffer = vec![0; 1 << 20];
        for line in maps.lines() {
            let mut fields = line.split_whitespace();
            let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
            if !rights.starts_with("rw") {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap());
            let mut at = start;
            while at < end {
                // What we read into is ours, and holds copies of what we have just read.
                let own = buffer.as_ptr() as u64;
                if (own..own + buffer.len() as u64).contains(&at) {
                    at = own + buffer.len() as u64;
                    continue;
                }
                let stop = if at < own { end.min(own) } else { end };
                let size = buffer.len().min((stop - at) as usize);
                // A region that is gone, or is none of the process's own.
                let Ok(size) = memory.read_at(&mut buffer[..size], at) else {
                    break;
                };
                count += self.count(&buffer[..size]);
                looked_at += size;
                // The next piece begins with what may have been cut.
                at += match at + size as u64 == stop || size < self.0.len() {
                    true => size.max(1),
                    false => size - self.0.len() + 1,
                } as u64;
            }
        }
        buffer.zeroize();
        assert!(looked_at > 100_000, "{looked_at} bytes of memory");
        count
    }
}
