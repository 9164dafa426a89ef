//! Jobs that are given out: what the database said of them, and who may have more.

use super::{Change, Control, Opening, Outgoing, remember};
use crate::job::{Attempt, Job};
use crate::protocol::{Dispatch, Payload, PrepareEnv};

impl Control {
    /// The claim of these jobs is committed: tell the worker.
    pub fn handle_claimed(&mut self, identity: &[u8], jobs: Vec<Job>) {
        let lease_ms = u64::try_from(self.settings.lease.as_millis()).unwrap_or(u64::MAX);
        let Some(worker) = self.workers.get_mut(identity) else {
            for job in jobs {
                let reason = "its worker went away".to_owned();
                self.changes.push(Change::Release {
                    hold: job.attempt,
                    reason,
                });
            }
            return;
        };
        for job in jobs {
            worker.holds.push(job.attempt);
            let Some(peer) = worker.peer else {
                continue;
            };
            if !job.plugin.env_hash.is_empty()
                && !worker.environments.contains(&job.plugin.env_hash)
            {
                remember(&mut worker.environments, &job.plugin.env_hash);
                self.outgoing.push(Outgoing {
                    peer,
                    job_id: 0,
                    payload: Payload::PrepareEnv(PrepareEnv {
                        env_hash: job.plugin.env_hash.clone().into(),
                        lockfile_content: job.plugin.lockfile_content.clone().into(),
                        python_version: None,
                    }),
                });
            }
            self.outgoing.push(Outgoing {
                peer,
                job_id: job.attempt.job_id.unsigned_abs(),
                payload: Payload::Dispatch(Box::new(Dispatch {
                    plugin_name: job.plugin.name.clone().into(),
                    file_path: job.file_path.into(),
                    sinks: job.sinks.iter().map(Into::into).collect(),
                    file_version_id: job.file_version_id,
                    env_hash: job.plugin.env_hash.clone().into(),
                    source_code: job.plugin.source_code.clone().into(),
                    artifact_hash: Some(job.plugin.artifact_hash.clone().into()),
                    attempt: Some(job.attempt.number),
                    lease_ms: Some(lease_ms),
                    lease_of: None,
                    database: job.database.as_deref().map(|uuid| uuid.to_owned().into()),
                    previous: job.previous,
                })),
            });
        }
    }

    /// The answer to [`Change::Adopt`]: the attempt the worker holds, or none.
    pub fn handle_adopted(&mut self, identity: &[u8], job_id: i64, attempt: Option<i64>) {
        let Some(worker) = self.workers.get_mut(identity) else {
            return;
        };
        match attempt {
            Some(attempt) => {
                let hold = Attempt::new(job_id, attempt);
                if !worker.holds.contains(&hold) {
                    log::info!("worker {} goes on with job {job_id}", worker.worker_id);
                    worker.holds.push(hold);
                }
            }
            None => {
                if let Some(peer) = worker.peer {
                    self.outgoing.push(Outgoing {
                        peer,
                        job_id: job_id.unsigned_abs(),
                        payload: Payload::Abort,
                    });
                }
            }
        }
    }

    /// Jobs were taken from their holders in the database (a lease ran out): their workers are
    /// told to stop.
    pub fn handle_revoked(&mut self, job_id: i64) {
        for worker in self.workers.values_mut() {
            let before = worker.holds.len();
            worker.holds.retain(|hold| hold.job_id != job_id);
            if worker.holds.len() != before
                && let Some(peer) = worker.peer
            {
                self.outgoing.push(Outgoing {
                    peer,
                    job_id: job_id.unsigned_abs(),
                    payload: Payload::Abort,
                });
            }
        }
    }

    // ---- slots and time ----

    /// Workers with free slots, the least loaded first; none while draining.
    pub fn openings(&self) -> Vec<Opening> {
        if self.draining {
            return Vec::new();
        }
        let mut openings: Vec<(usize, Opening)> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.peer.is_some() && worker.holds.len() < worker.slots)
            .map(|(identity, worker)| {
                let opening = Opening {
                    identity: identity.clone(),
                    worker_id: worker.worker_id.clone(),
                    hostname: worker.hostname.clone(),
                    pid: worker.pid,
                    capabilities: worker.capabilities.clone(),
                    free: worker.slots - worker.holds.len(),
                };
                (worker.holds.len(), opening)
            })
            .collect();
        openings.sort_by(|a, b| (a.0, &a.1.worker_id).cmp(&(b.0, &b.1.worker_id)));
        openings.into_iter().map(|(_, opening)| opening).collect()
    }

    /// True when some connected worker has a free slot.
    pub fn has_openings(&self) -> bool {
        !self.draining
            && self
                .workers
                .values()
                .any(|worker| worker.peer.is_some() && worker.holds.len() < worker.slots)
    }
}
