//! Claims: publishes into the same sink of mode `replace` or `error` exclude each other. The sentinel
//! permits one attempt at a time to publish there. Claims also work without that, for old sentinels and
//! for several sentinels.
//!
//! An attempt writes its sinks into the file `claim` of its folder. Then it reads the claims of the other
//! attempts. If no other attempt claims one of these sinks, it continues. If two attempts find each
//! other's claims, both wait: the one with the higher job ID withdraws its claim. Both try again for a
//! bounded time. A claim ends with its folder, so claims of barred attempts and dead workers block no
//! other attempt.

use std::fs;
use std::time::{Duration, Instant};

use super::folder::{self, Entry, Folder, Name};
use super::{Error, Root, files, recover};
use crate::limits;

const CLAIM: &str = "claim";
const PAUSE: Duration = Duration::from_millis(2);

/// Claims sinks. False when another attempt's claim did not end within `CLAIM_WAIT`, or the lease ended.
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

/// Of two attempts with claims, the one with the lower order keeps its claim.
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
            // The dead worker may have left a part of its output. It is undone before this claim is
            // decided.
            false => recover::recover(root, &name)?,
        }
    }
    Ok(found)
}
