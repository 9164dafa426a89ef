//! The second layer's Landlock rulesets. A plugin process receives them as descriptors and applies them
//! to itself.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};

/// The newest Landlock ABI version whose rules are used.
const VERSION: ABI = ABI::V6;

/// Version of the kernel's Landlock ABI; 0 = no Landlock.
pub fn landlock_version() -> u32 {
    // The crate does not return the version. So for each version a feature is tried that it introduced.
    let has = |version: u32, ruleset: Result<Ruleset, landlock::RulesetError>| {
        let created = ruleset.and_then(Ruleset::create);
        created.is_ok().then_some(version)
    };
    let hard = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let versions = [
        has(6, hard().scope(Scope::Signal)),
        has(5, hard().handle_access(AccessFs::IoctlDev)),
        has(4, hard().handle_access(AccessNet::ConnectTcp)),
        has(3, hard().handle_access(AccessFs::Truncate)),
        has(2, hard().handle_access(AccessFs::Refer)),
        has(1, hard().handle_access(AccessFs::MakeBlock)),
    ];
    versions.into_iter().flatten().max().unwrap_or(0)
}

/// The ruleset of [`super::Mode::On`]. Processes in it cannot signal processes outside it, nor connect to
/// their abstract sockets (both from version 6). Any ruleset also prevents them from tracing processes
/// outside it and reading their memory. `None` for versions 0 and 1.
pub fn on(version: u32) -> io::Result<Option<OwnedFd>> {
    Ok(on_ruleset(version)?.and_then(Into::into))
}

fn on_ruleset(version: u32) -> io::Result<Option<RulesetCreated>> {
    let ruleset = Ruleset::default();
    let ruleset = match version {
        // Version 1 would refuse renames between folders.
        0 | 1 => return Ok(None),
        // A ruleset must handle some access right. This one handles renames between folders, and allows
        // them.
        2..=5 => ruleset.handle_access(AccessFs::Refer),
        _ => ruleset.scope(Scope::from_all(VERSION)),
    };
    let mut created = ruleset
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    if version < 6 {
        let everywhere = PathFd::new("/").map_err(io::Error::other)?;
        created = created
            .add_rule(PathBeneath::new(everywhere, AccessFs::Refer))
            .map_err(io::Error::other)?;
    }
    Ok(Some(created))
}

/// Applies the ruleset of [`super::Mode::On`] to this process, which must have set `no_new_privs`.
pub(super) fn restrict(version: u32) -> io::Result<()> {
    if let Some(ruleset) = on_ruleset(version)? {
        ruleset.restrict_self().map_err(io::Error::other)?;
    }
    Ok(())
}

/// The files and folders that a process in [`super::Mode::Strict`] may access.
#[derive(Clone, Copy, Debug)]
pub struct Reach<'a> {
    /// Files and folders that may be read and executed, with all that is below them.
    pub readable: &'a [&'a Path],
    /// Files and folders that may be changed, with all that is below them.
    pub writable: &'a [&'a Path],
}

/// The ruleset of [`super::Mode::Strict`]. Paths that do not exist are left out.
pub fn strict(reach: Reach<'_>) -> io::Result<Option<OwnedFd>> {
    let all = AccessFs::from_all(VERSION);
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(VERSION)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(VERSION)))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    let rules = |paths: &[&Path], access: BitFlags<AccessFs>| {
        let rules = paths.iter().filter_map(|path| {
            let found = PathFd::new(path).ok()?;
            let access = match path.is_dir() {
                true => access,
                false => access & AccessFs::from_file(VERSION),
            };
            Some(Ok::<_, landlock::RulesetError>(PathBeneath::new(
                found, access,
            )))
        });
        rules.collect::<Vec<_>>()
    };
    let read = AccessFs::from_read(VERSION);
    let mut ruleset = ruleset;
    for rules in [rules(reach.readable, read), rules(reach.writable, all)] {
        ruleset = ruleset.add_rules(rules).map_err(io::Error::other)?;
    }
    Ok(ruleset.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rulesets_can_be_made() {
        let version = landlock_version();
        assert_eq!(on(version).unwrap().is_some(), version > 1);
        let missing = Path::new("/nonexistent");
        let reach = Reach {
            readable: &[Path::new("/usr"), Path::new("/dev/null"), missing],
            writable: &[Path::new("/tmp"), missing],
        };
        assert_eq!(strict(reach).unwrap().is_some(), version > 0);
    }
}
