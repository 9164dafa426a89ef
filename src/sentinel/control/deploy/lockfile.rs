//! Finds where a lockfile may begin in a text: the head of a uv.lock or of a list of requirements, at any
//! position. The text is not trusted, so the time is linear in its length.

/// The beginning of a list of requirements that is used instead of a uv.lock.
const REQUIREMENTS: &str = "# casparian requirements ";
const VERSION: &str = "version";
/// What may follow the version of a uv.lock.
const AFTER_VERSION: &[&str] = &[
    "revision",
    "requires-python",
    "resolution-markers",
    "supported-markers",
    "required-markers",
    "conflicts",
    "[",
];

/// Positions in a text where a lockfile may begin.
pub(super) fn starts(text: &str) -> impl Iterator<Item = usize> {
    let lists = text.match_indices(REQUIREMENTS).map(|(start, _)| start);
    // Between the last found version and this position all lines are blank or comments. A version within
    // these lines has the same position.
    let mut significant = 0;
    let locks = text.match_indices(VERSION).filter(move |(start, _)| {
        let Some(next_line) = end_of_version(text, *start) else {
            return false;
        };
        if next_line > significant {
            significant = skip_comments(text, next_line);
        }
        let rest = text.get(significant..).unwrap_or("");
        AFTER_VERSION.iter().any(|key| rest.starts_with(key))
    });
    lists.chain(locks.map(|(start, _)| start))
}

/// The start of the line after `version = 1`, with which every uv.lock begins. The text in between contains
/// no other version.
fn end_of_version(text: &str, start: usize) -> Option<usize> {
    let is_blank = |c: char| c.is_whitespace() && c != '\n';
    let rest = text.get(start..)?.strip_prefix(VERSION)?;
    let rest = rest.trim_start_matches(is_blank).strip_prefix('=')?;
    let number = rest.trim_start_matches(is_blank);
    let digits = number.strip_prefix('+').unwrap_or(number);
    let rest = digits.trim_start_matches(|c: char| c.is_ascii_digit());
    let number = number.get(..number.len() - rest.len())?;
    number.parse::<u32>().ok()?;
    let rest = rest.trim_start_matches(is_blank).strip_prefix('\n')?;
    Some(text.len() - rest.len())
}

/// The position of the first character that is neither blank nor part of a comment line.
fn skip_comments(text: &str, line_start: usize) -> usize {
    let mut rest = text.get(line_start..).unwrap_or("").trim_start();
    while rest.starts_with('#') {
        let line_end = rest.find('\n').unwrap_or(rest.len());
        rest = rest.get(line_end..).unwrap_or("").trim_start();
    }
    text.len() - rest.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, checked at one position.
    fn begins_lockfile(text: &str) -> bool {
        let is_version = |line: &str| {
            let value = line.strip_prefix(VERSION).map(str::trim_start);
            let value = value.and_then(|rest| rest.strip_prefix('=')).map(str::trim);
            value.is_some_and(|value| value.parse::<u32>().is_ok())
        };
        let mut lines = text.lines();
        let is_lock = lines.next().is_some_and(is_version) && {
            let mut rest = lines.map(str::trim_start);
            let next = rest.find(|line| !line.is_empty() && !line.starts_with('#'));
            next.is_some_and(|line| AFTER_VERSION.iter().any(|key| line.starts_with(key)))
        };
        is_lock || text.starts_with(REQUIREMENTS)
    }

    proptest! {
        #[test]
        fn lockfiles_begin_where_their_definition_requires(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "version", " ", "=", "+", "1", "0", "99999999999", "\n", "\r", "\u{85}", "\t", "#", "x",
                    "version = 1\n", "#version = 2\r\n", "  # x\n", "revision", "[", "conflicts",
                    "requires-python", REQUIREMENTS, "é",
                ]),
                0..24,
            ),
        ) {
            let text = parts.concat();
            let mut found: Vec<usize> = starts(&text).collect();
            found.sort_unstable();
            let positions = 0..=text.len();
            let wanted: Vec<usize> = positions
                .filter(|at| text.get(*at..).is_some_and(begins_lockfile))
                .collect();
            prop_assert_eq!(found, wanted, "{:?}", text);
        }
    }
}
