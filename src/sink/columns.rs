//! Columns of a sink: those of the plugin's batches, and the two IDs that every row gets.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::Error;
use crate::limits;

/// Schema metadata that is the bridge's, not the data's.
const TOPIC_KEY: &str = "casparian.topic";
pub(super) const JOB_ID: &str = "_job_id";
pub(super) const FILE_VERSION_ID: &str = "_file_version_id";

/// The sink's schema: the batch's, with the two ids behind it.
pub(super) fn with_ids(schema: &SchemaRef) -> Result<SchemaRef, Error> {
    let mut fields: Vec<Arc<Field>> = schema
        .fields()
        .iter()
        .map(|field| {
            let stored = stored_type(field.data_type());
            Arc::new(field.as_ref().clone().with_data_type(stored))
        })
        .collect();
    let mut names = BTreeSet::new();
    for field in &fields {
        if [JOB_ID, FILE_VERSION_ID].contains(&field.name().as_str()) {
            return Err(Error::Column {
                column: field.name().clone(),
                reason: "the engine adds a column of this name; rename yours".to_owned(),
            });
        }
        if !names.insert(field.name()) {
            return Err(Error::Column {
                column: field.name().clone(),
                reason: "there is more than one column of this name; give each a name of its own"
                    .to_owned(),
            });
        }
    }
    fields.push(Arc::new(Field::new(JOB_ID, DataType::Int64, false)));
    fields.push(Arc::new(Field::new(
        FILE_VERSION_ID,
        DataType::Int64,
        false,
    )));
    let mut metadata = schema.metadata().clone();
    metadata.remove(TOPIC_KEY);
    Ok(Arc::new(Schema::new_with_metadata(fields, metadata)))
}

/// Refuses names that no table of a SQLite database can have, of a schema with the ids.
pub(super) fn check_table(schema: &SchemaRef) -> Result<(), Error> {
    let ids = schema.fields().len().saturating_sub(2);
    let mut names = BTreeSet::new();
    for (index, field) in schema.fields().iter().take(ids).enumerate() {
        let name = field.name().to_ascii_lowercase();
        let reason = if name.contains('\0') {
            "its name has a NUL; rename it for a SQLite sink".to_owned()
        } else if [JOB_ID, FILE_VERSION_ID].contains(&name.as_str()) {
            "the engine adds a column of this name, and SQLite takes names without regard to \
             case; rename yours"
                .to_owned()
        } else if index + 2 >= limits::TABLE_COLUMNS_MAX {
            format!(
                "a SQLite table has at most {} columns, with the 2 of the engine; use a Parquet \
                 sink, or publish fewer",
                limits::TABLE_COLUMNS_MAX
            )
        } else if !names.insert(name) {
            "there is another column of this name, and SQLite takes names without regard to case; \
             rename one"
                .to_owned()
        } else {
            continue;
        };
        return Err(Error::Column {
            column: field.name().clone(),
            reason,
        });
    }
    Ok(())
}

/// Parquet has no timestamps in seconds: the writer would store bare integers.
fn stored_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Timestamp(TimeUnit::Second, zone) => {
            DataType::Timestamp(TimeUnit::Millisecond, zone.clone())
        }
        other => other.clone(),
    }
}

/// The batch's columns as the sink's schema wants them. A column that is null-typed in this
/// batch (pandas gives one where every value is missing) becomes nulls of the sink's type.
pub(super) fn conform(
    topic: &str,
    schema: &SchemaRef,
    batch: &RecordBatch,
) -> Result<Vec<ArrayRef>, Error> {
    let got = batch.schema();
    let expected = schema.fields().len() - 2;
    let changed = |expected: String, got: String| Error::SchemaChanged {
        topic: topic.to_owned(),
        expected,
        got,
    };
    if got.fields().len() != expected {
        let names = |fields: &mut dyn Iterator<Item = &Arc<Field>>| {
            fields
                .map(|field| field.name().as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        return Err(changed(
            format!(
                "{expected} columns ({})",
                names(&mut schema.fields().iter().take(expected))
            ),
            format!(
                "{} ({})",
                got.fields().len(),
                names(&mut got.fields().iter())
            ),
        ));
    }
    let mut columns = Vec::with_capacity(expected + 2);
    for ((want, field), column) in schema
        .fields()
        .iter()
        .zip(got.fields())
        .zip(batch.columns())
    {
        let same_name = want.name() == field.name();
        if same_name && want.data_type() == field.data_type() {
            columns.push(column.clone());
        } else if same_name && want.data_type() == &stored_type(field.data_type()) {
            // An instant that milliseconds cannot hold is an error, not a null.
            let exact = CastOptions {
                safe: false,
                ..CastOptions::default()
            };
            let stored = cast_with_options(column, want.data_type(), &exact);
            columns.push(stored.map_err(|error| Error::Column {
                column: want.name().clone(),
                reason: error.to_string(),
            })?);
        } else if same_name && field.data_type() == &DataType::Null && want.is_nullable() {
            columns.push(new_null_array(want.data_type(), column.len()));
        } else {
            return Err(changed(
                format!("column {:?} of type {}", want.name(), want.data_type()),
                format!("{:?} of type {}", field.name(), field.data_type()),
            ));
        }
    }
    Ok(columns)
}
