//! Unit tests of `messages.rs`.

use super::*;

#[test]
fn an_oversized_receipt_lists_the_files_that_fit_and_counts_the_others() {
    let artifact = |number: usize| {
        let uri = format!("file:///{}/{number}", "x".repeat(1 << 20));
        BTreeMap::from([("uri".to_owned(), uri)])
    };
    for (files, want) in [(0, 0), (7, 7), (8, 7), (100, 7)] {
        let receipt = Receipt {
            artifacts: (0..files).map(artifact).collect(),
            ..Receipt::default()
        };
        let sent = bounded(Attempt::new(1, 1), receipt);
        let size = serde_json::to_vec(&sent).unwrap().len();
        assert!(size <= limits::RECEIPT_SIZE_MAX, "{size}");
        let left_out = sent.metrics.get(ARTIFACTS_TRUNCATED).copied();
        assert_eq!(sent.artifacts.len(), want);
        assert_eq!(left_out.unwrap_or(0) as usize, files - want);
    }
}
