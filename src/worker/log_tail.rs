//! The last bytes that a plugin process printed.

use std::collections::VecDeque;
use std::io::{self, Read};

use mio::unix::pipe::Receiver;

use crate::limits;

/// A pipe of the plugin process, and the last bytes read from it.
#[derive(Debug)]
pub(super) struct LogTail {
    pipe: Option<Receiver>,
    tail: VecDeque<u8>,
    cut: bool,
    size: u64,
}

impl LogTail {
    pub(super) fn new(pipe: Option<Receiver>) -> Self {
        LogTail {
            pipe,
            tail: VecDeque::new(),
            cut: false,
            size: 0,
        }
    }

    pub(super) fn pipe(&mut self) -> Option<&mut Receiver> {
        self.pipe.as_mut()
    }

    /// Reads available bytes. Returns true if its limit of reads was reached before the pipe was empty.
    pub(super) fn read(&mut self) -> bool {
        let mut space = [0u8; 16 << 10];
        for _ in 0..limits::LOG_READS_PER_ITERATION {
            let Some(pipe) = &mut self.pipe else {
                return false;
            };
            match pipe.read(&mut space) {
                Ok(0) => self.pipe = None,
                Ok(count) => self.keep(space.get(..count).unwrap_or(&[])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.pipe = None,
            }
        }
        true
    }

    /// Number of bytes received.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.size = self.size.saturating_add(bytes.len() as u64);
        self.tail.extend(bytes);
        let over = self.tail.len().saturating_sub(limits::LOG_TAIL_SIZE_MAX);
        if over > 0 {
            self.tail.drain(..over);
            self.cut = true;
        }
    }

    /// The text. If bytes were dropped, it begins with the first complete line.
    pub(super) fn text(&self) -> String {
        let (first, second) = self.tail.as_slices();
        let bytes = [first, second].concat();
        let text = String::from_utf8_lossy(&bytes);
        match (self.cut, text.split_once('\n')) {
            (true, Some((_, rest))) => format!("…\n{rest}"),
            _ => text.into_owned(),
        }
    }
}
