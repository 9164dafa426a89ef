//! What a plugin's source requires of its environment: PEP 723 inline metadata, else the `pyproject.toml` of
//! its folder.

use super::quota::Quota;
use super::script::{self, Error, Script};
use super::{folder, project};
use crate::job::text::with_line_feeds;

/// The metadata of a plugin: the block of its (entry) file, else its folder's `pyproject.toml`. None if it
/// has neither.
pub fn of_plugin(source: &str) -> Result<Option<Script>, Error> {
    let fail = |reason: String| Error {
        source: project::FILE,
        reason,
    };
    let found = folder::content(source, project::FILE).map_err(|error| Error {
        source: "",
        reason: error.to_string(),
    });
    let inline = script::metadata(folder::entry_source(source))?;
    let Some(text) = found? else {
        return Ok(inline);
    };
    let text = String::from_utf8(text).map_err(|_| fail("not UTF-8 text".to_owned()));
    let Some(inline) = inline else {
        return Ok(Some(project::read(&text?)?.script));
    };
    // The file's other tables may be for other tools.
    let Some(text) = text.ok().filter(|text| text.contains("casparian")) else {
        return Ok(Some(inline));
    };
    let own = project::read(&text)?.script;
    if own.is_strict || own.quota != Quota::default() || !own.preload.is_empty() {
        return Err(fail(
            "[tool.casparian] has settings, and the entry file has inline metadata: move the settings there"
                .to_owned(),
        ));
    }
    Ok(Some(inline))
}

/// True if a comment line of the (entry) file, or the folder's `pyproject.toml`, contains `casparian`. Then
/// metadata that cannot be parsed may have settings of Casparian.
pub(super) fn may_have_settings(source: &str) -> bool {
    let entry = with_line_feeds(folder::entry_source(source));
    let mut comments = entry.lines().filter(|line| line.starts_with('#'));
    let project = folder::content(source, project::FILE);
    let in_project = project.ok().flatten().is_some_and(|text| {
        let text = String::from_utf8_lossy(&text);
        text.contains("casparian")
    });
    in_project || comments.any(|line| line.contains("casparian"))
}
