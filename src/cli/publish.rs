//! Deploying through a sentinel: `sign`, and `deploy --connect`.
//!
//! `sign` writes the JSON of a DEPLOY message. So the owner of the key and the user who connects need not be
//! the same.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::args::{Command, flags, values};
use super::folder::Others;
use super::plugin::{PluginFlags, Prepared, interruptible, prepare};
use super::plugin_file::read_text;
use super::security::{self, ListenerFlag, ServerKeyFlag};
use super::table::one_line;
use super::{Failure, failed, print_done, usage_error};
use crate::limits;
use crate::protocol::{Deploy, HEADER_SIZE, Payload, View};
use crate::reactor::Endpoint;
use crate::sentinel::publishers::{Publisher, read_publisher};
use crate::socket::{Dealer, DisconnectReason, Event, LocalUsers, Options};
use crate::store::{artifact_hash, read_manifest, sha256_hex};

flags! {
    /// The key of a publisher.
    pub(super) struct PublisherKeyFlag {
        /// Sign with the key of this file, which `casparian keygen
        /// --publisher` makes
        publisher_key: Option<PathBuf> = "publisher-key", "FILE" => values::path;
    }
}

flags! {
    /// The flags of `deploy` that need `--connect`.
    pub(super) struct RemoteFlags {
        /// The key of the publisher.
        signer: PublisherKeyFlag;
        /// Who deploys, where nothing is signed (default: the user's
        /// name)
        publisher: Option<String> = "publisher", "NAME" => values::text;
        /// The key of the sentinel.
        server: ServerKeyFlag;
        /// Our own key for that, which the sentinel lists
        curve_secret_key: Option<PathBuf> = "curve-secret-key", "FILE" => values::path;
        /// Users whose sentinel is accepted.
        listener: ListenerFlag;
    }
}

flags! {
    /// The flags of `sign`.
    pub(super) struct SignFlags {
        /// The key of the publisher.
        signer: PublisherKeyFlag;
        /// What belongs to the plugin.
        plugin: PluginFlags;
        /// Where the signed plugin goes (default: PLUGIN.deploy.json in
        /// the working directory)
        out: Option<PathBuf> = "out", "FILE" => values::path;
    }
}

pub(super) const SIGN: Command<SignFlags> = Command {
    name: "casparian sign",
    about: "Signs a plugin, for `casparian deploy --connect`",
    usage: "PLUGIN --publisher-key FILE [OPTIONS]",
    flags: SignFlags::TABLE,
    notes: "The signature (Ed25519) is over the 32 bytes of `artifact_hash`, the SHA-256 of source and\nlockfile. The file is the payload of a DEPLOY message and holds both; it is no secret.",
};

impl RemoteFlags {
    /// The name of the first of them that was given.
    pub(super) fn first_given(&self) -> Option<&'static str> {
        first_given([
            ("publisher-key", self.signer.publisher_key.is_some()),
            ("publisher", self.publisher.is_some()),
            ("curve-server-key", self.server.curve_server_key.is_some()),
            ("curve-secret-key", self.curve_secret_key.is_some()),
            ("allow-uid", !self.listener.allow_uid.is_empty()),
        ])
    }
}

/// The name of the first flag that was given.
fn first_given<const N: usize>(flags: [(&'static str, bool); N]) -> Option<&'static str> {
    let given = flags.into_iter().find(|(_, is_given)| *is_given);
    given.map(|(name, _)| name)
}

/// The DEPLOY message for a plugin. Without a publisher it has the name `unsigned`.
fn payload(
    prepared: Prepared,
    publisher: Option<&Publisher>,
    unsigned: Option<String>,
) -> Result<Deploy<'static>, Failure> {
    let (plugin, lockfile) = (prepared.plugin, prepared.lockfile);
    match read_manifest(&plugin.source) {
        Ok(Some(_)) => {}
        // `prepare` has refused a MANIFEST that cannot be read.
        _ => {
            return Err(failed(format!(
                "plugin {}: it has no MANIFEST; a sentinel takes plugins with `MANIFEST = \
                 PluginMetadata(pattern=..., topic=...)`",
                plugin.name
            )));
        }
    }
    let hash = artifact_hash(&plugin.source, &lockfile);
    let (name, signature) = match publisher {
        Some(publisher) => (publisher.name().to_owned(), publisher.sign(&hash)),
        None => (unsigned_name(unsigned), None),
    };
    Ok(Deploy {
        plugin_name: plugin.name.into(),
        version: prepared.version.unwrap_or_default().into(),
        env_hash: sha256_hex(&[lockfile.as_bytes()]).into(),
        source_code: plugin.source.into(),
        lockfile_content: lockfile.into(),
        artifact_hash: hash.into(),
        signature: signature.unwrap_or_default().into(),
        publisher_name: name.into(),
        publisher_email: None,
        azure_oid: None,
        system_requirements: None,
    })
}

fn unsigned_name(given: Option<String>) -> String {
    let user = || {
        ["USER", "LOGNAME"]
            .iter()
            .find_map(|name| std::env::var(name).ok())
    };
    let name = given.or_else(user).filter(|name| !name.is_empty());
    name.unwrap_or_else(|| "unknown".to_owned())
}

fn publisher(flag: &PublisherKeyFlag) -> Result<Option<Publisher>, Failure> {
    let path = flag.publisher_key.as_ref();
    path.map(|path| read_publisher(path).map_err(failed))
        .transpose()
}

pub(super) fn sign(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let (flags, positionals) = SIGN.parse(arguments)?;
    let Some(publisher) = publisher(&flags.signer)? else {
        return Err(usage_error("--publisher-key is missing"));
    };
    let named = [
        &flags.signer.publisher_key,
        &flags.plugin.lockfile,
        &flags.out,
    ];
    let others = Others::new(named.into_iter().flatten().map(|path| path.as_os_str()));
    let prepared = prepare(&positionals, &flags.plugin, &others)?;
    let deploy = payload(prepared, Some(&publisher), None)?;
    let out = match flags.out {
        Some(out) => out,
        None => PathBuf::from(format!("{}.deploy.json", deploy.plugin_name)),
    };
    let text = serde_json::to_vec(&deploy).map_err(failed)?;
    std::fs::write(&out, text).map_err(|error| failed(format!("{}: {error}", out.display())))?;
    let done = format!(
        "{}: {} {} signed",
        out.display(),
        publisher.name(),
        deploy.artifact_hash
    );
    print_done(&format!("{}\n", one_line(&done)), &done)
}

/// `deploy --connect`.
pub(super) fn deploy(
    positionals: &[OsString],
    endpoint: &Endpoint,
    plugin: &PluginFlags,
    flags: RemoteFlags,
    others: &Others,
) -> Result<(), Failure> {
    let security = security::worker(&flags.server, flags.curve_secret_key.as_ref())?;
    let allowed_uids = security::allowed_uids(flags.listener.allow_uid, &security)?;
    let signed = signed_file(positionals);
    let text;
    let message = match signed {
        Some(path) => {
            let fixed = first_given([
                ("publisher-key", flags.signer.publisher_key.is_some()),
                ("publisher", flags.publisher.is_some()),
                ("lockfile", plugin.lockfile.is_some()),
                ("version", plugin.version.is_some()),
            ]);
            if let Some(flag) = fixed {
                let path = path.display();
                return Err(usage_error(format!("--{flag}: that is fixed in {path}")));
            }
            text = read_signed(&path)?;
            serde_json::from_str(&text).map_err(|error| {
                failed(format!("{}: not a signed plugin: {error}", path.display()))
            })?
        }
        None => {
            let publisher = publisher(&flags.signer)?;
            let prepared = prepare(positionals, plugin, others)?;
            payload(prepared, publisher.as_ref(), flags.publisher)?
        }
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    interruptible(&interrupted)?;
    let plugin_name = message.plugin_name.clone().into_owned();
    let mut socket_options = Options::new().security(security.clone());
    if !security.is_encrypted() {
        let what = "any user of this host may listen at the sentinel's address and answer";
        let users = LocalUsers::of_endpoint(endpoint, &allowed_uids, what).map_err(failed)?;
        if let Some(users) = users {
            socket_options = socket_options.local_users(users);
        }
    }
    let manifest_id = exchange(endpoint, socket_options, message, &interrupted)?;
    let done = format!("{plugin_name} deployed at {endpoint}, manifest {manifest_id}");
    print_done(&format!("{}\n", one_line(&done)), &done)
}

/// The file on the command line, if `sign` has created it.
pub(super) fn signed_file(positionals: &[OsString]) -> Option<PathBuf> {
    let [path] = positionals else {
        return None;
    };
    let path = PathBuf::from(path);
    (path.extension()? == "json").then_some(path)
}

fn read_signed(path: &Path) -> Result<String, Failure> {
    let most = limits::ZMTP_FRAME_SIZE_MAX;
    read_text(path, most).map_err(|error| failed(format!("{}: {error}", path.display())))
}

/// Sends a deployment and waits for the answer. Returns the manifest's ID.
fn exchange(
    endpoint: &Endpoint,
    options: Options,
    deploy: Deploy<'_>,
    interrupted: &AtomicBool,
) -> Result<i64, Failure> {
    let unanswered = |why: &str| {
        failed(format!(
            "{endpoint}: {why}; whether it is deployed is not known, and the same command may be \
             given again"
        ))
    };
    let (header, body) = Payload::Deploy(Box::new(deploy))
        .encode(0)
        .map_err(failed)?;
    let header: [u8; HEADER_SIZE] = header;
    let reach = |error: crate::socket::Error| failed(format!("{endpoint}: {error}"));
    let mut dealer = Dealer::new(options).map_err(reach)?;
    dealer.connect(&endpoint.to_string()).map_err(reach)?;
    dealer.send(&[&header, &body]).map_err(reach)?;
    let began = Instant::now();
    let mut no_connection = None;
    while began.elapsed() < limits::DEPLOY_ANSWER_TIMEOUT {
        if interrupted.load(Ordering::Relaxed) {
            return Err(Failure::Interrupted("interrupted; it may be deployed"));
        }
        let wait = Some(Duration::from_millis(200));
        if let Some(message) = dealer.receive(wait).map_err(reach)? {
            let view = View::decode(message.iter());
            let answer = view.and_then(|view| Payload::decode(&view));
            match answer.map_err(|error| failed(format!("{endpoint}: {error}")))? {
                Payload::Err(error) => {
                    return Err(failed(format!("{endpoint}: {}", error.message)));
                }
                Payload::Conclude(receipt) => {
                    let id = receipt.metrics.get("manifest_id").copied();
                    return id.ok_or_else(|| {
                        let reason = receipt.error_message.unwrap_or_default();
                        failed(format!("{endpoint}: not deployed: {reason}"))
                    });
                }
                _ => continue,
            }
        }
        while let Some(event) = dealer.poll_event() {
            match event {
                Event::Established { .. } => no_connection = None,
                Event::Disconnected { reason, .. } => {
                    return Err(unanswered(&format!("the connection ended: {reason}")));
                }
                Event::HandshakeFailed { reason, .. }
                    if matches!(reason, DisconnectReason::NotAdmitted(_)) =>
                {
                    return Err(failed(format!("{endpoint}: not deployed: {reason}")));
                }
                Event::HandshakeFailed { reason, .. } => {
                    return Err(failed(format!("{endpoint}: not let in: {reason}")));
                }
                Event::ConnectFailed { reason, .. } => no_connection = Some(reason),
                _ => {}
            }
        }
        if let Some(reason) = &no_connection
            && began.elapsed() >= limits::DEPLOY_CONNECT_TIMEOUT
        {
            return Err(failed(format!("{endpoint}: no connection: {reason}")));
        }
    }
    let seconds = limits::DEPLOY_ANSWER_TIMEOUT.as_secs();
    Err(unanswered(&format!("no answer in {seconds} s")))
}
