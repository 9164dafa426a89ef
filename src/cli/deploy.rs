//! The command `deploy`, to a database or through a sentinel.

use std::ffi::OsString;

use super::args::{Command, Flag};
use super::operate::{DATABASE_FLAG, database, warn_of_owner};
use super::plugin::{LOCKFILE_FLAG, PARAM_FLAG, VERSION_FLAG, parameters, prepare};
use super::table::one_line;
use super::{Failure, failed_in, print_done, publish, security};
use crate::sentinel::clock::unix_ms;
use crate::store::{Deploy, Open, Store};

pub(super) const DEPLOY: Command = Command {
    name: "casparian deploy",
    about: "Registers a plugin in a database: new jobs run this version",
    usage: "PLUGIN (--database DB | --connect ENDPOINT) [OPTIONS]",
    flags: &[
        DATABASE_FLAG,
        LOCKFILE_FLAG,
        VERSION_FLAG,
        Flag {
            long: "connect",
            short: Some('c'),
            value: Some("ENDPOINT"),
            help: "Deploy through this sentinel instead of its database; the\nplugin needs a MANIFEST, and a signature unless the sentinel\nhas --allow-unsigned. PLUGIN may be a file that\n`casparian sign` has made",
        },
        PARAM_FLAG,
        publish::PUBLISHER_KEY_FLAG,
        Flag {
            long: "publisher",
            short: None,
            value: Some("NAME"),
            help: "Who deploys, where nothing is signed (default: the user's\nname)",
        },
        publish::SERVER_KEY_FLAG,
        publish::SECRET_KEY_FLAG,
        security::LISTENER_UID_FLAG,
    ],
    notes: "PLUGIN is a file, or a folder with all its files (docs/plugins.md). Its name is that of the file\nwithout .py, or of the folder. --param replaces the default parameters that the database has\nof the plugin; without it they stay. Sinks of its MANIFEST count for\ntopics that cf_topic_config has none for. A plugin has at most 8 MiB, the files of a folder 5 MiB,\na lockfile 4 MiB, plugin and lockfile together 10 MiB.",
};

pub(super) fn deploy(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let typed = DEPLOY.parse(arguments)?;
    if typed.has("connect") {
        return publish::deploy(&DEPLOY, &typed);
    }
    if let Some(flag) = publish::FLAGS.iter().find(|flag| typed.has(flag)) {
        return Err(DEPLOY
            .usage_error(format!("--{flag} needs --connect"))
            .into());
    }
    if typed.positionals.len() != 1 {
        return Err(DEPLOY.usage_error("expected one plugin").into());
    }
    // A JSON file is valid Python, so the syntax check would accept it.
    if publish::signed_file(&typed).is_some() {
        let what = "a signed plugin goes through a sentinel: it needs --connect";
        return Err(DEPLOY.usage_error(what).into());
    }
    let parameters = parameters(&DEPLOY, &typed)?;
    let location = database(&DEPLOY, &typed)?;
    warn_of_owner(&location);
    let mut store = Store::open(&location, Open::Existing).map_err(failed_in(&location))?;
    let prepared = prepare(&DEPLOY, &typed)?;
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
    if typed.has("param") {
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
