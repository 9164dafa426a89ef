//! Prints the findings of `casparian fsck`: one line each, or one JSON value for all. They are written as
//! they are found, so memory does not grow with their number.

use serde_json::{Value, json};

use crate::cli::table::one_line;
use crate::cli::{Failure, print};
use crate::sink::{Kind, Problem};

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// Output is missing or wrong, or a job cannot publish.
    Error,
    /// Something is left over, or may become an error.
    Warning,
    /// No action is needed.
    Note,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// One finding.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) kind: &'static str,
    pub(super) job: Option<i64>,
    pub(super) subject: String,
    pub(super) what: String,
    pub(super) to_do: &'static str,
    /// What a repair has done.
    pub(super) done: Option<String>,
}

impl Finding {
    /// A finding about a difference between a root and the database.
    pub(super) fn of(problem: Problem, job: Option<i64>) -> Self {
        let (severity, kind, to_do) = described(problem.kind);
        Finding {
            severity,
            kind,
            job,
            subject: problem.subject,
            what: problem.what,
            to_do,
            done: None,
        }
    }

    fn line(&self) -> String {
        let job = self
            .job
            .map_or(String::new(), |job| format!(" (job {job})"));
        let end = match &self.done {
            Some(done) => format!("repaired: {done}"),
            None => self.to_do.to_owned(),
        };
        let Finding {
            kind,
            subject,
            what,
            ..
        } = self;
        let severity = self.severity.name();
        one_line(&format!(
            "{severity}: {kind}: {subject}{job}: {what}; {end}"
        ))
    }

    fn json(&self) -> Value {
        json!({
            "severity": self.severity.name(),
            "kind": self.kind,
            "job": self.job,
            "place": self.subject,
            "what": self.what,
            "to_do": self.to_do,
            "repaired": self.done,
        })
    }
}

/// Advice for findings that another attempt corrects.
pub(super) const RUN_AGAIN: &str = "run the job again; --repair queues it";

/// Advice for what is in the way of output.
const REMOVE_FIRST: &str = "remove it, then run the job again; --repair then queues it";
/// Advice for a damaged database of a sink.
const RESTORE: &str = "restore the database from a backup, or move it away and run the jobs again that \
     wrote into it; --repair then queues them";

/// An advice for a job that is not COMPLETED, which `--repair` does not queue.
pub(super) fn if_needed(to_do: &'static str) -> &'static str {
    match to_do {
        RUN_AGAIN => "run the job again, if its output is needed",
        REMOVE_FIRST => "remove it, then run the job again, if its output is needed",
        RESTORE => {
            "restore the database from a backup, or move it away and run the jobs again that wrote \
             into it"
        }
        other => other,
    }
}

/// Advice for findings that a settlement has not corrected.
pub(super) const STUCK: &str = "--repair cannot settle it, because nothing shows whether it is to stay: run the \
     job again, which replaces it, or remove it by hand";

/// Severity, name and advice of a kind.
fn described(kind: Kind) -> (Severity, &'static str, &'static str) {
    use Severity::{Error, Note, Warning};
    const SETTLE: &str = "start a sentinel and a worker, or use --repair, which settles it";
    const COPIED: &str = "give the copy an identity of its own (casparian init --new-identity), or \
                          make the database the owner of the output (casparian fsck --adopt)";
    match kind {
        Kind::Folder => (Error, "folder", "put a folder there that this user can use"),
        Kind::Permissions => (
            Warning,
            "permissions",
            "take the permission away (chmod o-w)",
        ),
        Kind::Owner => (
            Error,
            "owner",
            "use the folder's own database, another folder or --share-output; for a copy of that \
             database: casparian init --new-identity, or casparian fsck --adopt",
        ),
        Kind::DeadAttempt => (
            Warning,
            "dead-attempt",
            "start a worker on the folder, or use --repair, which finishes or undoes it",
        ),
        Kind::Record => (
            Error,
            "record",
            "remove it to discard its data about earlier output",
        ),
        Kind::Foreign => (Error, "foreign", COPIED),
        Kind::Unfinished => (Warning, "unfinished", SETTLE),
        Kind::NoReceipt => (Warning, "no-receipt", "use --repair, which settles it"),
        Kind::NoRow => (Note, "no-row", "remove the output if it is not needed"),
        Kind::Duplicate => (
            Warning,
            "duplicate",
            "use --repair, which removes it, or remove it by hand",
        ),
        Kind::Moving => (
            Warning,
            "moving",
            "use --repair, or casparian run on the folder, which finishes it or takes it back",
        ),
        Kind::Barred => (Warning, "barred", COPIED),
        Kind::Missing => (Error, "missing", RUN_AGAIN),
        Kind::Changed => (Error, "changed", RUN_AGAIN),
        Kind::Obstructed => (Error, "changed", REMOVE_FIRST),
        Kind::ObstructedOutside => (
            Error,
            "changed",
            "it is outside the output folder: put the database back there, or change its sink, and run \
             the job again",
        ),
        Kind::Rows => (Error, "rows", RUN_AGAIN),
        Kind::Damaged => (Error, "damaged", RUN_AGAIN),
        Kind::DamagedDatabase => (Error, "damaged", RESTORE),
        Kind::UnfinishedDatabase => (
            Warning,
            "unchecked",
            "use --repair, or run a job of the sink: either rolls it back; then check again",
        ),
        Kind::Touched => (
            Warning,
            "touched",
            "nothing, if the file was restored; sinks of mode replace leave it",
        ),
        Kind::Stranger => (
            Note,
            "stranger",
            "find out who put it there, and remove it; it is skipped",
        ),
        Kind::Unchecked => (Warning, "unchecked", "check again when it can be read"),
    }
}

/// Counts of a check.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) jobs: u64,
    pub(super) outputs: u64,
    /// Outputs in folders that were not given by `--output`.
    pub(super) elsewhere: u64,
    pub(super) errors: u64,
    pub(super) warnings: u64,
    pub(super) notes: u64,
    pub(super) repaired: u64,
    /// Jobs that were queued again.
    pub(super) queued: u64,
    /// Jobs that were settled.
    pub(super) settled: u64,
    /// Jobs whose output was adopted.
    pub(super) adopted: u64,
}

/// Number of bytes that are collected before they are written.
const PART_SIZE: usize = 64 << 10;

/// Writes findings and counts them.
pub(super) struct Report {
    json: bool,
    text: String,
    count: u64,
    pub(super) counts: Counts,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Report {
            json,
            text: match json {
                true => "{\"findings\":[".to_owned(),
                false => String::new(),
            },
            count: 0,
            counts: Counts::default(),
        }
    }

    pub(super) fn add(&mut self, finding: &Finding) -> Result<(), Failure> {
        let counts = &mut self.counts;
        match (finding.severity, &finding.done) {
            (_, Some(_)) => counts.repaired += 1,
            (Severity::Error, None) => counts.errors += 1,
            (Severity::Warning, None) => counts.warnings += 1,
            (Severity::Note, None) => counts.notes += 1,
        }
        match self.json {
            true => {
                let comma = if self.count > 0 { "," } else { "" };
                self.text.push_str(&format!("{comma}{}", finding.json()));
            }
            false => self.text.push_str(&format!("{}\n", finding.line())),
        }
        self.count += 1;
        match self.text.len() >= PART_SIZE {
            true => print(&std::mem::take(&mut self.text)),
            false => Ok(()),
        }
    }

    /// Writes the summary. Returns true if errors or warnings are left.
    pub(super) fn finish(mut self, database: &str, is_repair: bool) -> Result<bool, Failure> {
        let counts = self.counts;
        match self.json {
            true => {
                let summary = json!({
                    "database": database,
                    "jobs": counts.jobs,
                    "outputs": counts.outputs,
                    "elsewhere": counts.elsewhere,
                    "errors": counts.errors,
                    "warnings": counts.warnings,
                    "notes": counts.notes,
                    "repaired": counts.repaired,
                    "queued_again": counts.queued,
                    "settled": counts.settled,
                    "adopted": counts.adopted,
                });
                self.text.push_str(&format!("],\"summary\":{summary}}}\n"));
            }
            false => self.text.push_str(&counts.text(is_repair)),
        }
        print(&self.text)?;
        Ok(counts.errors + counts.warnings > 0)
    }
}

impl Counts {
    fn text(&self, is_repair: bool) -> String {
        let Counts {
            jobs,
            outputs,
            elsewhere,
            ..
        } = self;
        let mut text = format!("{jobs} jobs, {outputs} outputs compared");
        if *elsewhere > 0 {
            text.push_str(&format!(
                ", {elsewhere} in other folders not compared (name those by --output, too)"
            ));
        }
        text.push_str(&format!(
            "; {} errors, {} warnings, {} notes",
            self.errors, self.warnings, self.notes
        ));
        if is_repair {
            text.push_str(&format!(
                "; {} repaired: {} jobs queued again, {} settled, {} adopted",
                self.repaired, self.queued, self.settled, self.adopted
            ));
        }
        text.push('\n');
        text
    }
}
