#!/usr/bin/env python3
"""Puts known faults back, one at a time, and checks that a simulation finds each.

    python3 tests/simulation/mutants.py [--socket] [SEEDS] [NAME...]
    python3 tests/simulation/mutants.py --check

The faults are in the sentinel, the store and the workers, and the simulation is `tests/simulation`. With
--socket they are in the engine of sockets, and the simulation is `engine::tests::seeds`, which is also that of
the fuzz target `engine`.

Works on a copy of the checkout in a temporary folder; SEEDS (default 3000) is the most it tries.
With --check it runs nothing and only checks that each fault can still be put back.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
LEASES = "src/sentinel/control/leases.rs"
MEMBERS = "src/sentinel/control/members.rs"
EXCLUSIVE = "src/sentinel/control/exclusive.rs"
WORKER = "src/worker/leases.rs"
STORAGE = "tests/simulation/storage.rs"
# Name, file, text, what it becomes.
MUTANTS = [
    ("a lost connection releases jobs", MEMBERS,
     "            self.orphans.insert(orphan.claim.attempt, orphan);",
     "            self.release(\n                orphan.claim.attempt, crate::job::Cause::Lost, crate::job::Loss::Alone,\n"
     "                String::new());"),
    ("a worker's lease is longer than the sentinel's", WORKER,
     "*until = (*until).max(at + bound);", "*until = (*until).max(at + bound * 2);"),
    ("the sentinel counts half a lease", LEASES,
     "claim.until = claim.until.max(request.received_at + bound);",
     "claim.until = claim.until.max(request.received_at + bound / 2);"),
    ("the first lease counts from the claim's past", "src/sentinel/control/claims.rs",
     "map_or(now, |request| request.received_at) + bound;",
     "map_or(now, |request| request.received_at) + bound / 4;"),
    ("renewals do not reach jobs", LEASES,
     "leases: leases.map(|claim| claim.attempt).collect(),", "leases: Vec::new(),"),
    ("folders of earlier attempts stay", STORAGE,
     "other.job_id != attempt.job_id || other.number > attempt.number", "true"),
    ("a bar is not read", STORAGE,
     "barred.filter(|barred| *barred >= attempt.number)", "barred.filter(|_| false)"),
    ("exclusive sinks are given to all", EXCLUSIVE,
     "        if !sinks.iter().all(is_free) {", "        if false && !sinks.iter().all(is_free) {"),
    ("unreported holders of sinks are not barred", EXCLUSIVE,
     "            bar.extend(self.unreported.get(sink).into_iter().flatten());", ""),
    ("an operator's change leaves a sink taken", LEASES,
     "        self.exclusive.abandon(attempt);\n        for worker", "        for worker"),
    ("receipts are sent once", WORKER,
     "if sent_at.is_none_or(|at| at + limits::RECEIPT_RESEND_AFTER <= now) {",
     "if receipt.metrics.insert(String::new(), 1).is_none() {"),
    ("receipts are acknowledged before the commit", "src/sentinel/control.rs",
     "        self.changes.push(Change::End {",
     "        if let Some(worker) = self.workers.get_mut(routing_id) {\n"
     "            worker.acknowledged.push(attempt);\n"
     "            worker.answer_due = true;\n        }\n"
     "        self.changes.push(Change::End {"),
    ("changes of a failed commit are lost", "src/sentinel/transaction.rs",
     "self.control.restore_changes(changes);", "drop(changes);"),
    ("a restart queues running jobs at once", "src/sentinel/transaction.rs",
     "    if is_exclusive {", "    if !is_exclusive {"),
    ("a job that is given up is not settled", "src/store/attempts.rs",
     "_ => self.is_unsettled(full, end.cause.filter(|_| !is_returned))?", "_ => false"),
    ("a cancelled job is not settled", "src/store/settle.sql",
     "WHEN NEW.unsettled IS NULL", "WHEN false AND NEW.unsettled IS NULL"),
    ("a settlement needs no number of its own", "src/store/settle.rs",
     "number.saturating_add(1)", "number"),
    ("the output of a lost job is not reported", "src/store/settle.rs",
     "        let Some(kept) = kept.filter(|_| settled == Some(1)) else {",
     "        let Some(kept) = kept.filter(|_| false && settled == Some(1)) else {"),
    ("a cancelled attempt that publishes is not barred", "src/sentinel/transaction.rs",
     "        control.inherit_unreported(attempt, now);\n", "        let _ = attempt;\n"),
    ("any attempt's receipt ends the job", "src/store/attempts.rs",
     "OR ?3 = iif(typeof(attempt) = 'integer', max(attempt, 0), 0))", "OR ?3 > 0)"),
    ("a job whose DISPATCH is on its way is given back", LEASES,
     "let keep = !has_arrived || running.contains(&claim.attempt);",
     "let keep = running.contains(&claim.attempt);"),
    ("a second process takes the ID at once", MEMBERS,
     "            && let Some(peer) = worker.peer\n        {\n            self.contend",
     "            && let Some(peer) = worker.peer.filter(|_| false)\n        {\n            self.contend"),
    ("output that may go fails others for good", "src/store/attempts.rs",
     "Some(receipt) => self.waits_for(full, receipt)?,",
     "Some(receipt) => self.waits_for(full, receipt)?.filter(|_| false),"),
    ("a draining worker gets jobs", "src/sentinel/control/claims.rs",
     "            && !worker.draining\n", ""),
]

ENGINE = "src/socket/engine/"
SOCKET_MUTANTS = [
    ("queued bytes of a lost connection are not counted again", ENGINE + "close.rs",
     "            self.queued_bytes += peer.queue.bytes();\n", ""),
    ("routes of removed peers stay", ENGINE + "close.rs",
     "            self.routes.remove(&peer.routing_id);\n", ""),
    ("timers of removed peers stay", ENGINE + "close.rs",
     "            self.timers.remove(&(timer, id));\n", "            let _ = timer;\n"),
    ("held messages are not counted", ENGINE + "receive.rs", "        self.held += 1;\n", ""),
    ("a short read is taken for the last one", ENGINE + "receive.rs",
     "                if up.input == Input::Readable && !is_full {\n                    up.input = Input::Blocked;\n"
     "                }\n                if let Phase", "                up.input = Input::Blocked;\n"
     "                if let Phase"),
    ("readable transports are not read", ENGINE + "send.rs", "            self.mark_ready(id);\n", ""),
    ("sent messages are not written", ENGINE + "send.rs",
     "        if is_writable && !peer.is_dirty {", "        if false && is_writable {"),
    ("a write counts for half", ENGINE + "send.rs",
     ".handle_written(&mut peer.queue, count as usize, now);",
     ".handle_written(&mut peer.queue, count as usize / 2, now);"),
    ("finished handshakes stay in the count", ENGINE + "establish.rs",
     "            self.handshakes -= 1;\n", ""),
    ("a successor does not wait for its predecessor", ENGINE + "establish.rs",
     "                self.wait_for_drained(id, &routing_id);\n", ""),
    ("no timer for the next attempt", ENGINE + "connect.rs",
     "            peer.state = State::Waiting(at);\n            self.set_timer(id, Some(at));",
     "            peer.state = State::Waiting(at);"),
    ("a peer that used up its reads is forgotten", ENGINE + "receive.rs",
     "                    self.push_back(id);\n                    return Step::Idle;",
     "                    return Step::Idle;"),
]


def check():
    for name, path, text, _ in MUTANTS + SOCKET_MUTANTS:
        count = (ROOT / path).read_text().count(text)
        assert count == 1, f"{name}: the text is in {path} {count} times"


def main():
    if sys.argv[1:] == ["--check"]:
        return check()
    check()
    arguments = sys.argv[1:]
    command, variable = ["cargo", "test", "--test", "simulation"], "CASPARIAN_SIMULATION_SEEDS"
    mutants = MUTANTS
    if arguments[:1] == ["--socket"]:
        arguments, mutants = arguments[1:], SOCKET_MUTANTS
        command = ["cargo", "test", "--lib", "--no-default-features", "engine::tests::seeds"]
        variable = "CASPARIAN_SOCKET_SEEDS"
    seeds = arguments[0] if arguments else "3000"
    wanted = arguments[1:]
    folder = pathlib.Path(tempfile.mkdtemp(prefix="mutants-"))
    copy = folder / "checkout"
    ignore = shutil.ignore_patterns("target", ".git", "out")
    shutil.copytree(ROOT, copy, ignore=ignore)
    environment = dict(
        os.environ, RUST_BACKTRACE="0", **{variable: seeds},
        CARGO_TARGET_DIR=os.environ.get("MUTANTS_TARGET", str(folder / "target")))
    left = []
    for name, path, text, mutant in mutants:
        if wanted and not any(word in name for word in wanted):
            continue
        file = copy / path
        source = file.read_text()
        file.write_text(source.replace(text, mutant))
        run = subprocess.run(
            command, cwd=copy, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        file.write_text(source)
        if "error: could not compile" in run.stdout:
            reasons = [line for line in run.stdout.splitlines() if line.startswith("error")]
            print(f"DOES NOT COMPILE {name}: {reasons[0]}", flush=True)
            left.append(name)
            continue
        why = next((line for line in run.stdout.splitlines() if line.startswith('        "')), "")
        print(f"{'killed ' if run.returncode else 'SURVIVED'} {name}: {why.strip()[:110]}", flush=True)
        if run.returncode == 0:
            left.append(name)
    shutil.rmtree(folder)
    raise SystemExit(1 if left else 0)


main()
