//! Reads columns that other programs may have written. SQLite permits values of any type in any column.
//!
//! Values that a job needs are read strictly ([`text`], [`integer`]): a value of the wrong type is a
//! [`Malformed`] that names table, column and value, and makes its row unusable. Values that are
//! only displayed are read leniently ([`shown`], [`number`]). Neither makes the statement fail.

use std::fmt;

use rusqlite::Row;
use rusqlite::types::ValueRef;

/// A value that is invalid for its column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Characters of a value in a message.
const SHOWN_MAX: usize = 60;

/// A column's value. NULL for a column that the statement does not have.
pub(super) fn cell<'r>(row: &'r Row<'_>, index: usize) -> ValueRef<'r> {
    row.get_ref(index).unwrap_or(ValueRef::Null)
}

/// A value for a message: short, in one line.
pub(super) fn abridged(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(bytes) => {
            let head = bytes.get(..SHOWN_MAX * 4).unwrap_or(bytes);
            let text = String::from_utf8_lossy(head);
            let short: String = text.chars().take(SHOWN_MAX).collect();
            let more = if short.len() < bytes.len() { "…" } else { "" };
            match std::str::from_utf8(bytes) {
                Ok(_) => format!("{short:?}{more}"),
                Err(_) => format!("{short:?}{more} (not UTF-8)"),
            }
        }
        ValueRef::Blob(bytes) => format!("a BLOB of {} bytes", bytes.len()),
    }
}

/// `table.column of row: value is not what was expected`.
pub(super) fn malformed(
    column: &str,
    row: impl fmt::Display,
    value: ValueRef<'_>,
    expected: &str,
) -> Malformed {
    Malformed(format!(
        "{column} of row {row} is {}, expected {expected}",
        abridged(value)
    ))
}

/// A text of at most `size_max` bytes. None for NULL.
pub(super) fn text(
    value: ValueRef<'_>,
    size_max: usize,
    column: &str,
    row: impl fmt::Display,
) -> Result<Option<String>, Malformed> {
    match value {
        ValueRef::Null => Ok(None),
        ValueRef::Text(bytes) if bytes.len() > size_max => Err(malformed(
            column,
            row,
            value,
            &format!("at most {size_max} bytes, not {}", bytes.len()),
        )),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => Err(malformed(column, row, value, "UTF-8 text")),
        },
        _ => Err(malformed(column, row, value, "text")),
    }
}

/// As [`text`], but NULL is an error.
pub(super) fn needed(
    value: ValueRef<'_>,
    size_max: usize,
    column: &str,
    row: impl fmt::Display + Copy,
) -> Result<String, Malformed> {
    text(value, size_max, column, row)?.ok_or_else(|| malformed(column, row, value, "text"))
}

/// An integer. None for NULL.
pub(super) fn integer(
    value: ValueRef<'_>,
    column: &str,
    row: impl fmt::Display,
) -> Result<Option<i64>, Malformed> {
    match value {
        ValueRef::Null => Ok(None),
        ValueRef::Integer(number) => Ok(Some(number)),
        _ => Err(malformed(column, row, value, "a whole number")),
    }
}

/// A value for people. Bytes of a text that are not UTF-8 are replaced. None for NULL.
pub(super) fn shown(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Text(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        other => Some(abridged(other)),
    }
}

/// The integer, or none for another type.
pub(super) fn number(value: ValueRef<'_>) -> Option<i64> {
    match value {
        ValueRef::Integer(number) => Some(number),
        _ => None,
    }
}

/// A count. Negative numbers and values of other types are 0.
pub(super) fn count(value: ValueRef<'_>) -> i64 {
    number(value).unwrap_or(0).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_values_are_named_and_abridged() {
        let big = "é".repeat(500);
        for (value, want) in [
            (ValueRef::Null, "NULL"),
            (ValueRef::Integer(7), "7"),
            (ValueRef::Real(1.5), "1.5"),
            (ValueRef::Text(b"a\nb"), "\"a\\nb\""),
            (ValueRef::Text(b"\xff"), "not UTF-8"),
            (ValueRef::Blob(&[0; 9]), "a BLOB of 9 bytes"),
        ] {
            assert!(abridged(value).contains(want), "{}", abridged(value));
        }
        assert!(abridged(ValueRef::Text(big.as_bytes())).chars().count() < 70);
        let error = text(ValueRef::Blob(b"x"), 9, "cf_t.c", 3).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cf_t.c of row 3 is a BLOB of 1 bytes, expected text"
        );
        assert!(text(ValueRef::Text(b"12345"), 4, "t.c", 1).is_err());
        assert_eq!(count(ValueRef::Integer(-4)), 0);
    }
}
