//! Unit tests of `environments.rs`.

use super::*;

#[test]
fn pauses_grow_to_a_bound() {
    let seconds = |failures| pause_after(failures).as_secs();
    assert_eq!([seconds(0), seconds(1), seconds(2)], [10, 20, 40]);
    assert_eq!(seconds(100), 300);
}
