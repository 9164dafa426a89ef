//! Settings of this host's user for uv and pip: variables, and a `uv.toml` of the user or the system. Only
//! settings count that determine where packages come from and how they are fetched, or that restrict
//! packages. Others are ignored: they would change what an environment contains, which only its lockfile
//! determines.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use toml::{Table, Value};

use super::error::Error;
use crate::{input_file, limits};

/// Variables of uv that are passed on.
const UV: &[&str] = &[
    "UV_CACHE_DIR",
    "UV_CONCURRENT_BUILDS",
    "UV_CONCURRENT_DOWNLOADS",
    "UV_CONCURRENT_INSTALLS",
    "UV_DEFAULT_INDEX",
    "UV_EXCLUDE_NEWER",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_GITHUB_TOKEN",
    "UV_INDEX",
    "UV_INDEX_STRATEGY",
    "UV_INDEX_URL",
    "UV_INSECURE_HOST",
    "UV_INSTALL_DIR",
    "UV_KEYRING_PROVIDER",
    "UV_LINK_MODE",
    "UV_LOCK_TIMEOUT",
    "UV_MANAGED_PYTHON",
    "UV_NATIVE_TLS",
    "UV_NO_BUILD",
    "UV_NO_BUILD_PACKAGE",
    "UV_NO_CACHE",
    "UV_NO_INDEX",
    "UV_NO_MANAGED_PYTHON",
    "UV_OFFLINE",
    "UV_PYPY_INSTALL_MIRROR",
    "UV_REQUEST_TIMEOUT",
    "UV_SYSTEM_CERTS",
];

/// Variables of pip that are passed on. pip installs uv.
const PIP: &[&str] = &[
    "PIP_CACHE_DIR",
    "PIP_CERT",
    "PIP_CLIENT_CERT",
    "PIP_CONFIG_FILE",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_INDEX_URL",
    "PIP_KEYRING_PROVIDER",
    "PIP_NO_CACHE_DIR",
    "PIP_NO_INDEX",
    "PIP_PROXY",
    "PIP_RETRIES",
    "PIP_TIMEOUT",
    "PIP_TRUSTED_HOST",
];

/// Settings of a `uv.toml` that are passed on.
const SETTINGS: &[&str] = &[
    "allow-insecure-host",
    "cache-dir",
    "concurrent-builds",
    "concurrent-downloads",
    "concurrent-installs",
    "exclude-newer",
    "extra-index-url",
    "find-links",
    "http-proxy",
    "https-proxy",
    "index",
    "index-strategy",
    "index-url",
    "keyring-provider",
    "link-mode",
    "native-tls",
    "no-build",
    "no-build-package",
    "no-cache",
    "no-index",
    "no-proxy",
    "offline",
    "pypy-install-mirror",
    "python-downloads",
    "python-downloads-json-url",
    "python-install-mirror",
    "python-preference",
    "system-certs",
];

/// True for a variable of uv or pip that tools get.
pub(super) fn is_kept(name: &str) -> bool {
    // UV_INDEX_<NAME>_USERNAME and _PASSWORD; UV_PYTHON_INSTALL_DIR, …_DOWNLOADS, …_PREFERENCE.
    let families = ["UV_INDEX_", "UV_HTTP_", "UV_PYTHON_", "UV_S3_", "UV_GCS_"];
    UV.contains(&name)
        || PIP.contains(&name)
        || families.iter().any(|family| name.starts_with(family))
}

/// The variables of uv that are passed on and may change which versions are chosen.
pub(super) fn variables() -> Vec<(OsString, OsString)> {
    let is_known = |name: &OsString| {
        name.to_str()
            .is_some_and(|name| name.starts_with("UV_") && is_kept(name))
    };
    let mut found: Vec<_> = env::vars_os().filter(|(name, _)| is_known(name)).collect();
    found.sort();
    found
}

/// Contents of the settings files as read at the start.
static SETTINGS_READ: OnceLock<Table> = OnceLock::new();
static PIP_READ: OnceLock<String> = OnceLock::new();

/// Reads the settings files once, because plugins may write them later.
pub(super) fn resolve() {
    // An error is ignored here. Each build reads the settings again and fails with it.
    let _ = settings();
    pip_settings();
}

/// The settings that are passed on, of the first existing `uv.toml`: that of UV_CONFIG_FILE, the user's or
/// the system's. Later changes have no effect.
pub(super) fn settings() -> Result<Table, Error> {
    if let Some(known) = SETTINGS_READ.get() {
        return Ok(known.clone());
    }
    let read = read_settings()?;
    Ok(SETTINGS_READ.get_or_init(|| read).clone())
}

/// The text of pip's settings file: that of PIP_CONFIG_FILE, else the user's. Empty without a file.
pub(super) fn pip_settings() -> &'static str {
    PIP_READ.get_or_init(|| {
        let read = |path: PathBuf| {
            let file = input_file::open(&path).ok()?;
            input_file::text(file, limits::SOURCE_SIZE_MAX).ok()
        };
        pip_files().into_iter().find_map(read).unwrap_or_default()
    })
}

/// True if pip is configured to read no settings files.
pub(super) fn is_pip_without_files() -> bool {
    set("PIP_CONFIG_FILE").is_some_and(|path| path == Path::new("/dev/null"))
}

fn pip_files() -> Vec<PathBuf> {
    if let Some(path) = set("PIP_CONFIG_FILE") {
        return vec![path];
    }
    let home = set("HOME");
    let legacy = home.map(|home| home.join(".pip/pip.conf"));
    let user = user_folder().map(|folder| folder.join("pip/pip.conf"));
    user.into_iter().chain(legacy).collect()
}

fn read_settings() -> Result<Table, Error> {
    for path in uv_files() {
        let text = match fs::metadata(&path) {
            Ok(found) if found.len() > limits::SOURCE_SIZE_MAX as u64 => {
                Err(io::Error::other("it is too large"))
            }
            Ok(found) if !found.is_file() => Err(io::Error::other("it is not a regular file")),
            Ok(_) => fs::read_to_string(&path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => Err(error),
        };
        let text = text.map_err(|error| Error::io(&path, error))?;
        let mut table: Table = toml::from_str(&text)
            .map_err(|error| Error::Tool(format!("{}: {}", path.display(), error.message())))?;
        table.retain(|key, _| SETTINGS.contains(&key));
        return Ok(table);
    }
    Ok(Table::new())
}

fn set(name: &str) -> Option<PathBuf> {
    let value = env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

/// The folder of this user's settings.
fn user_folder() -> Option<PathBuf> {
    set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))
}

/// The existing settings files.
pub(super) fn files() -> impl Iterator<Item = PathBuf> {
    let all = uv_files().into_iter().chain(pip_files());
    all.filter(|path| path.is_file())
}

fn uv_files() -> Vec<PathBuf> {
    if let Some(path) = set("UV_CONFIG_FILE") {
        return match path.is_absolute() {
            true => vec![path],
            false => Vec::new(),
        };
    }
    let system = env::var_os("XDG_CONFIG_DIRS").filter(|value| !value.is_empty());
    let system = system.unwrap_or_else(|| "/etc/xdg".into());
    let folders = user_folder().into_iter().chain(env::split_paths(&system));
    let folders = folders.chain([PathBuf::from("/etc")]);
    folders
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join("uv/uv.toml"))
        .collect()
}

/// Merges the settings of a request with those of the operator. Lists are concatenated, the request's first.
/// Other values of the request take precedence.
pub(super) fn merged(mut own: Table, operator: Table) -> Table {
    for (key, value) in operator {
        match (own.get_mut(&key), value) {
            (Some(Value::Array(first)), Value::Array(second)) => first.extend(second),
            (Some(_), _) => {}
            (None, value) => {
                own.insert(key, value);
            }
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_change_what_an_environment_contains_are_not_kept() {
        for name in [
            "UV_INDEX_URL",
            "UV_INDEX_CORP_PASSWORD",
            "UV_CACHE_DIR",
            "PIP_INDEX_URL",
            "UV_NO_BUILD",
        ] {
            assert!(is_kept(name), "{name}");
        }
        for name in [
            "UV_CONSTRAINT",
            "UV_OVERRIDE",
            "UV_PYTHON",
            "UV_PROJECT",
            "UV_PRERELEASE",
            "UV_RESOLUTION",
            "UV_NO_BINARY",
            "UV_CONFIG_FILE",
            "UV_ENV_FILE",
            "UV_PUBLISH_TOKEN",
            "UV_LOG_CONTEXT",
            "UV_WORKING_DIR",
            "UV_NO_VERIFY_HASHES",
            "UV_FROZEN",
            "PIP_TARGET",
            "PIP_CONSTRAINT",
            "PIP_USER",
        ] {
            assert!(!is_kept(name), "{name}");
        }
    }

    #[test]
    fn lists_of_a_request_come_before_those_of_the_operator() {
        let table = |text: &str| toml::from_str::<Table>(text).unwrap();
        let own = table("find-links = [\"/a\"]\nindex-url = \"x\"\n");
        let operator = table("find-links = [\"/b\"]\nindex-url = \"y\"\noffline = true\n");
        let want = table("find-links = [\"/a\", \"/b\"]\nindex-url = \"x\"\noffline = true\n");
        assert_eq!(merged(own, operator), want);
    }
}
