//! Sink URIs: a relative path must stay below the output root.

use std::path::Component;

use casparian::job::{Target, parse_uri};

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match parse_uri(text) {
        Ok(Target::Parquet { path, .. }) => {
            assert!(path.components().count() > 0);
            assert!(
                path.components()
                    .all(|part| matches!(part, Component::Normal(_))),
                "{path:?} leaves the output root"
            );
        }
        Ok(Target::Sqlite { database, table }) => {
            assert!(!table.is_empty());
            assert!(
                database
                    .components()
                    .all(|part| part != Component::ParentDir),
                "{database:?} leaves the output root"
            );
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
