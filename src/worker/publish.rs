//! Publishes staged output. The jobs wait here, outside the slots, for a lease.

use super::ends::give_up_writer;
use super::event_loop::Worker;
use super::job::Run;
use super::slot::Action;
use crate::job::{Mode, Target};
use crate::reactor::BootTime;

impl Worker {
    /// Moves jobs with staged output out of their slots, and carries out their actions.
    pub(super) fn publish(&mut self, now: BootTime) {
        self.leave_slots(now);
        let mut index = 0;
        while index < self.publishing.len() {
            match self.advance(index, now) {
                true => index += 1,
                false => {
                    let run = self.publishing.swap_remove(index);
                    self.conclude(run, now);
                }
            }
        }
    }

    /// Frees a slot as soon as its output is staged and its process has exited.
    fn leave_slots(&mut self, now: BootTime) {
        let mut left = false;
        for index in 0..self.slots.len() {
            let slot = self.slots.get(index).and_then(Option::as_ref);
            if slot.is_some_and(|run| run.slot.is_staged()) {
                let run = self.leave_slot(index, true, now);
                self.publishing.extend(run);
                left = true;
            }
        }
        if left {
            self.start_jobs(now);
        }
    }

    /// Carries out the actions of a job. Returns false once it is concluded.
    fn advance(&mut self, index: usize, now: BootTime) -> bool {
        let Some(run) = self.publishing.get_mut(index) else {
            return true;
        };
        run.handle_timeout(now);
        let attempt = run.assignment.job.attempt;
        let allowed = match run.assignment.lease {
            None => true,
            Some(_) => {
                if self.leases.ask_exclusive(attempt, exclusive_sinks(run)) {
                    self.heartbeat_at = now;
                }
                let until = self.leases.may_publish_until(attempt);
                run.permit.set(until);
                run.permit.is_valid(now)
            }
        };
        while let Some(action) = run.slot.poll(allowed, now) {
            match action {
                Action::Publish => {
                    let bar = self.leases.to_bar(attempt);
                    if let Some(writer) = &mut run.writer {
                        writer.publish(bar);
                    }
                }
                Action::Discard => match &mut run.writer {
                    Some(writer) => writer.discard(),
                    None => run.slot.handle_discarded(),
                },
                Action::Conclude(failure) => {
                    run.failure = failure;
                    return false;
                }
                Action::GiveUp(cause) => {
                    let waited = self.options.publish_timeout;
                    give_up_writer(run, cause, waited, &self.staging, &mut self.health, now);
                    self.heartbeat_at = now;
                }
                Action::Kill | Action::Stage => {}
            }
        }
        // Without a lease, and without a request in flight, a request is sent.
        if !allowed && run.slot.is_staged() && self.leases.must_ask(attempt, now) {
            self.heartbeat_at = now;
        }
        true
    }
}

/// URIs of the sinks into which only one job at a time may publish.
fn exclusive_sinks(run: &Run) -> Vec<String> {
    let sinks = run.assignment.job.sinks.iter();
    let exclusive = sinks.filter(|sink| sink.mode != Mode::Append);
    exclusive
        .map(|sink| match &sink.target {
            // The compression does not change the paths of the files.
            Target::Parquet { path, .. } => format!("parquet://{}", path.display()),
            Target::Sqlite { .. } => sink.uri.clone(),
        })
        .collect()
}
