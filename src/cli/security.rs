//! The flags for CURVE and local users, and `keygen`.

use super::Failure;
#[cfg(feature = "worker")]
use super::args::Flag;
use super::args::{Command, Typed};
#[cfg(feature = "sentinel")]
use crate::sentinel;
use crate::socket::Security;

#[cfg(all(feature = "sentinel", feature = "worker"))]
pub(super) use keygen::{COMMAND as KEYGEN, keygen};

/// `--allow-uid` of programs that connect.
#[cfg(feature = "worker")]
pub(super) const LISTENER_UID_FLAG: Flag = Flag {
    long: "allow-uid",
    short: None,
    value: Some("UID"),
    help: "Without CURVE, another user of this host whose sentinel is\ntrusted, by number; may be repeated (default: the own user and\nroot)",
};

/// The users of `--allow-uid`. Only for peers that `security` does not authenticate.
pub(super) fn allowed_uids(
    command: &Command,
    typed: &Typed,
    security: &Security,
) -> Result<Vec<u32>, Failure> {
    if typed.has("allow-uid") && security.is_encrypted() {
        let what = "--allow-uid is for peers without CURVE";
        return Err(command.usage_error(what).into());
    }
    let given = typed.all("allow-uid").map(|text| {
        let number = text.to_str().and_then(|text| text.parse::<u32>().ok());
        // The highest number is not a user: system calls use it as "unchanged".
        number.filter(|uid| *uid != u32::MAX).ok_or_else(|| {
            let text = text.display();
            let what = format!("--allow-uid {text}: expected the number of a user (`id -u NAME`)");
            Failure::from(command.usage_error(what))
        })
    });
    given.collect()
}

/// Applies `--curve-secret-key`, `--authorized-keys` and `--authorize-any-key`.
#[cfg(all(feature = "curve", feature = "sentinel"))]
pub(super) fn sentinel(
    command: &Command,
    typed: &Typed,
    options: &mut sentinel::Options,
) -> Result<(), Failure> {
    use crate::socket::curve::{Clients, CurveServer};
    use crate::socket::keyfile::{AuthorizedKeysFile, read_secret_key};
    let list = command.path(typed, "authorized-keys")?;
    let any = typed.has("authorize-any-key");
    let Some(secret) = command.path(typed, "curve-secret-key")? else {
        if list.is_some() || any {
            return Err(command
                .usage_error("--authorized-keys and --authorize-any-key need --curve-secret-key")
                .into());
        }
        return Ok(());
    };
    let secret = read_secret_key(&secret).map_err(super::failed)?;
    let clients = match (list, any) {
        (Some(path), false) => {
            let file = AuthorizedKeysFile::open(&path).map_err(super::failed)?;
            let keys = file.keys();
            options.authorized_keys = Some(file);
            Clients::Listed(keys)
        }
        (None, true) => Clients::Any,
        _ => {
            return Err(command
                .usage_error(
                    "--curve-secret-key needs --authorized-keys or --authorize-any-key, not both",
                )
                .into());
        }
    };
    options.security = crate::socket::Security::CurveServer(CurveServer { secret, clients });
    Ok(())
}

/// Evaluates `--curve-server-key` and `--curve-secret-key`. A worker without a secret key generates one,
/// which only a sentinel with --authorize-any-key accepts.
#[cfg(all(feature = "curve", feature = "worker"))]
pub(super) fn worker(command: &Command, typed: &Typed) -> Result<Security, Failure> {
    use crate::socket::curve::{CurveClient, SecretKey};
    use crate::socket::keyfile::{read_public_key, read_secret_key};
    let secret = command.path(typed, "curve-secret-key")?;
    let Some(server) = typed.last("curve-server-key") else {
        return match secret {
            Some(_) => Err(command
                .usage_error("--curve-secret-key needs --curve-server-key")
                .into()),
            None => Ok(Security::Null),
        };
    };
    let server = read_public_key(&server).map_err(super::failed)?;
    let secret = match secret {
        Some(path) => read_secret_key(&path).map_err(super::failed)?,
        None => SecretKey::generate().map_err(super::failed)?,
    };
    Ok(Security::CurveClient(CurveClient { secret, server }))
}

/// The keys of sentinel and worker of a run: two key pairs that are only in this process's memory. The
/// sentinel admits only the worker's key.
#[cfg(all(feature = "curve", feature = "sentinel", feature = "worker"))]
pub(super) fn of_run() -> Result<(Security, Security), Failure> {
    use crate::socket::curve::{AuthorizedKeys, Clients, CurveClient, CurveServer, SecretKey};
    let sentinel = SecretKey::generate().map_err(super::failed)?;
    let worker = SecretKey::generate().map_err(super::failed)?;
    let listed: AuthorizedKeys = [(worker.public(), "run".to_owned())].into_iter().collect();
    let client = CurveClient {
        secret: worker,
        server: sentinel.public(),
    };
    let server = CurveServer {
        secret: sentinel,
        clients: Clients::Listed(listed.into()),
    };
    Ok((Security::CurveServer(server), Security::CurveClient(client)))
}

/// Fails, because without CURVE plugins could act as the worker of their run.
#[cfg(all(not(feature = "curve"), feature = "sentinel", feature = "worker"))]
pub(super) fn of_run() -> Result<(Security, Security), Failure> {
    Err(super::failed(
        "`run` needs CURVE, and this build has none (feature `curve`)",
    ))
}

#[cfg(not(feature = "curve"))]
fn refuse(command: &Command, typed: &Typed, flags: &[&str]) -> Result<(), Failure> {
    match flags.iter().find(|flag| typed.has(flag)) {
        Some(flag) => Err(command
            .usage_error(format!(
                "--{flag}: this build has no CURVE (feature `curve`)"
            ))
            .into()),
        None => Ok(()),
    }
}

/// Refuses the flags of CURVE.
#[cfg(all(not(feature = "curve"), feature = "sentinel"))]
pub(super) fn sentinel(
    command: &Command,
    typed: &Typed,
    _options: &mut sentinel::Options,
) -> Result<(), Failure> {
    refuse(
        command,
        typed,
        &["curve-secret-key", "authorized-keys", "authorize-any-key"],
    )
}

/// Refuses the flags of CURVE.
#[cfg(all(not(feature = "curve"), feature = "worker"))]
pub(super) fn worker(command: &Command, typed: &Typed) -> Result<Security, Failure> {
    refuse(command, typed, &["curve-secret-key", "curve-server-key"])?;
    Ok(Security::Null)
}

#[cfg(all(feature = "sentinel", feature = "worker"))]
mod keygen {
    use std::ffi::OsString;
    use std::path::Path;

    use crate::cli::args::{Command, Flag};
    use crate::cli::{Failure, failed, print};
    use crate::sentinel::publishers::{is_name, read_publisher, write_publisher};

    pub(in crate::cli) const COMMAND: Command = Command {
        name: "casparian keygen",
        about: "Makes a key pair: of a sentinel or worker, or of a publisher",
        usage: "[OPTIONS] FILE",
        flags: &[
            Flag {
                long: "publisher",
                short: None,
                value: None,
                help: "A key that signs plugins (Ed25519) instead of one for connections\n(CURVE)",
            },
            Flag {
                long: "name",
                short: None,
                value: Some("NAME"),
                help: "Name behind the public key (default: the file's name)",
            },
            Flag {
                long: "force",
                short: None,
                value: None,
                help: "Replace files that are there already",
            },
            Flag {
                long: "show",
                short: None,
                value: None,
                help: "Make nothing, print the public key of the secret key in FILE",
            },
        ],
        notes: "FILE gets the secret key, for --curve-secret-key; only its owner may read it.\n\
                FILE.pub gets the public key and the name, which are printed as well: the line for\n\
                the sentinel's --authorized-keys, or the key for the workers' --curve-server-key.\n\
                With --publisher FILE is for --publisher-key of `sign` and `deploy`, and the line for the\n\
                sentinel's --trusted-publishers.",
    };

    pub(in crate::cli) fn keygen(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<(), Failure> {
        let typed = COMMAND.parse(arguments)?;
        let path = match typed.positionals.as_slice() {
            [] => return Err(COMMAND.usage_error("FILE is missing").into()),
            [path] if path.is_empty() => return Err(COMMAND.usage_error("FILE is empty").into()),
            [path] => Path::new(path),
            _ => return Err(COMMAND.usage_error("more than one FILE").into()),
        };
        if path.extension().is_some_and(|extension| extension == "pub") {
            let what = "FILE is for the secret key, FILE.pub for the public one: give a name \
                        without .pub";
            return Err(COMMAND.usage_error(what).into());
        }
        if typed.has("show") && typed.has("force") {
            return Err(COMMAND
                .usage_error("--show replaces nothing: no --force")
                .into());
        }
        let name = match COMMAND.text(&typed, "name")? {
            Some(name) => name,
            None => path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
        };
        if name.len() > crate::limits::NAME_SIZE_MAX || name.contains(char::is_control) {
            return Err(COMMAND
                .usage_error("--name must be at most 255 bytes without control characters")
                .into());
        }
        let (show, replace) = (typed.has("show"), typed.has("force"));
        let line = match typed.has("publisher") {
            // The name is stored with the key.
            true if show => read_publisher(path).map_err(failed)?.public_line(),
            true if !is_name(&name) => {
                let what = "--name must not be empty, and no blanks may stand at its ends";
                return Err(COMMAND.usage_error(what).into());
            }
            true => write_publisher(path, &name, replace).map_err(failed)?,
            false => connection_key(path, &name, show, replace)?,
        };
        print(&format!("{line}\n"))
    }

    #[cfg(feature = "curve")]
    fn connection_key(
        path: &Path,
        name: &str,
        show: bool,
        replace: bool,
    ) -> Result<String, Failure> {
        use crate::socket::curve::SecretKey;
        use crate::socket::keyfile::{public_line, read_secret_key, write_key_pair};
        if show {
            return public_line(&read_secret_key(path).map_err(failed)?, name).map_err(failed);
        }
        let secret = SecretKey::generate().map_err(failed)?;
        write_key_pair(path, &secret, name, replace).map_err(failed)
    }

    #[cfg(not(feature = "curve"))]
    fn connection_key(_: &Path, _: &str, _: bool, _: bool) -> Result<String, Failure> {
        let what = "this build has no CURVE (feature `curve`); only --publisher is possible";
        Err(COMMAND.usage_error(what).into())
    }
}
