//! The 64-byte greeting (RFC 37 §3.2).

use super::Error;

/// Size of a greeting, in bytes.
pub const GREETING_SIZE: usize = 64;

/// A decoded greeting of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Major version, 3 or higher.
    pub major: u8,
    /// Minor version.
    pub minor: u8,
    /// The mechanism field, including its NUL padding.
    pub mechanism: [u8; 20],
    /// The as-server bit. It is ignored, because libzmq always sends 0.
    pub as_server: bool,
}

impl Greeting {
    /// Encodes our greeting for a mechanism. as-server is 0, as in libzmq.
    pub fn encode(mechanism: &str) -> [u8; GREETING_SIZE] {
        let mut out = [0u8; GREETING_SIZE];
        let name = mechanism.as_bytes();
        for (at, byte) in out.iter_mut().enumerate() {
            *byte = match at {
                0 => 0xFF,
                9 => 0x7F,
                10 => 3,
                11 => 1,
                12..32 => name.get(at - 12).copied().unwrap_or(0),
                _ => 0,
            };
        }
        out
    }

    /// Checks the bytes that have arrived so far, so that another protocol is refused at its first
    /// wrong byte instead of after 64 bytes.
    ///
    /// The padding (bytes 1-8) and the filler are not validated, as the RFC requires.
    pub fn check_prefix(bytes: &[u8]) -> Result<(), Error> {
        match bytes.first() {
            None => return Ok(()),
            Some(0xFF) => {}
            // A ZMTP 1.0 peer may begin with any frame length, so it cannot be distinguished from
            // another protocol.
            Some(&first) => return Err(Error::NotZmtp { first }),
        }
        // ZMTP 1.0 long-length frame: the low bit of byte 9 is clear.
        if bytes.get(9).is_some_and(|signature| signature & 1 == 0) {
            return Err(Error::OldVersion { major: 1 });
        }
        match bytes.get(10) {
            Some(0) => Err(Error::OldVersion { major: 1 }),
            Some(&major @ 1..=2) => Err(Error::OldVersion {
                major: if major == 1 { 2 } else { major },
            }),
            _ => Ok(()),
        }
    }

    /// Parses a complete greeting.
    pub fn decode(bytes: &[u8; GREETING_SIZE]) -> Result<Greeting, Error> {
        Self::check_prefix(bytes)?;
        let [_, _, _, _, _, _, _, _, _, _, major, minor, rest @ ..] = bytes;
        let mut mechanism = [0u8; 20];
        for (to, from) in mechanism.iter_mut().zip(rest) {
            *to = *from;
        }
        Ok(Greeting {
            major: *major,
            minor: *minor,
            mechanism,
            as_server: rest.get(20).is_some_and(|byte| *byte == 1),
        })
    }

    /// Returns an error if the mechanism is not exactly `expected`, including the padding.
    pub fn require_mechanism(&self, expected: &'static str) -> Result<(), Error> {
        let mut want = [0u8; 20];
        for (to, from) in want.iter_mut().zip(expected.as_bytes()) {
            *to = *from;
        }
        if self.mechanism == want {
            return Ok(());
        }
        let name = self
            .mechanism
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or(&[]);
        Err(Error::MechanismMismatch {
            expected,
            got: String::from_utf8_lossy(name).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greeting_round_trips_and_padding_is_not_validated() {
        let mut bytes = Greeting::encode("NULL");
        bytes[1..9].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        bytes[11] = 9;
        bytes[40] = 0xEE;
        let greeting = Greeting::decode(&bytes).unwrap();
        assert_eq!((greeting.major, greeting.minor), (3, 9));
        greeting.require_mechanism("NULL").unwrap();
        assert!(greeting.require_mechanism("PLAIN").is_err());
    }

    #[test]
    fn wrong_bytes_are_refused_as_soon_as_they_are_seen() {
        let cases: [(&[u8], Option<Error>); 9] = [
            (&[], None),
            (&[0xFF], None),
            (b"G", Some(Error::NotZmtp { first: b'G' })),
            (
                &[0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0],
                Some(Error::OldVersion { major: 1 }),
            ),
            (
                &[0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x7F, 0],
                Some(Error::OldVersion { major: 1 }),
            ),
            (
                &[0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x7F, 1],
                Some(Error::OldVersion { major: 2 }),
            ),
            (&[0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x7F, 4], None),
            // Only the low bit of byte 9 counts.
            (&[0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x01, 3], None),
            (
                &[0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0xFE],
                Some(Error::OldVersion { major: 1 }),
            ),
        ];
        for (bytes, want) in cases {
            assert_eq!(Greeting::check_prefix(bytes).err(), want, "{bytes:?}");
        }
    }
}
