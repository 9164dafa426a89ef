//! The limits of a job: those of the operator, lowered by those of its plugin.

use serde::Deserialize;

use crate::job::text::size;
use crate::limits;

/// Limits of one job; 0 = none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Seconds from the job's start to the end of its process.
    pub timeout: u64,
    /// CPU seconds of all its processes.
    pub cpu: u64,
    /// Resident memory (RSS) of all its processes in bytes, without what the first one had when it started.
    pub memory: u64,
    /// Open files of each process (RLIMIT_NOFILE).
    pub open_files: u64,
    /// Number of processes at a time.
    pub processes: u64,
    /// Bytes of all its output.
    pub output: u64,
    /// Bytes that it prints to stdout and stderr.
    pub log: u64,
    /// Bytes in its working directory.
    pub scratch: u64,
}

impl Quota {
    /// These limits, lowered by those of a plugin. A plugin cannot raise or remove one.
    pub fn lowered(self, by: Quota) -> Quota {
        let lower = |own: u64, other: u64| match (own, other) {
            (own, 0) => own,
            (0, other) => other,
            (own, other) => own.min(other),
        };
        Quota {
            timeout: lower(self.timeout, by.timeout),
            cpu: lower(self.cpu, by.cpu),
            memory: lower(self.memory, by.memory),
            open_files: lower(self.open_files, by.open_files),
            processes: lower(self.processes, by.processes),
            output: lower(self.output, by.output),
            log: lower(self.log, by.log),
            scratch: lower(self.scratch, by.scratch),
        }
    }
}

/// The keys `job-...` of a plugin's `[tool.casparian]`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Words {
    job_timeout: Option<Amount>,
    job_cpu: Option<Amount>,
    job_memory: Option<Amount>,
    job_open_files: Option<Amount>,
    job_processes: Option<Amount>,
    job_output: Option<Amount>,
    job_log: Option<Amount>,
    job_scratch: Option<Amount>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Amount {
    Number(u64),
    Text(String),
    /// A value of another type. It is accepted here so that the error can name the setting.
    Other(serde::de::IgnoredAny),
}

impl Words {
    /// The limits. The error is the reason why a value is invalid.
    pub(super) fn quota(&self) -> Result<Quota, String> {
        let number = |name: &str, amount: &Option<Amount>| match amount {
            None => Ok(0),
            Some(Amount::Number(number)) if *number > 0 => Ok(*number),
            _ => Err(format!("{name}: expected a whole number from 1")),
        };
        let bytes = |name: &str, amount: &Option<Amount>| match amount {
            Some(Amount::Text(text)) => size(text)
                .filter(|size| *size > 0)
                .ok_or_else(|| format!("{name}: expected bytes, such as 500M or 20G")),
            other => number(name, other),
        };
        Ok(Quota {
            timeout: number("job-timeout", &self.job_timeout)?,
            cpu: number("job-cpu", &self.job_cpu)?,
            memory: bytes("job-memory", &self.job_memory)?,
            open_files: match number("job-open-files", &self.job_open_files)? {
                0 => 0,
                // The interpreter itself needs some.
                count => count.max(limits::JOB_OPEN_FILES_MIN),
            },
            processes: number("job-processes", &self.job_processes)?,
            output: bytes("job-output", &self.job_output)?,
            log: bytes("job-log", &self.job_log)?,
            scratch: bytes("job-scratch", &self.job_scratch)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_lowers_limits_and_raises_none() {
        let operators = Quota {
            cpu: 10,
            memory: 1000,
            ..Quota::default()
        };
        let plugins = Quota {
            cpu: 20,
            memory: 500,
            log: 7,
            ..Quota::default()
        };
        let want = Quota {
            cpu: 10,
            memory: 500,
            log: 7,
            ..Quota::default()
        };
        assert_eq!(operators.lowered(plugins), want);
        assert_eq!(operators.lowered(Quota::default()), operators);
    }

    #[test]
    fn a_setting_of_another_kind_is_named() {
        for text in [
            "job-memory = -1",
            "job-memory = 1.5",
            "job-memory = true",
            "job-memory = []",
        ] {
            let words: Words = toml::from_str(text).unwrap();
            let reason = words.quota().unwrap_err();
            assert!(
                reason.starts_with("job-memory: expected"),
                "{text}: {reason}"
            );
        }
    }
}
