//! Frame heads (RFC 37 §3.3): a flags byte and a length of one or eight bytes.

use byteorder::{BigEndian, ByteOrder};

use super::Error;

/// Flag MORE: another frame of the same message follows.
pub(crate) const MORE: u8 = 0b001;
/// Flag LONG: the length has eight bytes.
pub(crate) const LONG: u8 = 0b010;
/// Flag COMMAND: the body is a command.
pub(crate) const COMMAND: u8 = 0b100;

/// Size of the smallest frame, in bytes.
pub(super) const FRAME_SIZE_MIN: usize = 2;

/// A decoded frame head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Another frame of this message follows.
    pub more: bool,
    /// The body is a command.
    pub command: bool,
    /// Size of the head, in bytes: 2 or 9.
    pub head_size: usize,
    /// Size of the body, in bytes.
    pub body_size: u64,
}

// Copied for each frame.
const _: () = assert!(size_of::<Head>() <= 24);

/// Result of [`Head::decode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadResult {
    /// The bytes are fewer than a head has.
    Incomplete,
    /// A head.
    Head(Head),
}

impl Head {
    /// Decodes the head at the start of `bytes`. A long head with a short length is legal.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<HeadResult, Error> {
        let Some((&flags, rest)) = bytes.split_first() else {
            return Ok(HeadResult::Incomplete);
        };
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(Error::ReservedFlags { flags });
        }
        if flags & (MORE | COMMAND) == MORE | COMMAND {
            return Err(Error::CommandWithMore);
        }
        let (head_size, body_size) = if flags & LONG == 0 {
            match rest.first() {
                Some(&size) => (2, u64::from(size)),
                None => return Ok(HeadResult::Incomplete),
            }
        } else {
            match rest.first_chunk::<8>() {
                Some(size) => (9, BigEndian::read_u64(size)),
                None => return Ok(HeadResult::Incomplete),
            }
        };
        // RFC 37: the most significant bit of a long length is zero.
        if body_size > i64::MAX as u64 {
            return Err(Error::FrameTooLarge {
                size: body_size,
                limit: i64::MAX as u64,
            });
        }
        Ok(HeadResult::Head(Head {
            more: flags & MORE != 0,
            command: flags & COMMAND != 0,
            head_size,
            body_size,
        }))
    }

    /// The body's size as a length in memory. A body too large for memory has `usize::MAX`, which no buffer has.
    #[inline]
    pub(super) fn body_len(&self) -> usize {
        usize::try_from(self.body_size).unwrap_or(usize::MAX)
    }
}

/// The number of bytes that the frame at the start of `bytes` lacks at least; never 0.
pub(super) fn missing(bytes: &[u8]) -> usize {
    let lacks = match (Head::decode(bytes), bytes.first()) {
        (Ok(HeadResult::Head(head)), _) => head
            .head_size
            .saturating_add(head.body_len())
            .saturating_sub(bytes.len()),
        (_, None) => FRAME_SIZE_MIN,
        (_, Some(flags)) if flags & LONG != 0 => 9usize.saturating_sub(bytes.len()),
        _ => 1,
    };
    lacks.max(1)
}

/// Appends a frame head in its shortest form.
#[inline]
pub fn encode_head(out: &mut Vec<u8>, body_size: usize, more: bool, command: bool) {
    let flags = (u8::from(more) * MORE) | (u8::from(command) * COMMAND);
    match u8::try_from(body_size) {
        Ok(size) => out.extend_from_slice(&[flags, size]),
        Err(_) => {
            let mut head = [0u8; 9];
            head[0] = flags | LONG;
            BigEndian::write_u64(&mut head[1..9], body_size as u64);
            out.extend_from_slice(&head);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_round_trip_in_their_shortest_form() {
        for size in [0usize, 1, 255, 256, 65_535, 65_536, 1 << 40] {
            for (more, command) in [(false, false), (true, false), (false, true)] {
                let mut out = Vec::new();
                encode_head(&mut out, size, more, command);
                assert_eq!(out.len(), if size < 256 { 2 } else { 9 });
                let want = Head {
                    more,
                    command,
                    head_size: out.len(),
                    body_size: size as u64,
                };
                assert_eq!(Head::decode(&out), Ok(HeadResult::Head(want)));
                for cut in 0..out.len() {
                    assert_eq!(Head::decode(&out[..cut]), Ok(HeadResult::Incomplete));
                }
            }
        }
    }

    #[test]
    fn reserved_bits_command_with_more_and_the_sign_bit_are_refused() {
        for flags in 0..=255u8 {
            let result = Head::decode(&[flags, 0, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(
                result.is_ok(),
                flags < 8 && flags & 0b101 != 0b101,
                "flags {flags:08b}"
            );
        }
        let huge = [LONG, 0x80, 0, 0, 0, 0, 0, 0, 0];
        assert!(matches!(
            Head::decode(&huge),
            Err(Error::FrameTooLarge { .. })
        ));
        let long_but_short = [LONG, 0, 0, 0, 0, 0, 0, 0, 3];
        assert!(matches!(
            Head::decode(&long_but_short),
            Ok(HeadResult::Head(Head {
                body_size: 3,
                head_size: 9,
                ..
            }))
        ));
    }
}
