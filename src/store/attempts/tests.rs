//! Unit tests of `attempts.rs`.

use super::last_lines;

#[test]
fn the_last_lines_are_kept() {
    for (text, count, want) in [
        ("a\nb\nc\n", 2, "b\nc\n"),
        ("a\nb\nc", 2, "b\nc"),
        ("a\nb", 5, "a\nb"),
        ("", 5, ""),
        ("é\nü", 1, "ü"),
    ] {
        assert_eq!(last_lines(text, count), want, "{text:?}");
    }
}
