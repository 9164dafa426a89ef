//! A plugin's source, kept in memory once for each version, for all its plugin processes.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};

use super::folder;
use super::metadata;
use super::quota::Quota;
use super::script::{self, Script};
use crate::job::Plugin;

/// A version of a plugin, with its source as a sealed memory file: plugin processes can read it and cannot
/// change it.
#[derive(Clone, Debug)]
pub struct Source {
    plugin: Arc<Plugin>,
    file: Arc<OwnedFd>,
    is_strict: bool,
    quota: Quota,
    refusal: Option<script::Error>,
    unpacked_size: u64,
}

impl Source {
    /// Copies the source into a memory file.
    pub fn new(plugin: Arc<Plugin>) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = std::fs::File::from(rustix::fs::memfd_create("plugin", flags)?);
        file.write_all(plugin.source_code.as_bytes())?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        let (script, refusal) = match metadata::of_plugin(&plugin.source_code) {
            Ok(script) => (script.unwrap_or_default(), None),
            Err(error) => {
                let has_settings = metadata::may_have_settings(&plugin.source_code);
                (Script::default(), has_settings.then_some(error))
            }
        };
        let folder = folder::of_source(&plugin.source_code).ok().flatten();
        Ok(Source {
            is_strict: script.is_strict,
            quota: script.quota,
            refusal,
            unpacked_size: folder
                .map_or(0, |folder| folder.unpacked_size(plugin.source_code.len())),
            plugin,
            file: Arc::new(OwnedFd::from(file)),
        })
    }

    /// Why it cannot run: its metadata is invalid and may have settings of Casparian. If it ran without these
    /// settings, it would be restricted less than its author asks for. Metadata that is invalid and cannot
    /// have such settings is ignored.
    pub fn refusal(&self) -> Option<&script::Error> {
        self.refusal.as_ref()
    }

    /// True if the plugin asks for the strict sandbox.
    pub fn is_strict(&self) -> bool {
        self.is_strict
    }

    /// The limits that the plugin asks for.
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Bytes on disk that the plugin process needs to unpack the plugin; 0 for a single file.
    pub fn unpacked_size(&self) -> u64 {
        self.unpacked_size
    }

    /// The plugin.
    pub fn plugin(&self) -> &Arc<Plugin> {
        &self.plugin
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_that_is_invalid_and_has_settings_is_a_refusal() {
        for (source, is_refused) in [
            (
                "# /// script\n# [tool.casparian]\n# sandbox = \"strict\"\n# ///\n",
                false,
            ),
            (
                "# /// script\n# [tool.casparian]\n# job-memory-max = \"1G\"\n# ///\n",
                true,
            ),
            (
                "# /// script\n# [tool.casparian]\n# sandbox = \"STRICT\"\n# ///\n",
                true,
            ),
            (
                "# /// script\n# dependencies = 3\n# tool.casparian.sandbox = \"strict\"\n# ///\n",
                true,
            ),
            (
                "# /// script\n# [tool.casparian]\n# sandbox = \"strict\"\nx = 1\n",
                true,
            ),
            (
                "# /// script\n# dependencies = 3\n# ///\nimport casparian_flow\n",
                false,
            ),
            ("x = 1\n", false),
        ] {
            let plugin = Plugin {
                source_code: source.to_owned(),
                ..Plugin::default()
            };
            let source_file = Source::new(Arc::new(plugin)).unwrap();
            assert_eq!(source_file.refusal().is_some(), is_refused, "{source}");
        }
    }

    #[test]
    fn a_source_can_be_read_and_not_changed() {
        let plugin = Plugin {
            source_code: "class Handler: pass\n".to_owned(),
            ..Plugin::default()
        };
        let source = Source::new(Arc::new(plugin)).unwrap();
        let path = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&*source.file)
        );
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            source.plugin().source_code
        );
        let written = std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(b"x"));
        assert!(written.is_err());
    }
}
