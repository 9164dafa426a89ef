//! The folders in which uv keeps its cache and Pythons. Each is determined once and given to all tools by its
//! variable, so every tool uses the folder that plugins cannot change.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::operator;

/// uv's folders on this host.
#[derive(Debug)]
struct Folders {
    /// Files of packages. Environments share them by links.
    cache: Option<PathBuf>,
    /// The folder of Pythons that UV_PYTHON_INSTALL_DIR names.
    pythons: Option<PathBuf>,
    /// uv's data folder of the user. It has the Pythons where UV_PYTHON_INSTALL_DIR is not set.
    data: Option<PathBuf>,
    /// Downloaded archives of Pythons.
    archives: Option<PathBuf>,
}

fn folders() -> &'static Folders {
    static FOLDERS: OnceLock<Folders> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        // As uv does: a relative path is relative to the working directory.
        let named = |name: &str| set(name).and_then(|folder| whole(Path::new(&folder)));
        let of_user = |name: &str, below_home: &str| {
            let folder = set(name).map(PathBuf::from);
            let folder = folder.filter(|folder| folder.is_absolute());
            let folder = folder.or_else(|| Some(Path::new(&set("HOME")?).join(below_home)));
            Some(folder?.join("uv"))
        };
        let settings = operator::settings().ok();
        let setting =
            settings.and_then(|settings| whole(Path::new(settings.get("cache-dir")?.as_str()?)));
        let cache = named("UV_CACHE_DIR").or(setting);
        Folders {
            cache: cache.or_else(|| of_user("XDG_CACHE_HOME", ".cache")),
            pythons: named("UV_PYTHON_INSTALL_DIR"),
            data: of_user("XDG_DATA_HOME", ".local/share"),
            archives: named("UV_PYTHON_CACHE_DIR"),
        }
    })
}

fn whole(folder: &Path) -> Option<PathBuf> {
    std::path::absolute(folder).ok()
}

/// Determines the folders. Later calls change nothing.
pub(super) fn resolve() {
    log::debug!("folders of uv: {:?}", folders());
}

/// The folders that plugins cannot change.
pub fn all() -> Vec<PathBuf> {
    let cache = folders().cache.clone();
    cache.into_iter().chain(pythons()).collect()
}

/// The folders in which uv installs Pythons and keeps their archives. Build code cannot change them either.
pub fn pythons() -> Vec<PathBuf> {
    let folders = folders();
    let installed = folders.pythons.clone().or_else(|| folders.data.clone());
    installed
        .into_iter()
        .chain(folders.archives.clone())
        .collect()
}

/// The lock files of uv in these folders.
pub fn locks() -> Vec<PathBuf> {
    let folders = folders();
    let data = folders.data.as_ref().map(|data| data.join("python"));
    let locked = [&folders.cache, &folders.pythons, &data];
    let locked = locked.into_iter().flatten();
    locked.map(|folder| folder.join(".lock")).collect()
}

/// The variables that pass the folders to tools.
pub(super) fn variables() -> impl Iterator<Item = (OsString, OsString)> {
    let folders = folders();
    let named = [
        ("UV_CACHE_DIR", &folders.cache),
        ("UV_PYTHON_INSTALL_DIR", &folders.pythons),
        ("UV_PYTHON_CACHE_DIR", &folders.archives),
    ];
    named
        .into_iter()
        .filter_map(|(name, folder)| Some((name.into(), folder.clone()?.into())))
}
