//! Text for a terminal: no file name, plugin or database moves its cursor or changes its colours.

use std::borrow::Cow;

/// A control character other than a line end and a tab.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t')
}

/// A text with its unsafe characters as JSON escapes them (`\u001b`): the text of a JSON value goes
/// on meaning the same value.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_unsafe(c) {
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_json_keeps_its_value() {
        for (text, want) in [
            ("é … 漢\n\tx", "é … 漢\n\tx"),
            (
                "\x1b[2J\r\u{9b}\x7f\0",
                r"\u001b[2J\u000d\u009b\u007f\u0000",
            ),
        ] {
            assert_eq!(clean(text), want);
            let json = serde_json::Value::from(text);
            let shown = clean(&json.to_string()).into_owned();
            assert!(!shown.contains(is_unsafe));
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(&shown).unwrap(),
                json
            );
        }
    }
}
