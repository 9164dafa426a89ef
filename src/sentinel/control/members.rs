//! Workers: IDENTIFY, reconnects, competing processes with the same ID, disconnects.

use std::collections::BTreeMap;

use super::environments::Environments;
use super::leases::{Claim, Request};
use super::{
    ANOTHERS, Body, Capabilities, Change, Control, Orphan, Outgoing, Sender, are_different, caps,
    printable,
};
use crate::job::text::prefix;
use crate::job::{Attempt, Settlement, User};
use crate::limits;
use crate::protocol::{Identify, Payload};
use crate::reactor::BootTime;
use crate::socket::PeerId;

/// A worker, from its IDENTIFY until it is reported offline.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) worker_id: String,
    /// Its authenticated user. Messages of other users do not count for it.
    pub(super) user: Option<User>,
    /// Its process. None for a worker of the reference system, which does not ask for leases.
    pub(super) instance: Option<String>,
    /// The routing ID by which the next sentinel recognizes a worker of the reference system.
    known_by: Option<String>,
    /// Its connection. None while it is disconnected.
    pub(super) peer: Option<PeerId>,
    /// The plugins and slots that it asks for.
    pub(super) asked: Asked,
    /// The plugins and slots that it gets, by its user's limits.
    pub(super) capabilities: Capabilities,
    pub(super) slots: usize,
    pub(super) hostname: String,
    pub(super) pid: Option<i64>,
    pub(super) claims: Vec<Claim>,
    /// Attempts that it has lost because it did not end them in time. Each occupies a slot until the worker
    /// reports its end.
    pub(super) overdue: Vec<Attempt>,
    /// The environments that it was asked to prepare.
    pub(super) environments: Environments,
    /// It is stopping and accepts no more jobs.
    pub(super) draining: bool,
    /// Why it accepts no jobs for now.
    pub(super) trouble: Option<String>,
    /// How many attempts it may hold for now, when it does not accept a job for each free slot.
    pub(super) claims_max: Option<usize>,
    /// Environments of which it accepts no jobs for now, with the reason.
    pub(super) avoids: BTreeMap<String, String>,
    /// Its send queue is full. It gets no jobs until it sends a message.
    pub(super) is_backed_up: bool,
    /// Its last request on this connection.
    pub(super) request: Option<Request>,
    /// The last request on this connection that was answered.
    pub(super) answered: Option<u64>,
    pub(super) answer_due: bool,
    /// This and the next lists are for the next answer.
    pub(super) acknowledged: Vec<Attempt>,
    pub(super) publish: Vec<Attempt>,
    pub(super) bar: Vec<Attempt>,
    pub(super) abort: Vec<Attempt>,
    pub(super) settle: Vec<Settlement>,
    pub(super) received_at: BootTime,
    /// Since when a worker of the reference system reports that it is idle. None after a DISPATCH.
    pub(super) idle_since: Option<BootTime>,
    absent_since: Option<BootTime>,
}

/// The plugins and slots that a worker asks for in IDENTIFY.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) capabilities: Capabilities,
    pub(super) slots: usize,
}

/// A connection that asks for the ID of a connected worker.
#[derive(Debug)]
pub(super) struct Contender {
    peer: PeerId,
    user: Option<User>,
    identify: Identify<'static>,
    pub(super) since: BootTime,
    /// The time by which the present worker must have answered.
    pub(super) until: BootTime,
}

impl Worker {
    /// The change that notes that the worker does not have an environment (any more).
    pub(super) fn without(&self, env_hash: String) -> Change {
        Change::EnvironmentFailed {
            worker_id: self.worker_id.clone(),
            env_hash,
        }
    }

    /// True when the worker may be asked for one more environment. A worker of the reference system must be
    /// idle, because it does nothing else meanwhile.
    pub(super) fn may_prepare(&mut self, now: BootTime) -> bool {
        let pending = self.environments.pending(now);
        let room = match self.instance {
            Some(_) => limits::PREPARED_AT_ONCE,
            None => usize::from(self.claims.is_empty()),
        };
        self.peer.is_some()
            && pending < room
            && !self.draining
            && self.trouble.is_none()
            && !self.is_backed_up
    }

    /// When the worker will be reported offline, if it is disconnected.
    pub(super) fn offline_at(&self) -> Option<BootTime> {
        Some(self.absent_since? + limits::WORKER_GRACE)
    }

    /// Number of free slots. Attempts that wait for an exclusive sink or for their environment occupy no
    /// slot, but their number is bounded.
    pub(super) fn free(&self) -> usize {
        // A worker that does not end its overdue attempts would get the same jobs again, and lose them again.
        let has_overdue =
            !self.overdue.is_empty() || self.claims.iter().any(|claim| claim.is_overdue);
        if has_overdue {
            return 0;
        }
        let is_alone = |claim: &Claim| claim.is_alone && !claim.is_waiting;
        let waiting = self.claims.iter().filter(|claim| claim.is_waiting).count();
        if self.claims.iter().any(is_alone) || waiting >= limits::WAITING_MAX {
            return 0;
        }
        let started = self.claims.len() - waiting;
        let claims_per_worker_max = self.slots.saturating_mul(limits::CLAIMS_PER_SLOT_MAX);
        let slots = self.slots.saturating_sub(self.occupied());
        let slots = slots.min(claims_per_worker_max.saturating_sub(started));
        match self.claims_max {
            Some(max) => slots.min(max.saturating_sub(self.claims.len())),
            None => slots,
        }
    }

    /// Slots with a job, including jobs that it has lost and not ended.
    pub(super) fn occupied(&self) -> usize {
        let occupies = |claim: &&Claim| claim.wants.is_empty() && !claim.is_waiting;
        self.claims.iter().filter(occupies).count() + self.overdue.len()
    }

    pub(super) fn online(&self) -> Change {
        Change::WorkerOnline {
            worker_id: self.worker_id.clone(),
            user: self.user.clone(),
            hostname: self.hostname.clone(),
            pid: self.pid,
            capabilities: self.capabilities.names(),
            slots: self.slots,
            trouble: self.trouble.clone(),
            environments: self.avoids.clone(),
            routing_id: self.known_by.clone(),
        }
    }
}

impl Control {
    pub(super) fn handle_identify(
        &mut self,
        from: &Sender<'_>,
        identify: &Identify<'_>,
        now: BootTime,
    ) -> Option<&'static str> {
        if let Some(why) = caps::refuse_identify(identify, self.workers.len()) {
            log::warn!("{} was refused: {why}", printable(from.routing_id));
            self.send_error(from.peer, 0, why, true);
            return None;
        }
        let worker_id = match &identify.worker_id {
            Some(name) if !name.is_empty() => prefix(name, limits::NAME_SIZE_MAX).to_owned(),
            _ => printable(from.routing_id),
        };
        if self.belongs_to_another(&worker_id, from.user) {
            // An ERR does not end workers of the reference system.
            if identify.instance.is_none() {
                return Some(ANOTHERS);
            }
            self.refuse_anothers(from, &worker_id, now);
            return None;
        }
        if self.has_identified(from, identify, &worker_id) {
            self.identified_again(from.routing_id, identify, now);
            return None;
        }
        let present = self.routes.get(&worker_id);
        let present = present
            .filter(|route| route.as_slice() != from.routing_id)
            .cloned();
        if let Some(route) = present
            && identify.instance.is_some()
            && let Some(worker) = self.workers.get(&route)
            && worker.instance.as_deref() != identify.instance.as_deref()
            && let Some(peer) = worker.peer
        {
            self.contend(from, identify, &worker_id, peer, now);
            return None;
        }
        self.admit(from, identify, worker_id, now);
        None
    }

    /// True when the process of this connection has already sent IDENTIFY. It sends it again after RELOAD.
    fn has_identified(&self, from: &Sender<'_>, identify: &Identify<'_>, worker_id: &str) -> bool {
        let instance = identify.instance.as_deref();
        let instance = instance.map(|text| prefix(text, limits::NAME_SIZE_MAX));
        self.workers.get(from.routing_id).is_some_and(|worker| {
            worker.peer == Some(from.peer)
                && worker.worker_id == worker_id
                && instance.is_some()
                && worker.instance.as_deref() == instance
        })
    }

    /// Processes a repeated IDENTIFY. Attempts that it does not list stay, because their DISPATCH may not
    /// have arrived yet. The state that the worker has reported stays, too.
    fn identified_again(&mut self, routing_id: &[u8], identify: &Identify<'_>, now: BootTime) {
        if let Some(worker) = self.workers.get_mut(routing_id) {
            worker.draining = identify.draining;
        }
        if let Some(sequence) = identify.sequence {
            self.handle_request(routing_id, sequence, now);
        }
        let running = identify.running.clone().unwrap_or_default();
        self.adopt(routing_id, &running, now);
    }

    /// Notes a process that asks for the ID of a connected worker, and asks that worker for a sign of life.
    /// Its answer decides.
    fn contend(
        &mut self,
        from: &Sender<'_>,
        identify: &Identify<'_>,
        worker_id: &str,
        present: PeerId,
        now: BootTime,
    ) {
        self.identify_orphans(from, identify, worker_id);
        self.note_displaced(identify.instance.as_deref());
        if self.contenders.len() >= limits::CONTENDERS_MAX {
            return;
        }
        let identify = Identify {
            worker_id: Some(worker_id.to_owned().into()),
            hostname: identify
                .hostname
                .as_ref()
                .map(|name| name.to_string().into()),
            instance: identify
                .instance
                .as_ref()
                .map(|text| text.to_string().into()),
            capabilities: identify.capabilities.clone(),
            running: identify.running.clone(),
            slots: identify.slots,
            pid: identify.pid,
            sequence: identify.sequence,
            draining: identify.draining,
        };
        let contender = Contender {
            peer: from.peer,
            user: from.user.cloned(),
            identify,
            since: now,
            until: now + limits::CONTENDER_WAIT,
        };
        self.contenders.insert(from.routing_id.to_vec(), contender);
        self.outgoing.push(Outgoing {
            peer: present,
            job_id: 0,
            body: Body::Payload(Payload::Reload),
        });
    }

    /// Decides on processes that ask for the ID of a worker. A process is refused when the present worker has
    /// sent a message since, and admitted when that worker is silent or disconnected.
    pub(super) fn admit_contenders(&mut self, now: BootTime) {
        let routing_ids: Vec<Vec<u8>> = self.contenders.keys().cloned().collect();
        for routing_id in routing_ids {
            let Some(contender) = self.contenders.get(&routing_id) else {
                continue;
            };
            let worker_id = contender.identify.worker_id.as_deref().unwrap_or("");
            let route = self.routes.get(worker_id).cloned();
            let present = route.as_ref().and_then(|route| self.workers.get(route));
            let connected = present.filter(|worker| worker.peer.is_some());
            if let Some(worker) = connected
                && worker.received_at > contender.since
            {
                let advice = match worker.draining {
                    true => ", which is stopping: start this worker when it has ended, or",
                    false => ";",
                };
                let message = format!(
                    "worker ID {worker_id} is in use by process {} on {}{advice} give this worker \
                     an ID of its own with --worker-id",
                    worker.pid.unwrap_or(0),
                    worker.hostname,
                );
                log::warn!("a second worker was refused: {message}");
                let peer = contender.peer;
                self.contenders.remove(&routing_id);
                self.send_error(peer, 0, message, true);
                continue;
            }
            if connected.is_some() && now < contender.until {
                continue;
            }
            let Some(contender) = self.contenders.remove(&routing_id) else {
                continue;
            };
            if let Some(route) = route {
                let present = self.workers.get(&route);
                let displaced = present.filter(|worker| worker.peer.is_some());
                let displaced = displaced.and_then(|worker| worker.instance.clone());
                self.evict(&route);
                self.note_displaced(displaced.as_deref());
            }
            let worker_id = contender
                .identify
                .worker_id
                .as_deref()
                .unwrap_or("")
                .to_owned();
            let from = Sender {
                peer: contender.peer,
                routing_id: &routing_id,
                user: contender.user.as_ref(),
            };
            self.admit(&from, &contender.identify, worker_id, now);
        }
    }

    /// Assigns inherited attempts of a worker ID to the process that lists them.
    fn identify_orphans(&mut self, from: &Sender<'_>, identify: &Identify<'_>, worker_id: &str) {
        let listed = identify.running.iter().flatten();
        for attempt in listed.take(limits::WORKER_SLOTS_MAX * 2) {
            if let Some(orphan) = self.orphans.get_mut(attempt)
                && orphan.worker_id == worker_id
                && orphan.instance.is_none()
                && !are_different(orphan.user.as_ref(), from.user)
            {
                orphan.instance = identify.instance.as_deref().map(str::to_owned);
                orphan.routing_id = Some(from.routing_id.to_vec());
            }
        }
    }

    /// Notes that another process has taken over the ID of this process, which was running at that time. Its
    /// attempts do not count as losses of their jobs.
    fn note_displaced(&mut self, instance: Option<&str>) {
        for orphan in self.orphans.values_mut() {
            orphan.is_displaced |= instance.is_some() && orphan.instance.as_deref() == instance;
        }
    }

    /// Removes an attempt that the sender held when another process took over its ID, because the sender now
    /// reports on it. Returns that ID.
    pub(super) fn take_displaced(&mut self, from: &Sender<'_>, attempt: Attempt) -> Option<String> {
        let orphan = self.orphans.get(&attempt)?;
        let is_theirs = orphan.routing_id.as_deref() == Some(from.routing_id)
            && !are_different(orphan.user.as_ref(), from.user);
        if !is_theirs {
            return None;
        }
        let orphan = self.orphans.remove(&attempt)?;
        Some(orphan.worker_id)
    }

    /// Removes a worker. Its claims become orphans, with their leases.
    fn evict(&mut self, routing_id: &[u8]) {
        let Some(worker) = self.workers.remove(routing_id) else {
            return;
        };
        if self.routes.get(&worker.worker_id).map(Vec::as_slice) == Some(routing_id) {
            self.routes.remove(&worker.worker_id);
        }
        for claim in worker.claims {
            let orphan = Orphan {
                worker_id: worker.worker_id.clone(),
                user: worker.user.clone(),
                instance: worker.instance.clone(),
                routing_id: Some(routing_id.to_vec()),
                is_displaced: false,
                claim,
            };
            self.orphans.insert(orphan.claim.attempt, orphan);
        }
        // Two connections of the same user may have the same ID.
        let other = self
            .workers
            .iter()
            .find(|(_, other)| other.worker_id == worker.worker_id);
        if let Some((route, other)) = other
            && !self.routes.contains_key(&other.worker_id)
        {
            self.routes.insert(other.worker_id.clone(), route.clone());
        }
    }

    fn admit(
        &mut self,
        from: &Sender<'_>,
        identify: &Identify<'_>,
        worker_id: String,
        now: BootTime,
    ) {
        self.remembered.remove(&worker_id);
        let running = identify.running.clone().unwrap_or_default();
        let instance = identify
            .instance
            .as_deref()
            .map(|text| prefix(text, limits::NAME_SIZE_MAX).to_owned());
        // When the entry with this routing ID is the same process, its leases stay.
        let mut claims: Vec<Claim> = Vec::new();
        if instance.is_some() {
            let theirs = self
                .orphans
                .iter()
                .filter(|(_, orphan)| orphan.instance == instance);
            let theirs: Vec<Attempt> = theirs.map(|(attempt, _)| *attempt).collect();
            let orphans = theirs
                .iter()
                .filter_map(|attempt| self.orphans.remove(attempt));
            claims.extend(orphans.map(|orphan| orphan.claim));
        }
        if let Some(old) = self.workers.get_mut(from.routing_id) {
            let is_same = old.instance == instance && old.worker_id == worker_id;
            if is_same {
                claims.append(&mut old.claims);
            }
            let old_id = old.worker_id.clone();
            self.evict(from.routing_id);
            if old_id != worker_id {
                self.changes
                    .push(Change::WorkerOffline { worker_id: old_id });
            }
        }
        // Another entry with the same ID belongs to an earlier process or connection.
        let other = self.routes.get(&worker_id).cloned();
        if let Some(route) = other {
            let is_same = self
                .workers
                .get(&route)
                .is_some_and(|worker| instance.is_some() && worker.instance == instance);
            if is_same && let Some(worker) = self.workers.get_mut(&route) {
                claims.append(&mut worker.claims);
            }
            // Workers of the reference system may have the same ID. Both stay.
            if instance.is_some() {
                self.evict(&route);
            }
        }
        let hostname = match &identify.hostname {
            Some(name) => prefix(name, limits::NAME_SIZE_MAX).to_owned(),
            None => worker_id.clone(),
        };
        let slots = identify.slots.unwrap_or(1) as usize;
        // A generated routing ID begins with a zero byte. Another peer may get the same one later.
        let is_chosen = from.routing_id.first().is_some_and(|byte| *byte != 0);
        let known_by = Some(printable(from.routing_id));
        let known_by = known_by.filter(|_| instance.is_none() && is_chosen);
        let asked = Asked {
            capabilities: Capabilities::new(&identify.capabilities),
            slots: slots.clamp(1, limits::WORKER_SLOTS_MAX),
        };
        let worker = Worker {
            worker_id: worker_id.clone(),
            user: from.user.cloned(),
            instance,
            known_by,
            peer: Some(from.peer),
            capabilities: asked.capabilities.clone(),
            slots: asked.slots,
            asked,
            hostname,
            pid: identify.pid.map(i64::from),
            claims: Vec::new(),
            overdue: Vec::new(),
            environments: Environments::default(),
            draining: identify.draining,
            trouble: None,
            claims_max: None,
            is_backed_up: false,
            avoids: BTreeMap::new(),
            request: None,
            answered: None,
            answer_due: false,
            acknowledged: Vec::new(),
            publish: Vec::new(),
            bar: Vec::new(),
            abort: Vec::new(),
            settle: Vec::new(),
            received_at: now,
            idle_since: None,
            absent_since: None,
        };
        log::info!(
            "worker {worker_id} connected: {} slot(s), plugins {}",
            worker.slots,
            worker.capabilities.names().join(", ")
        );
        let online = worker.online();
        self.push_online(online);
        self.changes.push(Change::EnvironmentsUnknown {
            worker_id: worker_id.clone(),
        });
        self.routes
            .insert(worker_id.clone(), from.routing_id.to_vec());
        self.workers.insert(from.routing_id.to_vec(), worker);
        // The process lists the attempts that it still has. It never ran, or has dropped, those that it does
        // not list.
        for mut claim in claims {
            if running.contains(&claim.attempt) {
                claim.sent_after = None;
                claim.is_waiting = false;
                claim.wants.clear();
                if let Some(worker) = self.workers.get_mut(from.routing_id) {
                    worker.claims.push(claim);
                }
            } else {
                self.give_back(
                    claim.attempt,
                    format!("worker {worker_id} does not have it"),
                );
            }
        }
        self.adopt(from.routing_id, &running, now);
        self.apply_user_limits();
        if let Some(sequence) = identify.sequence {
            self.handle_request(from.routing_id, sequence, now);
        }
        self.seen_at.get_or_insert(now + limits::SEEN_INTERVAL);
        // So leases of workers of the reference system are renewed in time.
        self.expect_expiry(now + self.settings.lease / 3);
    }

    /// Notes that a known worker has sent a message on this connection.
    pub(super) fn connected(&mut self, from: &Sender<'_>) {
        let Some(worker) = self.workers.get_mut(from.routing_id) else {
            return;
        };
        worker.absent_since = None;
        if worker.peer.replace(from.peer).is_none() {
            self.apply_user_limits();
        }
    }

    /// Marks workers with a closed connection as disconnected, for the case that events of the socket were
    /// dropped.
    pub fn check_connections(&mut self, is_connected: impl Fn(PeerId) -> bool, now: BootTime) {
        for worker in self.workers.values_mut() {
            if worker.peer.is_some_and(|peer| !is_connected(peer)) {
                worker.disconnect(now);
            }
        }
        self.contenders
            .retain(|_, contender| is_connected(contender.peer));
    }

    /// Notes that the connection of a peer has ended.
    pub fn handle_disconnected(&mut self, peer: PeerId, routing_id: &[u8], now: BootTime) {
        let contends = self.contenders.get(routing_id);
        if contends.is_some_and(|contender| contender.peer == peer) {
            self.contenders.remove(routing_id);
        }
        if let Some(worker) = self.workers.get_mut(routing_id)
            && worker.peer == Some(peer)
        {
            log::info!("worker {} is disconnected", worker.worker_id);
            worker.disconnect(now);
            self.apply_user_limits();
        }
    }

    /// Reports workers offline that stay disconnected, and removes them. Their leases are not changed.
    pub(super) fn report_absent(&mut self, now: BootTime) {
        let mut forgotten = Vec::new();
        for (routing_id, worker) in &self.workers {
            if worker.offline_at().is_some_and(|at| at <= now) {
                forgotten.push((routing_id.clone(), worker.worker_id.clone()));
            }
        }
        for (routing_id, worker_id) in forgotten {
            self.remember_old(&routing_id);
            self.evict(&routing_id);
            if !self.routes.contains_key(&worker_id) {
                self.changes.push(Change::WorkerOffline { worker_id });
            }
        }
    }
}

impl Control {
    /// Remembers a worker of the reference system, so that it is recognized at its next message, as after a
    /// restart of the sentinel.
    fn remember_old(&mut self, routing_id: &[u8]) {
        let Some(worker) = self.workers.get(routing_id) else {
            return;
        };
        let (None, Some(known_by)) = (&worker.instance, &worker.known_by) else {
            return;
        };
        if self.remembered.len() >= limits::OLD_WORKERS_MAX {
            return;
        }
        let (known_by, user) = (known_by.clone(), worker.user.clone());
        let identify = Identify {
            capabilities: worker.asked.capabilities.names(),
            worker_id: Some(worker.worker_id.clone().into()),
            slots: u32::try_from(worker.asked.slots).ok(),
            hostname: Some(worker.hostname.clone().into()),
            pid: worker.pid.and_then(|pid| u32::try_from(pid).ok()),
            ..Identify::default()
        };
        let known = (user.clone(), worker.worker_id.clone());
        let routes = self.remembered_routes.entry(known_by).or_default();
        routes.retain(|other| *other != known);
        routes.insert(0, known);
        self.remembered
            .insert(worker.worker_id.clone(), (user, identify));
    }
}

impl Worker {
    /// Notes that the connection has ended. Everything that was to be sent on it is dropped. Leases are not
    /// changed.
    fn disconnect(&mut self, now: BootTime) {
        self.peer = None;
        self.absent_since = Some(now);
        self.request = None;
        self.answered = None;
        self.answer_due = false;
        self.publish.clear();
        self.bar.clear();
        self.abort.clear();
        self.settle.clear();
        self.acknowledged.clear();
    }
}
