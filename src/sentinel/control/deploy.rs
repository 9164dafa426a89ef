//! DEPLOY: the checks of a deployment before it is written to the database.
//!
//! Sizes are checked first, then the signature over the hash that the client states, then the hash itself. So
//! no hash is calculated for a client that is not trusted. The MANIFEST is read as literals. A refusal is
//! answered with its reason. The log gets only the kind of reason, never a part of the source.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Body, Change, Control, Sender, printable};
use crate::job::{JobStatus, Receipt, parse_uri, text};
use crate::limits;
use crate::protocol::{Deploy, Payload};
use crate::reactor::BootTime;
use crate::sentinel::publishers::{Trust, decode_hash, is_name};
use crate::socket::PeerId;
use crate::store::{
    Author, Manifest, Upload, artifact_hash, check_deploy_size, read_manifest, sha256_hex,
};

/// Why a deployment is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of reason, for the log.
    pub kind: &'static str,
    /// The reason, for the client.
    pub reason: String,
}

fn refusal(kind: &'static str) -> impl Fn(String) -> Refusal {
    move |reason| Refusal { kind, reason }
}

fn none_are_taken() -> Refusal {
    refusal("none are taken")(
        "this sentinel takes no deployments from clients; start it with --trusted-publishers \
         FILE, or use `casparian deploy --database` on its host"
            .to_owned(),
    )
}

/// The bytes that a deployment counts while it waits for its transaction.
fn size(upload: &Upload) -> usize {
    upload.source_code.len() + upload.lockfile_content.len() + limits::DEPLOY_OVERHEAD
}

impl Control {
    /// Sets which deployments are accepted.
    pub fn set_trust(&mut self, trust: Trust) {
        self.trust = trust;
    }

    /// Why no deployment at all is accepted now. If there is a reason, a DEPLOY need not be decoded.
    pub fn closed_to_deployments(&self) -> Option<Refusal> {
        if !self.trust.takes_any() {
            return Some(none_are_taken());
        }
        let is_full = self.deploys_size >= limits::DEPLOYS_WAITING_SIZE_MAX;
        is_full.then(|| Refusal {
            kind: "too many at a time",
            reason: "other deployments wait for the database; try again later".to_owned(),
        })
    }

    pub(super) fn handle_deploy(
        &mut self,
        from: &Sender<'_>,
        job_id: u64,
        deploy: Deploy<'_>,
        now: BootTime,
    ) {
        let checked = match self.closed_to_deployments() {
            Some(refusal) => Err(refusal),
            None => check(deploy, &self.trust),
        };
        match checked {
            Ok(upload) => {
                self.deploys_size += size(&upload);
                self.changes.push(Change::Deploy {
                    peer: from.peer,
                    job_id,
                    from: who(from),
                    upload: Arc::new(upload),
                });
            }
            Err(refusal) => self.refuse_deploy(from, job_id, &refusal, now),
        }
    }

    /// Answers a deployment with ERR.
    pub fn refuse_deploy(
        &mut self,
        from: &Sender<'_>,
        job_id: u64,
        refusal: &Refusal,
        now: BootTime,
    ) {
        let is_due = |at: BootTime| at + limits::DEPLOY_LOG_INTERVAL <= now;
        self.refusals_unlogged += 1;
        if self.deploy_refusal_logged_at.is_none_or(is_due) {
            self.deploy_refusal_logged_at = Some(now);
            let more = match std::mem::take(&mut self.refusals_unlogged) - 1 {
                0 => String::new(),
                more => format!(" ({more} more since the last one)"),
            };
            log::warn!(
                "deployment by {} refused: {}{more}",
                who(from),
                refusal.kind
            );
        }
        self.send_deploy_error(from.peer, job_id, &refusal.reason);
    }

    fn send_deploy_error(&mut self, peer: PeerId, job_id: u64, reason: &str) {
        let mut reason = format!("not deployed: {reason}");
        text::cut(&mut reason, limits::DEPLOY_REASON_SIZE_MAX);
        self.send_error(peer, job_id, reason, false);
    }

    /// Answers a deployment after its transaction is committed. `result` = the ID of its manifest, or the
    /// reason why it was refused.
    pub(in crate::sentinel) fn handle_deployed(
        &mut self,
        peer: PeerId,
        job_id: u64,
        result: Result<i64, String>,
    ) {
        let manifest_id = match result {
            Ok(manifest_id) => manifest_id,
            Err(reason) => return self.send_deploy_error(peer, job_id, &reason),
        };
        let receipt = Receipt {
            status: JobStatus::Success,
            metrics: BTreeMap::from([("manifest_id".to_owned(), manifest_id)]),
            ..Receipt::default()
        };
        self.outgoing.push(super::Outgoing {
            peer,
            job_id,
            body: Body::Payload(Payload::Conclude(receipt)),
        });
    }

    /// Bytes of all deployments in `changes`.
    pub(super) fn deploys_size(changes: &[Change]) -> usize {
        let sizes = changes.iter().map(|change| match change {
            Change::Deploy { upload, .. } => size(upload),
            _ => 0,
        });
        sizes.sum()
    }
}

fn who(from: &Sender<'_>) -> String {
    let id = printable(from.routing_id);
    let id = text::prefix(&id, 64);
    match from.user {
        Some(user) => format!("{id} ({user})"),
        None => id.to_owned(),
    }
}

/// Checks a deployment completely. The error is the reason why it is refused.
pub fn check(deploy: Deploy<'_>, trust: &Trust) -> Result<Upload, Refusal> {
    if !trust.takes_any() {
        return Err(none_are_taken());
    }
    check_fields(&deploy).map_err(refusal("a field is out of bounds"))?;
    let stated = decode_hash(&deploy.artifact_hash).ok_or_else(|| {
        refusal("artifact hash")("artifact_hash is not a SHA-256 in hexadecimal".to_owned())
    })?;
    let signature = trust
        .check(&deploy.publisher_name, &stated, &deploy.signature)
        .map_err(refusal("signature"))?;
    let actual = artifact_hash(&deploy.source_code, &deploy.lockfile_content);
    if decode_hash(&actual) != Some(stated) {
        return Err(refusal("artifact hash")(format!(
            "artifact_hash is not the SHA-256 of source_code and lockfile_content, which is {actual}"
        )));
    }
    check_environment(&deploy).map_err(refusal("environment"))?;
    let manifest = read_manifest(&deploy.source_code)
        .map_err(|error| error.to_string())
        .and_then(|found| {
            found.ok_or_else(|| "the source has no MANIFEST with pattern and topic".to_owned())
        })
        .and_then(|manifest| check_manifest(manifest, &deploy.plugin_name))
        .map_err(refusal("MANIFEST"))?;
    let owned = |text: Option<Cow<'_, str>>| {
        text.filter(|text| !text.is_empty())
            .map(|text| text.into_owned())
    };
    Ok(Upload {
        plugin_name: deploy.plugin_name.into_owned(),
        version: owned(Some(deploy.version)),
        source_code: deploy.source_code.into_owned(),
        lockfile_content: deploy.lockfile_content.into_owned(),
        signature,
        author: Author {
            name: deploy.publisher_name.into_owned(),
            email: owned(deploy.publisher_email),
            azure_oid: owned(deploy.azure_oid),
        },
        system_requirements: deploy.system_requirements.unwrap_or_default(),
        manifest,
    })
}

/// Checks sizes and characters of the fields. An empty version means the next one.
fn check_fields(deploy: &Deploy<'_>) -> Result<(), String> {
    let texts = [
        (
            "plugin_name",
            &*deploy.plugin_name,
            limits::PLUGIN_NAME_SIZE_MAX,
        ),
        ("version", &*deploy.version, limits::PLUGIN_VERSION_SIZE_MAX),
        (
            "publisher_name",
            &*deploy.publisher_name,
            limits::NAME_SIZE_MAX,
        ),
        (
            "publisher_email",
            deploy.publisher_email.as_deref().unwrap_or(""),
            limits::NAME_SIZE_MAX,
        ),
        (
            "azure_oid",
            deploy.azure_oid.as_deref().unwrap_or(""),
            limits::AZURE_OID_SIZE_MAX,
        ),
    ];
    let requirements = deploy.system_requirements.iter().flatten();
    let requirements =
        requirements.map(|text| ("system_requirements", text.as_str(), limits::NAME_SIZE_MAX));
    for (field, text, size_max) in texts.into_iter().chain(requirements) {
        if text.len() > size_max {
            return Err(format!(
                "{field} has {} bytes, at most {size_max}",
                text.len()
            ));
        }
        if text.contains(char::is_control) {
            return Err(format!("{field} contains control characters"));
        }
    }
    let count = deploy.system_requirements.as_ref().map_or(0, Vec::len);
    if count > limits::SYSTEM_REQUIREMENTS_MAX {
        let most = limits::SYSTEM_REQUIREMENTS_MAX;
        return Err(format!(
            "system_requirements has {count} entries, at most {most}"
        ));
    }
    check_deploy_size(&deploy.source_code, &deploy.lockfile_content)?;
    for (field, text) in [
        ("source_code", &*deploy.source_code),
        ("lockfile_content", &*deploy.lockfile_content),
    ] {
        if text.contains('\0') {
            return Err(format!("{field} contains a zero byte"));
        }
    }
    if !is_name(&deploy.publisher_name) {
        return Err("publisher_name is empty, or blanks stand at its ends".to_owned());
    }
    check_plugin_name(&deploy.plugin_name)
}

/// Checks that a plugin's name can be the name of a file without `.py`, and of its default output.
fn check_plugin_name(name: &str) -> Result<(), String> {
    let is_usable = !name.is_empty()
        && name.trim() == name
        && !name.starts_with('.')
        && !name.contains(['/', '\\', '?', '#', '%', '*', ',']);
    match is_usable && parse_uri(&format!("parquet://{name}_output.parquet")).is_ok() {
        true => Ok(()),
        false => Err(format!("plugin_name {name:?} is not one of a plugin")),
    }
}

/// Checks the lockfile's hash and form. The signed hash is over source and lockfile without a boundary
/// between them. So there must be only one position where a lockfile may begin. Otherwise one signature would
/// be valid for two artifacts.
fn check_environment(deploy: &Deploy<'_>) -> Result<(), String> {
    let lockfile = &*deploy.lockfile_content;
    let actual = sha256_hex(&[lockfile.as_bytes()]);
    let stated = &*deploy.env_hash;
    let is_default = lockfile.is_empty() && stated.is_empty();
    if !is_default && !stated.eq_ignore_ascii_case(&actual) {
        return Err(format!(
            "env_hash is not the SHA-256 of lockfile_content, which is {actual}"
        ));
    }
    if !lockfile.is_empty() && !lockfile::starts(lockfile).any(|start| start == 0) {
        return Err(
            "lockfile_content is no uv.lock: it does not begin with its version and what follows it"
                .to_owned(),
        );
    }
    let end = deploy.source_code.len();
    let whole = format!("{}{lockfile}", deploy.source_code);
    let mut starts = lockfile::starts(&whole);
    let other = starts.find(|start| lockfile.is_empty() || *start != end);
    match other {
        Some(start) => {
            let line = whole.get(..start).unwrap_or_default().lines().count() + 1;
            Err(format!(
                "what begins a lockfile is in line {line} of source_code and lockfile_content, where the lockfile \
                 does not begin; change that line"
            ))
        }
        None => Ok(()),
    }
}

fn check_manifest(manifest: Manifest, plugin: &str) -> Result<Manifest, String> {
    let bounded = |what: &str, text: &str, size_max: usize| match text.len() > size_max {
        true => Err(format!(
            "MANIFEST: {what} has {} bytes, at most {size_max}",
            text.len()
        )),
        false => Ok(()),
    };
    bounded(
        "pattern",
        &manifest.pattern,
        limits::MANIFEST_PATTERN_SIZE_MAX,
    )?;
    bounded("topic", &manifest.topic, limits::NAME_SIZE_MAX)?;
    for topic in &manifest.subscriptions {
        bounded("a subscription", topic, limits::NAME_SIZE_MAX)?;
    }
    for (what, count) in [
        ("sinks", manifest.sinks.len()),
        ("subscriptions", manifest.subscriptions.len()),
    ] {
        if count > limits::MANIFEST_ENTRIES_MAX {
            let most = limits::MANIFEST_ENTRIES_MAX;
            return Err(format!(
                "MANIFEST of {plugin}: {count} {what}, at most {most}"
            ));
        }
    }
    for sink in &manifest.sinks {
        bounded("a sink's topic", &sink.topic, limits::NAME_SIZE_MAX)?;
        bounded("a sink's URI", &sink.uri, limits::MANIFEST_URI_SIZE_MAX)?;
        parse_uri(&sink.uri)
            .map_err(|error| format!("MANIFEST: sink of {:?}: {error}", sink.topic))?;
    }
    Ok(manifest)
}

mod lockfile;
#[cfg(test)]
mod tests;
