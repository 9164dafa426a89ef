//! A complete or truncated greeting: the decoder must agree with the specification.

use casparian::zmtp::{GREETING_SIZE, Greeting};

pub fn run(data: &[u8]) {
    // If a prefix is refused, every longer prefix and the complete greeting must be refused.
    let mut refused = false;
    for size in 0..=data.len().min(GREETING_SIZE) {
        let now = Greeting::check_prefix(&data[..size]).is_err();
        assert!(!refused || now, "refused at fewer bytes and not at {size}");
        refused = now;
    }
    let Some(bytes) = data.first_chunk::<GREETING_SIZE>() else {
        return;
    };
    let signature = bytes[0] == 0xFF && bytes[9] & 1 == 1;
    let decoded = Greeting::decode(bytes);
    assert_eq!(decoded.is_ok(), signature && bytes[10] >= 3, "{decoded:?}");
    let Ok(greeting) = decoded else {
        return;
    };
    assert!(!refused);
    assert_eq!((greeting.major, greeting.minor), (bytes[10], bytes[11]));
    assert_eq!(greeting.mechanism[..], bytes[12..32]);
    for mechanism in ["NULL", "PLAIN", "CURVE"] {
        let mut padded = [0; 20];
        padded[..mechanism.len()].copy_from_slice(mechanism.as_bytes());
        assert_eq!(
            greeting.require_mechanism(mechanism).is_ok(),
            bytes[12..32] == padded
        );
        let ours = Greeting::encode(mechanism);
        assert!(
            Greeting::decode(&ours)
                .unwrap()
                .require_mechanism(mechanism)
                .is_ok()
        );
    }
}
