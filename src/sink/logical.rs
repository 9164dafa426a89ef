//! The expanded size of rows: the bytes that they have when dictionaries, runs and views are expanded. It
//! is calculated without expanding them.
//!
//! Every row counts at least [`ROW_SIZE`] at each level of nesting, for its definition and repetition
//! levels. So a calculation that stops at a limit takes a bounded number of steps, whatever a plugin
//! sends.

use std::collections::HashMap;
use std::ops::Range;

use arrow::array::{
    Array, AsArray, DictionaryArray, GenericByteArray, GenericByteViewArray, GenericListViewArray,
    OffsetSizeTrait, RecordBatch, RunArray, StructArray,
};
use arrow::datatypes::{
    ArrowDictionaryKeyType, ArrowNativeType, BinaryType, BinaryViewType, ByteArrayType,
    ByteViewType, DataType, Field, FieldRef, Int8Type, Int16Type, Int32Type, Int64Type,
    LargeBinaryType, LargeUtf8Type, RunEndIndexType, SchemaRef, StringViewType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type, Utf8Type,
};

use super::Error;
use crate::limits;

/// Bytes of the definition and repetition levels of a row.
const ROW_SIZE: usize = 4;

/// Expanded bytes of an array's rows. The calculation may stop when the result exceeds `cap`.
pub(super) fn size(array: &dyn Array, cap: usize) -> usize {
    let rows = array.len().saturating_mul(ROW_SIZE);
    if array.is_empty() || rows > cap {
        return rows;
    }
    use DataType as T;
    let values = match array.data_type() {
        T::Utf8 => bytes(array.as_bytes::<Utf8Type>()),
        T::LargeUtf8 => bytes(array.as_bytes::<LargeUtf8Type>()),
        T::Binary => bytes(array.as_bytes::<BinaryType>()),
        T::LargeBinary => bytes(array.as_bytes::<LargeBinaryType>()),
        T::Utf8View => views(array.as_byte_view::<StringViewType>()),
        T::BinaryView => views(array.as_byte_view::<BinaryViewType>()),
        T::List(_) => {
            let list = array.as_list::<i32>();
            part(list.values(), span(list.value_offsets()), cap)
        }
        T::LargeList(_) => {
            let list = array.as_list::<i64>();
            part(list.values(), span(list.value_offsets()), cap)
        }
        T::Map(..) => {
            let map = array.as_map();
            part(map.entries(), span(map.value_offsets()), cap)
        }
        T::ListView(_) => list_views(array.as_list_view::<i32>(), cap),
        T::LargeListView(_) => list_views(array.as_list_view::<i64>(), cap),
        T::FixedSizeList(..) => size(array.as_fixed_size_list().values(), cap),
        T::Struct(_) => sum(
            array
                .as_struct()
                .columns()
                .iter()
                .map(|column| size(column, cap)),
            cap,
        ),
        T::Dictionary(key, _) => match **key {
            T::Int8 => keys(array.as_dictionary::<Int8Type>(), cap),
            T::Int16 => keys(array.as_dictionary::<Int16Type>(), cap),
            T::Int32 => keys(array.as_dictionary::<Int32Type>(), cap),
            T::Int64 => keys(array.as_dictionary::<Int64Type>(), cap),
            T::UInt8 => keys(array.as_dictionary::<UInt8Type>(), cap),
            T::UInt16 => keys(array.as_dictionary::<UInt16Type>(), cap),
            T::UInt32 => keys(array.as_dictionary::<UInt32Type>(), cap),
            T::UInt64 => keys(array.as_dictionary::<UInt64Type>(), cap),
            _ => array.get_array_memory_size(),
        },
        T::RunEndEncoded(ends, _) => match ends.data_type() {
            T::Int16 => runs(array.as_run::<Int16Type>(), cap),
            T::Int32 => runs(array.as_run::<Int32Type>(), cap),
            T::Int64 => runs(array.as_run::<Int64Type>(), cap),
            _ => array.get_array_memory_size(),
        },
        // No sink stores unions.
        T::Union(..) => array.get_array_memory_size(),
        other => array.len().saturating_mul(width(other)),
    };
    rows.saturating_add(values)
}

/// Bytes of a null of a type, with its children. A type of variable width takes the bytes of its offsets.
fn null_size(data_type: &DataType) -> usize {
    let children = |fields: &mut dyn Iterator<Item = &DataType>| -> usize {
        fields.fold(0, |size, field| size.saturating_add(null_size(field)))
    };
    ROW_SIZE.saturating_add(match data_type {
        DataType::FixedSizeList(field, length) => {
            null_size(field.data_type()).saturating_mul(usize::try_from(*length).unwrap_or(0))
        }
        DataType::Struct(fields) => children(&mut fields.iter().map(|field| field.data_type())),
        other => width(other),
    })
}

/// Bytes of the nulls that are added to an array when it is converted to a sink's type; see `convert`.
fn added(array: &dyn Array, to: &DataType, cap: usize) -> usize {
    use DataType as T;
    let from = array.data_type();
    let nulls = |rows: usize| rows.saturating_mul(null_size(to));
    if from == to || array.is_empty() {
        return 0;
    }
    if array.logical_null_count() == array.len() {
        return nulls(array.len());
    }
    let items = |values: &dyn Array, rows: Range<usize>, item: &Field| -> usize {
        let rows = rows.start..rows.end.min(values.len());
        added(&values.slice(rows.start, rows.len()), item.data_type(), cap)
    };
    let fields = |array: &StructArray, to: &[(usize, &FieldRef)]| -> usize {
        let sizes = to
            .iter()
            .map(|(index, field)| match array.columns().get(*index) {
                Some(column) => added(column, field.data_type(), cap),
                None => array.len().saturating_mul(null_size(field.data_type())),
            });
        sum(sizes, cap)
    };
    match (from, to) {
        (T::List(_), T::List(item) | T::LargeList(item)) => {
            let list = array.as_list::<i32>();
            items(list.values(), span(list.value_offsets()), item)
        }
        (T::LargeList(_), T::List(item) | T::LargeList(item)) => {
            let list = array.as_list::<i64>();
            items(list.values(), span(list.value_offsets()), item)
        }
        (T::FixedSizeList(..), T::FixedSizeList(item, _) | T::List(item) | T::LargeList(item)) => {
            added(array.as_fixed_size_list().values(), item.data_type(), cap)
        }
        (T::ListView(_), T::List(item) | T::LargeList(item)) => {
            let sizes = array.as_list_view::<i32>().value_sizes().iter();
            let count = sizes.fold(0usize, |sum, size| sum.saturating_add(size.as_usize()));
            count.saturating_mul(nested_null_size(item.data_type()))
        }
        (T::LargeListView(_), T::List(item) | T::LargeList(item)) => {
            let sizes = array.as_list_view::<i64>().value_sizes().iter();
            let count = sizes.fold(0usize, |sum, size| sum.saturating_add(size.as_usize()));
            count.saturating_mul(nested_null_size(item.data_type()))
        }
        (T::Map(..), T::Map(entries, _)) => {
            let map = array.as_map();
            let rows = span(map.value_offsets());
            let T::Struct(to) = entries.data_type() else {
                return 0;
            };
            let to: Vec<(usize, &FieldRef)> = to.iter().enumerate().collect();
            fields(&map.entries().slice(rows.start, rows.len()), &to)
        }
        (T::Struct(of), T::Struct(to)) => {
            let names = of
                .iter()
                .zip(0..)
                .map(|(field, index)| (field.name(), index));
            let names: HashMap<&String, usize> = names.collect();
            let index = |field: &FieldRef| names.get(field.name()).copied().unwrap_or(usize::MAX);
            let to: Vec<(usize, &FieldRef)> =
                to.iter().map(|field| (index(field), field)).collect();
            fields(array.as_struct(), &to)
        }
        (T::Dictionary(..) | T::RunEndEncoded(..), to) => {
            array.len().saturating_mul(nested_null_size(to))
        }
        _ => 0,
    }
}

/// [`null_size`] for nested types, 0 for others.
fn nested_null_size(data_type: &DataType) -> usize {
    match data_type.is_nested() {
        true => null_size(data_type),
        false => 0,
    }
}

fn has_width(data_type: &DataType) -> bool {
    let is_width = matches!(data_type, DataType::Boolean | DataType::FixedSizeBinary(_));
    is_width || data_type.primitive_width().is_some()
}

/// Bytes of a value of a type of fixed width. 16 for other types, as for their offsets or views.
fn width(data_type: &DataType) -> usize {
    match data_type {
        DataType::Null => 0,
        DataType::Boolean => 1,
        DataType::FixedSizeBinary(width) => usize::try_from(*width).unwrap_or(0),
        other => other.primitive_width().unwrap_or(16),
    }
}

fn sum(sizes: impl Iterator<Item = usize>, cap: usize) -> usize {
    let mut total = 0usize;
    for size in sizes {
        total = total.saturating_add(size);
        if total > cap {
            break;
        }
    }
    total
}

fn span<O: OffsetSizeTrait>(offsets: &[O]) -> Range<usize> {
    match (offsets.first(), offsets.last()) {
        (Some(first), Some(last)) => first.as_usize()..last.as_usize(),
        _ => 0..0,
    }
}

fn bytes<T: ByteArrayType>(array: &GenericByteArray<T>) -> usize {
    let span = span(array.value_offsets());
    span.end.saturating_sub(span.start)
}

fn views<T: ByteViewType + ?Sized>(array: &GenericByteViewArray<T>) -> usize {
    // The low 32 bits of a view are the length.
    let lengths = array
        .views()
        .iter()
        .map(|view| (*view & u128::from(u32::MAX)) as usize);
    lengths.fold(0, usize::saturating_add)
}

/// Expanded bytes of a range of an array's rows.
fn part(array: &dyn Array, rows: Range<usize>, cap: usize) -> usize {
    let end = rows.end.min(array.len());
    let start = rows.start.min(end);
    match end - start {
        0 => 0,
        // The array is not sliced, because slicing an array with many children takes more time than this
        // count.
        count if count.saturating_mul(ROW_SIZE) > cap => count.saturating_mul(ROW_SIZE),
        count => size(&array.slice(start, count), cap),
    }
}

fn list_views<O: OffsetSizeTrait>(array: &GenericListViewArray<O>, cap: usize) -> usize {
    let lists = array.value_offsets().iter().zip(array.value_sizes());
    let parts = lists.enumerate().filter(|(row, _)| array.is_valid(*row));
    sum(
        parts.map(|(_, (start, count))| {
            let start = start.as_usize();
            let rows = start..start.saturating_add(count.as_usize());
            part(array.values(), rows, cap)
        }),
        cap,
    )
}

fn keys<K: ArrowDictionaryKeyType>(array: &DictionaryArray<K>, cap: usize) -> usize {
    let values = array.values();
    let rows = (0..array.len()).filter_map(|row| array.key(row));
    use DataType as T;
    let of_bytes = |offset: &dyn Fn(usize) -> usize| -> usize {
        let sizes = rows
            .clone()
            .map(|key| offset(key + 1).saturating_sub(offset(key)));
        sum(sizes, cap)
    };
    let offsets32 = |offsets: &[i32]| {
        let at = |key: usize| offsets.get(key).map_or(0, |offset| offset.as_usize());
        of_bytes(&at)
    };
    let offsets64 = |offsets: &[i64]| {
        let at = |key: usize| offsets.get(key).map_or(0, |offset| offset.as_usize());
        of_bytes(&at)
    };
    match values.data_type() {
        T::Utf8 => offsets32(values.as_bytes::<Utf8Type>().value_offsets()),
        T::Binary => offsets32(values.as_bytes::<BinaryType>().value_offsets()),
        T::LargeUtf8 => offsets64(values.as_bytes::<LargeUtf8Type>().value_offsets()),
        T::LargeBinary => offsets64(values.as_bytes::<LargeBinaryType>().value_offsets()),
        other if has_width(other) => array.len().saturating_mul(width(other)),
        _ => sum(rows.map(|key| part(values, key..key + 1, cap)), cap),
    }
}

fn runs<R: RunEndIndexType>(array: &RunArray<R>, cap: usize) -> usize {
    let ends = array.run_ends();
    let (mut row, last) = (array.offset(), array.offset() + array.len());
    let mut total = 0usize;
    let mut physical = array.get_start_physical_index();
    while row < last && total <= cap {
        let Some(end) = ends.values().get(physical) else {
            break;
        };
        let end = end.as_usize().min(last);
        let each = part(array.values(), physical..physical + 1, cap);
        total = total.saturating_add(each.saturating_mul(end.saturating_sub(row)));
        row = end.max(row);
        physical += 1;
    }
    total
}

/// Cuts a batch into slices of at most [`limits::WRITE_SLICE_SIZE`] expanded bytes. A larger row is a
/// slice of its own.
pub(super) struct Slices<'a> {
    batch: &'a RecordBatch,
    /// The schema of the sink, if it has one.
    schema: Option<SchemaRef>,
    row_size_max: usize,
    at: usize,
    /// Estimated number of rows of the next slice, from the last slice.
    guess: usize,
    is_over: bool,
}

impl<'a> Slices<'a> {
    pub(super) fn new(
        batch: &'a RecordBatch,
        schema: Option<SchemaRef>,
        row_size_max: usize,
    ) -> Self {
        Slices {
            batch,
            schema,
            row_size_max,
            at: 0,
            guess: limits::SINK_ROWS_MAX,
            is_over: false,
        }
    }

    /// The next slice and its expanded bytes; `None` at the end. A batch without rows is one slice.
    pub(super) fn next(&mut self) -> Result<Option<(RecordBatch, usize)>, Error> {
        if self.is_over {
            return Ok(None);
        }
        let cap = limits::WRITE_SLICE_SIZE;
        let mut rows = (self.batch.num_rows() - self.at).min(self.guess);
        let mut size = self.size(rows, cap);
        while rows > 1 && size > cap {
            rows /= 2;
            size = self.size(rows, cap);
        }
        if rows == 1 && size > cap {
            size = self.check_row()?;
        }
        let slice = self.batch.slice(self.at, rows);
        self.at += rows;
        self.guess = rows.saturating_mul(2).min(limits::SINK_ROWS_MAX);
        self.is_over = self.at >= self.batch.num_rows();
        Ok(Some((slice, size)))
    }

    /// Expanded bytes of the next rows, with the nulls that the sink's types add.
    fn size(&self, rows: usize, cap: usize) -> usize {
        let columns = 0..self.batch.num_columns();
        sum(columns.map(|index| self.column_size(index, rows, cap)), cap)
    }

    fn column_size(&self, index: usize, rows: usize, cap: usize) -> usize {
        let column = self.batch.column(index);
        let field = self
            .schema
            .as_ref()
            .and_then(|schema| schema.fields().get(index));
        match (column.data_type(), field) {
            // The column becomes nulls of the sink's type.
            (DataType::Null, Some(field)) => rows.saturating_mul(null_size(field.data_type())),
            (data_type, Some(field)) if data_type != field.data_type() => {
                let size = part(column, self.at..self.at + rows, cap);
                size.saturating_add(added(&column.slice(self.at, rows), field.data_type(), cap))
            }
            _ => part(column, self.at..self.at + rows, cap),
        }
    }

    /// Expanded bytes of the next row. An error that names its largest column when the row exceeds the
    /// limit.
    fn check_row(&self) -> Result<usize, Error> {
        let limit = self.row_size_max;
        let size = self.size(1, limit);
        if size <= limit {
            return Ok(size);
        }
        let columns = 0..self.batch.num_columns();
        let largest = columns.max_by_key(|index| self.column_size(*index, 1, limit));
        let schema = self.batch.schema();
        let field = largest.and_then(|index| schema.fields().get(index));
        Err(Error::Row {
            column: field.map(|field| field.name().clone()).unwrap_or_default(),
            row: self.at,
            size,
            limit,
        })
    }
}

#[cfg(test)]
mod tests;
