//! Faults at random times by a seed, and their healing.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::io::Errno;
use rustix::process::Signal;

use crate::faults::{CREATE, LINK, MAKE_DIR, RENAME, SYNC, WRITE};
use crate::monitor::Monitor;
use crate::programs::{Program, Role, processes, signal};
use crate::proxy::Proxy;
use crate::random::Random;

/// Positions in `Cluster::programs`.
pub(crate) const SENTINEL: usize = 0;
const WORKERS: [usize; 3] = [1, 2, 3];
/// A second worker under the ID of the first.
const DOUBLE: usize = 4;

/// A supervisor waits before it starts a program again.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// What runs.
pub(crate) struct Cluster<'a> {
    pub(crate) dir: &'a Path,
    /// The sentinel, the workers `w1` to `w3`, a second `w1`.
    pub(crate) programs: Vec<Program>,
    /// Of `w1` and `w2`.
    pub(crate) proxies: Vec<Proxy>,
    /// A connection of another program to the queue.
    pub(crate) other: Connection,
    pub(crate) monitor: &'a Monitor,
}

/// What ends a fault.
#[derive(Clone, Copy, Debug)]
enum Heal {
    Start(usize),
    Resume(usize),
    ResumeProcess(u32),
    Unstall(usize),
    Disk(usize),
    Clock(usize),
    Unlock,
    EndDouble,
    /// SIGKILL to a process that SIGTERM has not ended.
    KillLate(usize, u32),
}

/// The storm: faults, and when they end.
pub(crate) struct Storm<'a> {
    cluster: Cluster<'a>,
    random: Random,
    heals: Vec<(Instant, Heal)>,
    counts: BTreeMap<&'static str, usize>,
    began: Instant,
    /// Every fault with its time and length, for `storm.log`.
    log: String,
    is_locked: bool,
    /// Longest time of a fault.
    longest_s: u64,
    pub(crate) plugins_killed: usize,
}

impl<'a> Storm<'a> {
    pub(crate) fn new(cluster: Cluster<'a>, seed: u64, seconds: u64) -> Self {
        Storm {
            cluster,
            random: Random::new(seed, 1),
            heals: Vec::new(),
            counts: BTreeMap::new(),
            began: Instant::now(),
            log: String::new(),
            is_locked: false,
            longest_s: (seconds / 2).clamp(2, 25),
            plugins_killed: 0,
        }
    }

    /// Faults and their healing until a time; `tick` is called all the while.
    pub(crate) fn rage(&mut self, until: Instant, mut tick: impl FnMut()) {
        let mut next = Instant::now();
        while Instant::now() < until {
            tick();
            self.keep_up();
            if Instant::now() >= next {
                self.strike();
                next = Instant::now() + self.ms(50, 450);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends all faults and starts what is down.
    pub(crate) fn heal(&mut self) {
        for (_, heal) in std::mem::take(&mut self.heals) {
            self.end(heal);
        }
        self.keep_up();
    }

    /// Starts again what has ended, and ends faults whose time has come.
    pub(crate) fn keep_up(&mut self) {
        let now = Instant::now();
        let (due, later) = self.heals.drain(..).partition(|(at, _)| *at <= now);
        self.heals = later;
        for (_, heal) in due {
            self.end(heal);
        }
        for index in [SENTINEL, 1, 2, 3, DOUBLE] {
            let is_waiting = self
                .heals
                .iter()
                .any(|(_, heal)| matches!(heal, Heal::Start(at) if *at == index));
            let program = &mut self.cluster.programs[index];
            program.poll();
            if index != DOUBLE && !program.is_up() && !is_waiting {
                self.later(RESTART_PAUSE, Heal::Start(index));
            }
        }
    }

    fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.random.below(to - from))
    }

    /// 1 to 25 s, less in a short run; mostly short.
    fn long(&mut self) -> Duration {
        let most = match self.random.below(3) {
            0 => self.longest_s * 1000,
            _ => 3000.min(self.longest_s * 1000),
        };
        self.ms(1000, most.max(1001))
    }

    fn later(&mut self, pause: Duration, heal: Heal) {
        self.heals.push((Instant::now() + pause, heal));
    }

    fn end(&mut self, heal: Heal) {
        let cluster = &mut self.cluster;
        match heal {
            Heal::Start(index) => cluster.programs[index].start(),
            Heal::Resume(index) => cluster.programs[index].resume(),
            Heal::ResumeProcess(pid) => {
                if processes(cluster.dir)
                    .iter()
                    .any(|(found, _)| *found == pid)
                {
                    signal(pid, Signal::CONT);
                }
            }
            Heal::Unstall(index) => cluster.proxies[index].stall(false, false),
            Heal::Disk(index) => cluster.programs[index].faults.heal_disk(),
            Heal::Clock(index) => cluster.programs[index].faults.shift_clock(0),
            Heal::Unlock => {
                // The transaction changed nothing.
                cluster.other.execute_batch("ROLLBACK").unwrap();
                self.is_locked = false;
            }
            Heal::EndDouble => cluster.programs[DOUBLE].kill(),
            Heal::KillLate(index, pid) => {
                let program = &mut cluster.programs[index];
                if program.pid() == Some(pid) {
                    program.kill();
                }
            }
        }
    }

    /// Notes a fault; one of the sentinel's delays the recovery of workers as well.
    fn count(&mut self, what: &'static str, on: &str, length: Duration) {
        *self.counts.entry(what).or_default() += 1;
        let at = self.began.elapsed().as_secs_f64();
        let line = format!("{at:.3} s: {what} ({on}), {length:?}\n");
        self.log.push_str(&line);
        if on == "sentinel" && what != "clock jumped" {
            self.cluster.monitor.sentinel_fails(length);
        }
    }

    fn name(&self, index: usize) -> String {
        self.cluster.programs[index].name.clone()
    }

    /// The faults so far.
    pub(crate) fn counts(&self) -> String {
        let counts = self
            .counts
            .iter()
            .map(|(what, count)| format!("{what} {count}"));
        counts.collect::<Vec<_>>().join(", ")
    }

    fn disturb(&self, index: usize) {
        if WORKERS.contains(&index) {
            self.cluster.monitor.disturbed(&format!("w{index}"));
        }
    }

    fn strike(&mut self) {
        let worker = WORKERS[self.random.below(3) as usize];
        match self.random.below(100) {
            0..12 => self.kill(worker),
            12..18 => self.kill(SENTINEL),
            18..25 => self.hit_process(Role::Plugin, true),
            25..34 => self.stop(worker),
            34..38 => self.stop(SENTINEL),
            38..44 => self.hit_process(Role::Plugin, false),
            44..48 => self.hit_process(Role::Warm, false),
            48..58 => self.cut(),
            58..66 => self.stall(),
            66..71 => self.lock(),
            71..77 => self.restart(worker),
            77..80 => self.restart(SENTINEL),
            80..84 => self.double(),
            84..94 => self.break_disk(worker),
            94..96 => self.jump_clock(SENTINEL),
            _ => self.jump_clock(worker),
        }
    }

    fn kill(&mut self, index: usize) {
        if !self.cluster.programs[index].is_up() {
            return;
        }
        self.disturb(index);
        self.cluster.programs[index].kill();
        let down = self.ms(0, 1500);
        let what = if index == SENTINEL {
            "sentinel killed"
        } else {
            "worker killed"
        };
        self.count(what, &self.name(index), down);
        self.later(down, Heal::Start(index));
    }

    fn stop(&mut self, index: usize) {
        let program = &self.cluster.programs[index];
        if !program.is_up() || program.is_stopped() {
            return;
        }
        self.disturb(index);
        self.cluster.programs[index].stop();
        let pause = self.long();
        let what = if index == SENTINEL {
            "sentinel stopped"
        } else {
            "worker stopped"
        };
        self.count(what, &self.name(index), pause);
        self.later(pause, Heal::Resume(index));
    }

    /// SIGTERM, and a start once it has ended; after some seconds SIGKILL, as a supervisor does.
    fn restart(&mut self, index: usize) {
        let program = &mut self.cluster.programs[index];
        let Some(pid) = program.pid().filter(|_| !program.is_stopped()) else {
            return;
        };
        program.terminate();
        self.count(
            "SIGTERM and restart",
            &self.name(index),
            Duration::from_secs(1),
        );
        let patience = self.long() + Duration::from_secs(2);
        if self.random.below(4) == 0 {
            self.later(patience, Heal::KillLate(index, pid));
        }
    }

    fn hit_process(&mut self, role: Role, is_kill: bool) {
        let found = processes(self.cluster.dir);
        let found: Vec<u32> = found
            .into_iter()
            .filter(|(_, of)| *of == role)
            .map(|(pid, _)| pid)
            .collect();
        if found.is_empty() {
            return;
        }
        let pid = found[self.random.below(found.len() as u64) as usize];
        if is_kill {
            signal(pid, Signal::KILL);
            self.plugins_killed += 1;
            self.count("plugin process killed", &pid.to_string(), Duration::ZERO);
        } else {
            signal(pid, Signal::STOP);
            let pause = self.long();
            let what = match role {
                Role::Warm => "interpreter stopped",
                _ => "plugin process stopped",
            };
            self.count(what, &pid.to_string(), pause);
            self.later(pause, Heal::ResumeProcess(pid));
        }
    }

    fn cut(&mut self) {
        let index = self.random.below(2) as usize;
        self.disturb(index + 1);
        self.cluster.proxies[index].cut();
        self.count("connections cut", &self.name(index + 1), Duration::ZERO);
    }

    fn stall(&mut self) {
        let index = self.random.below(2) as usize;
        let (to, from) =
            [(true, true), (true, false), (false, true)][self.random.below(3) as usize];
        self.disturb(index + 1);
        self.cluster.proxies[index].stall(to, from);
        let pause = self.long();
        self.count("connections stalled", &self.name(index + 1), pause);
        self.later(pause, Heal::Unstall(index));
    }

    fn lock(&mut self) {
        if self.is_locked || self.cluster.other.execute_batch("BEGIN IMMEDIATE").is_err() {
            return;
        }
        self.is_locked = true;
        let pause = self.ms(500, 6000);
        self.count("database locked", "sentinel", pause);
        self.later(pause, Heal::Unlock);
    }

    fn double(&mut self) {
        if self.cluster.programs[DOUBLE].is_up() {
            return;
        }
        self.cluster.programs[DOUBLE].start();
        let pause = self.ms(500, 4000);
        self.count("second worker of the same ID", &self.name(1), pause);
        self.later(pause, Heal::EndDouble);
    }

    fn break_disk(&mut self, index: usize) {
        let pause = self.ms(300, 3000);
        let faults = &self.cluster.programs[index].faults;
        if self.random.below(3) == 0 {
            faults.delay(500 + self.random.below(4000) as i64);
            self.count("slow renames", &self.name(index), pause);
        } else {
            const ERRORS: [Errno; 4] = [Errno::NOSPC, Errno::IO, Errno::MFILE, Errno::ROFS];
            const CALLS: [i64; 6] = [
                RENAME | LINK,
                SYNC,
                CREATE,
                WRITE,
                MAKE_DIR,
                RENAME | LINK | SYNC | CREATE | WRITE,
            ];
            let error = ERRORS[self.random.below(4) as usize];
            let calls = CALLS[self.random.below(6) as usize];
            let permille = [1000, 1000, 200][self.random.below(3) as usize];
            faults.fail(error.raw_os_error(), calls, permille);
            self.count("disk errors", &self.name(index), pause);
        }
        self.later(pause, Heal::Disk(index));
    }

    fn jump_clock(&mut self, index: usize) {
        const DAY_S: i64 = 86_400;
        let shift = self.random.below(10 * DAY_S as u64) as i64 - 5 * DAY_S;
        self.cluster.programs[index].faults.shift_clock(shift);
        let pause = self.long();
        self.count("clock jumped", &self.name(index), Duration::ZERO);
        self.later(pause, Heal::Clock(index));
    }

    /// System calls that failed on purpose.
    pub(crate) fn failed_calls(&self) -> i64 {
        self.cluster
            .programs
            .iter()
            .map(|program| program.faults.faults())
            .sum()
    }

    /// Programs that ended without being told to; a worker whose ID the second one has taken must.
    pub(crate) fn ends(&self) -> Vec<String> {
        let programs = self.cluster.programs.iter();
        let ends = programs.flat_map(|program| program.ends.iter());
        ends.filter(|end| !end.contains("worker ID w1 is in use"))
            .cloned()
            .collect()
    }

    /// Everything ends in peace; what does not is told.
    pub(crate) fn shut_down(mut self) -> Vec<String> {
        self.heal();
        std::fs::write(self.cluster.dir.join("storm.log"), &self.log).unwrap();
        let mut problems = Vec::new();
        let programs = &mut self.cluster.programs;
        // Workers first, so that they can hand in their receipts; the sentinel is the first program.
        for program in programs.iter_mut().rev().filter(|program| program.is_up()) {
            problems.extend(program.shut_down(Duration::from_secs(45)).err());
        }
        for program in programs.iter() {
            let text = program.log_text();
            let panics = text.lines().filter(|line| line.contains("panicked at"));
            problems.extend(panics.map(|line| format!("{}: {line}", program.name)));
        }
        problems
    }
}
