//! What folders are used for besides programs: homes, temporary files, inputs, other folders.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::limits;
use crate::sandbox::folders_in;

/// Notes the inputs that are known at the start. Later calls change nothing.
pub(super) fn set_inputs(inputs: &[PathBuf]) {
    let _ = INPUTS.set(inputs.iter().filter_map(|input| known(input)).collect());
}

static INPUTS: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// The longest existing part of an input's path. The path may be a pattern.
fn known(input: &Path) -> Option<PathBuf> {
    let input = std::path::absolute(input).ok()?;
    input
        .ancestors()
        .find_map(|path| fs::canonicalize(path).ok())
}

pub(super) fn inputs() -> &'static [PathBuf] {
    INPUTS.get().map_or(&[], Vec::as_slice)
}

/// True if a folder is an input, or directly contains an input file.
pub(super) fn has_input_beside(folder: &Path) -> bool {
    let is_beside =
        |input: &PathBuf| input == folder || input.parent() == Some(folder) && input.is_file();
    inputs().iter().any(is_beside)
}

/// HOME, as it is set and with its links followed.
pub(super) fn homes() -> Vec<PathBuf> {
    let home = env::var_os("HOME").map(PathBuf::from);
    let home = home.filter(|home| home.is_absolute());
    let real = home.as_ref().and_then(|home| fs::canonicalize(home).ok());
    home.into_iter().chain(real).collect()
}

/// True for a folder of temporary files (a sticky one), and for a folder that contains `TMPDIR`.
pub(super) fn is_temporary(folder: &Path) -> bool {
    let own = env::temp_dir();
    let real = fs::canonicalize(&own);
    let is_above = [Some(&own), real.as_ref().ok()]
        .into_iter()
        .flatten()
        .any(|own| own.starts_with(folder));
    let is_sticky = fs::metadata(folder).is_ok_and(|found| found.mode() & 0o1000 != 0);
    is_above || is_sticky
}

/// True where a folder has more folders than can be mounted: each folder in a folder of programs is a mount
/// for interpreters.
pub(super) fn has_too_many_folders(folder: &Path) -> bool {
    folders_in(folder)
        .nth(limits::FOLDERS_BESIDE_PROGRAMS_MAX)
        .is_some()
}
