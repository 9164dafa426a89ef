//! Control messages: header and message must agree with the table of the specification, and
//! encoding a decoded header must give the same bytes, with reserved bytes 0.

use casparian::protocol::{HEADER_SIZE, Header, View};

pub fn run(data: &[u8]) {
    // Frames: each has a length byte; the last one may be shorter than its length.
    let mut frames: Vec<&[u8]> = Vec::new();
    let mut rest = data;
    while let Some((&size, behind)) = rest.split_first() {
        let size = usize::from(size).min(behind.len());
        let (frame, behind) = behind.split_at(size);
        frames.push(frame);
        rest = behind;
    }
    let header = frames.first().copied().unwrap_or(&[]);
    let decoded = Header::decode(header);
    // Version 4, opcodes 0 to 10, two reserved bytes of any value, job id, payload length.
    let legal = header.len() >= HEADER_SIZE && header[0] == 4 && header[1] <= 10;
    assert_eq!(decoded.is_ok(), legal, "{decoded:?}");
    if let Ok(decoded) = decoded {
        assert_eq!(decoded.opcode as u8, header[1]);
        assert_eq!(decoded.job_id.to_be_bytes(), header[4..12]);
        assert_eq!(decoded.payload_size.to_be_bytes(), header[12..16]);
        let encoded = decoded.encode();
        assert_eq!(encoded[..2], header[..2]);
        assert_eq!(encoded[2..4], [0, 0]);
        assert_eq!(encoded[4..], header[4..16]);
    }
    let view = View::decode(frames.iter().copied());
    let fits = frames.len() >= 2
        && legal
        && u32::from_be_bytes(header[12..16].try_into().unwrap()) as usize == frames[1].len();
    assert_eq!(view.is_ok(), fits, "{view:?}");
    match view {
        Ok(view) => assert_eq!(view.payload, frames[1]),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
