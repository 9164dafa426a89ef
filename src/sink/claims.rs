//! Publishes into one sink of mode `replace` or `error` exclude each other. The sentinel lets one
//! attempt at a time publish there; this holds without it too, for old sentinels and for several.
//!
//! An attempt writes the sinks into the file `claim` of its folder and reads those of the others
//! then. It goes on when there is none. Two that see each other both step back, the one with the
//! higher job withdraws its claim, and both try again for a bounded time. A claim ends with its
//! folder: those of barred attempts and dead workers block no other.

use std::fs;
use std::time::{Duration, Instant};

use super::folder::{self, Entry, Folder, Name};
use super::{Error, Root, files, recover};
use crate::limits;

const CLAIM: &str = "claim";
const PAUSE: Duration = Duration::from_millis(2);

/// Claims sinks; false when another attempt held one for too long, or the lease ended.
pub(super) fn acquire(
    root: &Root,
    folder: &Folder,
    sinks: &[String],
    is_granted: &dyn Fn() -> bool,
) -> Result<bool, Error> {
    let until = Instant::now() + limits::CLAIM_WAIT;
    let own = order(&folder.name);
    let mut has_claim = false;
    loop {
        let others = claimants(root, folder, sinks)?;
        let has_lower = others.iter().any(|other| *other < own);
        match (has_claim, has_lower) {
            (true, _) if others.is_empty() => return Ok(true),
            (true, true) => {
                withdraw(folder)?;
                has_claim = false;
            }
            (false, false) => {
                let new = folder.path("claim.new");
                let write = fs::write(&new, sinks.join("\n"));
                write.map_err(|error| folder.refusal(Error::io(&new, error)))?;
                files::rename(&new, &folder.path(CLAIM)).map_err(|error| folder.refusal(error))?;
                has_claim = true;
                continue;
            }
            _ => {}
        }
        if Instant::now() >= until || !is_granted() {
            withdraw(folder)?;
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Ends a claim.
pub(super) fn withdraw(folder: &Folder) -> Result<(), Error> {
    files::remove(&folder.path(CLAIM))
}

/// What decides between two.
fn order(name: &Name) -> (i64, String) {
    (name.attempt.job_id, name.run())
}

fn claimants(root: &Root, folder: &Folder, sinks: &[String]) -> Result<Vec<(i64, String)>, Error> {
    let own = &folder.name;
    let mut found = Vec::new();
    for entry in folder::entries(root)? {
        let Entry::Attempt(name, worker) = entry else {
            continue;
        };
        if name.database == own.database && name.attempt.job_id == own.attempt.job_id {
            continue;
        }
        let path = name.path_in(root).join(CLAIM);
        let Ok(Some(claim)) = files::read(&path, limits::RECORD_SIZE_MAX) else {
            continue;
        };
        let claim = String::from_utf8_lossy(&claim);
        if !claim
            .lines()
            .any(|line| sinks.iter().any(|sink| sink == line))
        {
            continue;
        }
        match root.is_alive(&worker) {
            true => found.push(order(&name)),
            // It may have left a part of its output; that is undone before ours is decided.
            false => recover::recover(root, &name)?,
        }
    }
    Ok(found)
}
