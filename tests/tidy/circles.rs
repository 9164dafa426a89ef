//! Files of a folder use each other in one direction: no file uses one by which it is used, directly or through
//! others.
//!
//! A file stands for what is below it, too. An item that a folder's own file imports from another is one of
//! that other: `super::Root` is of `root.rs`.

use std::collections::{BTreeMap, BTreeSet};

use crate::root;
use crate::sources::{Source, sources};

/// Uses that close a circle all the same: the folder, the file, what it uses.
const KNOWN: &[(&str, &str, &str)] = &[
    // All files of `sink` work on a `Root`. When it is opened, it recovers and removes what attempts of
    // workers that have ended left below it.
    ("src/sink", "root", "datasets"),
    ("src/sink", "root", "fault"),
    ("src/sink", "root", "folder"),
    ("src/sink", "root", "recover"),
    ("src/sink", "root", "sqlite"),
];

/// By file, the files beside it that it uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// The uses within each folder, by the folder's path.
fn folders(top: &str) -> BTreeMap<String, Uses> {
    let all = sources(&root().join(top));
    let by_module: BTreeMap<&[String], &Source> = all
        .iter()
        .map(|source| (source.module.as_slice(), source))
        .collect();
    let is_file = |folder: &[String], name: &String| {
        let path = [folder, std::slice::from_ref(name)].concat();
        all.iter().any(|source| source.module.starts_with(&path))
    };
    let mut folders: BTreeMap<String, Uses> = BTreeMap::new();
    for source in &all {
        for (depth, own) in source.module.iter().enumerate() {
            let folder = &source.module[..depth];
            let used = source.paths.iter().filter_map(|path| {
                let path = path.strip_prefix(&["crate".to_owned()])?;
                let name = path.strip_prefix(folder)?.first()?;
                match is_file(folder, name) {
                    true => Some(name.clone()),
                    false => {
                        let from = by_module.get(folder)?.imports.get(name)?;
                        is_file(folder, from).then(|| from.clone())
                    }
                }
            });
            let path = [&[top.to_owned()], folder].concat().join("/");
            let uses = folders.entry(path).or_default();
            let uses = uses.entry(own.clone()).or_default();
            uses.extend(used.filter(|name| name != own));
        }
    }
    folders
}

/// A circle through a file, if there is one.
fn circle(uses: &Uses, path: &mut Vec<String>, done: &mut BTreeSet<String>) -> Option<String> {
    let last = path.last()?.clone();
    for next in uses.get(&last).into_iter().flatten() {
        if let Some(begin) = path.iter().position(|file| file == next) {
            let mut files = path[begin..].to_vec();
            files.push(next.clone());
            return Some(files.join(" uses "));
        }
        if !done.contains(next) {
            path.push(next.clone());
            let found = circle(uses, path, done);
            if found.is_some() {
                return found;
            }
            path.pop();
        }
    }
    done.insert(last);
    None
}

#[test]
fn files_of_a_folder_use_each_other_in_one_direction() {
    let mut unneeded: BTreeSet<_> = KNOWN.iter().collect();
    let mut circles = Vec::new();
    for (folder, mut uses) in folders("src").into_iter().chain(folders("fuzz/src")) {
        for known in KNOWN.iter().filter(|(of, ..)| *of == folder) {
            let (_, file, used) = known;
            if uses.get_mut(*file).is_some_and(|files| files.remove(*used)) {
                unneeded.remove(known);
            }
        }
        let mut done = BTreeSet::new();
        let mut found = uses
            .keys()
            .filter_map(|file| circle(&uses, &mut vec![file.clone()], &mut done));
        // One of each folder.
        circles.extend(found.next().map(|found| format!("{folder}: {found}")));
    }
    assert!(
        circles.is_empty(),
        "move what both need into a file that uses neither: {circles:#?}"
    );
    assert!(unneeded.is_empty(), "no longer uses: {unneeded:?}");
}
