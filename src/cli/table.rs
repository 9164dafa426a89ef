//! Text tables.

use super::clean::is_unsafe;
use crate::limits;

/// A text on one line: control characters, which file names may contain, become `?`.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() || is_unsafe(c) {
                '?'
            } else {
                c
            }
        })
        .collect()
}

/// A cell on one line, of bounded width, so that one long word does not widen all rows.
fn cell(text: &str) -> String {
    let mut cell = one_line(text);
    if let Some((end, _)) = cell.char_indices().nth(limits::TABLE_CELL_MAX) {
        cell.truncate(end);
        cell.push('…');
    }
    cell
}

/// Columns are padded to their widest cell and separated by two spaces. `right`: which columns are
/// right-aligned (numbers).
pub(crate) fn render(header: &[&str], right: &[bool], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|text| cell(text)).collect())
        .collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain(header.get(column).map(|cell| cell.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for (column, cell) in cells.enumerate() {
            let width = widths.get(column).copied().unwrap_or(0);
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            if right.get(column) == Some(&true) {
                out.push_str(&pad);
                out.push_str(cell);
            } else {
                out.push_str(cell);
                out.push_str(&pad);
            }
            out.push_str("  ");
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    };
    let mut out = line(&mut header.iter().copied());
    for row in &rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

/// The first non-empty line of a text, cut to `max` characters.
pub(crate) fn first_line(text: &str, max: usize) -> String {
    let line = text
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("");
    let mut out: String = line.chars().take(max).collect();
    if line.chars().count() > max {
        out.push('…');
    }
    out
}

/// Formats 1234567 as `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Formats a number of bytes in the largest unit in which it is at least 1.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["B", "KB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let name = units.get(unit).unwrap_or(&"B");
    if unit == 0 {
        format!("{count} {name}")
    } else {
        format!("{value:.1} {name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_numbers_read_well() {
        let rows = vec![
            vec!["a".to_owned(), "1".to_owned()],
            vec!["long".to_owned(), "20".to_owned()],
        ];
        assert_eq!(
            render(&["x", "n"], &[false, true], &rows),
            "x      n\na      1\nlong  20\n"
        );
        assert_eq!(
            render(&["x"], &[], &[vec!["a\nb\u{1b}".to_owned()]]),
            "x\na?b?\n"
        );
        assert_eq!(one_line("a\u{202e}b\u{2028}"), "a?b?");
        let wide = render(&["x"], &[], &[vec!["w".repeat(1 << 20)]]);
        assert!(wide.len() < 4 * limits::TABLE_CELL_MAX, "{}", wide.len());
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(12), "12");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500_000), "1.5 MB");
        assert_eq!(first_line("\n  \nabc\ndef", 2), "ab…");
    }
}
