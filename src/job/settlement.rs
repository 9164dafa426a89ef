//! Settlements: for ended jobs whose last attempt may have published without a receipt.

use serde::{Deserialize, Serialize};

use super::{Attempt, History};

/// What a worker needs to bring the output of an ended job in line with its row, because no further
/// attempt will do that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// The job, and a number above all its attempts. These attempts are barred.
    #[serde(flatten)]
    pub attempt: Attempt,
    /// UUID of the database, 32 hex digits.
    pub database: String,
    /// As in [`Job::previous`](super::Job).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<String>,
    /// All attempts of the job, and the key of the settlement itself.
    #[serde(default)]
    pub history: History,
    /// The job failed as lost: complete output of an attempt without a receipt stays and completes
    /// the job. If false, such output is removed.
    #[serde(default)]
    pub keep: bool,
}

impl Settlement {
    /// Its size in an answer, in bytes.
    pub fn size(&self) -> usize {
        serde_json::to_vec(self).map_or(0, |json| json.len())
    }
}

/// The metric of a settlement's receipt with the number of the attempt whose output stays.
pub const SETTLED_ATTEMPT: &str = "settled_attempt";
