//! The columns of a sink: those of the plugin's batches, and two ID columns that are added to each row.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Metadata, Schema, SchemaRef};

use super::convert::{Failure, convert};
use super::metadata::{Clash, FileMetadata, GEO};
use super::{Error, geo, merge, types, wkb};
use crate::job::text::prefix;
use crate::limits;

pub(super) const JOB_ID: &str = "_job_id";
pub(super) const FILE_VERSION_ID: &str = "_file_version_id";
/// Columns that a SQLite table gets when several databases, or several incarnations of a job, write to
/// it.
pub(super) const DATABASE: &str = "_database";
pub(super) const INCARNATION: &str = "_incarnation";

/// The sink's schema: the batch's columns as they are stored, then the two ID columns.
fn with_ids(schema: &SchemaRef) -> Result<SchemaRef, Error> {
    let mut fields: Vec<FieldRef> = schema.fields().iter().map(types::stored_field).collect();
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
    Ok(Arc::new(Schema::new(fields)))
}

/// Refuses columns that a table of a SQLite database cannot have. The schema has the ID columns.
pub(super) fn check_table(schema: &SchemaRef) -> Result<(), Error> {
    let ids = schema.fields().len().saturating_sub(2);
    let mut names = BTreeSet::new();
    for (index, field) in schema.fields().iter().take(ids).enumerate() {
        let name = field.name().to_ascii_lowercase();
        let reason = if name.contains('\0') {
            "its name has a NUL; rename it for a SQLite sink".to_owned()
        } else if [JOB_ID, FILE_VERSION_ID, DATABASE, INCARNATION].contains(&name.as_str()) {
            "the engine adds a column of this name to tables, and SQLite takes names without \
             regard to case; rename yours"
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

/// The columns of a sink, with the common types of its batches so far.
pub(super) struct Columns {
    /// The sink's schema with the ID columns, without metadata of the schema.
    schema: SchemaRef,
    metadata: FileMetadata,
    /// The evidence of the columns of all batches; see `merge`.
    evidence: Vec<FieldRef>,
    /// For each column, a batch's field whose type is completely in the evidence. Batches with the same
    /// field add nothing to the evidence.
    settled: Vec<Option<FieldRef>>,
    /// Schema of the last batch.
    last: SchemaRef,
    /// Indices of the sink's columns in that batch; `None` if it has the sink's order.
    order: Option<Vec<usize>>,
    /// Columns of bytes that are no geometries.
    faults: wkb::Faults,
}

impl Columns {
    /// The columns of a sink after its first batch.
    pub(super) fn new(batch: &RecordBatch) -> Result<Self, Error> {
        let last = batch.schema();
        let columns = last.fields().iter().zip(batch.columns());
        let evidence = columns.map(|(field, column)| merge::known(field, column));
        let evidence: Vec<FieldRef> = evidence.collect();
        let settled = last.fields().iter().zip(&evidence);
        let settled = settled.map(|(field, known)| settled_field(field, known));
        Ok(Columns {
            schema: with_ids(&last)?,
            metadata: FileMetadata::new(last.metadata()),
            settled: settled.collect(),
            evidence,
            last,
            order: None,
            faults: wkb::Faults::default(),
        })
    }

    /// The sink's schema, with the ID columns.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The metadata of the schemas of all batches so far, for a file with these columns, and notes on what
    /// was left out of it.
    pub(super) fn metadata(&self) -> (Metadata, Vec<String>) {
        let own = [JOB_ID, FILE_VERSION_ID];
        self.metadata.of_file(self.schema.fields(), &own)
    }

    /// Refuses a converted batch with a value that is no geometry in a column that the metadata of GeoParquet
    /// names, or an earlier such value in a column that it names now.
    pub(super) fn check_geometries(&mut self, columns: &[ArrayRef]) -> Result<(), Error> {
        self.faults.add(self.schema.fields(), columns);
        if self.faults.is_empty() {
            return Ok(());
        }
        let (metadata, _) = self.metadata();
        let names = metadata.get(GEO).map(|text| geo::binary_columns(text));
        for column in names.unwrap_or_default() {
            if let Some(fault) = self.faults.of(&column) {
                return Err(Error::Column {
                    reason: format!(
                        "its metadata names it as geometries in WKB, and a value is none ({fault}): readers do not \
                         open such a file; mend or leave out the value, or remove the column from the metadata"
                    ),
                    column,
                });
            }
        }
        Ok(())
    }

    /// Bytes of that metadata.
    pub(super) fn metadata_size(&self) -> usize {
        self.metadata.size()
    }

    /// Adds a batch. Its columns must have the names of the sink's columns, in any order. Returns the
    /// batch in the sink's order, and whether the sink's schema has changed. An error if no type can
    /// store the values of all batches.
    pub(super) fn accept(
        &mut self,
        topic: &str,
        batch: &RecordBatch,
    ) -> Result<(RecordBatch, bool), Error> {
        let (last, got) = (self.last.clone(), batch.schema());
        let is_same = Arc::ptr_eq(&got, &last) || got.fields() == last.fields();
        if !Arc::ptr_eq(&got, &last) && got.metadata() != last.metadata() {
            self.metadata.add(got.metadata())?;
        }
        if !is_same {
            self.order = order(topic, &self.schema, &got)?;
        }
        let batch = match &self.order {
            Some(order) => batch.project(order).map_err(|error| Error::SchemaChanged {
                topic: topic.to_owned(),
                expected: "the columns of the first batch".to_owned(),
                got: error.to_string(),
            })?,
            None => batch.clone(),
        };
        let mut changes = Vec::new();
        let columns = batch.schema_ref().fields().iter().zip(batch.columns());
        let columns = columns.zip(self.schema.fields());
        let columns = columns.zip(self.evidence.iter_mut().zip(&mut self.settled));
        for (index, (((field, column), stored), (evidence, settled))) in columns.enumerate() {
            if settled.as_ref() == Some(field) {
                continue;
            }
            let known = merge::known(field, column);
            if let Some(field) = settled_field(field, &known) {
                *settled = Some(field);
            }
            let merged = merge::merge_fields(evidence, &known);
            *evidence = merged.map_err(|clash| refused(topic, stored, field, clash))?;
            let filled = merge::fill_field(evidence, stored);
            let filled = merge::fill_field(&filled, &types::stored_field(field));
            if filled != *stored {
                changes.push((index, filled));
            }
        }
        self.last = got;
        if changes.is_empty() {
            return Ok((batch, false));
        }
        let mut fields: Vec<FieldRef> = self.schema.fields().iter().cloned().collect();
        for (index, field) in changes {
            if let Some(stored) = fields.get_mut(index) {
                self.metadata.change(stored.name());
                *stored = field;
            }
        }
        self.schema = Arc::new(Schema::new(fields));
        Ok((batch, true))
    }

    /// Converts the columns of an accepted batch, or of rows of an earlier schema, to the types of the
    /// sink.
    pub(super) fn convert(&self, topic: &str, batch: &RecordBatch) -> Result<Vec<ArrayRef>, Error> {
        let mut columns = Vec::with_capacity(batch.num_columns() + 2);
        let pairs = self.schema.fields().iter().zip(batch.columns());
        for (field, column) in pairs.take(self.evidence.len()) {
            let converted = convert(column, field.data_type());
            columns.push(converted.map_err(|failure| refusal(topic, field, column, failure))?);
        }
        Ok(columns)
    }
}

/// The field of a batch, if all nodes of its type have values in the batch.
fn settled_field(field: &FieldRef, known: &FieldRef) -> Option<FieldRef> {
    (!merge::is_unknown(known.data_type())).then(|| field.clone())
}

/// The error for a batch's column that cannot be merged with the sink's column.
fn refused(topic: &str, stored: &Field, field: &Field, clash: Clash) -> Error {
    let Clash::Metadata {
        mut path,
        key,
        first,
        second,
    } = clash
    else {
        return Error::SchemaChanged {
            topic: topic.to_owned(),
            expected: format!(
                "column {:?} of type {}",
                stored.name(),
                types::shown_field(stored)
            ),
            got: format!("{:?} of type {}", field.name(), types::shown_field(field)),
        };
    };
    path.reverse();
    Error::Column {
        column: path.join("."),
        reason: format!(
            "its metadata {:?} is {:?} in one batch and {:?} in a later one; publish all batches \
             with the same, or without",
            prefix(&key, 80),
            prefix(&first, 80),
            prefix(&second, 80)
        ),
    }
}

/// The error for a column that cannot be converted.
fn refusal(topic: &str, field: &Field, column: &ArrayRef, failure: Failure) -> Error {
    match failure {
        Failure::Value(mut path, reason) => {
            path.push(field.name().clone());
            path.reverse();
            Error::Column {
                column: path.join("."),
                reason,
            }
        }
        Failure::Type(reason) => {
            let reason = reason.map(|reason| format!(" with {reason}"));
            Error::SchemaChanged {
                topic: topic.to_owned(),
                expected: format!(
                    "column {:?} of type {}",
                    field.name(),
                    types::shown(field.data_type())
                ),
                got: format!(
                    "type {}{}",
                    types::shown(column.data_type()),
                    reason.unwrap_or_default()
                ),
            }
        }
    }
}

/// Indices of the sink's columns in a batch; `None` when the order is the same.
fn order(topic: &str, schema: &SchemaRef, got: &SchemaRef) -> Result<Option<Vec<usize>>, Error> {
    let names = |schema: &SchemaRef, count: usize| -> Vec<String> {
        let fields = schema.fields().iter().take(count);
        fields.map(|field| field.name().clone()).collect()
    };
    let wanted = names(schema, schema.fields().len().saturating_sub(2));
    let found = names(got, got.fields().len());
    if wanted == found {
        return Ok(None);
    }
    let indices: HashMap<&String, usize> = found.iter().zip(0..).collect();
    let order: Option<Vec<usize>> = wanted
        .iter()
        .map(|name| indices.get(name).copied())
        .collect();
    if let Some(order) = order.filter(|order| order.len() == found.len()) {
        return Ok(Some(order));
    }
    let others = |some: &[String], than: &[String]| -> Vec<String> {
        let than: BTreeSet<&String> = than.iter().collect();
        let names = some.iter().filter(|name| !than.contains(name));
        names.cloned().collect()
    };
    let (missing, more) = (others(&wanted, &found), others(&found, &wanted));
    let mut text = columns(&found);
    for (what, names) in [("without", missing), ("with", more)] {
        if !names.is_empty() {
            text.push_str(&format!(", {what} {}", list(&names, true)));
        }
    }
    Err(Error::SchemaChanged {
        topic: topic.to_owned(),
        expected: columns(&wanted),
        got: text,
    })
}

/// Number of columns that a message names.
const NAMES_SHOWN: usize = 10;

fn columns(names: &[String]) -> String {
    format!("{} columns ({})", names.len(), list(names, false))
}

fn list(names: &[String], is_quoted: bool) -> String {
    let shown = names.iter().take(NAMES_SHOWN).map(|name| {
        let name = prefix(name, 80);
        match is_quoted {
            true => format!("{name:?}"),
            false => name.to_owned(),
        }
    });
    let mut shown: Vec<String> = shown.collect();
    if names.len() > NAMES_SHOWN {
        shown.push("...".to_owned());
    }
    shown.join(", ")
}
