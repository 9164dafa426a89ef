//! The command `deploy`, to a database or through a sentinel.

use std::ffi::OsString;

use super::args::{Command, flags, values};
use super::folder::Others;
use super::operate::{DatabaseFlag, warn_of_owner};
use super::plugin::{ParamFlag, PluginFlags, prepare};
use super::publish::{self, RemoteFlags};
use super::table::one_line;
use super::{Failure, failed_in, print_done, usage_error};
use crate::reactor::Endpoint;
use crate::sentinel::clock::unix_ms;
use crate::store::{Deploy, Open, Store};

flags! {
    /// The flags of `deploy`.
    pub(super) struct DeployFlags {
        /// The database.
        location: DatabaseFlag;
        /// What belongs to the plugin.
        plugin: PluginFlags;
        /// Deploy through this sentinel instead of its database; the
        /// plugin needs a MANIFEST, and a signature unless the sentinel
        /// has --allow-unsigned. PLUGIN may be a file that
        /// `casparian sign` has made
        connect: Option<Endpoint> = "connect" | 'c', "ENDPOINT" => values::endpoint;
        /// Default parameters of its jobs.
        parameters: ParamFlag;
        /// What needs --connect.
        remote: RemoteFlags;
    }
}

pub(super) const DEPLOY: Command<DeployFlags> = Command {
    name: "casparian deploy",
    about: "Registers a plugin in a database: new jobs run this version",
    usage: "PLUGIN (--database DB | --connect ENDPOINT) [OPTIONS]",
    flags: DeployFlags::TABLE,
    notes: "PLUGIN is a file, or a folder with all its files (docs/plugins.md). Its name is that of the file\nwithout .py, or of the folder. --param replaces the default parameters that the database has\nof the plugin; without it they stay. Sinks of its MANIFEST count for\ntopics that cf_topic_config has none for. A plugin has at most 8 MiB, the files of a folder 5 MiB,\na lockfile 4 MiB, plugin and lockfile together 10 MiB.",
};

pub(super) fn deploy(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let (flags, positionals) = DEPLOY.parse(arguments)?;
    let others = others(&flags);
    let parameters = flags.parameters.param;
    if let Some(endpoint) = &flags.connect {
        if flags.location.database.is_some() {
            return Err(usage_error("--database and --connect exclude each other"));
        }
        if !parameters.is_empty() {
            return Err(usage_error(
                "--param: a sentinel takes no default parameters; they are set by `casparian deploy \
                 --database`, and for a job by `casparian submit --param`",
            ));
        }
        return publish::deploy(&positionals, endpoint, &flags.plugin, flags.remote, &others);
    }
    if let Some(flag) = flags.remote.first_given() {
        return Err(usage_error(format!("--{flag} needs --connect")));
    }
    if positionals.len() != 1 {
        return Err(usage_error("expected one plugin"));
    }
    // A JSON file is valid Python, so the syntax check would accept it.
    if publish::signed_file(&positionals).is_some() {
        return Err(usage_error(
            "a signed plugin goes through a sentinel: it needs --connect",
        ));
    }
    let location = flags.location.required()?;
    warn_of_owner(&location);
    let mut store = Store::open(&location, Open::Existing).map_err(failed_in(&location))?;
    let prepared = prepare(&positionals, &flags.plugin, &others)?;
    let plugin = &prepared.plugin;
    let mut transaction = store.begin().map_err(failed_in(&location))?;
    let deployed = transaction
        .deploy(
            &Deploy {
                plugin_name: &plugin.name,
                version: prepared.version.as_deref(),
                source_code: &plugin.source,
                lockfile_content: &prepared.lockfile,
                sinks: &prepared.sinks,
            },
            unix_ms(),
        )
        .map_err(failed_in(&location))?;
    if !parameters.is_empty() {
        transaction
            .set_default_parameters(&plugin.name, &parameters)
            .map_err(failed_in(&location))?;
    }
    transaction.commit().map_err(failed_in(&location))?;
    let what = if deployed.new {
        "deployed"
    } else {
        "was known, now runs again"
    };
    let done = format!("{} {} {what}", plugin.name, deployed.version);
    print_done(&format!("{}\n", one_line(&done)), &done)
}

/// Paths that the command line names besides the plugin: keys, lockfile, database.
fn others(flags: &DeployFlags) -> Others {
    let named = [
        &flags.plugin.lockfile,
        &flags.remote.signer.publisher_key,
        &flags.remote.curve_secret_key,
    ];
    let mut others = Others::new(named.into_iter().flatten().map(|path| path.as_os_str()));
    if let Some(database) = &flags.location.database {
        others.add_database(database);
    }
    others
}
