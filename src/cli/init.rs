//! The command `init`.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;

use super::args::{Command, Values, flags, values};
use super::operate::warn_of_owner;
use super::{Failure, failed, failed_in, print_done, usage_error};
use crate::store::{Open, Store, lock_database, parse_location};

flags! {
    /// The flags of `init`.
    pub(super) struct InitFlags {
        /// Permissions of the database in octal, e.g. 660 (default
        /// 600 for a new one; an existing one keeps its own)
        mode: Option<u32> = "mode", "MODE" => mode;
        /// Give a copied or restored database an identity of its own
        new_identity: bool = "new-identity";
    }
}

pub(super) const INIT: Command<InitFlags> = Command {
    name: "casparian init",
    about: "Creates a database, or brings an existing one up to date",
    usage: "DB [OPTIONS]",
    flags: InitFlags::TABLE,
    notes: "A database of the old system is kept as it is and gets new columns, tables and\nindexes; the old programs go on working with it.\n\nOutput belongs to a database by its identity. After a database was copied, or restored from a\nbackup, stop its sentinel and run `casparian init --new-identity DB` on the copy. Its jobs then\nleave alone what was published before, also by jobs that were RUNNING or not settled, which are\nnamed. They publish into an output folder of their own, or share one with `--share-output`.",
};

pub(super) fn init(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let (flags, positionals) = INIT.parse(arguments)?;
    let [text] = positionals.as_slice() else {
        return Err(usage_error("expected one database"));
    };
    let path = parse_location(text).map_err(usage_error)?;
    if flags.new_identity {
        let _lock = lock_database(&path, Open::Existing).map_err(failed_in(&path))?;
        let mut store = Store::open(&path, Open::Existing).map_err(failed_in(&path))?;
        let (count, jobs) = store.unreported_output(10).map_err(failed_in(&path))?;
        let id = store.new_identity().map_err(failed_in(&path))?;
        let done = format!("{} has the identity {id}", path.display());
        let mut text = format!("{done}\n");
        if count > 0 {
            let jobs: Vec<String> = jobs.iter().map(i64::to_string).collect();
            let more = if count > jobs.len() { ", …" } else { "" };
            text.push_str(&format!(
                "Jobs that were RUNNING or not settled: {count} ({}{more}). What they had published \
                 under the earlier identity\nstays, and no row names it: search for their files in \
                 the output folders.\n",
                jobs.join(", ")
            ));
        }
        return print_done(&text, &done);
    }
    let was_there = path.exists();
    warn_of_owner(&path);
    Store::open(&path, Open::Create).map_err(failed_in(&path))?;
    if let Some(mode) = flags.mode {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&path, permissions)
            .map_err(|error| failed(format!("database {}: {error}", path.display())))?;
    }
    let what = if was_there {
        "is up to date"
    } else {
        "created"
    };
    let done = format!("{} {what}", path.display());
    print_done(&format!("{done}\n"), &done)
}

/// Permissions in octal. They must include read and write permission for the owner.
fn mode(values: &Values) -> Result<Option<u32>, Failure> {
    let Some(text) = values::text(values)? else {
        return Ok(None);
    };
    let mode = u32::from_str_radix(&text, 8).ok();
    let mode = mode.filter(|mode| *mode <= 0o777 && mode & 0o600 == 0o600);
    let expected = "expected three octal digits from 600 to 777, e.g. 660";
    mode.map(Some).ok_or_else(|| values.error(&text, expected))
}
