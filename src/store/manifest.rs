//! Reads the MANIFEST of a plugin's source: routing data, read as literals and never run.
//!
//! `MANIFEST = PluginMetadata(pattern="*.csv", topic="sales", ...)` is searched among the
//! statements that begin a line. Its arguments are the literals of Python's `ast.literal_eval` that JSON can
//! represent: strings, numbers, `True`, `False`, `None`, lists, tuples, sets, dicts with string keys.
//! Anything that would have to be run is refused.
//!
//! The source is not trusted: nesting is bounded ([`limits::MANIFEST_DEPTH_MAX`]), and
//! time and memory are linear in its length. This module does not check that the rest of the source is valid
//! Python. It only distinguishes strings, comments and brackets.

use std::fmt;

use serde_json::{Map, Number, Value};

use crate::job::text::with_line_feeds;
use crate::limits;

/// The MANIFEST of a plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// A glob pattern for the names of its input files.
    pub pattern: String,
    /// The topic of its output.
    pub topic: String,
    /// Topics to which it subscribes.
    pub subscriptions: Vec<String>,
    /// Jobs of higher priorities run first. 0 when absent.
    pub priority: i64,
    /// The sinks of its topics.
    pub sinks: Vec<ManifestSink>,
    /// Its version.
    pub version: Option<String>,
    /// A description for people.
    pub description: Option<String>,
}

/// The sink of a topic: a URI, or `{"uri": ..., "mode": ...}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestSink {
    /// The topic. `output` is the topic of what a plugin returns or yields.
    pub topic: String,
    /// The sink's URI.
    pub uri: String,
    /// `append`, `replace` or `error`.
    pub mode: Option<String>,
}

/// Why a MANIFEST is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// Line of the source, counted from 1.
    pub line: usize,
    /// What is wrong, and what was expected.
    pub reason: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: MANIFEST: {}", self.line, self.reason)
    }
}

impl std::error::Error for ManifestError {}

/// Reads the MANIFEST of a plugin's source. None when the source has no MANIFEST.
pub fn read_manifest(source: &str) -> Result<Option<Manifest>, ManifestError> {
    // Python removes a byte-order mark and converts line ends in the same way before it parses a source.
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    let source = with_line_feeds(source);
    let mut reader = Reader {
        source: &source,
        at: 0,
    };
    let mut found = None;
    while !reader.rest().is_empty() {
        reader.skip_form_feeds();
        let start = reader.at;
        if reader.assignment() {
            if found.is_some() {
                return Err(reader.error_at(start, "it is assigned twice"));
            }
            found = Some((start, reader.arguments()?));
            reader.end_of_statement()?;
        }
        reader.skip_statement();
    }
    let Some((start, values)) = found else {
        return Ok(None);
    };
    let fail = |reason: String| reader.error_at(start, reason);
    manifest(values).map(Some).map_err(fail)
}

/// Checks the supported arguments. Others are ignored: later releases may add arguments.
fn manifest(mut values: Map<String, Value>) -> Result<Manifest, String> {
    let mut text = |name: &str| match values.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("{name} must be a string, not {}", kind(&other))),
    };
    let required = |name: &str, value: Option<String>| {
        value
            .filter(|value| !value.is_empty())
            .ok_or_else(|| format!("{name} is missing"))
    };
    let pattern = required("pattern", text("pattern")?)?;
    let topic = required("topic", text("topic")?)?;
    let version = text("version")?;
    let description = text("description")?;
    let priority = match values.remove("priority") {
        None | Some(Value::Null) => 0,
        Some(value) => value
            .as_i64()
            .ok_or_else(|| format!("priority must be a whole number, not {}", kind(&value)))?,
    };
    let subscriptions = match values.remove("subscriptions") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(topics)) => topics
            .into_iter()
            .map(|topic| match topic {
                Value::String(topic) => Ok(topic),
                other => Err(format!(
                    "subscriptions must be strings, not {}",
                    kind(&other)
                )),
            })
            .collect::<Result<_, _>>()?,
        Some(other) => {
            return Err(format!(
                "subscriptions must be a list, not {}",
                kind(&other)
            ));
        }
    };
    let sinks = match values.remove("sinks") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Object(sinks)) => sinks
            .into_iter()
            .map(|(topic, value)| sink(topic, value))
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(format!("sinks must be a dict, not {}", kind(&other))),
    };
    Ok(Manifest {
        pattern,
        topic,
        subscriptions,
        priority,
        sinks,
        version,
        description,
    })
}

fn sink(topic: String, value: Value) -> Result<ManifestSink, String> {
    let (uri, mode) = match value {
        Value::String(uri) => (uri, None),
        Value::Object(mut fields) => {
            let uri = match fields.remove("uri") {
                Some(Value::String(uri)) => uri,
                _ => return Err(format!("sinks: {topic:?} has no uri")),
            };
            match fields.remove("mode") {
                None | Some(Value::Null) => (uri, None),
                Some(Value::String(mode))
                    if matches!(mode.as_str(), "append" | "replace" | "error") =>
                {
                    (uri, Some(mode))
                }
                Some(_) => {
                    return Err(format!(
                        "sinks: mode of {topic:?} must be append, replace or error"
                    ));
                }
            }
        }
        other => {
            return Err(format!(
                "sinks: {topic:?} must be a URI, not {}",
                kind(&other)
            ));
        }
    };
    Ok(ManifestSink { topic, uri, mode })
}

/// Python's name for the type of a value.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "None",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a dict",
    }
}

/// A cursor over the source.
struct Reader<'a> {
    source: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        self.source.get(self.at..).unwrap_or("")
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn eat(&mut self, text: &str) -> bool {
        let there = self.rest().starts_with(text);
        if there {
            self.at += text.len();
        }
        there
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let size = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += size;
        rest.get(..size).unwrap_or("")
    }

    fn name(&mut self) -> &'a str {
        self.take_while(is_name)
    }

    fn error(&self, reason: impl Into<String>) -> ManifestError {
        self.error_at(self.at, reason)
    }

    fn error_at(&self, at: usize, reason: impl Into<String>) -> ManifestError {
        let before = self.source.as_bytes().get(..at).unwrap_or(&[]);
        ManifestError {
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            reason: reason.into(),
        }
    }

    /// Reads `MANIFEST =`, with or without a type annotation, at the start of a statement. False for another
    /// statement. Then the cursor stays behind what was read, and the rest of the statement can be skipped.
    fn assignment(&mut self) -> bool {
        if self.name() != "MANIFEST" {
            return false;
        }
        self.blanks();
        if self.eat(":") {
            self.skip_to(&['=', '\n']);
        }
        self.eat("=") && self.peek() != Some('=')
    }

    /// Skips blanks at the start of a line up to the last form feed. A form feed resets the indentation.
    fn skip_form_feeds(&mut self) {
        let blanks = self.rest().find(|c| !matches!(c, ' ' | '\t' | '\x0c'));
        let blanks = self.rest().get(..blanks.unwrap_or(0)).unwrap_or("");
        self.at += blanks.rfind('\x0c').map_or(0, |last| last + 1);
    }

    /// Skips blanks within a line, and line ends after a backslash.
    fn blanks(&mut self) {
        while self.eat(" ") || self.eat("\t") || self.eat("\x0c") || self.eat("\\\n") {}
    }

    /// The same with line ends and comments, which are allowed within brackets.
    fn space(&mut self) {
        loop {
            let before = self.at;
            self.blanks();
            self.eat("\n");
            if self.peek() == Some('#') {
                self.take_while(|c| c != '\n');
            }
            if self.at == before {
                return;
            }
        }
    }

    /// Checks that the statement ends here, so that nothing follows that would be run.
    fn end_of_statement(&mut self) -> Result<(), ManifestError> {
        self.blanks();
        match self.peek() {
            None | Some('\n' | '#' | ';') => Ok(()),
            Some(_) => Err(self.error("nothing may follow PluginMetadata(...), it is not run")),
        }
    }

    /// Skips to the start of the next line that can begin a statement.
    fn skip_statement(&mut self) {
        self.skip_to(&['\n']);
        self.next();
    }

    /// Skips to the first of these characters outside of brackets, strings and comments, or to the end.
    fn skip_to(&mut self, ends: &[char]) {
        let mut depth = 0usize;
        while let Some(next) = self.peek() {
            match next {
                next if depth == 0 && ends.contains(&next) => return,
                '\'' | '"' => {
                    self.skip_string();
                    continue;
                }
                '#' => {
                    self.take_while(|c| c != '\n');
                    continue;
                }
                '\\' => {
                    self.next();
                }
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.next();
        }
    }

    /// Skips a string with any prefix. In all of them a backslash escapes the next character. A string that
    /// is not closed ends with its line, or with the source.
    fn skip_string(&mut self) {
        let quote = self.quote();
        while let Some(next) = self.peek() {
            if self.eat(quote) {
                return;
            }
            match next {
                '\\' => {
                    self.next();
                    self.next();
                }
                '\n' if quote.len() == 1 => return,
                _ => {
                    self.next();
                }
            }
        }
    }

    /// Reads the quotes that open a string.
    fn quote(&mut self) -> &'static str {
        ["'''", "\"\"\"", "'", "\""]
            .into_iter()
            .find(|quote| self.eat(quote))
            .unwrap_or("'")
    }

    /// Reads `PluginMetadata(name=literal, ...)`.
    fn arguments(&mut self) -> Result<Map<String, Value>, ManifestError> {
        self.blanks();
        let callee = self.take_while(|c| is_name(c) || c == '.');
        self.blanks();
        if callee.rsplit('.').next() != Some("PluginMetadata") || !self.eat("(") {
            return Err(self.error("expected PluginMetadata(...)"));
        }
        let mut values = Map::new();
        loop {
            self.space();
            if self.eat(")") {
                return Ok(values);
            }
            let name = self.name();
            self.space();
            if name.is_empty() || !self.eat("=") || self.peek() == Some('=') {
                return Err(self.error("expected name=value"));
            }
            let value = self.value(0)?;
            if values.insert(name.to_owned(), value).is_some() {
                return Err(self.error(format!("{name} is given twice")));
            }
            self.space();
            if !self.eat(",") && self.peek() != Some(')') {
                return Err(self.error(format!("{name} is no literal, and nothing here is run")));
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, ManifestError> {
        if depth > limits::MANIFEST_DEPTH_MAX {
            return Err(self.error("it is nested too deeply"));
        }
        self.space();
        match self.peek() {
            Some('(') => self.tuple(depth),
            Some('[') => self.items("[", "]", depth),
            Some('{') => self.dict(depth),
            Some('0'..='9' | '.' | '-' | '+') => self.number(),
            Some('\'' | '"') => self.strings("").map(Value::String),
            Some(c) if is_name(c) => {
                let start = self.at;
                let name = self.name();
                match name {
                    "True" => Ok(Value::Bool(true)),
                    "False" => Ok(Value::Bool(false)),
                    "None" => Ok(Value::Null),
                    prefix if matches!(self.peek(), Some('\'' | '"')) => {
                        self.strings(prefix).map(Value::String)
                    }
                    other => {
                        let shown: String = other.chars().take(40).collect();
                        Err(self
                            .error_at(start, format!("{shown} is no literal, and nothing is run")))
                    }
                }
            }
            _ => Err(self.error("expected a literal")),
        }
    }

    /// Reads values up to `close`.
    fn items(&mut self, open: &str, close: &str, depth: usize) -> Result<Value, ManifestError> {
        self.eat(open);
        let mut items = Vec::new();
        loop {
            self.space();
            if self.eat(close) {
                return Ok(Value::Array(items));
            }
            items.push(self.value(depth + 1)?);
            self.separator(close)?;
        }
    }

    fn separator(&mut self, close: &str) -> Result<(), ManifestError> {
        self.space();
        if self.eat(",") || self.rest().starts_with(close) {
            return Ok(());
        }
        Err(self.error(format!("expected a literal and then a comma or {close}")))
    }

    /// Reads a tuple, or a value in parentheses.
    fn tuple(&mut self, depth: usize) -> Result<Value, ManifestError> {
        self.eat("(");
        self.space();
        if self.eat(")") {
            return Ok(Value::Array(Vec::new()));
        }
        let first = self.value(depth + 1)?;
        self.space();
        if self.eat(")") {
            return Ok(first);
        }
        self.separator(")")?;
        match self.items("", ")", depth)? {
            Value::Array(mut items) => {
                items.insert(0, first);
                Ok(Value::Array(items))
            }
            other => Ok(other),
        }
    }

    /// Reads a dict or a set.
    fn dict(&mut self, depth: usize) -> Result<Value, ManifestError> {
        self.eat("{");
        let mut entries = Map::new();
        let mut is_first = true;
        loop {
            self.space();
            if self.eat("}") {
                return Ok(Value::Object(entries));
            }
            let key = self.value(depth + 1)?;
            self.space();
            if !self.eat(":") {
                if !is_first {
                    return Err(self.error("expected a colon behind a dict's key"));
                }
                self.separator("}")?;
                let Value::Array(mut items) = self.items("", "}", depth)? else {
                    return Err(self.error("expected a set"));
                };
                items.insert(0, key);
                return Ok(Value::Array(items));
            }
            is_first = false;
            let Value::String(key) = key else {
                return Err(self.error("the keys of a dict must be strings"));
            };
            let value = self.value(depth + 1)?;
            entries.insert(key, value);
            self.separator("}")?;
        }
    }

    fn number(&mut self) -> Result<Value, ManifestError> {
        let start = self.at;
        let mut is_negative = false;
        while matches!(self.peek(), Some('-' | '+')) {
            is_negative ^= self.next() == Some('-');
            self.space();
        }
        let mut text = self.take_while(|c| is_name(c) || c == '.').to_owned();
        let is_decimal = !text.starts_with(['0']) || !text.contains(['x', 'X', 'o', 'O', 'b', 'B']);
        if is_decimal && text.ends_with(['e', 'E']) && matches!(self.peek(), Some('-' | '+')) {
            text.extend(self.next());
            text.push_str(self.name());
        }
        let digits = text.replace('_', "").to_ascii_lowercase();
        let whole = match digits.split_at_checked(2) {
            Some(("0x", digits)) => i64::from_str_radix(digits, 16).ok(),
            Some(("0o", digits)) => i64::from_str_radix(digits, 8).ok(),
            Some(("0b", digits)) => i64::from_str_radix(digits, 2).ok(),
            _ => digits.parse().ok(),
        };
        let number = match whole {
            Some(whole) if is_negative => Some(Number::from(-whole)),
            Some(whole) => Some(Number::from(whole)),
            None if digits.contains(['.', 'e']) && is_decimal => {
                let number = digits.parse::<f64>().ok();
                number
                    .and_then(|number| Number::from_f64(if is_negative { -number } else { number }))
            }
            None => None,
        };
        number
            .map(Value::Number)
            .ok_or_else(|| self.error_at(start, "expected a number that 64 bits can hold"))
    }

    /// Reads one or more adjacent strings, which Python joins.
    fn strings(&mut self, prefix: &str) -> Result<String, ManifestError> {
        let mut text = String::new();
        let mut prefix = prefix;
        loop {
            let is_raw = match prefix {
                "" | "u" | "U" => false,
                "r" | "R" => true,
                _ => return Err(self.error("expected a plain string: f- and b-strings are none")),
            };
            self.string(is_raw, &mut text)?;
            self.space();
            let start = self.at;
            prefix = self.name();
            if !matches!(self.peek(), Some('\'' | '"')) {
                self.at = start;
                return Ok(text);
            }
        }
    }

    fn string(&mut self, is_raw: bool, text: &mut String) -> Result<(), ManifestError> {
        let start = self.at;
        let quote = self.quote();
        loop {
            if self.eat(quote) {
                return Ok(());
            }
            match self.next() {
                None => return Err(self.error_at(start, "a string is not closed")),
                Some('\n') if quote.len() == 1 => {
                    return Err(self.error_at(start, "a string is not closed in its line"));
                }
                Some('\\') if is_raw => {
                    text.push('\\');
                    text.extend(self.next());
                }
                Some('\\') => self.escape(text)?,
                Some(other) => text.push(other),
            }
        }
    }

    /// Reads what follows a backslash. Unknown escapes keep the backslash, as in Python.
    fn escape(&mut self, text: &mut String) -> Result<(), ManifestError> {
        let escaped = self
            .next()
            .ok_or_else(|| self.error("a string is not closed"))?;
        let code = match escaped {
            '\n' => return Ok(()),
            '\\' | '\'' | '"' => u32::from(escaped),
            'a' => 7,
            'b' => 8,
            't' => 9,
            'n' => 10,
            'v' => 11,
            'f' => 12,
            'r' => 13,
            'x' => self.code(2, 16)?,
            'u' => self.code(4, 16)?,
            'U' => self.code(8, 16)?,
            'N' => return Err(self.error("named characters (\\N{...}) are not read here")),
            '0'..='7' => {
                self.at -= 1;
                let octal = self.rest().bytes().take(3);
                let count = octal
                    .take_while(|byte| (b'0'..=b'7').contains(byte))
                    .count();
                self.code(count, 8)?
            }
            other => {
                text.push('\\');
                u32::from(other)
            }
        };
        text.push(
            char::from_u32(code)
                .ok_or_else(|| self.error("a string has an escape that is no character"))?,
        );
        Ok(())
    }

    fn code(&mut self, digits: usize, radix: u32) -> Result<u32, ManifestError> {
        let code = self
            .rest()
            .get(..digits)
            .filter(|text| text.chars().all(|c| c.is_digit(radix)))
            .and_then(|text| u32::from_str_radix(text, radix).ok())
            .ok_or_else(|| self.error("a string has an escape that is cut short"))?;
        self.at += digits;
        Ok(code)
    }
}

fn is_name(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

#[cfg(test)]
mod tests;
