//! Escapes text for a terminal, so that names of files, plugins, workers or databases cannot move its cursor,
//! change its colours, or reorder text.

use std::borrow::Cow;
#[cfg(all(feature = "sentinel", feature = "worker"))]
use std::path::Path;

/// True for control characters other than line feed and tab, and for Unicode characters that change the
/// direction of text or end a line or paragraph.
pub(super) fn is_unsafe(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        '\u{61c}' | '\u{200e}' | '\u{200f}' => true,
        '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        c => c.is_control(),
    }
}

/// Replaces unsafe characters in a text by JSON escapes (`\u001b`). JSON text keeps its value.
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

/// A path as text. Bytes that are not UTF-8 are escaped (`\xe9`), so that different paths have different
/// texts.
#[cfg(all(feature = "sentinel", feature = "worker"))]
pub(super) fn path_text(path: &Path) -> Cow<'_, str> {
    if let Some(text) = path.to_str() {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        out.push_str(chunk.valid());
        let escapes = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}"));
        out.extend(escapes);
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
            (
                "a\u{202e}b\u{2066}c\u{200f}d\u{2028}e",
                r"a\u202eb\u2066c\u200fd\u2028e",
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
