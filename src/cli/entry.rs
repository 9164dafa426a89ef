//! Chooses the entry file of a plugin's folder: the one that defines `class Handler`.

use std::collections::BTreeMap;

const INIT: &str = "__init__.py";
const NAMED: [&str; 2] = ["main.py", "handler.py"];
const CHOOSE: &str =
    "name it by `entry = \"FILE.py\"` in [tool.casparian] of the folder's pyproject.toml";

/// The entry's path, or the reason why there is none. `contents` has the contents of the folder's files by
/// path.
pub(super) fn choose(
    folder: &str,
    named: Option<&str>,
    contents: &BTreeMap<String, Vec<u8>>,
) -> Result<String, String> {
    let is_package = contents.contains_key(INIT);
    if is_package && !is_identifier(folder) {
        return Err(format!(
            "the folder is a package ({INIT}), and {folder:?} is no name of one: rename the folder, or remove \
             {INIT}"
        ));
    }
    if let Some(named) = named {
        let path = named.strip_prefix("./").unwrap_or(named);
        if !contents.contains_key(path) {
            return Err(format!(
                "pyproject.toml: entry {named:?}: the folder has no such file, or it is left out"
            ));
        }
        return checked(path);
    }
    let has = |path: &str, test: fn(&str) -> bool| {
        let text = contents
            .get(path)
            .map(|bytes| String::from_utf8_lossy(bytes));
        text.is_some_and(|text| test(&text))
    };
    for path in [INIT, "plugin.py"] {
        if has(path, mentions) {
            return checked(path);
        }
    }
    let top = contents.keys().map(String::as_str);
    let top: Vec<&str> = top.filter(|path| is_top_source(path)).collect();
    let defining = |path: &&str| has(path, defines);
    let named: Vec<&str> = NAMED.into_iter().filter(defining).collect();
    let found: Vec<&str> = match named.is_empty() {
        true => top.iter().copied().filter(defining).collect(),
        false => named,
    };
    match found.as_slice() {
        [one] => checked(one),
        [] if contents.contains_key("plugin.py") => checked("plugin.py"),
        [] => Err(match top.is_empty() {
            true => "the folder has no .py file".to_owned(),
            false => format!(
                "none of the folder's files defines class Handler ({}); {CHOOSE}",
                listed(&top)
            ),
        }),
        several => Err(format!(
            "several files define class Handler ({}); {CHOOSE}",
            listed(several)
        )),
    }
}

/// Checks that an entry can be imported.
fn checked(path: &str) -> Result<String, String> {
    let module = path.strip_suffix(".py");
    let is_module = module.is_some_and(|module| module.split('/').all(is_identifier));
    match is_module {
        true => Ok(path.to_owned()),
        false => Err(format!(
            "the entry file {path:?} cannot be imported by its name: it needs the names of modules \
             (letters, digits, _) and .py at its end"
        )),
    }
}

fn is_identifier(name: &str) -> bool {
    let mut characters = name.chars();
    characters
        .next()
        .is_some_and(|first| first.is_alphabetic() || first == '_')
        && characters.all(|c| c.is_alphanumeric() || c == '_')
}

fn is_top_source(path: &str) -> bool {
    path.ends_with(".py") && !path.contains('/')
}

fn listed(paths: &[&str]) -> String {
    const SHOWN_MAX: usize = 10;
    let shown = paths.iter().take(SHOWN_MAX).copied();
    let more = paths.len().saturating_sub(SHOWN_MAX);
    let more = (more > 0).then(|| format!("and {more} more"));
    let shown: Vec<String> = shown.map(str::to_owned).chain(more).collect();
    shown.join(", ")
}

/// The top-level module of a folder to which a file belongs.
pub(super) fn top_module(path: &str) -> &str {
    let top = path.split('/').next().unwrap_or(path);
    top.split('.').next().unwrap_or(top)
}

/// True if a line contains the name Handler outside comments: `class Handler`, `from .core import Handler`.
fn mentions(text: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.lines().any(|line| {
        let code = line.split('#').next().unwrap_or_default();
        code.split(|c| !is_part(c)).any(|word| word == "Handler")
    })
}

/// True if a line without indentation defines Handler.
fn defines(text: &str) -> bool {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.lines().any(|line| {
        let rest = line
            .strip_prefix("class ")
            .map(str::trim_start)
            .unwrap_or(line);
        let rest = rest.strip_prefix("Handler").map(str::trim_start);
        let is_class = line.starts_with("class ");
        rest.is_some_and(|rest| match is_class {
            true => rest.is_empty() || rest.starts_with(['(', ':', '[', '#']),
            false => rest.starts_with('=') && !rest.starts_with("=="),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths and contents.
    type Files = &'static [(&'static str, &'static str)];

    const HANDLER: &str = "class Handler:\n    pass\n";

    #[test]
    fn the_entry_is_found_or_asked_for() {
        let cases: &[(Files, Option<&str>, Result<&str, &str>)] = &[
            (
                &[("plugin.py", HANDLER), ("main.py", HANDLER)],
                None,
                Ok("plugin.py"),
            ),
            (
                &[("main.py", HANDLER), ("a.py", HANDLER)],
                None,
                Ok("main.py"),
            ),
            (&[("main.py", "x = 1"), ("a.py", HANDLER)], None, Ok("a.py")),
            (
                &[("plugin.py", "x = 1"), ("a.py", HANDLER)],
                None,
                Ok("a.py"),
            ),
            (
                &[("plugin.py", "from a import *"), ("a.py", "")],
                None,
                Ok("plugin.py"),
            ),
            (
                &[("a.py", "Handler = make()\n"), ("b.py", "import Handler\n")],
                None,
                Ok("a.py"),
            ),
            (
                &[
                    ("a.py", "class Handlers:\n"),
                    ("b.py", "class Handler (X):\n"),
                ],
                None,
                Ok("b.py"),
            ),
            (
                &[
                    ("__init__.py", "from .core import (\n    Handler,\n)"),
                    ("core.py", HANDLER),
                ],
                None,
                Ok("__init__.py"),
            ),
            (
                &[("__init__.py", "# Handler\n"), ("core.py", HANDLER)],
                None,
                Ok("core.py"),
            ),
            (
                &[("a.py", HANDLER), ("b/c.py", HANDLER)],
                Some("b/c.py"),
                Ok("b/c.py"),
            ),
            (&[("a.py", HANDLER)], Some("./a.py"), Ok("a.py")),
            (
                &[("a.py", HANDLER)],
                Some("b.py"),
                Err("entry \"b.py\": the folder has no such file"),
            ),
            (
                &[("a.py", HANDLER), ("b.py", HANDLER)],
                None,
                Err("(a.py, b.py); name it by `entry"),
            ),
            (
                &[("a.py", ""), ("b/c.py", HANDLER)],
                None,
                Err("none of the folder's files defines class Handler (a.py)"),
            ),
            (&[("data.csv", "")], None, Err("no .py file")),
            (
                &[("my-plugin.py", HANDLER)],
                None,
                Err("\"my-plugin.py\" cannot be imported"),
            ),
            (
                &[("a.txt", HANDLER)],
                Some("a.txt"),
                Err("\"a.txt\" cannot be imported"),
            ),
        ];
        for (files, named, want) in cases {
            let files = files
                .iter()
                .map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec()));
            let found = choose("sales", *named, &files.collect());
            match want {
                Ok(want) => assert_eq!(found.as_deref(), Ok(*want)),
                Err(want) => {
                    let error = found.unwrap_err();
                    assert!(error.contains(want), "{error}");
                }
            }
        }
        let package = BTreeMap::from([(INIT.to_owned(), HANDLER.as_bytes().to_vec())]);
        let error = choose("my-sales", None, &package).unwrap_err();
        assert!(error.contains("\"my-sales\" is no name of one"), "{error}");
    }
}
