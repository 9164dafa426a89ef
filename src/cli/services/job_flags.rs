//! The flags for running jobs that `worker` and `run` have.

use std::path::{Path, PathBuf};

use super::absolute;
use crate::cli::args::{Values, flags, values};
use crate::cli::{Failure, failed};
use crate::limits;
use crate::plugin::programs;
use crate::plugin::quota::Quota;
use crate::sandbox::{Mode, Support, launch};
use crate::worker::PluginStart;
use crate::{sink, worker};

flags! {
    /// How plugin processes start.
    pub(in crate::cli) struct PluginStartFlag {
        /// warm: fork from an interpreter that has done its imports
        /// (default); spawn: a fresh interpreter each
        plugin_start: Option<PluginStart> = "plugin-start", "HOW" => values::word(&[
            ("warm", PluginStart::Warm),
            ("spawn", PluginStart::Spawn),
        ]);
    }
}

flags! {
    /// The output folder may be that of another database.
    pub(in crate::cli) struct ShareFlag {
        /// Publish into an output folder of another database too; the
        /// names of the files then end with 8 digits of the database's ID
        share_output: bool = "share-output";
    }
}

flags! {
    /// Limits of a job. 0 = none; a plugin can lower them in its `[tool.casparian]`.
    pub(in crate::cli) struct QuotaFlags {
        /// Processor time of a job's processes together
        job_cpu: Option<u64> = "job-cpu", "SECONDS" => values::number(0..=1 << 40);
        /// Memory (RSS) of a job's processes together, beyond what the
        /// first one has at its start
        job_memory: Option<u64> = "job-memory", "SIZE" => values::size;
        /// Files that each process of a job may open; 32 at least
        /// (default: the worker's own limit)
        job_open_files: Option<u64> = "job-open-files", "N" => open_files;
        /// Processes of a job at a time (default 1024)
        job_processes: Option<u64> = "job-processes", "N" => values::number(0..=1 << 40);
        /// Output of a job, all topics together
        job_output: Option<u64> = "job-output", "SIZE" => values::size;
        /// What a job prints (default 1Gi)
        job_log: Option<u64> = "job-log", "SIZE" => values::size;
        /// What a job has in its working directory
        job_scratch: Option<u64> = "job-scratch", "SIZE" => values::size;
    }
}

flags! {
    /// How jobs run: their limits, environments, memory and sandbox.
    pub(in crate::cli) struct JobFlags {
        /// Limits of a job.
        quota: QuotaFlags;
        /// Bytes that Python environments may have before those not used
        /// for longest go (default 20G; 0: any)
        env_cache_max: Option<u64> = "env-cache-max", "SIZE" => values::size;
        /// Install dependencies of plugins from wheels alone, so that no
        /// build code of theirs runs; one without a wheel is refused
        no_build: bool = "no-build";
        /// Memory of the worker for the output of one job; half of it is
        /// the largest batch, a 32nd the largest row (default 2Gi)
        job_buffer: Option<u64> = "job-buffer", "SIZE" => job_buffer;
        /// Take cells, and batches of one row, of up to this size where
        /// --job-buffer allows less (at most 1984Mi). A job with such a cell
        /// may take six times its size in memory beside --job-buffer; a
        /// SQLite sink takes values of up to 1 GB
        cell_max: Option<u64> = "cell-max", "SIZE" => cell_max;
        /// on (default): plugins cannot change the output folder,
        /// environments or other jobs' files, nor signal or trace
        /// processes that are not theirs; strict: they write to their
        /// working directory alone, read their input, environment and the
        /// system's files, and use no network; off
        sandbox: Option<Mode> = "sandbox", "MODE" => values::word(&[
            ("off", Mode::Off),
            ("on", Mode::On),
            ("strict", Mode::Strict),
        ]);
        /// Another file or folder that plugins cannot change; of a secret
        /// key they find nothing, nor of a SQLite database, such as the
        /// sentinel's, whose folder they cannot change, also where it is a
        /// file of that folder; may be repeated
        protect: Vec<PathBuf> = "protect", "PATH" => values::paths;
    }
}

impl QuotaFlags {
    fn apply(&self, quota: &mut Quota) {
        let limits = [
            (self.job_cpu, &mut quota.cpu),
            (self.job_memory, &mut quota.memory),
            (self.job_open_files, &mut quota.open_files),
            (self.job_processes, &mut quota.processes),
            (self.job_output, &mut quota.output),
            (self.job_log, &mut quota.log),
            (self.job_scratch, &mut quota.scratch),
        ];
        for (given, limit) in limits {
            *limit = given.unwrap_or(*limit);
        }
    }
}

impl JobFlags {
    /// Applies all flags but those of the sandbox. Refuses an output folder of which no database is the owner.
    pub(in crate::cli) fn apply(&self, options: &mut worker::Options) -> Result<(), Failure> {
        check_owner_file(&options.output)?;
        self.quota.apply(&mut options.quota);
        options.cache_max = self.env_cache_max.unwrap_or(options.cache_max);
        options.no_build = self.no_build;
        options.bounds.buffer = self.job_buffer.unwrap_or(options.bounds.buffer);
        options.bounds.cell = self.cell_max.unwrap_or(options.bounds.cell);
        Ok(())
    }

    /// Evaluates `--sandbox` and `--protect`. `inputs` = what the command line names as input.
    pub(in crate::cli) fn sandbox(&self, inputs: &[PathBuf]) -> worker::SandboxOptions {
        let mode = self.sandbox.unwrap_or_default();
        // Before any plugin or build code runs.
        programs::resolve(inputs);
        if mode == Mode::On {
            for (input, kept) in programs::inputs_in_kept() {
                let (input, kept) = (input.display(), kept.display());
                log::warn!(
                    "plugins cannot write beside {input}: {kept} is read-only for them, as programs and libraries are"
                );
            }
        }
        worker::SandboxOptions {
            mode,
            support: probe(),
            launcher: OWN_PROGRAM.into(),
            hidden: Vec::new(),
            read_only: absolute(self.protect.clone()),
            named: Vec::new(),
        }
    }
}

fn open_files(values: &Values) -> Result<Option<u64>, Failure> {
    let count = values::number(0..=1 << 40)(values)?;
    match count {
        Some(count) if (1..limits::JOB_OPEN_FILES_MIN).contains(&count) => {
            let least = limits::JOB_OPEN_FILES_MIN;
            Err(values.error(count, format_args!("expected 0 or {least} at least")))
        }
        _ => Ok(count),
    }
}

fn job_buffer(values: &Values) -> Result<Option<u64>, Failure> {
    let size = values::size(values)?;
    match size {
        Some(size) if size < limits::JOB_BUFFER_SIZE_MIN => {
            let least = limits::JOB_BUFFER_SIZE_MIN >> 20;
            Err(values.error(size, format_args!("expected {least}Mi at least")))
        }
        _ => Ok(size),
    }
}

fn cell_max(values: &Values) -> Result<Option<u64>, Failure> {
    let size = values::size(values)?;
    match size {
        Some(size) if size > limits::CELL_SIZE_MAX => {
            let most = limits::CELL_SIZE_MAX >> 20;
            Err(values.error(size, format_args!("expected {most}Mi at most")))
        }
        _ => Ok(size),
    }
}

/// This program itself, even if its file has been replaced by another program.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// What the kernel supports for this program as the launcher of plugin processes.
pub(super) fn probe() -> Support {
    let printed = launch::probe_command(Path::new(OWN_PROGRAM)).output();
    match printed {
        Ok(output) => serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            let reason = String::from_utf8_lossy(&output.stderr);
            Support::none(reason.trim())
        }),
        Err(error) => Support::none(&error.to_string()),
    }
}

/// Refuses an output folder whose `.casparian/owner` does not contain a database ID.
fn check_owner_file(output: &Path) -> Result<(), Failure> {
    let path = output.join(".casparian").join("owner");
    if std::fs::symlink_metadata(&path).is_err() {
        return Ok(());
    }
    let owner = sink::owner(output).map_err(failed)?.unwrap_or_default();
    let is_id = owner.len() == 32 && owner.bytes().all(|digit| digit.is_ascii_hexdigit());
    match is_id {
        true => Ok(()),
        false => Err(failed(format!(
            "output {}: {} holds no ID of a database; put back what was there, or use another folder",
            output.display(),
            path.display()
        ))),
    }
}
