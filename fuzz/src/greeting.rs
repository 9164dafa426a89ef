//! A greeting, whole or cut: agreement with the specification octet by octet.

use casparian::zmtp::{GREETING_SIZE, Greeting};

pub fn run(data: &[u8]) {
    // What is refused early is refused whole, and what is refused stays refused.
    let mut refused = false;
    for size in 0..=data.len().min(GREETING_SIZE) {
        let now = Greeting::check_prefix(&data[..size]).is_err();
        assert!(!refused || now, "refused at fewer octets and not at {size}");
        refused = now;
    }
    let Some(octets) = data.first_chunk::<GREETING_SIZE>() else {
        return;
    };
    let signature = octets[0] == 0xFF && octets[9] & 1 == 1;
    let decoded = Greeting::decode(octets);
    assert_eq!(decoded.is_ok(), signature && octets[10] >= 3, "{decoded:?}");
    let Ok(greeting) = decoded else {
        return;
    };
    assert!(!refused);
    assert_eq!((greeting.major, greeting.minor), (octets[10], octets[11]));
    assert_eq!(greeting.mechanism[..], octets[12..32]);
    for mechanism in ["NULL", "PLAIN", "CURVE"] {
        let mut padded = [0; 20];
        padded[..mechanism.len()].copy_from_slice(mechanism.as_bytes());
        assert_eq!(
            greeting.require_mechanism(mechanism).is_ok(),
            octets[12..32] == padded
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
