//! Journals of moves to another layout.

use super::*;

/// A journal that was not written completely has moved nothing. One that is damaged after moves began is
/// an error, so that files do not keep two names unnoticed.
#[test]
fn a_damaged_journal_of_moves_is_noticed_once_moves_have_begun() {
    for (name, is_begun) in [("moves", false), ("deciding", true), ("moved", true)] {
        for text in ["", "{\"worker\":\"w\",\"mo", "\0\0\0"] {
            let fixture = Fixture::new();
            let path = fixture.root.base().join(format!("{name}.{A}"));
            fs::write(&path, text).unwrap();
            let found = finished(&fixture.root);
            let what = format!("{name} {text:?}: {found:?}");
            match is_begun {
                true => assert!(found.unwrap_err().contains(name), "{what}"),
                false => assert_eq!(found, Ok(true), "{what}"),
            }
            assert_eq!(path.exists(), is_begun, "{what}");
        }
    }
}

fn finished(root: &Root) -> Result<bool, String> {
    let mut named = |_| Ok::<_, Error>(Vec::new());
    root.finish_moves(A, &mut named)
        .map_err(|error| error.to_string())
}
