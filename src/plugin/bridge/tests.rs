//! Unit tests of `bridge.rs`.

use super::*;

/// Returns at most `step` bytes per read, and would block at every second read.
struct Chunks<'a> {
    bytes: &'a [u8],
    step: usize,
    block: bool,
}

impl Read for Chunks<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.block = !self.block;
        if self.block {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self.step.min(into.len()).min(self.bytes.len());
        into[..count].copy_from_slice(&self.bytes[..count]);
        self.bytes = &self.bytes[count..];
        Ok(count)
    }
}

#[derive(Debug, PartialEq)]
struct Seen {
    rows: usize,
    frames: usize,
    end: String,
}

fn read_all(bytes: &[u8], step: usize) -> Seen {
    let mut reader = BridgeReader::default();
    let mut from = Chunks {
        bytes,
        step,
        block: true,
    };
    let mut seen = Seen {
        rows: 0,
        frames: 0,
        end: String::new(),
    };
    loop {
        match reader.read(&mut from) {
            Ok(Step::Frame(frame)) => match decode(frame) {
                Ok(decoded) => {
                    seen.frames += 1;
                    seen.rows += decoded.batches.iter().map(|b| b.num_rows()).sum::<usize>();
                }
                Err(error) => seen.end = error.to_string(),
            },
            Ok(Step::End) => {
                return Seen {
                    end: "end".into(),
                    ..seen
                };
            }
            Ok(Step::Failure(text)) => return Seen { end: text, ..seen },
            Ok(Step::Input(_) | Step::Blocked | Step::More) => {}
            Err(error) => {
                return Seen {
                    end: error.to_string(),
                    ..seen
                };
            }
        }
    }
}

#[test]
fn captures_of_the_reference_decode_at_every_split() {
    let cases = [
        ("three_rows", 3, 1, "end"),
        ("two_batches_strings_nulls", 4, 2, "end"),
        ("pandas_frame", 1, 1, "end"),
        ("no_output", 0, 0, "end"),
        ("error_after_one_batch", 1, 1, "bad row 17"),
        ("dictionary_column", 3, 1, "end"),
        ("schema_changes", 2, 2, "end"),
    ];
    for (name, rows, frames, end) in cases {
        let path = format!(
            "{}/tests/data/bridge/{name}.bin",
            env!("CARGO_MANIFEST_DIR")
        );
        let bytes = std::fs::read(&path).expect("tests/data/bridge is in the repository");
        let want = Seen {
            rows,
            frames,
            end: end.to_owned(),
        };
        for step in [1, 2, 3, 5, 7, 64, 1000, usize::MAX] {
            assert_eq!(read_all(&bytes, step), want, "{name} by {step}");
        }
        // A truncated stream is never taken for complete.
        let whole = bytes.len() - if end == "end" { 0 } else { 4 };
        for cut in 0..whole {
            let seen = read_all(&bytes[..cut], usize::MAX);
            assert!(
                seen.end.contains("without an end of output"),
                "{name} cut at {cut}"
            );
        }
    }
}

#[test]
fn the_state_of_the_input_is_read_at_every_split() {
    let mut bytes = INPUT.to_be_bytes().to_vec();
    for value in [1, 2, 3, -4, 5, 6, i64::MIN] {
        bytes.extend(value.to_be_bytes());
    }
    bytes.extend(0u32.to_be_bytes());
    for step in 1..=bytes.len() {
        let mut reader = BridgeReader::default();
        let mut from = Chunks {
            bytes: &bytes,
            step,
            block: true,
        };
        let mut steps = std::iter::from_fn(|| {
            loop {
                match reader.read(&mut from).unwrap() {
                    Step::Blocked | Step::More => {}
                    step => return Some(step),
                }
            }
        });
        let Some(Step::Input(found)) = steps.next() else {
            panic!("no state of the input");
        };
        let expected = InputState {
            device: 1,
            inode: 2,
            size: 3,
            mtime_ns: -4,
            ctime_ns: 5,
            mode: 6,
            links: 1 << 63,
        };
        assert_eq!(found, expected);
        assert!(matches!(steps.next(), Some(Step::End)));
    }
}

#[test]
fn hostile_frames_are_errors() {
    let path = format!(
        "{}/tests/data/bridge/three_rows.bin",
        env!("CARGO_MANIFEST_DIR")
    );
    let good = std::fs::read(path).unwrap();
    let body = &good[4..good.len() - 4];
    let mut refused = 0;
    for at in 0..body.len() {
        for value in [0x00, 0x7F, 0x80, 0xFF] {
            let mut bytes = body.to_vec();
            bytes[at] = value;
            let decoded = match decode(Buffer::from_vec(bytes)) {
                Ok(decoded) => decoded,
                Err(error) => {
                    refused += 1;
                    let text = error.to_string();
                    let named = ["no Arrow stream", "no valid Arrow data", "the limit is"];
                    assert!(named.iter().any(|words| text.contains(words)), "{text}");
                    continue;
                }
            };
            // Other values, but valid ones.
            for batch in &decoded.batches {
                assert!(batch.num_rows() <= limits::BRIDGE_BATCH_ROWS_MAX, "{at}");
                for column in batch.columns() {
                    column.to_data().validate_full().unwrap();
                }
            }
        }
    }
    assert!(refused > body.len(), "{refused} of {}", 4 * body.len());
    let mut trailing = body.to_vec();
    trailing.extend([1, 2, 3]);
    assert!(decode(Buffer::from_vec(trailing)).is_err());
    assert!(decode(Buffer::from_vec(vec![9u8; 100])).is_err());
    let huge = read_all(&(INPUT - 1).to_be_bytes(), 1);
    assert!(huge.end.contains("limit"), "{huge:?}");
    // A declared gigabyte is not allocated before it arrives.
    let mut reader = BridgeReader::default();
    let declared = limits::BRIDGE_FRAME_SIZE_MAX.to_be_bytes();
    let mut from = Chunks {
        bytes: &declared,
        step: 4,
        block: true,
    };
    while !matches!(reader.state, State::Body) {
        reader.read(&mut from).unwrap();
    }
    assert!(reader.body.capacity() <= 2 * BODY_STEP);
}
