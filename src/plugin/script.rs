//! PEP 723 inline metadata, and the settings that it shares with a `pyproject.toml` (`project.rs`).

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::quota::{Quota, Words};
use crate::job::text::with_line_feeds;

/// Content of the `# /// script` block of a plugin, or the same settings in its `pyproject.toml`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Script {
    /// Requirements (PEP 508).
    pub dependencies: Vec<String>,
    /// Python versions on which it runs.
    pub requires_python: Option<String>,
    /// Modules that a warm fork server imports (`[tool.casparian] preload`).
    pub preload: Vec<String>,
    /// The plugin asks for the strict sandbox (`[tool.casparian] sandbox = "strict"`).
    pub is_strict: bool,
    /// Limits that the plugin asks for (`[tool.casparian] job-cpu` and so on).
    pub quota: Quota,
    /// `[tool.uv]`, unchanged.
    pub uv: toml::Table,
}

/// Why a block is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub(super) source: &'static str,
    pub(super) reason: String,
}

const INLINE: &str = "inline script metadata (PEP 723)";

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            "" => f.write_str(&self.reason),
            source => write!(f, "{source}: {}", self.reason),
        }
    }
}

impl std::error::Error for Error {}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Table {
    #[serde(default)]
    pub(super) dependencies: Vec<String>,
    pub(super) requires_python: Option<String>,
    #[serde(default)]
    pub(super) tool: Tool,
}

#[derive(Default, Deserialize)]
pub(super) struct Tool {
    #[serde(default)]
    casparian: Casparian,
    #[serde(default)]
    pub(super) uv: toml::Table,
}

#[derive(Default, Deserialize)]
struct Casparian {
    #[serde(default)]
    preload: Vec<String>,
    sandbox: Option<String>,
    #[serde(flatten)]
    limits: Words,
    /// Settings that only a `pyproject.toml` has.
    #[serde(rename = "entry")]
    _entry: Option<IgnoredAny>,
    #[serde(rename = "exclude")]
    _exclude: Option<IgnoredAny>,
    /// Unknown keys. They are refused: a misspelt setting would restrict the plugin less than its author asks
    /// for.
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

/// Every setting of `[tool.casparian]`.
const SETTINGS: &str = "preload, sandbox, entry, exclude, job-timeout, job-cpu, job-memory, \
                        job-open-files, job-processes, job-output, job-log, job-scratch";

/// Parses the block; none if there is none. Two blocks are an error, as PEP 723 requires.
pub fn metadata(source: &str) -> Result<Option<Script>, Error> {
    let fail = |reason: &str| Error {
        source: INLINE,
        reason: reason.to_owned(),
    };
    let mut found: Option<String> = None;
    // A byte order mark is not part of the text.
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    let source = with_line_feeds(source);
    let mut lines = source.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim_end() != "# /// script" {
            continue;
        }
        let mut block = Vec::new();
        while let Some(line) = lines.next_if(|line| *line == "#" || line.starts_with("# ")) {
            block.push(line.strip_prefix("# ").unwrap_or(""));
        }
        // The block ends at the last `# ///` of the run of comment lines.
        let Some(end) = block.iter().rposition(|line| line.trim_end() == "///") else {
            return Err(fail("the block has no closing line `# ///`"));
        };
        if found.is_some() {
            return Err(fail("there is more than one block `# /// script`"));
        }
        block.truncate(end);
        found = Some(block.join("\n"));
    }
    let Some(text) = found else {
        return Ok(None);
    };
    let table: Table = toml::from_str(&text).map_err(|error| fail(error.message()))?;
    script(table, INLINE).map(Some)
}

/// True for a version with an operator (PEP 440), and for an empty clause, as after a trailing comma.
fn is_version_clause(clause: &str) -> bool {
    let operators = ["===", "==", "~=", "!=", "<=", ">=", "<", ">"];
    let version = operators
        .iter()
        .find_map(|operator| clause.strip_prefix(operator));
    clause.is_empty() || version.is_some_and(|version| !version.trim().is_empty())
}

/// Checks the values of a table.
pub(super) fn script(table: Table, source: &'static str) -> Result<Script, Error> {
    let fail = |reason: &str| Error {
        source,
        reason: reason.to_owned(),
    };
    for word in table.dependencies.iter().chain(&table.requires_python) {
        if word.contains(['\n', '\r']) || word.trim_start().starts_with('-') {
            return Err(fail(&format!("{word:?} is no requirement")));
        }
    }
    if let Some(version) = &table.requires_python
        && let Some(clause) = version
            .split(',')
            .map(str::trim)
            .find(|clause| !is_version_clause(clause))
    {
        return Err(fail(&format!(
            "requires-python {version:?}: {clause:?} is no version specifier, such as \">=3.11\" or \"==3.11.*\""
        )));
    }
    if let Some(name) = table.tool.casparian.unknown.keys().next() {
        return Err(fail(&format!(
            "[tool.casparian] has no setting {name:?}; it has {SETTINGS}"
        )));
    }
    let is_module = |name: &String| {
        !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_alphanumeric() || c == '_' || c == '.')
    };
    if let Some(name) = table
        .tool
        .casparian
        .preload
        .iter()
        .find(|name| !is_module(name))
    {
        return Err(fail(&format!("preload {name:?} is no module name")));
    }
    let is_strict = match table.tool.casparian.sandbox.as_deref() {
        None | Some("on") => false,
        Some("strict") => true,
        Some(other) => {
            return Err(fail(&format!(
                "sandbox {other:?}: expected \"on\" or \"strict\""
            )));
        }
    };
    let limits = &table.tool.casparian.limits;
    let quota = limits.quota().map_err(|reason| fail(&reason))?;
    Ok(Script {
        quota,
        is_strict,
        dependencies: table.dependencies,
        requires_python: table.requires_python,
        preload: table.tool.casparian.preload,
        uv: table.tool.uv,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_read_and_its_absence_is_no_error() {
        let source = "# /// script\n# requires-python = \">=3.10\"\n# dependencies = [\n#   \"pandas\",\n# ]\n#\n# [tool.casparian]\n# preload = [\"pandas\"]\n# ///\nimport pandas\n";
        let script = metadata(source).unwrap().unwrap();
        assert_eq!(script.dependencies, ["pandas"]);
        assert_eq!(script.requires_python.as_deref(), Some(">=3.10"));
        assert_eq!(script.preload, ["pandas"]);
        let marked = format!("\u{feff}{source}");
        assert_eq!(metadata(&marked).unwrap(), Some(script));
        assert_eq!(metadata("x = 1\n# /// other\n# ///\n").unwrap(), None);
    }

    #[test]
    fn lines_end_where_those_of_python_do() {
        let lines = [
            "# /// script",
            "# dependencies = [\"six\"]",
            "# [tool.casparian]",
            "# sandbox = \"strict\"",
            "# ///",
            "x = 1",
        ];
        for (end, is_end) in [
            ("\n", true),
            ("\r\n", true),
            ("\r", true),
            ("\x0b", false),
            ("\x0c", false),
            ("\x1c", false),
            ("\u{85}", false),
            ("\u{2028}", false),
        ] {
            let found = metadata(&lines.join(end));
            let script = found.unwrap_or_else(|error| panic!("{end:?}: {error}"));
            let is_read =
                script.is_some_and(|script| script.is_strict && script.dependencies == ["six"]);
            assert_eq!(is_read, is_end, "{end:?}");
        }
        // An empty line ends the block.
        let error = metadata(&lines.join("\n\r")).unwrap_err().to_string();
        assert!(error.contains("no closing line"), "{error}");
        // Within a line these characters have no effect.
        let mixed = "x = 'a\x0cb'\x0c\r# /// script\r\n# [tool.casparian]\r# sandbox = \"strict\"\n# ///\ry";
        assert!(metadata(mixed).unwrap().unwrap().is_strict);
    }

    #[test]
    fn bad_blocks_are_refused_with_the_reason() {
        for (source, want) in [
            ("# /// script\n# dependencies = []\n", "no closing line"),
            (
                "# /// script\n# ///\nx\n# /// script\n# ///\n",
                "more than one",
            ),
            ("# /// script\n# dependencies = 3\n# ///\n", "invalid type"),
            (
                "# /// script\n# dependencies = [\"--index-url=x\"]\n# ///\n",
                "no requirement",
            ),
            (
                "# /// script\n# [tool.casparian]\n# preload = [\"a;b\"]\n# ///\n",
                "no module",
            ),
            (
                "# /// script\n# requires-python = \"3.11\"\n# ///\n",
                "requires-python \"3.11\": \"3.11\" is no version specifier",
            ),
            (
                "# /// script\n# requires-python = \">=3.9,garbage\"\n# ///\n",
                "\"garbage\" is no version specifier",
            ),
            (
                "# /// script\n# [tool.casparian]\n# job-memroy = 3\n# ///\n",
                "no setting \"job-memroy\"; it has preload, sandbox",
            ),
            (
                "# /// script\n# [tool.casparian]\n# Sandbox = \"strict\"\n# ///\n",
                "no setting \"Sandbox\"",
            ),
        ] {
            let error = metadata(source).unwrap_err().to_string();
            assert!(error.contains(want), "{source:?}: {error}");
        }
    }
}
