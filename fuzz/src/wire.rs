//! A small and simple reference implementation of ZMTP, written from the RFC, for comparison.

/// Limits of the tested connections. They are small, so that inputs reach them.
pub const FRAME_SIZE_MAX: u64 = 600;
pub const MESSAGE_SIZE_MAX: u64 = 1500;
pub const FRAMES_MAX: usize = 8;
/// `limits::ZMTP_COMMAND_SIZE_MAX`.
pub const COMMAND_SIZE_MAX: u64 = 64 << 10;

/// `limits::ZMTP_COMMANDS_IN_MESSAGE_SIZE_MAX` under fuzzing.
pub const COMMANDS_SIZE_MAX: usize = 1 << 10;

/// The frame at the start of bytes. `Whole`: flags, body, and the bytes behind it.
pub enum Frame<'a> {
    Whole(u8, &'a [u8], &'a [u8]),
    /// Flags and declared size of a frame with a complete head and an incomplete body.
    Cut(u8, u64),
    /// The head is incomplete.
    Headless,
}

/// The first frame of `bytes`.
pub fn frame(bytes: &[u8]) -> Frame<'_> {
    let Some(&flags) = bytes.first() else {
        return Frame::Headless;
    };
    let (size, rest) = if flags & 2 == 0 {
        match bytes.get(1) {
            Some(size) => (u64::from(*size), &bytes[2..]),
            None => return Frame::Headless,
        }
    } else {
        match bytes.get(1..9) {
            Some(size) => (u64::from_be_bytes(size.try_into().unwrap()), &bytes[9..]),
            None => return Frame::Headless,
        }
    };
    if size > rest.len() as u64 {
        return Frame::Cut(flags, size);
    }
    let (body, rest) = rest.split_at(size as usize);
    Frame::Whole(flags, body, rest)
}

/// The messages that an open NULL connection decodes from bytes, and whether it then fails.
pub fn messages(mut bytes: &[u8]) -> (Vec<Vec<Vec<u8>>>, bool) {
    let mut messages = Vec::new();
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let mut commands = 0;
    let refused = loop {
        // Flags are checked as soon as they are received.
        if let Some(flags) = bytes.first()
            && (flags & 0xF8 != 0 || flags & 5 == 5)
        {
            break true;
        }
        let (flags, size, whole) = match frame(bytes) {
            Frame::Headless => break false,
            Frame::Cut(flags, size) => (flags, size, None),
            Frame::Whole(flags, body, rest) => (flags, body.len() as u64, Some((body, rest))),
        };
        if flags & 4 != 0 {
            if size > COMMAND_SIZE_MAX {
                break true;
            }
            let Some((body, rest)) = whole else {
                break false;
            };
            if !command_is_welcome(body) {
                break true;
            }
            if !parts.is_empty() {
                commands += bytes.len() - rest.len();
            }
            if commands > COMMANDS_SIZE_MAX {
                break true;
            }
            bytes = rest;
            continue;
        }
        let so_far: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if size > FRAME_SIZE_MAX || so_far + size > MESSAGE_SIZE_MAX || parts.len() >= FRAMES_MAX {
            break true;
        }
        let Some((body, rest)) = whole else {
            break false;
        };
        parts.push(body.to_vec());
        if flags & 1 == 0 {
            messages.push(std::mem::take(&mut parts));
            commands = 0;
        }
        bytes = rest;
    };
    (messages, refused)
}

/// Whether an open connection accepts this command.
fn command_is_welcome(body: &[u8]) -> bool {
    let Some((&size, rest)) = body.split_first() else {
        return false;
    };
    if size == 0 || rest.len() < usize::from(size) {
        return false;
    }
    let (name, rest) = rest.split_at(usize::from(size));
    match name {
        // A second READY is an error, and ERROR closes the connection.
        b"READY" | b"ERROR" => false,
        b"PING" => rest.len() >= 2,
        _ => true,
    }
}

/// The properties of READY; `None` if they are malformed.
pub fn properties(mut bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut found = Vec::new();
    while let Some((&size, rest)) = bytes.split_first() {
        if size == 0 || rest.len() < usize::from(size) {
            return None;
        }
        let (name, rest) = rest.split_at(usize::from(size));
        let size = u32::from_be_bytes(rest.get(..4)?.try_into().unwrap());
        let rest = &rest[4..];
        if size > i32::MAX as u32 || rest.len() < size as usize {
            return None;
        }
        let (value, rest) = rest.split_at(size as usize);
        found.push((name, value));
        bytes = rest;
    }
    Some(found)
}

/// Asserts that bytes are a greeting and frames that a connection of this crate may send. The last
/// frame may be incomplete.
pub fn assert_valid_output(bytes: &[u8]) {
    let greeting = &bytes[..bytes.len().min(64)];
    for (at, byte) in greeting.iter().enumerate() {
        match at {
            0 => assert_eq!(*byte, 0xFF),
            1..9 | 33.. => assert_eq!(*byte, 0, "byte {at}"),
            9 => assert_eq!(*byte, 0x7F),
            10 => assert_eq!(*byte, 3),
            11 => assert_eq!(*byte, 1),
            32 => assert_eq!(*byte, 0, "libzmq never says as-server"),
            _ => assert!(byte.is_ascii_uppercase() || *byte == 0),
        }
    }
    let mut rest = bytes.get(64..).unwrap_or(&[]);
    loop {
        if let Some(flags) = rest.first() {
            assert_eq!(flags & 0xF8, 0, "reserved flags");
            assert_ne!(flags & 5, 5, "MORE on a command");
        }
        match frame(rest) {
            Frame::Whole(flags, body, behind) => {
                assert!(
                    flags & 2 == 0 || body.len() > 255,
                    "the short form is for short frames"
                );
                if flags & 4 != 0 {
                    assert!(body.len() > 1 && usize::from(body[0]) < body.len());
                }
                rest = behind;
            }
            Frame::Cut(..) | Frame::Headless => return,
        }
    }
}
