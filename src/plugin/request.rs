//! What an environment is to contain, as its author wrote it: PEP 723 metadata with `[tool.uv]`, or a
//! requirements file. Paths are absolute here. Settings that would have no effect are refused; the error
//! names them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::direct::{absolute, absolute_location, absolute_path, name, url_hash};
use super::script::Script;

/// Keys of `[tool.uv]` that are written into the project.
const PROJECT: &[&str] = &[
    "constraint-dependencies",
    "environments",
    "exclude-dependencies",
    "override-dependencies",
    "required-environments",
    "sources",
];

/// Keys of `[tool.uv]` that are written into uv's settings.
pub(super) const SETTINGS: &[&str] = &[
    "dependency-metadata",
    "exclude-newer",
    "exclude-newer-package",
    "extra-index-url",
    "find-links",
    "fork-strategy",
    "index",
    "index-strategy",
    "index-url",
    "no-binary",
    "no-binary-package",
    "no-build",
    "no-build-package",
    "no-index",
    "no-sources",
    "prerelease",
    "required-version",
    "resolution",
];

/// What an environment is to contain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Requirements (PEP 508).
    pub(super) dependencies: Vec<String>,
    pub(super) requires_python: Option<String>,
    /// Modules that a warm fork server imports.
    pub(super) preload: Vec<String>,
    /// `[tool.uv]` of the project that uv resolves.
    pub(super) project: Table,
    /// Settings with which uv resolves it.
    pub(super) settings: Table,
    /// The hashes that files of a package may have, by the package's name.
    pub(super) hashes: BTreeMap<String, Hashes>,
    /// The file and line because of which every package must have a hash; none if no package must.
    pub(super) hashes_needed_by: Option<String>,
    /// A lockfile whose versions are kept where they satisfy the request.
    pub(super) known: Option<Known>,
}

/// The lockfile beside a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its path, for errors.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// Hashes that a requirements file lists for a package.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hashes {
    /// `sha256:…`
    pub(super) allowed: BTreeSet<String>,
    /// File and line.
    pub(super) at: String,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub(super) String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl Request {
    /// The request of a plugin's own metadata. Relative paths are relative to the plugin's folder. `known` is
    /// the lockfile beside the plugin (`uv lock --script`).
    pub fn of_script(
        script: &Script,
        folder: &Path,
        known: Option<Known>,
    ) -> Result<Self, Refused> {
        let mut request = Request {
            dependencies: script.dependencies.clone(),
            known,
            ..Self::of_metadata(script, folder)?
        };
        let refused = |reason| Refused(format!("dependencies: {reason}"));
        absolute_all(&mut request.dependencies, folder).map_err(refused)?;
        request.add_url_hashes().map_err(refused)?;
        Ok(request)
    }

    /// Adds the hashes that URLs end with (`NAME @ URL#sha256=…`), because uv does not check those of local
    /// files.
    pub(super) fn add_url_hashes(&mut self) -> Result<(), String> {
        for requirement in &self.dependencies {
            let Some(hash) = url_hash(requirement)? else {
                continue;
            };
            let known = self.hashes.entry(name(requirement)).or_default();
            known.allowed.insert(hash);
            known.at.clone_from(requirement);
        }
        Ok(())
    }

    pub(super) fn of_metadata(script: &Script, folder: &Path) -> Result<Self, Refused> {
        let mut request = Request {
            requires_python: script.requires_python.clone(),
            preload: script.preload.clone(),
            ..Request::default()
        };
        for (key, value) in &script.uv {
            let mut value = value.clone();
            let refused = |reason: String| Refused(format!("[tool.uv] {key}: {reason}"));
            make_absolute(key, &mut value, folder).map_err(refused)?;
            if PROJECT.contains(&key.as_str()) {
                request.project.insert(key.clone(), value);
            } else if SETTINGS.contains(&key.as_str()) {
                request.settings.insert(key.clone(), value);
            } else {
                return Err(refused("it is not supported; remove it".to_owned()));
            }
        }
        Ok(request)
    }

    /// True if the request needs only pyarrow, a Python version and preloads.
    pub(super) fn is_default(&self) -> bool {
        self.dependencies.iter().all(|one| one == "pyarrow")
            && self.project.is_empty()
            && self.settings.is_empty()
    }
}

fn absolute_all(requirements: &mut [String], folder: &Path) -> Result<(), String> {
    for requirement in requirements {
        *requirement = absolute(requirement, folder)?;
    }
    Ok(())
}

/// Makes the paths in a value of `[tool.uv]` absolute, and refuses values that are not supported.
fn make_absolute(key: &str, value: &mut Value, folder: &Path) -> Result<(), String> {
    match key {
        "sources" => {
            let sources = value.as_table_mut().ok_or("expected a table")?;
            for (name, source) in sources {
                let several = match source {
                    Value::Array(several) => several.as_mut_slice(),
                    one => std::slice::from_mut(one),
                };
                for one in several {
                    absolute_source(one, folder).map_err(|reason| format!("{name}: {reason}"))?;
                }
            }
        }
        "constraint-dependencies" | "override-dependencies" => {
            for text in strings(value)? {
                *text = absolute(text, folder)?;
            }
        }
        "index-url" | "extra-index-url" | "find-links" => {
            for text in strings(value)? {
                *text = location(text, folder)?;
            }
        }
        "index" => {
            for index in value.as_array_mut().ok_or("expected an array of tables")? {
                if let Some(Value::String(url)) = index.get_mut("url") {
                    *url = location(url, folder)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// The strings of a value that is a string or a list of strings.
fn strings(value: &mut Value) -> Result<Vec<&mut String>, String> {
    let texts = match value {
        Value::Array(list) => list.as_mut_slice(),
        one => std::slice::from_mut(one),
    };
    let text = |value| match value {
        &mut Value::String(ref mut text) => Ok(text),
        _ => Err("expected strings".to_owned()),
    };
    texts.iter_mut().map(text).collect()
}

fn absolute_source(source: &mut Value, folder: &Path) -> Result<(), String> {
    let source = source.as_table_mut().ok_or("expected a table")?;
    if source.contains_key("workspace") {
        return Err("workspace: a plugin is in no workspace; use path".to_owned());
    }
    if let Some(path) = source.get_mut("path") {
        let text = path.as_str().ok_or("path: expected a string")?;
        *path = Value::String(absolute_path(text, folder)?);
        // An environment contains a copy of the folder as it is when the run starts.
        source.remove("editable");
    }
    Ok(())
}

/// The absolute location of an index. Credentials in it are refused: they would be readable in the lockfile,
/// or missing from it.
pub(super) fn location(text: &str, folder: &Path) -> Result<String, String> {
    let host = text
        .split_once("://")
        .map(|(_, rest)| rest.split('/').next());
    if host.flatten().is_some_and(|host| host.contains('@')) {
        let reason = "credentials in the URL of an index are not supported: put them into ~/.netrc, or \
                      set UV_DEFAULT_INDEX or UV_INDEX";
        return Err(reason.to_owned());
    }
    absolute_location(text, folder)
}

#[cfg(test)]
mod tests {
    use super::super::script;
    use super::*;

    fn request(block: &str) -> Result<Request, String> {
        let lines: String = block.lines().map(|line| format!("# {line}\n")).collect();
        let source = format!("# /// script\n{lines}# ///\n");
        let script = script::metadata(&source).unwrap().unwrap();
        Request::of_script(&script, Path::new("/p"), None).map_err(|error| error.to_string())
    }

    #[test]
    fn paths_of_tool_uv_lead_from_the_plugins_folder() {
        let found = request(
            "dependencies = [\"a @ file:./a\"]\n[tool.uv]\nfind-links = [\"w\", \"https://h/w\"]\n\
             override-dependencies = [\"b @ ./b\"]\nindex = [{ name = \"i\", url = \"../i\" }]\n\
             [tool.uv.sources]\nc = { path = \"c\", editable = true }\n\
             d = [{ path = \"./d\", marker = \"x\" }, { git = \"https://h/d\" }]\n",
        )
        .unwrap();
        assert_eq!(found.dependencies, ["a @ file:///p/./a"]);
        let uv: Table = toml::from_str(
            "override-dependencies = [\"b @ file:///p/b\"]\n[sources]\nc = { path = \"/p/c\" }\n\
             d = [{ path = \"/p/d\", marker = \"x\" }, { git = \"https://h/d\" }]\n",
        )
        .unwrap();
        assert_eq!(found.project, uv);
        let settings: Table = toml::from_str(
            "find-links = [\"/p/w\", \"https://h/w\"]\nindex = [{ name = \"i\", url = \"/i\" }]\n",
        )
        .unwrap();
        assert_eq!(found.settings, settings);
    }

    #[test]
    fn what_would_not_hold_is_refused_by_its_name() {
        for (block, want) in [
            ("[tool.uv]\nworkspace = {}", "workspace"),
            ("[tool.uv]\nno-such-key = 1", "no-such-key"),
            (
                "[tool.uv]\nbuild-constraint-dependencies = []",
                "build-constraint-dependencies",
            ),
            (
                "[tool.uv.sources]\nm = { workspace = true }",
                "m: workspace",
            ),
            (
                "[tool.uv]\nindex-url = \"https://u:p@h/simple\"",
                "index-url: credentials",
            ),
            ("[tool.uv]\nfind-links = 3", "find-links: expected strings"),
            ("[tool.uv]\nsources = 3", "sources: expected a table"),
        ] {
            let error = request(block).unwrap_err();
            assert!(error.contains(want), "{block}: {error}");
        }
    }
}
