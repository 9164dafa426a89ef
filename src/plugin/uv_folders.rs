//! Folders in which uv keeps what environments are made of. Each is found once, and tools are given it by its variable,
//! so that none uses another one than that which plugins cannot change.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::operator;

/// The folders that there are.
#[derive(Debug)]
struct Folders {
    /// Files of packages, which environments share by links.
    cache: Option<PathBuf>,
    /// Where UV_PYTHON_INSTALL_DIR says that Pythons are.
    pythons: Option<PathBuf>,
    /// uv's own of the user, with Pythons where nothing else is said.
    data: Option<PathBuf>,
    /// Archives of Pythons.
    archives: Option<PathBuf>,
}

fn folders() -> &'static Folders {
    static FOLDERS: OnceLock<Folders> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        // As uv does: relative to the working directory.
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

/// Finds them; later calls change nothing.
pub(super) fn resolve() {
    log::debug!("folders of uv: {:?}", folders());
}

/// What plugins cannot change.
pub fn all() -> Vec<PathBuf> {
    let cache = folders().cache.clone();
    cache.into_iter().chain(pythons()).collect()
}

/// Where uv installs Pythons, and what of; build code cannot change these either.
pub fn pythons() -> Vec<PathBuf> {
    let folders = folders();
    let installed = folders.pythons.clone().or_else(|| folders.data.clone());
    installed
        .into_iter()
        .chain(folders.archives.clone())
        .collect()
}

/// The files there that tools of uv lock.
pub fn locks() -> Vec<PathBuf> {
    let folders = folders();
    let data = folders.data.as_ref().map(|data| data.join("python"));
    let locked = [&folders.cache, &folders.pythons, &data];
    let locked = locked.into_iter().flatten();
    locked.map(|folder| folder.join(".lock")).collect()
}

/// The variables that name it for tools.
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
