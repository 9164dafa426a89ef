//! `--adopt`: makes a copied or restored database the owner of output that its receipts name, and adds
//! unknown attempts of its jobs.

use super::repair::{Done, Repair};
use crate::cli::{Failure, failed};
use crate::job::{ARTIFACTS_TRUNCATED, Attempt, Receipt};
use crate::limits;
use crate::reactor::BootTime;
use crate::sentinel::clock::moment;
use crate::sink::{Adopted, Artifact, Check, Kind, Problem, Root, owner};
use crate::store::{Audited, Inspector};
use crate::worker;

impl Repair {
    /// Gives the database the identity of the folders' owner, if that is another one and receipts of this
    /// database name its files. Returns the new identity.
    pub(super) fn take_identity(
        &mut self,
        id: &str,
        roots: &[&Root],
        inspector: &Inspector,
    ) -> Result<Option<String>, Failure> {
        let mut other: Option<(String, &Root)> = None;
        for root in roots {
            let path = root.path().display();
            if root.has_records(id) {
                // The database has published there by an identity of its own, with `--share-output`.
                continue;
            }
            match (owner(root.path()).map_err(failed)?, &other) {
                (None, _) => {}
                (Some(found), _) if found == id => {}
                (Some(found), Some((first, of))) if found != *first => {
                    return Err(failed(format!(
                        "output folder {path}: it belongs to database {found}, and {} to {first}; \
                         adopt them one at a time",
                        of.path().display()
                    )));
                }
                (Some(found), _) => other = Some((found, root)),
            }
        }
        let Some((other, root)) = other else {
            return Ok(None);
        };
        let path = root.path().display();
        if let Some(own) = roots.iter().find(|root| root.has_records(id)) {
            return Err(failed(format!(
                "output folder {}: the database has published there by its own identity, which it \
                 would lose by adopting {path}",
                own.path().display()
            )));
        }
        if !is_copy_of(&other, root, inspector)? {
            return Err(failed(format!(
                "output folder {path}: it belongs to database {other}, and no receipt of this \
                 database names output of that one"
            )));
        }
        self.store.take_identity(&other).map_err(failed)?;
        Ok(Some(other))
    }

    /// Adopts the output of a job in the roots. None if there was nothing to adopt.
    pub(super) fn adopt(
        &mut self,
        row: &Audited,
        problems: &[(usize, Problem)],
        roots: &[&Root],
    ) -> Result<Option<Done>, Failure> {
        let mut done = None;
        let id = self.store.database_id();
        let mut foreign = Vec::new();
        for (index, problem) in problems {
            let Some(root) = roots.get(*index) else {
                continue;
            };
            if problem.kind == Kind::Barred {
                let by = root.bar_of(&id, row.last).map_err(failed)?;
                if let Some(by) = by {
                    let barred = Attempt::new(row.job_id, by);
                    let mut transaction = self.store.begin().map_err(failed)?;
                    transaction.raise_attempt(barred, None).map_err(failed)?;
                    transaction.commit().map_err(failed)?;
                    done = Some(Done::Adopted);
                }
            }
            if ![Kind::Foreign, Kind::Touched].contains(&problem.kind) {
                continue;
            }
            let uris = row.outputs.iter().map(|output| output.uri.clone());
            let uris: Vec<String> = uris.collect();
            let adopted = root.adopt(&id, row.last, &uris);
            let Some(adopted) = adopted.map_err(failed)? else {
                continue;
            };
            if problem.kind == Kind::Foreign {
                foreign.push(adopted);
                continue;
            }
            // The database has the attempt, and the record now describes the present file.
            let attempt = Attempt::new(row.job_id, adopted.attempt);
            let named = &adopted.named;
            let is_all = is_all(row, adopted.others.len(), named);
            let mut transaction = self.store.begin().map_err(failed)?;
            if is_all && row.status == "COMPLETED" {
                let receipt = receipt(attempt, named, adopted.others.len());
                let noted =
                    transaction.adopt_own(attempt, adopted.key, &receipt, &moment(BootTime::now()));
                noted.map_err(failed)?;
            } else if is_all {
                let uris = named.iter().map(|artifact| artifact.uri.clone()).collect();
                let set = transaction.set_published(row.job_id, uris);
                set.map_err(failed)?;
            }
            transaction.commit().map_err(failed)?;
            if !named.is_empty() {
                done = Some(Done::Adopted);
            }
        }
        // Of several roots, the latest output is that of the row.
        foreign.sort_by_key(|adopted| adopted.attempt);
        for adopted in foreign {
            let is_queued = self.own(row, &adopted)?;
            done = match (is_queued, done) {
                (false, Some(Done::AdoptedAndQueued)) => Some(Done::AdoptedAndQueued),
                (false, _) => Some(Done::Adopted),
                (true, _) => Some(Done::AdoptedAndQueued),
            };
        }
        Ok(done)
    }

    /// Adds an attempt that the database does not have. Its output gets a receipt, so that nothing removes
    /// it before another attempt has published. Returns whether the job is queued again.
    fn own(&mut self, row: &Audited, adopted: &Adopted) -> Result<bool, Failure> {
        let attempt = Attempt::new(row.job_id, adopted.attempt);
        let mut transaction = self.store.begin().map_err(failed)?;
        let is_named = is_all(row, adopted.others.len(), &adopted.named);
        let (listed, left_out) = match is_named {
            true => (adopted.named.clone(), adopted.others.len()),
            false => first_of(adopted),
        };
        let has_output = !listed.is_empty();
        let receipt = has_output.then(|| receipt(attempt, &listed, left_out));
        let is_as_received = is_named && is_as_received(row, adopted);
        let is_queued = transaction.adopt(
            attempt,
            adopted.key,
            receipt.as_ref(),
            is_as_received,
            &moment(BootTime::now()),
        );
        let is_queued = is_queued.map_err(failed)?;
        transaction.commit().map_err(failed)?;
        Ok(is_queued)
    }
}

/// The receipt for the output of an attempt. `left_out` = number of files that it does not list.
fn receipt(attempt: Attempt, listed: &[Artifact], left_out: usize) -> Receipt {
    let mut receipt = worker::settled(attempt, Some((attempt.number, listed.to_vec())));
    if left_out > 0 {
        let left_out = i64::try_from(left_out).unwrap_or(i64::MAX);
        receipt
            .metrics
            .insert(ARTIFACTS_TRUNCATED.to_owned(), left_out);
    }
    receipt
}

/// At least the size of an artifact in a receipt without its texts, in bytes.
const ARTIFACT_SIZE: usize = 256;

/// As much of an attempt's output as a row can list, and the number of the other artifacts.
fn first_of(adopted: &Adopted) -> (Vec<Artifact>, usize) {
    let all = adopted.named.iter().chain(&adopted.others);
    let mut room = limits::PUBLISHED_SIZE_MAX / 2;
    let fits = |artifact: &&Artifact| {
        let columns = artifact.columns.as_ref().map_or(0, String::len);
        let size = ARTIFACT_SIZE + artifact.uri.len() + artifact.topic.len() + columns;
        let left = room.checked_sub(size);
        room = left.unwrap_or(0);
        left.is_some()
    };
    let listed: Vec<Artifact> = all.take_while(fits).cloned().collect();
    let left_out = adopted.named.len() + adopted.others.len() - listed.len();
    (listed, left_out)
}

/// True if these are all artifacts that a job's receipt names, and their list is not too long for a row.
fn is_all(row: &Audited, others: usize, artifacts: &[Artifact]) -> bool {
    let size = artifacts.iter().map(|artifact| artifact.uri.len() + 3);
    !artifacts.is_empty()
        && (others == 0 || row.is_truncated)
        && size.sum::<usize>() < limits::PUBLISHED_SIZE_MAX
}

/// True if an attempt's output is the one that the row's receipt names: the same files with the same content.
/// The content of tables is not compared.
fn is_as_received(row: &Audited, adopted: &Adopted) -> bool {
    let is_same = |artifact: &Artifact| {
        let mut outputs = row.outputs.iter();
        let output = outputs.find(|output| output.uri == artifact.uri);
        let known = output.and_then(|output| output.sha256.as_ref());
        known.is_some() && known == artifact.sha256.as_ref()
    };
    !row.is_truncated
        && adopted.others.is_empty()
        && adopted.named.len() == row.outputs.len()
        && adopted.named.iter().all(is_same)
}

/// True if a receipt of the database names output that a record of another database names.
fn is_copy_of(other: &str, root: &Root, inspector: &Inspector) -> Result<bool, Failure> {
    let check = Check::new(root, other);
    for part in check.parts().map_err(failed)? {
        for (job_id, incarnation) in check.recorded(part).map_err(failed)? {
            let Some((last, uris)) = inspector.received(job_id).map_err(failed)? else {
                continue;
            };
            if last.incarnation() == incarnation
                && root.is_output_of(other, last, &uris).map_err(failed)?
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
