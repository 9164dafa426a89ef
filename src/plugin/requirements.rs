//! Parses requirements files as pip and uv do: continued lines, comments, `-r`, `-c`, `-e`, hashes and the
//! options of indexes. Paths are relative to the folder of the file that contains them. What is not supported
//! is refused, with its name, file and line.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use toml::Value;

use super::direct::{absolute_path, name, named, sha256, url_hash};
use super::request::{Refused, Request, location};
use super::script::Script;
use crate::job::text::with_line_feeds;
use crate::limits;

type Read<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

impl Request {
    /// The request of a requirements file, with Python version, preloads and `[tool.uv]` of the plugin's
    /// metadata. `read` returns the text of a file.
    pub fn of_requirements(
        file: &Path,
        read: &dyn Fn(&Path) -> io::Result<String>,
        script: &Script,
        folder: &Path,
    ) -> Result<Self, Refused> {
        let mut request = Self::of_metadata(script, folder)?;
        read_into(&mut request, file, read)?;
        let refused = |reason| Refused(format!("requirements {}: {reason}", file.display()));
        request.add_url_hashes().map_err(refused)?;
        Ok(request)
    }
}

/// Adds the requirements and options of a file to a request.
fn read_into(request: &mut Request, file: &Path, read: Read<'_>) -> Result<(), Refused> {
    let mut reader = Reader {
        from_metadata: request.settings.clone(),
        request,
        read,
        seen: HashSet::new(),
        hashes_needed_by: None,
        without_hash: None,
    };
    reader.file(file, false)?;
    match (&reader.hashes_needed_by, reader.without_hash) {
        (Some(by), Some(at)) => Err(Refused(format!(
            "{at}: it has no --hash, and {by} asks for one of each package"
        ))),
        _ => {
            request.hashes_needed_by = reader.hashes_needed_by;
            Ok(())
        }
    }
}

/// The position of a line.
struct Context<'a> {
    file: &'a Path,
    folder: &'a Path,
    /// File and line.
    at: &'a str,
    is_constraints: bool,
}

impl Context<'_> {
    fn refused(&self, reason: String) -> Refused {
        Refused(format!("{}: {reason}", self.at))
    }
}

struct Reader<'a> {
    request: &'a mut Request,
    from_metadata: toml::Table,
    read: Read<'a>,
    /// Files that were read, each with whether it was read as constraints.
    seen: HashSet<(PathBuf, bool)>,
    /// The first line with `--require-hashes` or a hash. As in pip, each requirement must then have a hash.
    hashes_needed_by: Option<String>,
    /// The first requirement without a hash.
    without_hash: Option<String>,
}

impl Reader<'_> {
    fn file(&mut self, file: &Path, is_constraints: bool) -> Result<(), Refused> {
        let refused = |reason| Refused(format!("requirements {}: {reason}", file.display()));
        if file
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            let what =
                "it is TOML and no requirements file; `uv export` and `pip freeze` write one";
            return Err(refused(what.to_owned()));
        }
        let whole = std::path::absolute(file).map_err(|error| refused(error.to_string()))?;
        let whole = PathBuf::from(absolute_path("", &whole).map_err(refused)?);
        if !self.seen.insert((whole.clone(), is_constraints)) {
            return Ok(());
        }
        if self.seen.len() > limits::REQUIREMENTS_FILES_MAX {
            let most = limits::REQUIREMENTS_FILES_MAX;
            return Err(Refused(format!(
                "{}: more than {most} files",
                file.display()
            )));
        }
        let text = (self.read)(file)
            .map_err(|error| Refused(format!("requirements {}: {error}", file.display())))?;
        let folder = whole.parent().unwrap_or(Path::new("/")).to_owned();
        for (number, line) in logical_lines(&with_line_feeds(&text)) {
            let at = format!("{}:{number}", file.display());
            let context = Context {
                file,
                folder: &folder,
                at: &at,
                is_constraints,
            };
            match line.starts_with('-') {
                true => self.option(&line, &context)?,
                false => self
                    .requirement(&line, &context)
                    .map_err(|reason| context.refused(reason))?,
            }
        }
        Ok(())
    }

    fn option(&mut self, line: &str, context: &Context<'_>) -> Result<(), Refused> {
        let refused = |reason| context.refused(reason);
        let folder = context.folder;
        let (option, value) = split_option(line);
        let needed = || match value.is_empty() {
            true => Err(refused(format!("{option} needs a value"))),
            false => Ok(value),
        };
        match option {
            "-r" | "--requirement" | "-c" | "--constraint" => {
                let value = needed()?;
                if value.contains("://") {
                    return Err(refused(format!(
                        "{option} {value}: it is no file of this host"
                    )));
                }
                let above = context.file.parent().unwrap_or(Path::new(""));
                let is_constraints =
                    context.is_constraints || matches!(option, "-c" | "--constraint");
                self.file(&above.join(value), is_constraints)
                    .map_err(|error| match error.0.starts_with("requirements ") {
                        true => refused(error.0),
                        false => error,
                    })
            }
            "-e" | "--editable" => self.requirement(needed()?, context).map_err(refused),
            "-i" | "--index-url" | "--pypi-url" => {
                let url = location(needed()?, folder).map_err(refused)?;
                self.set("index-url", Value::String(url)).map_err(refused)
            }
            "--extra-index-url" | "-f" | "--find-links" => {
                let url = location(needed()?, folder).map_err(refused)?;
                let key = match option {
                    "--extra-index-url" => "extra-index-url",
                    _ => "find-links",
                };
                self.push(key, url).map_err(refused)
            }
            "--no-index" => self.set("no-index", true.into()).map_err(refused),
            "--pre" => self.set("prerelease", "allow".into()).map_err(refused),
            "--no-binary" | "--only-binary" => {
                let key = match option {
                    "--no-binary" => "no-binary",
                    _ => "no-build",
                };
                for word in needed()?.split([',', ' ']).filter(|word| !word.is_empty()) {
                    let set = match word {
                        ":all:" => self.set(key, true.into()),
                        ":none:" => self.set(key, false.into()),
                        package => self.push(&format!("{key}-package"), package.to_owned()),
                    };
                    set.map_err(refused)?;
                }
                Ok(())
            }
            "--require-hashes" => {
                self.need_hashes(context);
                Ok(())
            }
            _ => Err(refused(format!("{option} is not supported"))),
        }
    }

    fn need_hashes(&mut self, context: &Context<'_>) {
        let by = || context.at.to_owned();
        self.hashes_needed_by.get_or_insert_with(by);
    }

    /// Sets a setting, unless the plugin's metadata has it too.
    fn set(&mut self, key: &str, value: Value) -> Result<(), String> {
        if self.from_metadata.contains_key(key) {
            return Err(format!(
                "[tool.uv] {key} of the plugin sets this, too: remove one"
            ));
        }
        self.request.settings.insert(key.to_owned(), value);
        Ok(())
    }

    fn push(&mut self, key: &str, value: String) -> Result<(), String> {
        let mut list = match self.request.settings.get(key) {
            Some(Value::Array(list)) => list.clone(),
            _ => Vec::new(),
        };
        list.push(Value::String(value));
        self.set(key, Value::Array(list))
    }

    fn requirement(&mut self, line: &str, context: &Context<'_>) -> Result<(), String> {
        let mut words = line.split(" --");
        let requirement = named(words.next().unwrap_or_default().trim(), context.folder)?;
        let mut hashes = Vec::new();
        for word in words {
            let (option, value) = word.split_once(['=', ' ']).unwrap_or((word, ""));
            match option {
                "hash" => hashes.push(sha256(value.trim())?),
                _ => return Err(format!("--{option} is not supported")),
            }
        }
        if requirement.contains('$') {
            return Err(format!("{requirement}: variables are not supported"));
        }
        let has_hash = !hashes.is_empty() || url_hash(&requirement)?.is_some();
        if !has_hash && !context.is_constraints && self.without_hash.is_none() {
            self.without_hash = Some(context.at.to_owned());
        }
        if !hashes.is_empty() {
            self.need_hashes(context);
            let known = self.request.hashes.entry(name(&requirement)).or_default();
            known.allowed.extend(hashes);
            context.at.clone_into(&mut known.at);
        }
        match context.is_constraints {
            false => self.request.dependencies.push(requirement),
            true => {
                let constraints = self.request.project.entry("constraint-dependencies");
                let list = constraints.or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    list.push(Value::String(requirement));
                }
            }
        }
        Ok(())
    }
}

/// Lines without comments and line ends, each with the number of its first line. A backslash at the end
/// continues a line.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut begun: Option<(usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        let is_comment = line.trim_start().starts_with('#');
        let (line, goes_on) = match line.strip_suffix('\\') {
            Some(line) if !is_comment => (line, true),
            _ => (line, false),
        };
        // A comment line or an empty line ends a continued line.
        let (number, mut whole) = begun.take().unwrap_or((index + 1, String::new()));
        if is_comment {
            whole.push(' ');
        }
        whole.push_str(line);
        match goes_on {
            true => begun = Some((number, whole)),
            false => found.push((number, whole)),
        }
    }
    found.extend(begun);
    found
        .into_iter()
        .map(|(number, line)| (number, without_comment(&line).trim().to_owned()))
        .filter(|(_, line)| !line.is_empty())
        .collect()
}

fn without_comment(line: &str) -> &str {
    let mut before = ' ';
    for (index, c) in line.char_indices() {
        if c == '#' && before.is_whitespace() {
            return line.get(..index).unwrap_or(line);
        }
        before = c;
    }
    line
}

/// `-rFILE`, `-r FILE`, `--requirement=FILE` or `--requirement FILE`.
fn split_option(line: &str) -> (&str, &str) {
    let is_long = line.starts_with("--");
    let end = match is_long {
        true => line.find(|c: char| c == '=' || c.is_whitespace()),
        false => line.char_indices().nth(2).map(|(index, _)| index),
    };
    let (option, value) = line.split_at(end.unwrap_or(line.len()));
    let value = value.trim();
    let value = value.strip_prefix('=').unwrap_or(value).trim();
    let unquoted = ['"', '\''].iter().find_map(|quote| {
        let inner = value.strip_prefix(*quote)?.strip_suffix(*quote)?;
        Some(inner)
    });
    (option, unquoted.unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn read(files: &[(&str, &str)]) -> Result<Request, String> {
        let files: HashMap<PathBuf, String> = files
            .iter()
            .map(|(name, text)| (Path::new("/p").join(name), (*text).to_owned()))
            .collect();
        let read = |path: &Path| {
            let path =
                PathBuf::from(crate::plugin::direct::absolute_path("", path).unwrap_or_default());
            files
                .get(&path)
                .cloned()
                .ok_or_else(|| io::Error::other("not there"))
        };
        let mut request = Request::default();
        read_into(&mut request, Path::new("/p/r.txt"), &read).map_err(|error| error.to_string())?;
        Ok(request)
    }

    const HASH: &str = "abcdefabcdefabcdefabcdefabcdefabcdefabcdefabcdefabcdefabcdefabcd";

    #[test]
    fn a_requirements_file_is_read_as_pip_reads_it() {
        let text = "# a comment \\\nsix == 1.16.0 \\\n  # b\n-r more/b.txt # why\n-cc.txt\n--index-url=https://h/simple\n-f wheels\n\
             a; python_version > '3' # b\nurl @ https://h/u-1.zip#sha=1\n--only-binary=x,y\n--pre\n";
        let found = read(&[
            ("r.txt", text),
            ("more/b.txt", "-r ../r.txt\nl @ ./lib\r\n\r\nlast"),
            ("c.txt", "six<1.17"),
        ])
        .unwrap();
        let want = [
            "six == 1.16.0",
            "l @ file:///p/more/lib",
            "last",
            "a; python_version > '3'",
            "url @ https://h/u-1.zip#sha=1",
        ];
        assert_eq!(found.dependencies, want);
        let settings: toml::Table = toml::from_str(
            "index-url = \"https://h/simple\"\nfind-links = [\"/p/wheels\"]\n\
             no-build-package = [\"x\", \"y\"]\nprerelease = \"allow\"\n",
        )
        .unwrap();
        assert_eq!(found.settings, settings);
        let project: toml::Table =
            toml::from_str("constraint-dependencies = [\"six<1.17\"]\n").unwrap();
        assert_eq!(found.project, project);
    }

    #[test]
    fn where_one_requirement_has_a_hash_each_must_have_one() {
        let six =
            format!("six == 1.16.0 \\\n  --hash=sha256:{HASH} \\\n  --hash sha256:{HASH}\n-rb.txt");
        let url = format!("l @ ./l-1-py3-none-any.whl#egg=l&sha256={HASH} ; python_version > '3'");
        let found = read(&[("r.txt", &six), ("b.txt", &url)]).unwrap();
        assert_eq!(found.hashes_needed_by.as_deref(), Some("/p/r.txt:1"));
        let hashes = found.hashes.get("six").unwrap();
        assert_eq!(
            (hashes.allowed.len(), hashes.at.as_str()),
            (1, "/p/r.txt:1")
        );
        let url = url_hash(&found.dependencies[1]);
        assert_eq!(url, Ok(Some(format!("sha256:{HASH}"))));
        let refused = read(&[("r.txt", &six), ("b.txt", "idna")]).unwrap_err();
        assert!(refused.contains("b.txt:1: it has no --hash"), "{refused}");
        let refused = read(&[("r.txt", "l @ ./l-1-py3-none-any.whl#sha256=12")]);
        assert!(refused.unwrap_err().contains("64 hex digits"));
        assert_eq!(url_hash("l @ https://h/l#sha1=1"), Ok(None));
    }

    #[test]
    fn what_is_not_supported_is_named_with_file_and_line() {
        for (text, want) in [
            (
                "six\n--trusted-host h\n",
                "/p/r.txt:2: --trusted-host is not supported",
            ),
            (
                "\nsix --global-option=x\n",
                "/p/r.txt:2: --global-option is not supported",
            ),
            (
                "six --hash=md5:aa\n",
                "/p/r.txt:1: --hash=md5:aa: expected sha256",
            ),
            ("-r https://h/r.txt\n", "/p/r.txt:1: -r https://h/r.txt"),
            (
                "-r missing.txt\n",
                "/p/r.txt:1: requirements /p/missing.txt: not there",
            ),
            ("-r\n", "/p/r.txt:1: -r needs a value"),
            (
                "-r pylock.toml\n",
                "/p/r.txt:1: requirements /p/pylock.toml: it is TOML",
            ),
            (
                "x @ https://${HOST}/x.whl\n",
                "/p/r.txt:1: x @ https://${HOST}/x.whl: variables",
            ),
            ("-i https://u:p@h/simple\n", "/p/r.txt:1: credentials"),
            (
                "--require-hashes\nsix\n",
                "/p/r.txt:2: it has no --hash, and /p/r.txt:1 asks",
            ),
            (
                "git+https://h/r\n",
                "/p/r.txt:1: the package of git+https://h/r has no name",
            ),
        ] {
            let error = read(&[("r.txt", text)]).unwrap_err();
            assert!(error.contains(want), "{text:?}: {error}");
        }
    }
}
