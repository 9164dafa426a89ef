//! Unit tests of `logical.rs`.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeBinaryArray, Int32Array, Int64Array, LargeStringArray, ListViewArray,
    NullArray, StringArray, StringViewArray, StructArray,
};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::Schema;

use super::*;

fn dictionary(rows: usize, values: ArrayRef) -> ArrayRef {
    let keys = Int32Array::from(vec![0; rows]);
    Arc::new(DictionaryArray::new(keys, values))
}

fn runs(rows: i32, values: ArrayRef) -> ArrayRef {
    Arc::new(RunArray::try_new(&Int32Array::from(vec![rows]), &values).unwrap())
}

fn list_view(rows: usize, values: ArrayRef) -> ArrayRef {
    let field = Arc::new(Field::new("item", values.data_type().clone(), true));
    let sizes = vec![i32::try_from(values.len()).unwrap(); rows];
    let offsets = ScalarBuffer::from(vec![0; rows]);
    Arc::new(ListViewArray::new(
        field,
        offsets,
        sizes.into(),
        values,
        None,
    ))
}

fn text() -> ArrayRef {
    Arc::new(StringArray::from(vec!["x".repeat(1000)]))
}

#[test]
fn a_size_is_that_of_the_rows_once_they_are_expanded() {
    let fixed: ArrayRef =
        Arc::new(FixedSizeBinaryArray::try_from_iter([[7u8; 1000]].into_iter()).unwrap());
    let large: ArrayRef = Arc::new(LargeStringArray::from(vec!["x".repeat(1000)]));
    let view = StringViewArray::from_iter_values(vec!["x".repeat(1000); 50]);
    let item = |array: &ArrayRef| Arc::new(Field::new("x", array.data_type().clone(), true));
    let inner = dictionary(50, text());
    let cases: Vec<(ArrayRef, usize)> = vec![
        (Arc::new(Int64Array::from(vec![1; 50])), 50 * 12),
        (Arc::new(NullArray::new(50)), 50 * 4),
        (Arc::new(view), 50 * 1004),
        (dictionary(50, text()), 50 * 1004),
        (dictionary(50, large), 50 * 1004),
        (dictionary(50, fixed.clone()), 50 * 1004),
        (dictionary(50, runs(1, text())), 50 * 1012),
        (runs(50, fixed), 50 * 1008),
        (runs(50, dictionary(1, text())), 50 * 1008),
        (list_view(50, dictionary(3, text())), 50 * (4 + 3 * 1004)),
        (
            Arc::new(StructArray::from(vec![(item(&inner), inner)])),
            50 * 1008,
        ),
    ];
    for (array, want) in cases {
        let shown = array.data_type().to_string();
        let per_row = want / 50;
        let got = size(&array, usize::MAX);
        // Levels may be counted twice.
        assert!(
            (want..want + 50 * 5).contains(&got),
            "{shown}: {got}, not {want}"
        );
        let part = size(&array.slice(10, 7), usize::MAX);
        assert!(
            (7 * per_row..7 * (per_row + 5)).contains(&part),
            "{shown}: {part}"
        );
        assert!(size(&array, 1000) <= 1000 + want, "{shown}");
    }
}

#[test]
fn slices_have_all_rows_in_order_and_bounded_sizes() {
    let mixed = StringArray::from_iter_values((0..3000).map(|row| match row % 1000 {
        0 => "x".repeat(5 << 20),
        _ => row.to_string(),
    }));
    let column: ArrayRef = Arc::new(mixed);
    let schema = Schema::new(vec![Field::new("a", DataType::Utf8, true)]);
    let batch = RecordBatch::try_new(Arc::new(schema), vec![column.clone()]).unwrap();
    let mut slices = Slices::new(&batch, None, 8 << 20);
    let (mut rows, mut count) = (0, 0);
    while let Some((slice, size)) = slices.next().unwrap() {
        assert!(size <= limits::WRITE_SLICE_SIZE || slice.num_rows() == 1);
        assert_eq!(slice.column(0), &column.slice(rows, slice.num_rows()));
        rows += slice.num_rows();
        count += 1;
    }
    assert_eq!(rows, 3000);
    assert!(count < 100, "{count} slices");
    let rest = batch.slice(1, 2999);
    let mut slices = Slices::new(&rest, None, 5 << 20);
    let error = loop {
        match slices.next() {
            Ok(slice) => assert!(slice.is_some()),
            Err(error) => break error.to_string(),
        }
    };
    assert!(
        error.starts_with("column \"a\": row 999 of its batch has"),
        "{error}"
    );
}

#[test]
fn nulls_count_as_the_type_that_the_sink_has() {
    let schema = Schema::new(vec![Field::new("a", DataType::Null, true)]);
    let nulls: ArrayRef = Arc::new(NullArray::new(1000));
    let batch = RecordBatch::try_new(Arc::new(schema), vec![nulls]).unwrap();
    let wide = Field::new("a", DataType::FixedSizeBinary(1 << 20), true);
    let sink = Arc::new(Schema::new(vec![wide]));
    let mut slices = Slices::new(&batch, Some(sink), 8 << 20);
    let mut rows = 0;
    while let Some((slice, _)) = slices.next().unwrap() {
        assert!(slice.num_rows() < 4);
        rows += slice.num_rows();
    }
    assert_eq!(rows, 1000);
}
