//! `fsck`: compares a database with its output folders, in parts of a thousand jobs. A sentinel and workers
//! may run at the same time: a row that changes is compared again.

mod adopt;
mod repair;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use repair::{Done, Repair};
use report::{Finding, Report, Severity};

use super::args::{Command, flags, no_positionals, values};
use super::operate::{DatabaseFlag, JsonFlag, inspect};
use super::{Failure, failed, log_lines, usage_error};
use crate::sentinel::clock::unix_ms;
use crate::sink::{Check, Expected, Named, Problem, Root};
use crate::store::{Audited, Inspector};

flags! {
    /// The flags of `fsck`.
    pub(super) struct FsckFlags {
        /// The database.
        location: DatabaseFlag;
        /// An output folder of its workers; may be repeated
        output: Vec<PathBuf> = "output" | 'o', "DIR" => values::paths;
        /// Do not read the content of files: SHA-256 is not compared
        quick: bool = "quick";
        /// Repair what can be repaired; refused while a sentinel or worker runs
        repair: bool = "repair";
        /// Make a copied or restored database the owner of the output
        /// that its receipts name; refused like --repair
        adopt: bool = "adopt";
        /// The format.
        format: JsonFlag;
    }
}

pub(super) const COMMAND: Command<FsckFlags> = Command {
    name: "casparian fsck",
    about: "Compares a database with its output folders",
    usage: "--database DB --output DIR [OPTIONS]",
    flags: FsckFlags::TABLE,
    notes: "Without --repair nothing is changed, and a sentinel and workers may go on meanwhile. For each job the files and\nrows that its receipt names are compared with what is there: existence, size, rows, the record of\nwho published it, and for files the SHA-256 of their content (not with --quick). Also checked are staging folders, output without\na receipt, bars, output of another version of a file than its job has, RUNNING jobs without a worker, the owner of the folder and its permissions.\nOutput in folders that were not named is counted and not compared.\n\n--repair is refused while a sentinel works on the database or a worker has an output folder open. It\nfinishes or undoes what dead attempts left in staging, settles output without a receipt as a worker\ndoes (the output of a lost job completes it, other output goes), ends moves between layouts, removes an earlier attempt's output\nfrom a second folder, and queues a COMPLETED job again whose output is missing, damaged or of another or an unknown version of its\nfile, unless something else, such as a link or a folder, is at its path: remove that first. A\ndamaged database of a sink stays as it is: restore it from a backup, or move it away. A journal that a\nkilled program left beside one is rolled back. --repair removes only what a record of\nthis database names. RUNNING jobs are left to the next sentinel.\n\n--adopt is for a database that was copied, or restored from a backup, where the original is not used\nany more; otherwise give the copy an identity of its own (casparian init --new-identity). Attempts\nthat the database does not know count as its own, and their output gets a receipt: nothing removes it\nbefore another attempt of its job has published. A job that was refused because of it, or was lost, is\nqueued again; other jobs keep their status. What adopted output was made with is not known: a COMPLETED job is\nreported as stale, --repair queues it again, and casparian run runs its file again. Files that were restored or copied with the same\nsize and content count as those that were published. A copy that has got another identity takes that of\nthe folder's owner again, if its receipts name output of it.\n\nOne line a finding: severity, kind, path, what is wrong, what to do. --json: {\"findings\": [{severity,\nkind, job, place, what, to_do, repaired}], \"summary\": {database, jobs, outputs, elsewhere, errors,\nwarnings, notes, repaired,\nqueued_again, settled, adopted}}.\n\nExit code: 0 no errors and warnings are left (notes do not count), 1 some, or it could not check; 2\nthe command line is wrong.",
};

/// Number of rows and records that are compared at a time.
const PART: i64 = 1000;
/// How often a job is compared if it changes in the meantime.
const TRIES_MAX: u32 = 3;
/// Limit of the repairs of a job: adoption of attempts and files, a settlement, another attempt.
const REPAIRS_MAX: u32 = 5;
/// A worker that was seen more recently may be reconnecting.
const SEEN_AGE_MAX_MS: i64 = 60_000;

pub(super) fn main(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let (flags, positionals) = COMMAND.parse(arguments)?;
    no_positionals(&positionals)?;
    let path = flags.location.required()?;
    let outputs = outputs(&flags.output)?;
    log_lines::start("error");
    let is_adopting = flags.adopt;
    let is_repair = flags.repair;
    let may_change = is_repair || is_adopting;
    let mut repair = match may_change {
        true => Some(Repair::open(&path)?),
        false => None,
    };
    let inspector = inspect(&path)?;
    let id = inspector.database_id().map_err(failed)?;
    let id = id.ok_or_else(|| {
        failed(format!(
            "database {}: it has no identity; `casparian init {0}` gives it one",
            path.display()
        ))
    })?;
    let mut report = Report::new(flags.format.json);
    let mut roots = Vec::new();
    for output in &outputs {
        let opened = Root::open_to_read(output, repair::root_options(&path, output));
        let opened = opened.map_err(|error| failed(format!("output folder: {error}")))?;
        if let Some(root) = folders(&opened, may_change.then_some((&path, output)), &mut report)? {
            roots.push(root.unwrap_or(opened));
        }
    }
    let roots: Vec<&Root> = roots.iter().collect();
    let mut id = id.to_string();
    if is_adopting
        && let Some(repair) = &mut repair
        && let Some(taken) = repair.take_identity(&id, &roots, &inspector)?
    {
        report.add(&identity(&path, &id, &taken))?;
        id = taken;
    }
    for root in &roots {
        if let Some(problem) = Check::new(root, &id).owner() {
            report.add(&Finding::of(problem, None))?;
        }
        if let Some(problem) = Check::new(root, &id).moves() {
            let mut finding = Finding::of(problem, None);
            if let Some(repair) = repair.as_mut().filter(|_| is_repair) {
                repair.finish_moves(&id, root)?;
                finding.done = Some("finished, or taken back".to_owned());
            }
            report.add(&finding)?;
        }
    }
    let mut scan = Scan {
        inspector: &inspector,
        checks: roots
            .iter()
            .map(|root| Check::new(root, &id).with_content(!flags.quick))
            .collect(),
        roots: roots.clone(),
        repair: repair.as_mut(),
        is_repair,
        is_adopting,
        report,
    };
    scan.claimants(unix_ms())?;
    scan.jobs()?;
    match scan.report.finish(&id, may_change)? {
        true => Err(Failure::Reported),
        false => Ok(()),
    }
}

/// Reports on the folders of a root. None if nothing else in the root can be checked. For repairs the root is
/// opened.
fn folders(
    opened: &Root,
    repair: Option<(&PathBuf, &PathBuf)>,
    report: &mut Report,
) -> Result<Option<Option<Root>>, Failure> {
    let check = Check::new(opened, "");
    let (problems, is_usable) = check.folders();
    for problem in problems {
        report.add(&Finding::of(problem, None))?;
    }
    if !is_usable {
        return Ok(None);
    }
    let now_s = unix_ms() / 1000;
    let found = check.staging(now_s);
    let opened = match repair {
        Some((database, output)) => Some(Repair::open_root(database, output)?),
        None => None,
    };
    let left = opened.as_ref().map(|_| check.staging(now_s));
    for problem in found {
        let is_left = left.as_ref().is_none_or(|left| left.contains(&problem));
        let mut finding = Finding::of(problem, None);
        finding.done = (!is_left).then(|| "finished or undone".to_owned());
        report.add(&finding)?;
    }
    for problem in check.strangers() {
        report.add(&Finding::of(problem, None))?;
    }
    Ok(Some(opened))
}

/// The output folders, without duplicates.
fn outputs(given: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut outputs: Vec<PathBuf> = Vec::new();
    for output in given {
        let real = std::fs::canonicalize(output)
            .map_err(|error| failed(format!("output folder {}: {error}", output.display())))?;
        if !outputs.contains(&real) {
            outputs.push(real);
        }
    }
    match outputs.is_empty() {
        true => Err(usage_error("--output is missing")),
        false => Ok(outputs),
    }
}

/// A pass over all jobs of the database.
struct Scan<'a> {
    inspector: &'a Inspector,
    checks: Vec<Check<'a>>,
    roots: Vec<&'a Root>,
    repair: Option<&'a mut Repair>,
    is_repair: bool,
    is_adopting: bool,
    report: Report,
}

impl Scan<'_> {
    /// Reports RUNNING rows whose worker is not connected.
    fn claimants(&mut self, now_ms: i64) -> Result<(), Failure> {
        let has_sentinel = self.inspector.has_sentinel();
        let mut after = i64::MIN;
        loop {
            let rows = self.inspector.claimants(after, PART as usize);
            let rows = rows.map_err(failed)?;
            let Some(last) = rows.last() else {
                return Ok(());
            };
            after = last.job_id;
            for row in rows {
                let age = row.last_seen_ms.map(|seen| now_ms.saturating_sub(seen));
                let is_recent = has_sentinel && age.is_some_and(|age| age < SEEN_AGE_MAX_MS);
                if row.is_connected || is_recent {
                    continue;
                }
                let (what, to_do) = match has_sentinel {
                    true => (
                        "it is RUNNING, and its worker is not connected",
                        "nothing: the sentinel queues it again when its lease has passed",
                    ),
                    false => (
                        "it is RUNNING, and no sentinel works on the database",
                        "start the sentinel: it queues the job again when a lease has passed",
                    ),
                };
                self.report.add(&Finding {
                    severity: Severity::Warning,
                    kind: "no-holder",
                    job: Some(row.job_id),
                    subject: format!("worker {:?}", row.worker_id),
                    what: what.to_owned(),
                    to_do,
                    done: None,
                })?;
            }
        }
    }

    fn jobs(&mut self) -> Result<(), Failure> {
        let mut parts = BTreeSet::new();
        for check in &self.checks {
            parts.extend(check.parts().map_err(failed)?);
        }
        let mut from = Some(i64::MIN);
        loop {
            let row = match from {
                Some(from) => self.inspector.next_job(from).map_err(failed)?,
                None => None,
            };
            let row = row.map(|id| id.div_euclid(PART));
            let Some(part) = parts.first().copied().into_iter().chain(row).min() else {
                return Ok(());
            };
            parts.remove(&part);
            let first = part.saturating_mul(PART);
            let last = first.saturating_add(PART - 1);
            self.part(part, first, last)?;
            if row == Some(part) {
                from = last.checked_add(1);
            }
        }
    }

    /// Compares a part of a thousand jobs.
    fn part(&mut self, part: i64, first: i64, last: i64) -> Result<(), Failure> {
        let rows = self.inspector.audited(first, last).map_err(failed)?;
        let mut rows: BTreeMap<i64, Audited> =
            rows.into_iter().map(|row| (row.job_id, row)).collect();
        let mut recorded = BTreeSet::new();
        for (index, check) in self.checks.iter_mut().enumerate() {
            check.begin(first, last);
            let found = check.recorded(part).map_err(failed)?;
            recorded.extend(found.into_iter().map(|(job, number)| (job, number, index)));
        }
        let jobs: BTreeSet<i64> = recorded
            .iter()
            .map(|(job, ..)| *job)
            .chain(rows.keys().copied())
            .collect();
        for job_id in jobs {
            let incarnation = match rows.remove(&job_id) {
                Some(row) => {
                    let incarnation = row.last.incarnation();
                    self.job(row)?;
                    Some(incarnation)
                }
                None => None,
            };
            let records = recorded.range((job_id, i64::MIN, 0)..=(job_id, i64::MAX, usize::MAX));
            for (_, number, index) in records {
                if Some(*number) == incarnation {
                    continue;
                }
                self.without_row(job_id, *number, *index)?;
            }
        }
        Ok(())
    }

    /// Reports a record without a row.
    fn without_row(&mut self, job_id: i64, number: i64, index: usize) -> Result<(), Failure> {
        let check = self.checks.get(index);
        let Some(problem) = check.and_then(|check| check.without_row(job_id, number)) else {
            return Ok(());
        };
        // The row may have been added in the meantime.
        let row = self
            .inspector
            .audited(job_id, job_id)
            .map_err(failed)?
            .pop();
        match row.is_some_and(|row| row.last.incarnation() == number) {
            true => Ok(()),
            false => self.report.add(&Finding::of(problem, Some(job_id))),
        }
    }

    fn job(&mut self, mut row: Audited) -> Result<(), Failure> {
        let mut repaired = 0;
        let mut is_stuck = false;
        for _ in 0..TRIES_MAX + REPAIRS_MAX {
            let compared = compare(&mut self.checks, &row, self.is_adopting);
            let is_unsettled = row.is_unsettled && !row.runs_again();
            let is_clean = compared.problems.is_empty() && !is_unsettled && !is_stale(&row);
            if !is_clean && self.repair.is_none() {
                match self.again(&row)? {
                    Some(again) if again == row => {}
                    Some(again) => {
                        row = again;
                        continue;
                    }
                    None => return Ok(()),
                }
            }
            let done = match &mut self.repair {
                Some(repair) if !is_clean && repaired < REPAIRS_MAX => {
                    let (problems, roots) = (&compared.problems, &self.roots);
                    let adopted = match self.is_adopting {
                        true => repair.adopt(&row, problems, roots)?,
                        false => None,
                    };
                    match adopted {
                        None if self.is_repair => repair.job(&row, problems, roots)?,
                        adopted => adopted,
                    }
                }
                _ => None,
            };
            let Some(done) = done else {
                return self.report_job(&row, compared, is_stuck);
            };
            let again = self.again(&row)?;
            let left = match &again {
                Some(again) => {
                    let left = compare(&mut self.checks, again, self.is_adopting);
                    self.findings(again, left.problems)
                }
                None => Vec::new(),
            };
            let is_repaired = self.report_repair(&row, compared, &done, &left)?;
            let Some(again) = again else {
                return Ok(());
            };
            row = again;
            repaired = match is_repaired {
                true => repaired + 1,
                // Another repair would do the same.
                false => REPAIRS_MAX,
            };
            is_stuck = !is_repaired;
        }
        Ok(())
    }

    /// Reads the row again, to compare it with the present output.
    fn again(&mut self, row: &Audited) -> Result<Option<Audited>, Failure> {
        self.checks.iter_mut().for_each(Check::forget);
        let again = self.inspector.audited(row.job_id, row.job_id);
        Ok(again.map_err(failed)?.pop())
    }

    /// The findings about a job.
    fn findings(&self, row: &Audited, problems: Vec<(usize, Problem)>) -> Vec<Finding> {
        let is_unsettled = row.is_unsettled && !row.runs_again();
        let unsettled = is_unsettled.then(|| unsettled(row, self.inspector.has_sentinel()));
        let problems = problems.into_iter();
        let findings = problems.map(|(_, problem)| finding(problem, row));
        let stale = is_stale(row).then(|| stale(row));
        findings.chain(unsettled).chain(stale).collect()
    }

    /// Reports on a job that is not repaired, or not any more. `is_stuck` = a repair has changed nothing.
    fn report_job(
        &mut self,
        row: &Audited,
        compared: Compared,
        is_stuck: bool,
    ) -> Result<(), Failure> {
        for mut finding in self.findings(row, compared.problems) {
            if is_stuck && SETTLED.contains(&finding.kind) {
                finding.to_do = report::STUCK;
            }
            self.report.add(&finding)?;
        }
        let counts = &mut self.report.counts;
        counts.jobs += 1;
        counts.outputs += compared.compared;
        counts.elsewhere += compared.elsewhere;
        Ok(())
    }

    /// Reports a repair with the findings that it has corrected, which are not among those that are `left`.
    /// Findings that it does not concern are reported after the next comparison. False when it has corrected
    /// none.
    fn report_repair(
        &mut self,
        row: &Audited,
        compared: Compared,
        done: &Done,
        left: &[Finding],
    ) -> Result<bool, Failure> {
        let (kinds, what): (&[&str], _) = match done {
            Done::Settled(what) => (&SETTLED, *what),
            Done::Named => (
                &NAMED,
                "settled: the output is the job's, and its row names it again",
            ),
            Done::QueuedAgain => (&QUEUED_AGAIN, "the job is queued again"),
            Done::Adopted => (&ADOPTED, "the database owns it now"),
            Done::AdoptedAndQueued => (
                &ADOPTED,
                "the database owns it now, and the job is queued again: the output stays until \
                 another attempt has published",
            ),
        };
        let is_left = |finding: &Finding| {
            let mut left = left.iter();
            left.any(|left| (left.kind, &left.subject) == (finding.kind, &finding.subject))
        };
        let mut is_repaired = false;
        for mut finding in self.findings(row, compared.problems) {
            if kinds.contains(&finding.kind) && !is_left(&finding) {
                finding.done = Some(what.to_owned());
                self.report.add(&finding)?;
                is_repaired = true;
            }
        }
        let counts = &mut self.report.counts;
        match done {
            _ if !is_repaired => {}
            Done::Settled(_) | Done::Named => counts.settled += 1,
            Done::QueuedAgain => counts.queued += 1,
            Done::Adopted => counts.adopted += 1,
            Done::AdoptedAndQueued => {
                counts.adopted += 1;
                counts.queued += 1;
            }
        }
        Ok(is_repaired)
    }
}

/// Kinds of findings that a settlement corrects.
const SETTLED: [&str; 4] = ["no-receipt", "unfinished", "duplicate", "unsettled"];
/// Kinds that are corrected when a row names its output again.
const NAMED: [&str; 5] = ["no-receipt", "unsettled", "missing", "changed", "rows"];
/// Kinds that adoption corrects.
const ADOPTED: [&str; 3] = ["foreign", "barred", "touched"];
/// Kinds that another attempt corrects.
const QUEUED_AGAIN: [&str; 5] = ["missing", "changed", "rows", "damaged", "stale"];

/// Result of the comparison of a job with all roots.
struct Compared {
    /// Each with the index of its root.
    problems: Vec<(usize, Problem)>,
    compared: u64,
    elsewhere: u64,
}

fn compare(checks: &mut [Check<'_>], row: &Audited, is_adopting: bool) -> Compared {
    let outputs: Vec<Named> = row
        .outputs
        .iter()
        .map(|output| Named {
            uri: output.uri.clone(),
            rows: output.rows,
            size_bytes: output.size_bytes,
            sha256: output.sha256.clone(),
        })
        .collect();
    let expected = Expected {
        last: row.last,
        is_running: row.status == "RUNNING" && !is_adopting,
        runs_again: row.runs_again(),
        is_unsettled: row.is_unsettled,
        publisher: row.publisher,
        key: row.publisher_key,
        outputs: &outputs,
        is_truncated: row.is_truncated,
        history: &row.history,
        is_adopting: is_adopting && !row.runs_again(),
    };
    let mut named = BTreeSet::new();
    let mut problems = Vec::new();
    for (index, check) in checks.iter_mut().enumerate() {
        let found = check.job(&expected);
        named.extend(found.named);
        problems.extend(found.problems.into_iter().map(|problem| (index, problem)));
    }
    Compared {
        problems,
        compared: named.len() as u64,
        elsewhere: (outputs.len() - named.len()) as u64,
    }
}

/// A finding about a job. Missing output is only a warning if the job is not COMPLETED, because then no
/// receipt promises it.
fn finding(problem: Problem, row: &Audited) -> Finding {
    let mut finding = Finding::of(problem, Some(row.job_id));
    if QUEUED_AGAIN.contains(&finding.kind) && row.status != "COMPLETED" {
        finding.severity = Severity::Warning;
        finding.to_do = report::if_needed(finding.to_do);
    }
    finding
}

/// The finding that the database has taken the identity of the folders' owner.
fn identity(path: &Path, before: &str, taken: &str) -> Finding {
    Finding {
        severity: Severity::Error,
        kind: "owner",
        job: None,
        subject: path.display().to_string(),
        what: format!("its identity was {before}, and its receipts name output of {taken}"),
        to_do: "",
        done: Some(format!("its identity is {taken}")),
    }
}

fn unsettled(row: &Audited, has_sentinel: bool) -> Finding {
    let (severity, to_do) = match has_sentinel {
        true => (
            Severity::Note,
            "nothing: a connected worker settles it within seconds",
        ),
        false => (
            Severity::Warning,
            "start a sentinel and a worker, or use --repair, which settles it",
        ),
    };
    Finding {
        severity,
        kind: "unsettled",
        job: Some(row.job_id),
        subject: format!("worker {:?}", row.worker_id.as_deref().unwrap_or_default()),
        what: "an attempt of the job may have left output without a receipt".to_owned(),
        to_do,
        done: None,
    }
}

/// True for a COMPLETED job whose output was made of other content than its file version has, because another
/// program has changed its row, or of unknown content, because its attempt was adopted.
fn is_stale(row: &Audited) -> bool {
    row.status == "COMPLETED" && (row.is_of_other_content || row.is_of_unknown_content)
}

fn stale(row: &Audited) -> Finding {
    Finding {
        severity: Severity::Error,
        kind: "stale",
        job: Some(row.job_id),
        subject: format!("file version {}", row.file_version_id),
        what: match row.is_of_unknown_content {
            true => {
                "the job is COMPLETED, and it is not known of which version of the file, and with \
                 which plugin and parameters, its output was made"
            }
            false => "the job is COMPLETED, and its output was made of another version of the file",
        }
        .to_owned(),
        to_do: report::RUN_AGAIN,
        done: None,
    }
}
