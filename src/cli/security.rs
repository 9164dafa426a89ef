//! The flags for CURVE and local users, and `keygen`.

#[cfg(feature = "worker")]
use std::ffi::OsString;
use std::path::PathBuf;

use super::args::{Values, flags, values};
use super::{Failure, usage_error};
#[cfg(feature = "sentinel")]
use crate::sentinel;
use crate::socket::Security;

#[cfg(all(feature = "sentinel", feature = "worker"))]
pub(super) use keygen::{COMMAND as KEYGEN, keygen};

flags! {
    /// The secret key of a sentinel or worker.
    pub(super) struct SecretKeyFlag {
        /// Encrypt (CURVE) with the secret key of this file, which
        /// `casparian keygen` makes
        curve_secret_key: Option<PathBuf> = "curve-secret-key", "FILE" => values::path;
    }
}

#[cfg(feature = "sentinel")]
flags! {
    /// The keys of a sentinel and of its clients.
    pub(super) struct SentinelKeyFlags {
        /// Its own key.
        own: SecretKeyFlag;
        /// Workers that may connect, with CURVE: a public key and a name
        /// a line, then slots=N and plugins=A,B as limits where wanted;
        /// followed while it runs, and read again at SIGHUP
        authorized_keys: Option<PathBuf> = "authorized-keys", "FILE" => values::path;
        /// With CURVE, any worker that knows our public key may connect
        authorize_any_key: bool = "authorize-any-key";
    }
}

#[cfg(feature = "worker")]
flags! {
    /// The key of the sentinel to which a program connects.
    pub(super) struct ServerKeyFlag {
        /// Encrypt (CURVE), and connect only to the sentinel with this
        /// public key; KEY is its text or a file with it
        curve_server_key: Option<OsString> = "curve-server-key", "KEY" => values::bytes;
    }
}

#[cfg(feature = "worker")]
flags! {
    /// The users whose sentinels a program accepts.
    pub(super) struct ListenerFlag {
        /// Without CURVE, another user of this host whose sentinel is
        /// trusted, by number; may be repeated (default: the own user and
        /// root)
        allow_uid: Vec<u32> = "allow-uid", "UID" => uids;
    }
}

/// Numbers of users.
pub(super) fn uids(values: &Values) -> Result<Vec<u32>, Failure> {
    let given = values.all().iter().map(|text| {
        let number = text.to_str().and_then(|text| text.parse::<u32>().ok());
        // The highest number is not a user: system calls use it as "unchanged".
        number.filter(|uid| *uid != u32::MAX).ok_or_else(|| {
            values.error(
                text.display(),
                "expected the number of a user (`id -u NAME`)",
            )
        })
    });
    given.collect()
}

/// The users of `--allow-uid`. Only for peers that `security` does not authenticate.
pub(super) fn allowed_uids(uids: Vec<u32>, security: &Security) -> Result<Vec<u32>, Failure> {
    match uids.is_empty() || !security.is_encrypted() {
        true => Ok(uids),
        false => Err(usage_error("--allow-uid is for peers without CURVE")),
    }
}

/// Applies the keys of a sentinel.
#[cfg(all(feature = "curve", feature = "sentinel"))]
pub(super) fn sentinel(
    flags: &SentinelKeyFlags,
    options: &mut sentinel::Options,
) -> Result<(), Failure> {
    use crate::socket::curve::{Clients, CurveServer};
    use crate::socket::keyfile::{AuthorizedKeysFile, read_secret_key};
    let (list, any) = (&flags.authorized_keys, flags.authorize_any_key);
    let Some(secret) = &flags.own.curve_secret_key else {
        return match list.is_some() || any {
            true => Err(usage_error(
                "--authorized-keys and --authorize-any-key need --curve-secret-key",
            )),
            false => Ok(()),
        };
    };
    let secret = read_secret_key(secret).map_err(super::failed)?;
    let clients = match (list, any) {
        (Some(path), false) => {
            let file = AuthorizedKeysFile::open(path).map_err(super::failed)?;
            let keys = file.keys();
            options.authorized_keys = Some(file);
            Clients::Listed(keys)
        }
        (None, true) => Clients::Any,
        _ => {
            return Err(usage_error(
                "--curve-secret-key needs --authorized-keys or --authorize-any-key, not both",
            ));
        }
    };
    options.security = Security::CurveServer(CurveServer { secret, clients });
    Ok(())
}

/// Evaluates the keys of a program that connects. A worker without a secret key generates one, which only a
/// sentinel with --authorize-any-key accepts.
#[cfg(all(feature = "curve", feature = "worker"))]
pub(super) fn worker(
    server: &ServerKeyFlag,
    secret: Option<&PathBuf>,
) -> Result<Security, Failure> {
    use crate::socket::curve::{CurveClient, SecretKey};
    use crate::socket::keyfile::{read_public_key, read_secret_key};
    let Some(server) = &server.curve_server_key else {
        return match secret {
            Some(_) => Err(usage_error("--curve-secret-key needs --curve-server-key")),
            None => Ok(Security::Null),
        };
    };
    let server = read_public_key(server).map_err(super::failed)?;
    let secret = match secret {
        Some(path) => read_secret_key(path).map_err(super::failed)?,
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

/// Refuses the first flag of CURVE that was given.
#[cfg(not(feature = "curve"))]
fn refuse(flags: &[(&str, bool)]) -> Result<(), Failure> {
    match flags.iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => Err(usage_error(format!(
            "--{flag}: this build has no CURVE (feature `curve`)"
        ))),
        None => Ok(()),
    }
}

/// Refuses the flags of CURVE.
#[cfg(all(not(feature = "curve"), feature = "sentinel"))]
pub(super) fn sentinel(
    flags: &SentinelKeyFlags,
    _options: &mut sentinel::Options,
) -> Result<(), Failure> {
    refuse(&[
        ("curve-secret-key", flags.own.curve_secret_key.is_some()),
        ("authorized-keys", flags.authorized_keys.is_some()),
        ("authorize-any-key", flags.authorize_any_key),
    ])
}

/// Refuses the flags of CURVE.
#[cfg(all(not(feature = "curve"), feature = "worker"))]
pub(super) fn worker(
    server: &ServerKeyFlag,
    secret: Option<&PathBuf>,
) -> Result<Security, Failure> {
    refuse(&[
        ("curve-secret-key", secret.is_some()),
        ("curve-server-key", server.curve_server_key.is_some()),
    ])?;
    Ok(Security::Null)
}

#[cfg(all(feature = "sentinel", feature = "worker"))]
mod keygen {
    use std::ffi::OsString;
    use std::path::Path;

    use crate::cli::args::{Command, flags, values};
    use crate::cli::{Failure, failed, print, usage_error};
    use crate::sentinel::publishers::{is_name, read_publisher, write_publisher};

    flags! {
        /// The flags of `keygen`.
        pub(in crate::cli) struct KeygenFlags {
            /// A key that signs plugins (Ed25519) instead of one for connections
            /// (CURVE)
            publisher: bool = "publisher";
            /// Name behind the public key (default: the file's name)
            name: Option<String> = "name", "NAME" => values::text;
            /// Replace files that are there already
            force: bool = "force";
            /// Make nothing, print the public key of the secret key in FILE
            show: bool = "show";
        }
    }

    pub(in crate::cli) const COMMAND: Command<KeygenFlags> = Command {
        name: "casparian keygen",
        about: "Makes a key pair: of a sentinel or worker, or of a publisher",
        usage: "[OPTIONS] FILE",
        flags: KeygenFlags::TABLE,
        notes: "FILE gets the secret key, for --curve-secret-key; only its owner may read it.\n\
                FILE.pub gets the public key and the name, which are printed as well: the line for\n\
                the sentinel's --authorized-keys, or the key for the workers' --curve-server-key.\n\
                With --publisher FILE is for --publisher-key of `sign` and `deploy`, and the line for the\n\
                sentinel's --trusted-publishers.",
    };

    pub(in crate::cli) fn keygen(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<(), Failure> {
        let (flags, positionals) = COMMAND.parse(arguments)?;
        let path = match positionals.as_slice() {
            [] => return Err(usage_error("FILE is missing")),
            [path] if path.is_empty() => return Err(usage_error("FILE is empty")),
            [path] => Path::new(path),
            _ => return Err(usage_error("more than one FILE")),
        };
        if path.extension().is_some_and(|extension| extension == "pub") {
            return Err(usage_error(
                "FILE is for the secret key, FILE.pub for the public one: give a name \
                 without .pub",
            ));
        }
        let (show, replace) = (flags.show, flags.force);
        if show && replace {
            return Err(usage_error("--show replaces nothing: no --force"));
        }
        let name = match flags.name {
            Some(name) => name,
            None => path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
        };
        if name.len() > crate::limits::NAME_SIZE_MAX || name.contains(char::is_control) {
            return Err(usage_error(
                "--name must be at most 255 bytes without control characters",
            ));
        }
        let line = match flags.publisher {
            // The name is stored with the key.
            true if show => read_publisher(path).map_err(failed)?.public_line(),
            true if !is_name(&name) => {
                return Err(usage_error(
                    "--name must not be empty, and no blanks may stand at its ends",
                ));
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
        Err(usage_error(
            "this build has no CURVE (feature `curve`); only --publisher is possible",
        ))
    }
}
