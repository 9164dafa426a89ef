//! Command bodies and their metadata (RFC 37 §3.4-3.6).

use super::Error;
use super::cursor::{Cursor, append_u16, append_u32};
use super::frame::encode_head;

/// Maximum size of a heartbeat context, in bytes (RFC 37 §3.6). Longer contexts are truncated, as
/// in libzmq.
pub(crate) const CONTEXT_SIZE_MAX: usize = 16;

/// A decoded command, borrowed from the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// READY with its metadata.
    Ready(Metadata<'a>),
    /// ERROR with its reason.
    Error(&'a [u8]),
    /// PING: time to live in tenths of a second, and a context to echo.
    Ping {
        /// Tenths of a second; 0 = none.
        ttl_deciseconds: u16,
        /// At most 16 bytes.
        context: &'a [u8],
    },
    /// PONG with the echoed context.
    Pong,
    /// A well-formed command with an unknown name.
    Unknown(&'a [u8]),
}

impl<'a> Command<'a> {
    /// Decodes a command frame's body.
    pub fn decode(body: &'a [u8]) -> Result<Self, Error> {
        let malformed = |what| Error::MalformedCommand { what };
        let mut cursor = Cursor::new(body);
        let size = cursor.u8().ok_or(malformed("empty body"))?;
        if size == 0 {
            return Err(malformed("empty name"));
        }
        let name = cursor
            .take(usize::from(size))
            .ok_or(malformed("name longer than the frame"))?;
        match name {
            b"READY" => Ok(Command::Ready(Metadata::decode(cursor.rest())?)),
            b"ERROR" => {
                let size = cursor.u8().ok_or(malformed("ERROR without a reason"))?;
                let reason = cursor
                    .take(usize::from(size))
                    .ok_or(malformed("ERROR reason longer than the frame"))?;
                if !cursor.is_empty() {
                    return Err(malformed("bytes after the ERROR reason"));
                }
                Ok(Command::Error(reason))
            }
            b"PING" => {
                let ttl = cursor.u16().ok_or(malformed("PING without a TTL"))?;
                let context = cursor.rest();
                let cut = context.len().min(CONTEXT_SIZE_MAX);
                Ok(Command::Ping {
                    ttl_deciseconds: ttl,
                    context: context.get(..cut).unwrap_or(&[]),
                })
            }
            b"PONG" => Ok(Command::Pong),
            other => Ok(Command::Unknown(other)),
        }
    }
}

/// The properties of READY or INITIATE, validated when decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata<'a> {
    bytes: &'a [u8],
}

impl<'a> Metadata<'a> {
    /// Validates the whole list; a truncated property or trailing bytes are an error.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut cursor = Cursor::new(bytes);
        while !cursor.is_empty() {
            Self::property(&mut cursor).ok_or(Error::MalformedCommand {
                what: "metadata property cut short",
            })?;
        }
        Ok(Metadata { bytes })
    }

    fn property(cursor: &mut Cursor<'a>) -> Option<(&'a [u8], &'a [u8])> {
        let name_size = cursor.u8().filter(|size| *size > 0)?;
        let name = cursor.take(usize::from(name_size))?;
        let value_size = cursor.u32().filter(|size| *size <= i32::MAX as u32)?;
        let value = cursor.take(usize::try_from(value_size).ok()?)?;
        Some((name, value))
    }

    /// The encoded list.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The properties in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut cursor = Cursor::new(self.bytes);
        std::iter::from_fn(move || Self::property(&mut cursor))
    }

    /// The first property of that name; names are case-insensitive (RFC 37 §3.4).
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }
}

/// Appends READY as a command frame.
pub(crate) fn encode_ready(out: &mut Vec<u8>, metadata: &[u8]) {
    encode_head(out, 6 + metadata.len(), false, true);
    out.extend_from_slice(b"\x05READY");
    out.extend_from_slice(metadata);
}

/// Appends one property. Names are truncated at 255 bytes. The limits of a command keep values far
/// below their maximum of 2^31-1 bytes.
pub(crate) fn encode_property(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    let size = u8::try_from(name.len()).unwrap_or(u8::MAX);
    out.push(size);
    out.extend_from_slice(name.as_bytes().get(..usize::from(size)).unwrap_or(&[]));
    append_u32(out, u32::try_from(value.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(value);
}

/// Appends ERROR as a command frame; the reason is truncated at 255 bytes.
pub(crate) fn encode_error(out: &mut Vec<u8>, reason: &str) {
    let size = u8::try_from(reason.len()).unwrap_or(u8::MAX);
    let reason = reason.as_bytes().get(..usize::from(size)).unwrap_or(&[]);
    encode_head(out, 7 + reason.len(), false, true);
    out.extend_from_slice(b"\x05ERROR");
    out.push(size);
    out.extend_from_slice(reason);
}

/// Appends PING as a command frame, without a context.
pub(crate) fn encode_ping(out: &mut Vec<u8>, ttl_deciseconds: u16) {
    encode_head(out, 7, false, true);
    out.extend_from_slice(b"\x04PING");
    append_u16(out, ttl_deciseconds);
}

/// Appends PONG as a command frame with the context to echo.
pub(crate) fn encode_pong(out: &mut Vec<u8>, context: &[u8]) {
    encode_head(out, 5 + context.len(), false, true);
    out.extend_from_slice(b"\x04PONG");
    out.extend_from_slice(context);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(frame: &[u8]) -> &[u8] {
        &frame[2..]
    }

    #[test]
    fn our_commands_decode() {
        let mut out = Vec::new();
        let mut metadata = Vec::new();
        encode_property(&mut metadata, "Socket-Type", b"DEALER");
        encode_property(&mut metadata, "Identity", b"w-1");
        encode_ready(&mut out, &metadata);
        let Command::Ready(metadata) = Command::decode(body(&out)).unwrap() else {
            panic!("no READY")
        };
        assert_eq!(metadata.get("socket-TYPE"), Some(&b"DEALER"[..]));
        assert_eq!(metadata.get("IDENTITY"), Some(&b"w-1"[..]));
        assert_eq!(metadata.get("Resource"), None);
        out.clear();
        encode_error(&mut out, &"x".repeat(300));
        assert_eq!(Command::decode(&out[9..]), Ok(Command::Error(&[b'x'; 255])));
        out.clear();
        encode_pong(&mut out, b"ctx");
        assert_eq!(Command::decode(body(&out)), Ok(Command::Pong));
    }

    #[test]
    fn malformed_bodies_are_errors() {
        let cases: &[&[u8]] = &[
            b"",
            b"\x00",
            b"\x05READ",
            b"\x05READY\x00",
            b"\x05READY\x01X\x00\x00\x00",
            b"\x05READY\x01X\x00\x00\x00\x02v",
            b"\x05READY\x01X\x80\x00\x00\x00",
            b"\x05READY\x01X\xFF\xFF\xFF\xFF",
            b"\x05READY\x01X\x00\x00\x00\x01vY",
            b"\x05ERROR",
            b"\x05ERROR\x05no",
            b"\x05ERROR\x02nox",
            b"\x04PING",
            b"\x04PING\x00",
        ];
        for case in cases {
            assert!(
                matches!(Command::decode(case), Err(Error::MalformedCommand { .. })),
                "{case:?}"
            );
        }
    }

    #[test]
    fn ping_context_is_cut_at_sixteen() {
        let mut ping = b"\x04PING\x00\x0A".to_vec();
        ping.extend_from_slice(&[7; 40]);
        assert_eq!(
            Command::decode(&ping),
            Ok(Command::Ping {
                ttl_deciseconds: 10,
                context: &[7; 16]
            })
        );
    }
}
