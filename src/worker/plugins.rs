//! Plugin versions that this worker has received. Each is kept in memory once.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use crate::job::Plugin;
use crate::limits;
use crate::plugin::source::Source;

/// Sources by plugin name and artifact hash.
#[derive(Debug, Default)]
pub(super) struct Plugins {
    known: HashMap<(String, String), Source>,
}

impl Plugins {
    /// Returns the kept version that is equal, or keeps this one. Hashes are not compared alone, because a
    /// sentinel of the reference system may send any.
    pub(super) fn intern(&mut self, plugin: Plugin) -> io::Result<Source> {
        let key = (plugin.name.clone(), plugin.artifact_hash.clone());
        if let Some(source) = self.known.get(&key)
            && **source.plugin() == plugin
        {
            return Ok(source.clone());
        }
        if self.known.len() >= limits::PLUGIN_VERSIONS_MAX {
            self.known.clear();
        }
        let source = Source::new(Arc::new(plugin))?;
        self.known.insert(key, source.clone());
        Ok(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_versions_are_kept_once_and_a_wrong_hash_is_not_believed() {
        let plugin = |source: &str| Plugin {
            name: "p".to_owned(),
            source_code: source.to_owned(),
            artifact_hash: "h".to_owned(),
            ..Plugin::default()
        };
        let mut plugins = Plugins::default();
        let first = plugins.intern(plugin("a")).unwrap();
        let again = plugins.intern(plugin("a")).unwrap();
        assert!(Arc::ptr_eq(first.plugin(), again.plugin()));
        let other = plugins.intern(plugin("b")).unwrap();
        assert_eq!(other.plugin().source_code, "b");
    }
}
