//! `--adopt`: makes a copied or restored database the owner of output that its receipts name, and adds
//! unknown attempts of its jobs.

use super::repair::Repair;
use crate::cli::plugin::now;
use crate::cli::{Failure, failed};
use crate::job::{ARTIFACTS_TRUNCATED, Attempt, Receipt};
use crate::limits;
use crate::sink::{Artifact, Check, Kind, Problem, Root, owner};
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

    /// Adopts the output of a job in the roots. Returns whether there was any.
    pub(super) fn adopt(
        &mut self,
        row: &Audited,
        problems: &[(usize, Problem)],
        roots: &[&Root],
    ) -> Result<bool, Failure> {
        let mut is_adopted = false;
        let id = self.store.database_id();
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
                    is_adopted = true;
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
            let attempt = Attempt::new(row.job_id, adopted.attempt);
            let has_output = !adopted.artifacts.is_empty();
            let is_all = is_all(row, adopted.others, &adopted.artifacts);
            let artifacts = adopted.artifacts.iter();
            let uris = artifacts.map(|artifact| artifact.uri.clone()).collect();
            let receipt = receipt_for(row, adopted.others, attempt, adopted.artifacts);
            if receipt.is_none() && problem.kind == Kind::Touched {
                // The database has the attempt, and the record now describes the present file.
                if is_all {
                    let mut transaction = self.store.begin().map_err(failed)?;
                    transaction
                        .set_published(row.job_id, uris)
                        .map_err(failed)?;
                    transaction.commit().map_err(failed)?;
                }
                is_adopted |= has_output;
                continue;
            }
            let mut transaction = self.store.begin().map_err(failed)?;
            let noted = transaction.adopt(attempt, adopted.key, receipt.as_ref(), &now());
            noted.map_err(failed)?;
            transaction.commit().map_err(failed)?;
            is_adopted = true;
        }
        Ok(is_adopted)
    }
}

/// The receipt of a COMPLETED job for an adopted attempt. None unless the attempt has all output that the
/// earlier receipt names.
fn receipt_for(
    row: &Audited,
    others: usize,
    attempt: Attempt,
    artifacts: Vec<Artifact>,
) -> Option<Receipt> {
    if row.status != "COMPLETED" || !is_all(row, others, &artifacts) {
        return None;
    }
    let mut receipt = worker::settled(attempt, Some((attempt.number, artifacts)));
    if others > 0 {
        let others = i64::try_from(others).unwrap_or(i64::MAX);
        receipt
            .metrics
            .insert(ARTIFACTS_TRUNCATED.to_owned(), others);
    }
    Some(receipt)
}

/// True if these are all artifacts that a job's receipt names, and their list is not too long for a row.
fn is_all(row: &Audited, others: usize, artifacts: &[Artifact]) -> bool {
    let size = artifacts.iter().map(|artifact| artifact.uri.len() + 3);
    !artifacts.is_empty()
        && (others == 0 || row.is_truncated)
        && size.sum::<usize>() < limits::PUBLISHED_SIZE_MAX
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
