//! Parameters of a plugin: the JSON object that is passed to `Handler.configure(ctx, config)`.
//!
//! They consist of the plugin's defaults (`cf_plugin_config.default_parameters`) and the job's
//! parameters (`cf_processing_queue.parameters`). The text of values is kept unchanged, so that
//! large integers and decimal numbers reach Python exactly.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::limits;

/// Bytes of the longest value that an error shows.
const EXAMPLE_SIZE_MAX: usize = 80;

/// A JSON object. The order of keys does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters(BTreeMap<String, String>);

/// Why parameters are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParametersError {
    /// The text is not JSON.
    Syntax(String),
    /// The text is JSON but not an object.
    NoObject,
    /// The text is larger than [`limits::PARAMETERS_SIZE_MAX`]; its size in bytes.
    Large(usize),
    /// A word is not `NAME=VALUE`.
    NoKey(String),
    /// A key is given twice.
    Twice(String),
    /// The value of a word is valid JSON that is not supported.
    Value {
        /// The key.
        key: String,
        /// The value as it was given.
        value: String,
        /// Why it is not supported.
        reason: String,
    },
}

impl fmt::Display for ParametersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParametersError::Syntax(reason) => write!(f, "not JSON: {reason}"),
            ParametersError::NoObject => f.write_str("expected a JSON object, {\"name\": value}"),
            ParametersError::Large(size) => {
                let most = limits::PARAMETERS_SIZE_MAX;
                write!(f, "{size} bytes, at most {most}")
            }
            ParametersError::NoKey(word) => write!(f, "{word:?}: expected NAME=VALUE"),
            ParametersError::Twice(key) => write!(f, "{key} is given twice"),
            ParametersError::Value { key, value, reason } => {
                write!(
                    f,
                    "{key}: its value is valid JSON that cannot be passed to a plugin ({reason})"
                )?;
                // A value that is not shown whole would be another value.
                match value.len() <= EXAMPLE_SIZE_MAX {
                    true => write!(
                        f,
                        ": for a string, give {key}={}",
                        Value::from(value.as_str())
                    ),
                    false => f.write_str(": for a string, give a JSON string"),
                }
            }
        }
    }
}

impl std::error::Error for ParametersError {}

impl Parameters {
    /// Parses a JSON object. An empty text and `null` mean no parameters.
    pub fn parse(text: &str) -> Result<Self, ParametersError> {
        if text.len() > limits::PARAMETERS_SIZE_MAX {
            return Err(ParametersError::Large(text.len()));
        }
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        Self::read(text)
    }

    fn read(text: &str) -> Result<Self, ParametersError> {
        let syntax = |error: serde_json::Error| ParametersError::Syntax(error.to_string());
        // This pass only checks the syntax and depth of the text.
        match serde_json::from_str(text).map_err(syntax)? {
            Value::Null => return Ok(Self::default()),
            Value::Object(_) => {}
            _ => return Err(ParametersError::NoObject),
        }
        let read: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).map_err(syntax)?;
        let values = read.into_iter();
        let values = values.map(|(key, value)| (key, value.get().to_owned()));
        Ok(Parameters(values.collect()))
    }

    /// Parses words `NAME=VALUE` of a command line. A value that is not JSON is read as a string. JSON that
    /// is not supported is an error: a number beyond the range of a double, half of a surrogate pair, and
    /// nesting that is too deep.
    pub fn of_words(words: &[String]) -> Result<Self, ParametersError> {
        let mut read = BTreeMap::new();
        for word in words {
            let Some((key, value)) = word.split_once('=').filter(|(key, _)| !key.is_empty()) else {
                return Err(ParametersError::NoKey(word.clone()));
            };
            let json = match is_json(value) {
                true => value.trim().to_owned(),
                false => Value::from(value).to_string(),
            };
            if let Some(reason) = unsupported(&json) {
                return Err(ParametersError::Value {
                    key: key.to_owned(),
                    value: value.to_owned(),
                    reason,
                });
            }
            if read.insert(key.to_owned(), json).is_some() {
                return Err(ParametersError::Twice(key.to_owned()));
            }
        }
        let found = Parameters(read);
        match found.to_json() {
            text if text.len() > limits::PARAMETERS_SIZE_MAX => {
                Err(ParametersError::Large(text.len()))
            }
            _ => Ok(found),
        }
    }

    /// Merges these defaults with a job's own parameters, which override those of the same name.
    pub fn with(&self, own: &Parameters) -> Self {
        let mut all = self.0.clone();
        all.extend(own.0.clone());
        Parameters(all)
    }

    /// True if there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The object as JSON text, with sorted keys.
    pub fn to_json(&self) -> String {
        let part =
            |(key, value): (&String, &String)| format!("{}:{value}", Value::from(key.as_str()));
        let parts: Vec<String> = self.0.iter().map(part).collect();
        format!("{{{}}}", parts.join(","))
    }
}

/// True for text that the grammar of JSON allows, even if no [`Value`] can represent it.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Why an object with this JSON value cannot be parsed; `None` if it can.
fn unsupported(json: &str) -> Option<String> {
    let object = format!("{{\"\":{json}}}");
    let error = serde_json::from_str::<Value>(&object).err()?.to_string();
    // The line and column of the object, which the user has not written, are left out.
    let end = error.find(" at line ").unwrap_or(error.len());
    error.get(..end).map(str::to_owned)
}

impl Serialize for Parameters {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let raw = RawValue::from_string(self.to_json());
        raw.map_err(serde::ser::Error::custom)?.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(from)?;
        // The limit is that of defaults and a job's own parameters together.
        if raw.get().len() > 2 * limits::PARAMETERS_SIZE_MAX + 1 {
            return Err(D::Error::custom(ParametersError::Large(raw.get().len())));
        }
        let read = Parameters::read(raw.get());
        read.map_err(|error| D::Error::custom(format_args!("parameters: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_json_or_strings() {
        let cases: &[(&[&str], &str)] = &[
            (&["n=5"], r#"{"n":5}"#),
            (&["s=abc", "a=x=y"], r#"{"a":"x=y","s":"abc"}"#),
            (&["s=\"5\"", "e=", "z=007"], r#"{"e":"","s":"5","z":"007"}"#),
            (
                &["big=123456789012345678901234567890"],
                r#"{"big":123456789012345678901234567890}"#,
            ),
            (
                &["d=1.10", "l=[1, {\"a\": null}]"],
                r#"{"d":1.10,"l":[1, {"a": null}]}"#,
            ),
            (
                &["t=true", "u=True", "n=NaN"],
                r#"{"n":"NaN","t":true,"u":"True"}"#,
            ),
            (&["é= \"ü\""], r#"{"é":"ü"}"#),
            (
                &[r#"e="\ud83d\ude00""#, "s=1e400x", "m=1e-400", r"t=\ud800"],
                r#"{"e":"\ud83d\ude00","m":1e-400,"s":"1e400x","t":"\\ud800"}"#,
            ),
        ];
        for (words, want) in cases {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(Parameters::of_words(&words).unwrap().to_json(), *want);
        }
        let nested = |depth| format!("n={}{}", "[".repeat(depth), "]".repeat(depth));
        let most = Parameters::of_words(&[nested(126)]).unwrap();
        assert_eq!(Parameters::parse(&most.to_json()), Ok(most));
        let (deep, deeper) = (nested(127), nested(1000));
        let large = format!("a={}", "x".repeat(limits::PARAMETERS_SIZE_MAX));
        let cases: &[(&[&str], &str)] = &[
            (&["n"], "expected NAME=VALUE"),
            (&["=5"], "expected NAME=VALUE"),
            (&["a=1", "a=2"], "a is given twice"),
            (&[&large], "at most 32768"),
            (
                &["n=1e400"],
                "n: its value is valid JSON that cannot be passed to a plugin (number out of \
                 range): for a string, give n=\"1e400\"",
            ),
            (&["n=[-1e999]"], "for a string, give n=\"[-1e999]\""),
            (&[r#"n="\ud800""#], r#"for a string, give n="\"\\ud800\"""#),
            (&[r#"n={"\ude00": 1}"#], "n: its value is valid JSON"),
            (
                &[&deep],
                "n: its value is valid JSON that cannot be passed to a plugin (recursion limit exceeded): \
                 for a string, give a JSON string",
            ),
            (&[&deeper], "n: its value is valid JSON"),
        ];
        for (words, want) in cases {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let error = Parameters::of_words(&words).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn texts_are_objects_and_merge_by_name() {
        for (text, want) in [
            ("", "{}"),
            ("null", "{}"),
            (" {} ", "{}"),
            ("{\"b\": 1, \"a\": [2]}", "{\"a\":[2],\"b\":1}"),
            ("{\"a\": 1, \"a\": 2}", "{\"a\":2}"),
        ] {
            assert_eq!(Parameters::parse(text).unwrap().to_json(), want);
        }
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(1000), "]".repeat(1000));
        for (text, want) in [
            ("[1]", "expected a JSON object"),
            ("{a: 1}", "not JSON: "),
            ("{\"a\": NaN}", "not JSON: "),
            (deep.as_str(), "not JSON: recursion"),
        ] {
            let error = Parameters::parse(text).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        let defaults = Parameters::parse("{\"a\": 1, \"b\": {\"c\": 1}}").unwrap();
        let own = Parameters::parse("{\"b\": {\"d\": 2}}").unwrap();
        let all = defaults.with(&own);
        assert_eq!(all.to_json(), "{\"a\":1,\"b\":{\"d\": 2}}");
        let wire = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Parameters>(&wire).unwrap(), all);
    }
}
