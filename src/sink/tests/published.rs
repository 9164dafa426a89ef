//! Checks whether output is still as a receipt describes it, and removal of such output.

use super::*;
use crate::sink::{PublishedOutput, Receipted};

const SINKS: &[(&str, &str, &str)] = &[
    ("a", "parquet://a.parquet", "append"),
    ("b", "parquet://b.parquet", "append"),
];

/// The receipt names only one of two files, like a receipt that would exceed its size limit.
#[test]
fn what_a_receipt_has_no_room_for_is_compared_and_removed_too() {
    let fixture = Fixture::new();
    let attempt = Attempt::new(1, 1);
    let published = publish(&fixture.root, &job(Some(A), attempt, SINKS), &[1, 2]).unwrap();
    let first = &published.artifacts[0];
    let listed = [Receipted {
        uri: first.uri.clone(),
        rows: first.rows,
        size_bytes: Some(first.size_bytes),
    }];
    let stands = || PublishedOutput::new(&fixture.root, A).has(attempt, 0, &listed, &mut |_| None);
    assert_eq!(fixture.files(), ["a_1.parquet", "b_1.parquet"]);
    assert!(stands());
    let other = fixture.path("b_1.parquet");
    fs::rename(&other, fixture.path("c")).unwrap();
    assert!(!stands());
    fs::rename(fixture.path("c"), &other).unwrap();
    assert!(stands());
    let uris = [first.uri.clone()];
    let published = PublishedOutput::new(&fixture.root, A);
    let withdrawn = published.withdraw(attempt, 0, &uris).unwrap();
    assert_eq!(withdrawn.removed.len(), 2, "{withdrawn:?}");
    assert!(
        withdrawn.left.is_empty() && withdrawn.is_all_removed,
        "{withdrawn:?}"
    );
    assert_eq!(fixture.files(), [""; 0]);
}
