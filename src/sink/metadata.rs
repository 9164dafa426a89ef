//! Merges the metadata of schemas and fields of several batches. The result does not depend on the order
//! of the batches.

use std::collections::BTreeSet;

use arrow::datatypes::{DataType, Field, FieldRef, Metadata};

use super::types::{EXTENSION, EXTENSION_METADATA};
use super::{Error, geo, pandas};

/// Why two fields cannot be merged.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Clash {
    /// No type can store the values of both.
    Types,
    /// A key of their metadata has different values.
    Metadata {
        /// Names of the field and its parents, innermost first.
        path: Vec<String>,
        key: String,
        first: String,
        second: String,
    },
}

/// Keys that are not copied: a key of the bridge, and one that the Parquet writer sets.
const OWN_KEYS: [&str; 2] = ["casparian.topic", "ARROW:schema"];
/// Key of pandas' metadata of a data frame.
const PANDAS: &str = "pandas";
/// Key of GeoParquet's metadata.
pub(super) const GEO: &str = "geo";
/// Prefix of keys about a field's position in the Parquet file that it was read from.
const PARQUET_KEYS: &str = "PARQUET:";

/// The merged metadata of all batches of a sink so far.
pub(super) struct FileMetadata {
    kept: Metadata,
    /// Keys that had different values in two batches.
    left_out: BTreeSet<String>,
    /// True when a batch had no metadata of GeoParquet.
    lacks_geo: bool,
    /// Columns whose stored type, or whose entry in pandas' metadata, has changed.
    changed: BTreeSet<String>,
}

impl FileMetadata {
    /// The metadata of a first batch.
    pub(super) fn new(first: &Metadata) -> Self {
        let mut kept = first.clone();
        kept.retain(|key, _| !OWN_KEYS.contains(&key.as_str()));
        FileMetadata {
            lacks_geo: !kept.contains_key(GEO),
            kept,
            left_out: BTreeSet::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Adds the metadata of a further batch. A key with another value is left out; the plugin process
    /// logs a warning about it. The metadata of pandas and GeoParquet is merged. An error when the
    /// meaning of a geometry column differs, for example its coordinate reference system.
    pub(super) fn add(&mut self, next: &Metadata) -> Result<(), Error> {
        self.lacks_geo |= !next.contains_key(GEO);
        for (key, value) in next {
            if OWN_KEYS.contains(&key.as_str()) || self.left_out.contains(key) {
                continue;
            }
            let merged = match self.kept.get(key) {
                Some(first) if first == value => continue,
                None => Some(value.clone()),
                Some(first) if key == PANDAS => pandas::merge(first, value, &mut self.changed),
                Some(first) if key == GEO => geo::merge(first, value)?,
                Some(_) => None,
            };
            match merged {
                Some(merged) => {
                    self.kept.insert(key.clone(), merged);
                }
                None => {
                    self.kept.remove(key);
                    self.left_out.insert(key.clone());
                }
            }
        }
        Ok(())
    }

    /// Bytes of the metadata.
    pub(super) fn size(&self) -> usize {
        let sizes = self.kept.iter().map(|(key, value)| key.len() + value.len());
        sizes.chain(self.left_out.iter().map(String::len)).sum()
    }

    /// Notes that the stored type of a column has changed.
    pub(super) fn change(&mut self, column: &str) {
        self.changed.insert(column.to_owned());
    }

    /// The metadata of a file with these columns, and notes on what was left out of it. `own` are the names
    /// of the ID columns among them.
    pub(super) fn of_file(&self, fields: &[FieldRef], own: &[&str]) -> (Metadata, Vec<String>) {
        let mut metadata = self.kept.clone();
        let mut notes = Vec::new();
        if let Some(text) = metadata.remove(PANDAS) {
            let names: BTreeSet<&str> = fields.iter().map(|field| field.name().as_str()).collect();
            let adapted = pandas::adapt(&text, &names, &self.changed, own);
            metadata.extend(adapted.map(|text| (PANDAS.to_owned(), text)));
        }
        let given = metadata.remove(GEO).and_then(|text| {
            let text = match self.lacks_geo {
                true => geo::without_bounds(&text),
                false => text,
            };
            geo::of_file(&text, fields, &mut notes)
        });
        let geo = match self.left_out.contains(GEO) {
            true => {
                notes.push(format!(
                    "metadata {GEO:?} of the schema cannot be merged over all batches and was left out"
                ));
                None
            }
            false => given.or_else(|| geo::of_fields(fields)),
        };
        metadata.extend(geo.map(|text| (GEO.to_owned(), text)));
        (metadata, notes)
    }
}

/// Merges the metadata of two fields. If only one field has values, its extension type is kept. If both
/// have values and only one has an extension type, the result has none.
pub(super) fn merge_fields(first: &Field, second: &Field) -> Result<Metadata, Clash> {
    let extension = |field: &Field| {
        let of = |key: &str| field.metadata().get(key).cloned();
        of(EXTENSION).map(|name| (name, of(EXTENSION_METADATA)))
    };
    let (mine, others) = (extension(first), extension(second));
    let extension = match (first.data_type(), second.data_type()) {
        (_, DataType::Null) => mine,
        (DataType::Null, _) => others,
        _ if mine == others => mine,
        // Values of different extension types cannot be merged.
        _ if mine.is_some() && others.is_some() => return Err(Clash::Types),
        _ => None,
    };
    let mut metadata = first.metadata().clone();
    for (key, value) in second.metadata() {
        let is_extension = [EXTENSION, EXTENSION_METADATA].contains(&key.as_str());
        match metadata.get(key) {
            Some(other) if other != value && key.starts_with(PARQUET_KEYS) => {
                metadata.remove(key);
            }
            Some(other) if other != value && !is_extension => {
                return Err(Clash::Metadata {
                    path: Vec::new(),
                    key: key.clone(),
                    first: other.clone(),
                    second: value.clone(),
                });
            }
            _ => {
                metadata.insert(key.clone(), value.clone());
            }
        }
    }
    metadata.remove(EXTENSION);
    metadata.remove(EXTENSION_METADATA);
    if let Some((name, parameters)) = extension {
        metadata.insert(EXTENSION.to_owned(), name);
        metadata.extend(parameters.map(|text| (EXTENSION_METADATA.to_owned(), text)));
    }
    Ok(metadata)
}
