//! The command `sentinel`, which is also the program `casparian-sentinel`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::{default_endpoint, note_keys};
use crate::cli::args::{Command, flags, no_positionals, values};
use crate::cli::security::{self, SentinelKeyFlags, uids};
use crate::cli::{Failure, failed, log_lines, named, usage_error};
use crate::limits;
use crate::reactor::Endpoint;
use crate::{sentinel, store};

flags! {
    /// The flags of `sentinel`.
    pub(in crate::cli) struct SentinelFlags {
        /// Where workers connect (default tcp://127.0.0.1:5555):
        /// tcp://host:port, ipc:///path, ipc://@name
        bind: Option<Endpoint> = "bind" | 'b', "ENDPOINT" => values::endpoint;
        /// Path or sqlite:// URL (default sqlite://casparian_flow.db);
        /// made when it is missing
        database: Option<PathBuf> = "database" | 'd', "DB" => values::path;
        /// How long a worker may go on without an answer of the sentinel;
        /// its jobs go to others 2 s later (default 10)
        lease: Option<Duration> =
            "lease", "SECONDS" => values::seconds(1..=limits::LEASE_SECONDS_MAX as u64);
        /// A job that its worker has not ended by then goes to another one;
        /// longer than any job, and than --job-timeout of the workers
        /// (default 86400)
        attempt_timeout: Option<Duration> =
            "attempt-timeout", "SECONDS" => values::seconds(1..=values::YEAR_SECONDS);
        /// A larger message of a worker costs it its connection (default
        /// 1048576); receipts may have 8 MiB at least
        max_message_size: Option<usize> = "max-message-size", "BYTES" => values::number(
            limits::WORKER_MESSAGE_SIZE_MAX as u64..=limits::ZMTP_MESSAGE_SIZE_MAX
        );
        /// Retries of a job that lost its worker (default 3). Faults of
        /// environments and workers get 10, or N if that is more; 0: none
        retries: Option<u32> = "retries", "N" => values::number(0..=1_000_000);
        /// Bind an address that other hosts reach without encryption
        insecure: bool = "insecure";
        /// Without CURVE, another user of this host that may connect, by
        /// number; may be repeated (default: its own user and root). They must
        /// be able to enter the folder of an ipc socket
        allow_uid: Vec<u32> = "allow-uid", "UID" => uids;
        /// Its keys and those of its clients.
        keys: SentinelKeyFlags;
        /// Clients may deploy plugins that one of these publishers has
        /// signed: a public key and a name a line; followed while it
        /// runs, and read again at SIGHUP
        trusted_publishers: Option<PathBuf> = "trusted-publishers", "FILE" => values::path;
        /// Clients that may connect may deploy plugins without a signature
        allow_unsigned: bool = "allow-unsigned";
    }
}

const fn sentinel_command(name: &'static str) -> Command<SentinelFlags> {
    Command {
        name,
        about: "Serves the job queue of a database to workers",
        usage: "[OPTIONS]",
        flags: SentinelFlags::TABLE,
        notes: "An address that other hosts reach needs CURVE (--curve-secret-key with\n--authorized-keys or --authorize-any-key) or --insecure.\n\nSIGTERM or SIGINT: no more jobs are given out, running ones may end within 30 s;\na second one ends it at once.",
    }
}

pub(in crate::cli) const SENTINEL: Command<SentinelFlags> = sentinel_command("casparian-sentinel");
#[cfg(feature = "worker")]
pub(in crate::cli) const CASPARIAN_SENTINEL: Command<SentinelFlags> =
    sentinel_command("casparian sentinel");

pub(in crate::cli) fn main(
    command: &Command<SentinelFlags>,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(), Failure> {
    let (flags, positionals) = command.parse(arguments)?;
    no_positionals(&positionals)?;
    let bind = flags.bind.unwrap_or_else(default_endpoint);
    let database = flags.database.unwrap_or("casparian_flow.db".into());
    let database = store::parse_location(database).map_err(usage_error)?;
    let is_local = bind.is_local();
    let mut options = sentinel::Options::new(bind, database);
    security::sentinel(&flags.keys, &mut options)?;
    options.allowed_uids = security::allowed_uids(flags.allow_uid, &options.security)?;
    let is_open = !is_local && !options.security.is_encrypted();
    if is_open && !flags.insecure {
        return Err(failed(format!(
            "{} can be reached by other hosts and is not encrypted; use --curve-secret-key, or \
             --insecure if the network is trusted",
            options.bind
        )));
    }
    options.lease = flags.lease.unwrap_or(options.lease);
    options.attempt_timeout = flags.attempt_timeout.unwrap_or(options.attempt_timeout);
    options.message_size_max = flags.max_message_size.unwrap_or(options.message_size_max);
    options.retries_max = flags.retries.unwrap_or(options.retries_max);
    if let Some(path) = &flags.trusted_publishers {
        let file = sentinel::publishers::PublishersFile::open(path).map_err(failed)?;
        options.trusted_publishers = Some(file);
    }
    options.allow_unsigned = flags.allow_unsigned;
    log_lines::start("info");
    if let Some(file) = &options.trusted_publishers
        && file.keys().is_empty()
    {
        let path = file.path().display();
        log::warn!("{path} lists no publisher: no client can deploy with a signature");
    }
    if options.allow_unsigned {
        log::warn!("--allow-unsigned: every client that may connect can run code on the workers");
    }
    #[cfg(feature = "curve")]
    if let Some(file) = &options.authorized_keys
        && file.keys().is_empty()
    {
        log::warn!(
            "{} lists no key: no peer may connect",
            file.path().display()
        );
    }
    if is_open {
        log::warn!(
            "{} is not encrypted: any host that reaches it can run code on the workers",
            options.bind
        );
    }
    raise_descriptor_limit();
    let lists = flags.keys.authorized_keys.into_iter();
    let _noted = note_keys(
        flags.keys.own.curve_secret_key,
        lists.chain(flags.trusted_publishers),
    );
    let sentinel = loop {
        match sentinel::Sentinel::open(options.clone()) {
            Err(error) if error.may_pass() => {
                let reason = named(&options.database, error.to_string());
                log::warn!("{reason}; trying again");
                std::thread::sleep(limits::STORE_OPEN_PAUSE);
            }
            opened => {
                break opened
                    .map_err(|error| failed(named(&options.database, error.to_string())))?;
            }
        }
    };
    sentinel.run().map_err(failed)
}

/// Raises the soft limit of open files, often 1024, to the hard one, because each worker needs a descriptor.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}
