//! The plugins that a worker may run.

use crate::limits;

/// The plugins that a worker may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capabilities {
    /// Any plugin (`*`).
    Any,
    /// These plugins.
    Plugins(Vec<String>),
}

impl Capabilities {
    /// From the list in IDENTIFY.
    pub fn new(names: &[String]) -> Self {
        if names.iter().any(|name| name == "*") {
            return Capabilities::Any;
        }
        let mut names: Vec<String> = names
            .iter()
            .take(limits::CAPABILITIES_MAX)
            .cloned()
            .collect();
        names.sort_unstable();
        names.dedup();
        Capabilities::Plugins(names)
    }

    /// True when a worker with these may run the plugin.
    pub fn allows(&self, plugin: &str) -> bool {
        match self {
            Capabilities::Any => true,
            Capabilities::Plugins(names) => names
                .binary_search_by(|name| name.as_str().cmp(plugin))
                .is_ok(),
        }
    }

    /// The intersection with `others`.
    pub fn within(&self, others: &Capabilities) -> Capabilities {
        match (self, others) {
            (_, Capabilities::Any) => self.clone(),
            (Capabilities::Any, _) => others.clone(),
            (Capabilities::Plugins(names), _) => {
                let names = names.iter().filter(|name| others.allows(name));
                Capabilities::Plugins(names.cloned().collect())
            }
        }
    }

    /// The names as IDENTIFY lists them.
    pub fn names(&self) -> Vec<String> {
        match self {
            Capabilities::Any => vec!["*".to_owned()],
            Capabilities::Plugins(names) => names.clone(),
        }
    }
}
