//! What a plugin process sends: frames in any split, and Arrow IPC with hostile lengths and offsets. An
//! error is fine; a panic that gets out, a read out of bounds or a huge allocation is not.

use std::io::{self, Read};

use arrow::array::Array;
use casparian::plugin::bridge::{BridgeReader, Step, decode};

/// Gives so many bytes a read, and blocks between reads.
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

/// How it ended: the frames' rows, and how the reader ended.
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
                            // Everything that is reached from a column is within its buffers.
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
            Ok(Step::More | Step::Blocked) => {}
            Err(error) => return (frames, format!("error {error}")),
        }
    }
}

pub fn run(data: &[u8]) {
    // arrow's reader panics on some inputs; that is contained, and not to be printed each time.
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
