//! The `pyproject.toml` of a plugin that is a folder: its dependencies and `[tool.casparian]`.

use serde::Deserialize;
use toml::{Table, Value};

use super::script::{self, Error, Script};

/// The file's name.
pub const FILE: &str = "pyproject.toml";

/// Keys of `[tool.uv]` that do not affect what an environment of the dependencies contains.
const IGNORED_KEYS: &[&str] = &[
    "build-backend",
    "cache-keys",
    "check-url",
    "default-groups",
    "dependency-groups",
    "dev-dependencies",
    "managed",
    "package",
    "pip",
    "publish-url",
    "trusted-publishing",
];

/// Content of a `pyproject.toml` that concerns the plugin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Project {
    /// The entry file (`[tool.casparian] entry`).
    pub entry: Option<String>,
    /// Patterns of files that do not belong to the plugin (`[tool.casparian] exclude`).
    pub exclude: Vec<String>,
    /// The settings that a single file has as inline metadata.
    pub script: Script,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Metadata {
    #[serde(default)]
    dependencies: Vec<String>,
    requires_python: Option<String>,
    #[serde(default)]
    dynamic: Vec<String>,
}

#[derive(Default, Deserialize)]
struct Folder {
    entry: Option<String>,
    #[serde(default)]
    exclude: Vec<String>,
}

/// Reads the file's text.
pub fn read(text: &str) -> Result<Project, Error> {
    let fail = |reason: String| Error {
        source: FILE,
        reason,
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut file: Table = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        fail(format!("line {line}: {}", error.message()))
    })?;
    let wrong =
        |source: &str, error: toml::de::Error| fail(format!("{source}: {}", error.message()));
    let mut tool = match file.remove("tool") {
        Some(Value::Table(tool)) => tool,
        _ => Table::new(),
    };
    let metadata = match file.remove("project") {
        Some(value) => value
            .try_into()
            .map_err(|error| wrong("[project]", error))?,
        None if tool.contains_key("poetry") => {
            let reason =
                "dependencies of [tool.poetry] are not read: list them in [project] dependencies";
            return Err(fail(reason.to_owned()));
        }
        None => Metadata::default(),
    };
    for key in ["dependencies", "requires-python"] {
        if metadata.dynamic.iter().any(|name| name == key) {
            return Err(fail(format!(
                "{key} is dynamic: only what is in [project] counts"
            )));
        }
    }
    let casparian = tool
        .remove("casparian")
        .unwrap_or(Value::Table(Table::new()));
    let own = casparian.clone().try_into();
    let own: Folder = own.map_err(|error| wrong("[tool.casparian]", error))?;
    let mut kept = Table::new();
    kept.insert("casparian".to_owned(), casparian);
    kept.extend(tool.remove("uv").map(|uv| ("uv".to_owned(), uv)));
    let tool = Value::Table(kept).try_into();
    let mut tool: script::Tool = tool.map_err(|error| wrong("[tool]", error))?;
    tool.uv.retain(|key, _| !IGNORED_KEYS.contains(&key));
    let table = script::Table {
        dependencies: metadata.dependencies,
        requires_python: metadata.requires_python,
        tool,
    };
    Ok(Project {
        entry: own.entry,
        exclude: own.exclude,
        script: script::script(table, FILE)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_means_the_same_as_inline_metadata() {
        let text = "[project]\nname = \"sales\"\nversion = \"1\"\ndependencies = [\"six<2\"]\n\
             requires-python = \">=3.10\"\n[build-system]\nrequires = [\"hatchling\"]\n\
             [tool.ruff]\nline-length = 100\n[tool.uv]\ndev-dependencies = [\"pytest\"]\npackage = true\n\
             prerelease = \"allow\"\n\
             [tool.casparian]\nentry = \"a/b.py\"\nexclude = [\"data\"]\npreload = [\"six\"]\n\
             sandbox = \"strict\"\njob-cpu = 5\n";
        let project = read(text).unwrap();
        assert_eq!(project.entry.as_deref(), Some("a/b.py"));
        assert_eq!(project.exclude, ["data"]);
        let script = project.script;
        assert_eq!(script.dependencies, ["six<2"]);
        assert_eq!(script.requires_python.as_deref(), Some(">=3.10"));
        assert_eq!(script.preload, ["six"]);
        assert!(script.is_strict);
        assert_eq!(script.quota.cpu, 5);
        assert_eq!(script.uv.keys().collect::<Vec<_>>(), ["prerelease"]);
        assert_eq!(read("").unwrap(), Project::default());
    }

    #[test]
    fn what_would_not_hold_is_refused() {
        for (text, want) in [
            ("a = 1\nb = \n", "pyproject.toml: line 2: "),
            ("[project]\ndependencies = 3\n", "[project]: "),
            (
                "[project]\ndynamic = [\"dependencies\"]\n",
                "dependencies is dynamic",
            ),
            ("[tool.poetry.dependencies]\nsix = \"*\"\n", "[tool.poetry]"),
            ("[tool.casparian]\nentry = 3\n", "[tool.casparian]: "),
            ("[tool.casparian]\nsandbox = \"off\"\n", "sandbox \"off\""),
            (
                "[tool.casparian]\nsand = \"strict\"\n",
                "no setting \"sand\"",
            ),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text:?}: {error}");
        }
    }
}
