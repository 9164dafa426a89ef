//! Bytes from a plugin process: frames in any split, and Arrow IPC with hostile lengths and
//! offsets. Errors are allowed. Uncaught panics, reads out of bounds and huge allocations are not.

use std::io::{self, Read};

use arrow::array::Array;
use casparian::plugin::bridge::{BridgeReader, Step, decode};

/// Returns at most `size` bytes for each read, and `WouldBlock` between reads.
struct Pieces<'a> {
    bytes: &'a [u8],
    size: usize,
    blocks: bool,
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.blocks = !self.blocks;
        if self.blocks {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self.size.min(into.len()).min(self.bytes.len());
        into[..count].copy_from_slice(&self.bytes[..count]);
        self.bytes = &self.bytes[count..];
        Ok(count)
    }
}

/// Reads all frames; returns the number of rows of each frame, and how the reader ended.
fn read_all(bytes: &[u8], size: usize) -> (Vec<Option<usize>>, String) {
    let mut reader = BridgeReader::default();
    let mut from = Pieces {
        bytes,
        size,
        blocks: false,
    };
    let mut frames = Vec::new();
    loop {
        match reader.read(&mut from) {
            Ok(Step::Frame(frame)) => {
                let decoded = decode(frame);
                if let Err(error) = &decoded {
                    assert!(!error.to_string().is_empty());
                }
                let rows = decoded.ok().map(|decoded| {
                    for batch in &decoded.batches {
                        for column in batch.columns() {
                            // All offsets of a column must be within its buffers.
                            column.to_data().validate_full().expect("a valid column");
                        }
                    }
                    decoded.batches.iter().map(|batch| batch.num_rows()).sum()
                });
                frames.push(rows);
            }
            Ok(end @ (Step::End | Step::Failure(_))) => {
                assert!(matches!(reader.read(&mut from), Ok(Step::Blocked)));
                return (frames, format!("{end:?}"));
            }
            Ok(Step::Input(_) | Step::More | Step::Blocked) => {}
            Err(error) => return (frames, format!("error {error}")),
        }
    }
}

pub fn run(data: &[u8]) {
    // arrow's reader panics on some inputs. These panics are caught, so they are not printed.
    static QUIET: std::sync::Once = std::sync::Once::new();
    QUIET.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let from = info.location().map(|at| at.file()).unwrap_or("");
            if !from.contains("/arrow-")
                && !from.contains("/flatbuffers-")
                && !from.contains("/library/")
            {
                before(info);
            }
        }));
    });
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    let whole = read_all(bytes, usize::MAX);
    let split = read_all(bytes, usize::from(*choice) + 1);
    assert_eq!(whole, split);
}
