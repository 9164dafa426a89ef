//! The second layer's Landlock rulesets. A plugin process gets them as descriptors and puts itself under
//! them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};

/// The newest of Landlock's versions whose rules are used.
const VERSION: ABI = ABI::V6;

/// Version of Landlock's interface that the kernel has; 0 = none.
pub fn landlock_version() -> u32 {
    // Each version is asked for what it brought; the crate does not give the number.
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

/// The ruleset of [`super::Mode::On`]: processes cannot signal those outside it, nor connect to their
/// abstract sockets, and by being in it at all cannot trace them or read their memory. None where the
/// kernel has no Landlock.
pub fn on(version: u32) -> io::Result<Option<OwnedFd>> {
    Ok(on_ruleset(version)?.and_then(Into::into))
}

fn on_ruleset(version: u32) -> io::Result<Option<RulesetCreated>> {
    let ruleset = Ruleset::default();
    let ruleset = match version {
        // Version 1 would refuse renames between folders.
        0 | 1 => return Ok(None),
        // What it handles must be something: renames between folders, which are allowed.
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

/// Puts this process under the ruleset of [`super::Mode::On`]; it must not gain privileges any more.
pub(super) fn restrict(version: u32) -> io::Result<()> {
    if let Some(ruleset) = on_ruleset(version)? {
        ruleset.restrict_self().map_err(io::Error::other)?;
    }
    Ok(())
}

/// What a process under [`super::Mode::Strict`] may reach.
#[derive(Clone, Copy, Debug)]
pub struct Reach<'a> {
    /// Read and run, with all below.
    pub readable: &'a [&'a Path],
    /// Changed, with all below.
    pub writable: &'a [&'a Path],
}

/// The ruleset of [`super::Mode::Strict`]. Paths that are not there are left out.
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
