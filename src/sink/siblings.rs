//! Files that prevent a sink of mode `error` from publishing: files of other jobs, and files that have
//! the name of an output of this sink and that no record names.

use std::path::Path;

use super::folder::Name;
use super::names::{self, Holder};
use super::{Error, Root, files, location, record};
use crate::job::Attempt;

/// How often a file is checked again that other processes replace meanwhile.
const CHECKS_MAX: u32 = 10;

/// An error when the sink at a path below the root has output of a job other than `own`.
pub(super) fn refuse(root: &Root, name: &Name, sink: &Path, own: &Holder) -> Result<(), Error> {
    for (path, holder) in names::siblings(&root.path().join(sink), own) {
        if let Some(by) = whose(root, name, &path, (&holder, own))? {
            return Err(Error::Exists { path, by });
        }
    }
    Ok(())
}

/// The publisher of a file that has the name of a job's output in this sink: `Some(Some(attempt))` for an
/// attempt of the same database, `Some(None)` for an unknown publisher. `None` when the file is missing,
/// or a record shows that it is output of another sink.
fn whose(
    root: &Root,
    name: &Name,
    path: &Path,
    (holder, own): (&Holder, &Holder),
) -> Result<Option<Option<Attempt>>, Error> {
    let below = location::below(root.path(), path);
    for _ in 0..CHECKS_MAX {
        let Some(identity) = files::identity(path)? else {
            return Ok(None);
        };
        let Some(below) = below.as_deref() else {
            break;
        };
        let file = (below, identity);
        if holder.suffix == own.suffix
            && let Some(by) = record::publisher(root, name, holder, file)
        {
            return Ok(Some(Some(by)));
        }
        if let Some(other) = names::other_reading(path, holder)
            && record::is_published_by(root, &other, file)?
        {
            return Ok(None);
        }
        // A record names a file from before it appears until after it is removed. So an unchanged file
        // without a record has an unknown publisher.
        if files::identity(path)? == Some(identity) {
            break;
        }
    }
    Ok(Some(None))
}
