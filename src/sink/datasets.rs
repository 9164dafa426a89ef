//! Folders of topics (datasets). In the layout with a folder for each topic (`casparian run`), a topic
//! without a configured sink has a folder below the root: `<plugin>_<topic>`, or `<plugin>` for what a
//! plugin returns. It has a file for each input, `<stem of the input>_<job>.parquet`.
//!
//! Two topics never share a folder: the file `.casparian/datasets/<folder>` (a *note*) has the plugin and
//! topic of a folder. The name of a folder ends with a hash if the plain name belongs to another topic,
//! or if characters of it had to be replaced. Whether two names are the same is decided by creating
//! notes, because a file system may fold case and normalise names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::folder::Folder;
use super::{Error, Root, files, names};
use crate::job::{self, Compression, Job, Target};

/// The topic of what a plugin returns or yields.
pub(super) const OUTPUT: &str = "output";
/// Limit of the bytes of a folder's name before its hash.
const FOLDER_SIZE_MAX: usize = 150;
/// Limit of the bytes of an input's stem in a file's name.
const STEM_SIZE_MAX: usize = 100;
/// Limit of the names that are tried for a folder.
const TRIES_MAX: u32 = 100;

/// Cache of the folders' names, by plugin and topic.
#[derive(Debug, Default)]
pub(super) struct Folders(Mutex<HashMap<(String, String), String>>);

/// The target for a topic's output, before the job's ID is added to the file's name.
pub(super) fn target(
    root: &Root,
    folder: &Folder,
    job: &Job,
    topic: &str,
) -> Result<Target, Error> {
    let topic = names::topic(topic);
    let path = file(root, folder, &job.plugin.name, &topic, &job.file_path)?;
    let compression = Compression::Snappy;
    Ok(Target::Parquet { path, compression })
}

/// Path of that file below the root. Reserves a folder's name for the topic if it has none.
pub(super) fn file(
    root: &Root,
    folder: &Folder,
    plugin: &str,
    topic: &str,
    input: &str,
) -> Result<PathBuf, Error> {
    let dataset = of_topic(root, folder, plugin, topic)?;
    Ok(in_folder(&dataset, input))
}

/// The same path if the topic already has a folder, else `None`.
pub(super) fn known_file(
    root: &Root,
    plugin: &str,
    topic: &str,
    input: &str,
) -> Result<Option<PathBuf>, Error> {
    let notes = root.base().join("datasets");
    for number in 0..TRIES_MAX {
        let Some(name) = name(plugin, topic, number) else {
            continue;
        };
        match noted(&notes.join(&name))? {
            Some(found) if found == note_content(plugin, topic) => {
                return Ok(Some(in_folder(&name, input)));
            }
            Some(_) => {}
            None => break,
        }
    }
    Ok(None)
}

fn in_folder(dataset: &str, input: &str) -> PathBuf {
    let stem = Path::new(input).file_stem().unwrap_or_default();
    let mut stem = names::readable(&stem.to_string_lossy(), STEM_SIZE_MAX);
    if stem.is_empty() {
        stem.push_str("input");
    }
    Path::new(dataset).join(format!("{stem}.parquet"))
}

/// The content of a note for a plugin's topic.
fn note_content(plugin: &str, topic: &str) -> String {
    serde_json::json!([plugin, topic]).to_string()
}

/// The content of a note; `None` if there is none. For anything but a regular file the content is empty,
/// so the name counts as taken.
fn noted(note: &Path) -> Result<Option<String>, Error> {
    match files::identity(note)? {
        Some(found) if found == files::Identity::default() => Ok(Some(String::new())),
        _ => files::read_short(note),
    }
}

/// The name of a topic's folder. For a new name a note is created and renamed from the attempt's folder.
fn of_topic(root: &Root, folder: &Folder, plugin: &str, topic: &str) -> Result<String, Error> {
    let Folders(known) = root.folders();
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (plugin.to_owned(), topic.to_owned());
    if let Some(name) = known.get(&key) {
        return Ok(name.clone());
    }
    let content = note_content(plugin, topic);
    let notes = root.base().join("datasets");
    files::create_own(root.path(), &notes)?;
    for number in 0..TRIES_MAX {
        let Some(name) = name(plugin, topic, number) else {
            continue;
        };
        let note = notes.join(&name);
        if files::identity(&note)?.is_none() {
            let new = folder.path("dataset");
            files::write_synced(&new, content.as_bytes()).map_err(|error| folder.refusal(error))?;
            if files::rename_new(&new, &note)? {
                files::sync_folder(&notes)?;
            }
        }
        if noted(&note)?.is_some_and(|found| found == content) {
            known.insert(key, name.clone());
            return Ok(name);
        }
    }
    let reason = format!("no folder is free for topic {topic:?} of plugin {plugin:?}");
    Err(Error::at_path(&notes, reason))
}

/// The name to try with this number. Number 0 is the plain name; `None` if its characters had to be
/// replaced. The others end with a hash.
fn name(plugin: &str, topic: &str, number: u32) -> Option<String> {
    let plain = match topic {
        OUTPUT => plugin.to_owned(),
        topic => format!("{plugin}_{topic}"),
    };
    let readable = names::readable(&plain, FOLDER_SIZE_MAX);
    match number {
        0 => (readable == plain).then_some(readable),
        number => {
            let hash = job::hash(&format!("{number}\0{plugin}\0{topic}"));
            let readable = match readable.is_empty() {
                true => "topic",
                false => &readable,
            };
            Some(format!("{readable}-{hash:016x}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::RootOptions;
    use crate::sink::folder::Name;

    #[test]
    fn a_folder_is_one_topics_also_where_names_fold() {
        let dir = tempfile::tempdir().unwrap();
        let options = RootOptions {
            datasets: true,
            ..RootOptions::default()
        };
        let root = Root::open(dir.path(), options).unwrap();
        let name = Name::numbered("aa", job::Attempt::new(1, 1)).unwrap();
        let folder = crate::sink::recover::create(&root, name).unwrap();
        let of = |plugin, topic| of_topic(&root, &folder, plugin, topic).unwrap();
        assert_eq!(of("p", OUTPUT), "p");
        assert_eq!(of("p", "a_b"), "p_a_b");
        // The plain name belongs to the topic of another plugin.
        for (plugin, topic) in [("p_a", "b"), ("p_a_b", OUTPUT)] {
            let other = of(plugin, topic);
            assert!(other.starts_with("p_a_b-"), "{other}");
            assert_eq!(of(plugin, topic), other);
        }
        // On a file system that folds case, the note of the other name is found under this name.
        let notes = dir.path().join(".casparian/datasets");
        std::fs::hard_link(notes.join("p_a_b"), notes.join("p_A_B")).unwrap();
        let folded = of("p", "A_B");
        assert!(folded.starts_with("p_A_B-"), "{folded}");
        // Anything but a regular file at a note's path makes the name unavailable.
        let pipe = notes.join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        std::fs::create_dir(notes.join("dir")).unwrap();
        std::os::unix::fs::symlink("nowhere", notes.join("link")).unwrap();
        for plugin in ["fifo", "dir", "link"] {
            assert_eq!(known_file(&root, plugin, OUTPUT, "/in/x").unwrap(), None);
            let other = of(plugin, OUTPUT);
            assert!(other.starts_with(&format!("{plugin}-")), "{other}");
            assert!(
                known_file(&root, plugin, OUTPUT, "/in/x")
                    .unwrap()
                    .is_some()
            );
        }
        // Names are found again without the cache.
        drop(folder);
        let known = known_file(&root, "p", "A_B", "/in/x.csv").unwrap();
        assert_eq!(known, Some(Path::new(&folded).join("x.parquet")));
    }
}
