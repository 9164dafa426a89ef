//! Bounds of the messages of workers. A message above a bound that no correct worker exceeds is refused, and
//! the sender is disconnected. Fields whose size a plugin can influence are cut.

use crate::job::{ARTIFACTS_TRUNCATED, Attempt, Receipt, text};
use crate::limits;
use crate::protocol::{Heartbeat, Identify, OpCode};

/// Maximum size in bytes of the payload of a message to a sentinel. `others` = the maximum for messages other
/// than DEPLOY and CONCLUDE.
pub fn payload_size_max(opcode: OpCode, others: usize) -> usize {
    match opcode {
        // Source and lockfile are bounded by the size of a frame.
        OpCode::Deploy => usize::MAX,
        OpCode::Conclude => others.max(limits::RECEIPT_SIZE_MAX),
        _ => others,
    }
}

pub(super) const TOO_MANY_ATTEMPTS: &str = "it lists more attempts than a worker can hold";

/// True when a list of attempts is longer than a correct worker's can be.
fn is_too_long(attempts: &[Attempt]) -> bool {
    attempts.len() > limits::LISTED_ATTEMPTS_MAX
}

/// Why an IDENTIFY is refused, as a text for the worker's operator. `workers`: how many are connected.
pub(super) fn refuse_identify(identify: &Identify<'_>, workers: usize) -> Option<String> {
    let names = &identify.capabilities;
    let size: usize = names.iter().map(String::len).sum();
    let memory = size.saturating_add(names.len().saturating_mul(limits::CAPABILITY_OVERHEAD));
    let share = limits::CAPABILITIES_TOTAL_SIZE_MAX / workers.max(1);
    if memory > share {
        return Some(format!(
            "the worker lists {} plugins in {size} bytes, more than its share of the memory for such lists \
             ({share} bytes, with {} bytes a name beside its own): {workers} workers are connected; list \
             fewer, or * for any",
            names.len(),
            limits::CAPABILITY_OVERHEAD
        ));
    }
    if names.len() > limits::CAPABILITIES_MAX || size > limits::CAPABILITIES_SIZE_MAX {
        return Some(format!(
            "the worker lists {} plugins in {size} bytes; at most {} in {} bytes are taken, or * \
             for any",
            names.len(),
            limits::CAPABILITIES_MAX,
            limits::CAPABILITIES_SIZE_MAX
        ));
    }
    let running = identify.running.as_deref().unwrap_or_default();
    is_too_long(running).then(|| TOO_MANY_ATTEMPTS.to_owned())
}

/// Why a HEARTBEAT is refused.
pub(super) fn refuse_heartbeat(heartbeat: &Heartbeat) -> Option<&'static str> {
    let running = heartbeat.running.as_deref().unwrap_or_default();
    let is_too_long = is_too_long(running)
        || is_too_long(&heartbeat.waiting)
        || heartbeat.publish.len() > limits::LISTED_ATTEMPTS_MAX;
    is_too_long.then_some(TOO_MANY_ATTEMPTS)
}

/// Cuts the texts and lists of a receipt.
pub(super) fn bound(receipt: &mut Receipt) {
    shorten(&mut receipt.error_message, limits::ERROR_TEXT_SIZE_MAX);
    shorten(&mut receipt.log_tail, limits::LOG_TAIL_SIZE_MAX);
    shorten(&mut receipt.sandbox, limits::NAME_SIZE_MAX);
    let metrics = &mut receipt.metrics;
    metrics.retain(|name, _| name.len() <= limits::NAME_SIZE_MAX);
    while metrics.len() > limits::METRICS_MAX {
        metrics.pop_last();
    }
    let artifacts = &mut receipt.artifacts;
    let listed = artifacts.len();
    artifacts.truncate(limits::TOPICS_MAX);
    artifacts.retain(|artifact| {
        artifact.len() <= limits::ARTIFACT_FIELDS_MAX
            && artifact
                .iter()
                .all(|(name, value)| name.len() + value.len() <= limits::ARTIFACT_TEXT_SIZE_MAX)
    });
    let left_out = i64::try_from(listed - artifacts.len()).unwrap_or(i64::MAX);
    if left_out > 0 {
        let count = receipt.metrics.entry(ARTIFACTS_TRUNCATED.to_owned());
        let count = count.or_default();
        *count = count.saturating_add(left_out);
    }
}

/// Approximate bytes of memory of a receipt.
pub(super) fn size(receipt: &Receipt) -> usize {
    let texts = [&receipt.error_message, &receipt.log_tail, &receipt.sandbox];
    let texts = texts.into_iter().flatten().map(String::len);
    let metrics = receipt.metrics.keys().map(|name| name.len() + 64);
    let artifacts = receipt.artifacts.iter().flatten();
    let artifacts = artifacts.map(|(name, value)| name.len() + value.len() + 64);
    texts.chain(metrics).chain(artifacts).sum()
}

fn shorten(text: &mut Option<String>, size_max: usize) {
    if let Some(text) = text {
        text::cut(text, size_max);
    }
}
