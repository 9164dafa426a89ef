//! JSON that other programs write although it is not valid, or not Unicode: halves of surrogate pairs
//! (Python's `json.dumps` escapes those of a `str`), and the numbers `NaN`, `Infinity` and `-Infinity`.

/// The text with U+FFFD for each half of a surrogate pair, and null for each number that JSON does not
/// have. `None` if there are none of them.
pub(super) fn repaired(json: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(json.len());
    let mut rest = json;
    let mut is_in_text = false;
    let mut is_changed = false;
    while let Some(byte) = rest.first() {
        let (piece, size): (&[u8], usize) = match byte {
            b'"' => {
                is_in_text = !is_in_text;
                (b"\"", 1)
            }
            b'\\' if is_in_text => match surrogate(rest) {
                Some(0xD800..0xDC00) => match rest.get(6..).and_then(surrogate) {
                    Some(0xDC00..0xE000) => (rest.get(..12).unwrap_or(rest), 12),
                    _ => (br"\ufffd", 6),
                },
                Some(_) => (br"\ufffd", 6),
                None => (rest.get(..2).unwrap_or(rest), 2),
            },
            b'N' | b'I' | b'-' if !is_in_text => {
                let name = [&b"NaN"[..], b"Infinity", b"-Infinity"]
                    .into_iter()
                    .find(|name| rest.starts_with(name));
                match name {
                    Some(name) => (b"null", name.len()),
                    None => (rest.get(..1).unwrap_or(rest), 1),
                }
            }
            _ => (rest.get(..1).unwrap_or(rest), 1),
        };
        let taken = rest.get(..size).unwrap_or(rest);
        is_changed |= taken != piece;
        out.extend_from_slice(piece);
        rest = rest.get(size..).unwrap_or(&[]);
    }
    is_changed.then_some(out)
}

/// The value of `\uXXXX` at the start, if it is a half of a surrogate pair.
fn surrogate(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(br"\u")?.get(..4)?;
    let digits = std::str::from_utf8(digits).ok()?;
    let value = u16::from_str_radix(digits, 16).ok()?;
    (0xD800..0xE000).contains(&value).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_surrogate_pairs_and_numbers_outside_json_are_replaced() {
        for (before, after) in [
            (r#""a \ud83d b""#, r#""a \ufffd b""#),
            // Outside a text it is no escape.
            (r#"\ud83d NaN"#, r#"\ud83d null"#),
            (r#""\uDC80\uD800""#, r#""\ufffd\ufffd""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\ud83dx\ude00""#, r#""\ufffdx\ufffd""#),
            (r#""\\\udfff""#, r#""\\\ufffd""#),
            (
                r#"{"a": NaN, "b": [-Infinity,Infinity]}"#,
                r#"{"a": null, "b": [null,null]}"#,
            ),
            (r#"{"\"NaN\ud800": NaN}"#, r#"{"\"NaN\ufffd": null}"#),
        ] {
            let repaired = repaired(before.as_bytes()).expect(before);
            assert_eq!(String::from_utf8(repaired).unwrap(), after, "{before}");
        }
        for unchanged in [
            "",
            "{",
            r#""\"#,
            r#""\u"#,
            r#""\ud8"#,
            r#""\ud83d\ude00""#,
            r#""\\ud83d""#,
            r#""NaN Infinity -Infinity""#,
            "-1",
            "Nothing",
            r#""\u+d80""#,
        ] {
            assert_eq!(repaired(unchanged.as_bytes()), None, "{unchanged}");
        }
    }
}
