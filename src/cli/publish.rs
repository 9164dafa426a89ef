//! Deploying through a sentinel: `sign`, and `deploy --connect`.
//!
//! `sign` writes the JSON of a DEPLOY message. So the owner of the key and the user who connects need not be
//! the same.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::args::{Command, Flag, Typed};
use super::plugin::{self, LOCKFILE_FLAG, VERSION_FLAG};
use super::plugin_file::read_text;
use super::table::one_line;
use super::{Failure, failed, print_done, security};
use crate::limits;
use crate::protocol::{Deploy, HEADER_SIZE, Payload, View};
use crate::reactor::Endpoint;
use crate::sentinel::publishers::{Publisher, read_publisher};
use crate::socket::{Dealer, DisconnectReason, Event, LocalUsers, Options};
use crate::store::{artifact_hash, read_manifest, sha256_hex};

pub(super) const PUBLISHER_KEY_FLAG: Flag = Flag {
    long: "publisher-key",
    short: None,
    value: Some("FILE"),
    help: "Sign with the key of this file, which `casparian keygen\n--publisher` makes",
};

pub(super) const SERVER_KEY_FLAG: Flag = Flag {
    long: "curve-server-key",
    short: None,
    value: Some("KEY"),
    help: "Encrypt (CURVE), and connect only to the sentinel with this\npublic key; KEY is its text or a file with it",
};

pub(super) const SECRET_KEY_FLAG: Flag = Flag {
    long: "curve-secret-key",
    short: None,
    value: Some("FILE"),
    help: "Our own key for that, which the sentinel lists",
};

/// Flags of `deploy` that need `--connect`.
pub(super) const FLAGS: &[&str] = &[
    "publisher-key",
    "publisher",
    "curve-server-key",
    "curve-secret-key",
    "allow-uid",
];

pub(super) const SIGN: Command = Command {
    name: "casparian sign",
    about: "Signs a plugin, for `casparian deploy --connect`",
    usage: "PLUGIN --publisher-key FILE [OPTIONS]",
    flags: &[
        PUBLISHER_KEY_FLAG,
        LOCKFILE_FLAG,
        VERSION_FLAG,
        Flag {
            long: "out",
            short: None,
            value: Some("FILE"),
            help: "Where the signed plugin goes (default: PLUGIN.deploy.json in\nthe working directory)",
        },
    ],
    notes: "The signature (Ed25519) is over the 32 bytes of `artifact_hash`, the SHA-256 of source and\nlockfile. The file is the payload of a DEPLOY message and holds both; it is no secret.",
};

/// The DEPLOY message for a plugin.
fn payload(
    command: &Command,
    typed: &Typed,
    publisher: Option<&Publisher>,
) -> Result<Deploy<'static>, Failure> {
    let prepared = plugin::prepare(command, typed)?;
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
        None => (unsigned_name(command, typed)?, None),
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

fn unsigned_name(command: &Command, typed: &Typed) -> Result<String, Failure> {
    let given = command.text(typed, "publisher")?;
    let user = || {
        ["USER", "LOGNAME"]
            .iter()
            .find_map(|name| std::env::var(name).ok())
    };
    let name = given.or_else(user).filter(|name| !name.is_empty());
    Ok(name.unwrap_or_else(|| "unknown".to_owned()))
}

fn publisher(command: &Command, typed: &Typed) -> Result<Option<Publisher>, Failure> {
    let path = command.path(typed, "publisher-key")?;
    path.map(|path| read_publisher(&path).map_err(failed))
        .transpose()
}

pub(super) fn sign(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let typed = SIGN.parse(arguments)?;
    let Some(publisher) = publisher(&SIGN, &typed)? else {
        return Err(SIGN.usage_error("--publisher-key is missing").into());
    };
    let deploy = payload(&SIGN, &typed, Some(&publisher))?;
    let out = match SIGN.path(&typed, "out")? {
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
pub(super) fn deploy(command: &Command, typed: &Typed) -> Result<(), Failure> {
    if typed.has("database") {
        return Err(command
            .usage_error("--database and --connect exclude each other")
            .into());
    }
    if typed.has("param") {
        let what = "--param: a sentinel takes no default parameters; they are set by `casparian deploy \
                    --database`, and for a job by `casparian submit --param`";
        return Err(command.usage_error(what).into());
    }
    let endpoint = command.required(typed, "connect")?;
    let parsed: Result<Endpoint, _> = endpoint.parse();
    let endpoint = parsed.map_err(|error| command.usage_error(format!("--connect: {error}")))?;
    let security = security::worker(command, typed)?;
    let allowed_uids = security::allowed_uids(command, typed, &security)?;
    let signed = signed_file(typed);
    let text;
    let message = match signed {
        Some(path) => {
            let flags = ["publisher-key", "publisher", "lockfile", "version"];
            if let Some(flag) = flags.iter().find(|flag| typed.has(flag)) {
                let what = format!("--{flag}: that is fixed in {}", path.display());
                return Err(command.usage_error(what).into());
            }
            text = read_signed(&path)?;
            serde_json::from_str(&text).map_err(|error| {
                failed(format!("{}: not a signed plugin: {error}", path.display()))
            })?
        }
        None => payload(command, typed, publisher(command, typed)?.as_ref())?,
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    plugin::interruptible(&interrupted)?;
    let plugin_name = message.plugin_name.clone().into_owned();
    let mut socket_options = Options::new().security(security.clone());
    if !security.is_encrypted() {
        let what = "any user of this host may listen at the sentinel's address and answer";
        let users = LocalUsers::of_endpoint(&endpoint, &allowed_uids, what).map_err(failed)?;
        if let Some(users) = users {
            socket_options = socket_options.local_users(users);
        }
    }
    let manifest_id = exchange(&endpoint, socket_options, message, &interrupted)?;
    let done = format!("{plugin_name} deployed at {endpoint}, manifest {manifest_id}");
    print_done(&format!("{}\n", one_line(&done)), &done)
}

/// The file on the command line, if `sign` has created it.
pub(super) fn signed_file(typed: &Typed) -> Option<PathBuf> {
    let [path] = typed.positionals.as_slice() else {
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
