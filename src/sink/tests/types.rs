//! How types are stored, and columns whose type changes between batches.

use arrow::array::*;
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::*;
use arrow::util::display::array_value_to_string;

use super::*;
use crate::job::Cause;
use crate::limits;

fn ints(values: &[Option<i64>]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

fn floats(values: &[Option<f64>]) -> ArrayRef {
    Arc::new(Float64Array::from(values.to_vec()))
}

fn texts(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn large(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(LargeStringArray::from(values.to_vec()))
}

fn views(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringViewArray::from(values.to_vec()))
}

fn null(rows: usize) -> ArrayRef {
    Arc::new(NullArray::new(rows))
}

fn categories(keys: &[Option<i8>], values: ArrayRef) -> ArrayRef {
    let keys = Int8Array::from(keys.to_vec());
    Arc::new(DictionaryArray::try_new(keys, values).unwrap())
}

fn field(array: &ArrayRef) -> Arc<Field> {
    Arc::new(Field::new("item", array.data_type().clone(), true))
}

/// Lists with these numbers of items; `None` is a null list.
fn list(lengths: &[Option<usize>], items: ArrayRef) -> ArrayRef {
    let offsets = OffsetBuffer::from_lengths(lengths.iter().map(|length| length.unwrap_or(0)));
    let nulls = lengths.iter().map(Option::is_some).collect::<Vec<_>>();
    Arc::new(ListArray::new(
        field(&items),
        offsets,
        items,
        Some(nulls.into()),
    ))
}

fn large_list(lengths: &[usize], items: ArrayRef) -> ArrayRef {
    let offsets = OffsetBuffer::from_lengths(lengths.iter().copied());
    Arc::new(LargeListArray::new(field(&items), offsets, items, None))
}

fn list_view(offsets: &[i32], sizes: &[i32], items: ArrayRef) -> ArrayRef {
    let (offsets, sizes) = (offsets.to_vec(), sizes.to_vec());
    let (offsets, sizes) = (ScalarBuffer::from(offsets), ScalarBuffer::from(sizes));
    Arc::new(ListViewArray::new(
        field(&items),
        offsets,
        sizes,
        items,
        None,
    ))
}

fn fixed(size: i32, items: ArrayRef) -> ArrayRef {
    Arc::new(FixedSizeListArray::new(field(&items), size, items, None))
}

fn structure(fields: &[(&str, ArrayRef)]) -> ArrayRef {
    let fields = fields.iter().map(|(name, array)| {
        let field = Field::new(*name, array.data_type().clone(), true);
        (Arc::new(field), array.clone())
    });
    Arc::new(StructArray::from(fields.collect::<Vec<_>>()))
}

/// One row with a map of all entries.
fn map(keys: ArrayRef, values: ArrayRef) -> ArrayRef {
    let key = Field::new("key", keys.data_type().clone(), false);
    let value = Field::new("value", values.data_type().clone(), true);
    let offsets = OffsetBuffer::from_lengths([keys.len()]);
    let fields = vec![(Arc::new(key), keys), (Arc::new(value), values)];
    let entries = StructArray::from(fields);
    let field = Field::new("entries", entries.data_type().clone(), false);
    Arc::new(MapArray::new(
        Arc::new(field),
        offsets,
        entries,
        None,
        false,
    ))
}

fn stamps(unit: TimeUnit, values: &[i64]) -> ArrayRef {
    let to = DataType::Timestamp(unit, None);
    arrow::compute::cast(&Int64Array::from(values.to_vec()), &to).unwrap()
}

fn decimals(values: &[i128], precision: u8, scale: i8) -> ArrayRef {
    let array = Decimal128Array::from(values.to_vec());
    Arc::new(array.with_precision_and_scale(precision, scale).unwrap())
}

/// Publishes a column `v` in batches. Returns its stored type, and its values as text.
fn write(uri: &str, batches: &[ArrayRef]) -> Result<(DataType, Vec<String>), Error> {
    let fixture = Fixture::new();
    let mut output = fixture.output(1, &[("output", uri, "append")])?;
    for array in batches {
        let rows = ints(&vec![Some(7); array.len()]);
        output.write(None, &batch(vec![("n", rows), ("v", array.clone())]))?;
    }
    finish(output)?;
    assert_eq!(fixture.staged().len(), 0);
    if uri.starts_with("sqlite") {
        let connection = rusqlite::Connection::open(fixture.path("o.db")).unwrap();
        let mut rows = connection
            .prepare("SELECT typeof(v), CAST(v AS TEXT) FROM t ORDER BY rowid")
            .unwrap();
        let text = |row: &rusqlite::Row<'_>| -> rusqlite::Result<String> {
            let (kind, value): (String, Option<String>) = (row.get(0)?, row.get(1)?);
            Ok(value.map_or_else(String::new, |value| format!("{kind} {value}")))
        };
        let rows = rows.query_map([], text).unwrap();
        return Ok((DataType::Null, rows.map(Result::unwrap).collect()));
    }
    let path = fixture.path("o_1.parquet");
    let batches = read(&path);
    let mut values = Vec::new();
    for batch in &batches {
        let column = batch.column_by_name("v").unwrap();
        let text = |row| array_value_to_string(column, row).unwrap();
        values.extend((0..column.len()).map(text));
        let ids = batch.column_by_name("_job_id").unwrap();
        assert_eq!(
            ids.as_primitive::<Int64Type>().values(),
            &vec![1; batch.num_rows()]
        );
    }
    let file = File::open(&path).unwrap();
    let schema = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let data_type = schema.schema().field_with_name("v").unwrap().data_type();
    Ok((data_type.clone(), values))
}

const PARQUET: &str = "parquet://o.parquet";
const SQLITE: &str = "sqlite://o.db/t";

/// Batches with different types, and the resulting type and values of the column. In the reverse order of
/// batches the values are the same, in that order.
#[test]
fn batches_whose_types_differ_by_nulls_are_one_column() {
    use DataType as T;
    let item = |data_type: T| Arc::new(Field::new("item", data_type, true));
    let of = |fields: &[(&str, T)]| -> T {
        let fields = fields
            .iter()
            .map(|(name, data_type)| Field::new(*name, data_type.clone(), true));
        T::Struct(fields.collect())
    };
    let texts_with = |values: ArrayRef| structure(&[("q", values)]);
    let decimal256 = Decimal256Array::from(vec![i256::from_i128(12)])
        .with_precision_and_scale(50, 1)
        .unwrap();
    type Case<'a> = (ArrayRef, ArrayRef, DataType, &'a [&'a str], &'a [&'a str]);
    let cases: Vec<Case<'_>> = vec![
        (null(1), texts(&[Some("x")]), T::Utf8, &[""], &["x"]),
        (floats(&[None]), texts(&[Some("x")]), T::Utf8, &[""], &["x"]),
        (texts(&[None]), ints(&[Some(3)]), T::Int64, &[""], &["3"]),
        (
            texts(&[Some("a")]),
            large(&[Some("b")]),
            T::LargeUtf8,
            &["a"],
            &["b"],
        ),
        (
            texts(&[Some("a")]),
            views(&[Some("b")]),
            T::LargeUtf8,
            &["a"],
            &["b"],
        ),
        (
            large(&[Some("a")]),
            views(&[None]),
            T::LargeUtf8,
            &["a"],
            &[""],
        ),
        (
            categories(&[Some(0), None], texts(&[Some("a")])),
            texts(&[Some("b")]),
            T::Utf8,
            &["a", ""],
            &["b"],
        ),
        (
            categories(&[Some(0)], texts(&[Some("a")])),
            categories(&[Some(1)], views(&[Some("a"), Some("b")])),
            T::LargeUtf8,
            &["a"],
            &["b"],
        ),
        (
            categories(&[None], texts(&[])),
            ints(&[Some(1)]),
            T::Int64,
            &[""],
            &["1"],
        ),
        (
            list(&[Some(1)], ints(&[Some(1)])),
            list(&[Some(0)], null(0)),
            T::List(item(T::Int64)),
            &["[1]"],
            &["[]"],
        ),
        (
            list(&[Some(1), None], null(1)),
            list(&[Some(2)], list(&[Some(1), None], texts(&[Some("x")]))),
            T::List(item(T::List(item(T::Utf8)))),
            &["[]", ""],
            &["[[x], ]"],
        ),
        (
            list(&[Some(1)], texts(&[Some("a")])),
            large_list(&[1], views(&[Some("b")])),
            T::LargeList(item(T::LargeUtf8)),
            &["[a]"],
            &["[b]"],
        ),
        (
            list_view(&[1, 0], &[1, 2], ints(&[Some(1), Some(2)])),
            fixed(2, ints(&[Some(3), None])),
            T::List(item(T::Int64)),
            &["[2]", "[1, 2]"],
            &["[3, ]"],
        ),
        (
            texts_with(texts(&[Some("x")])),
            texts_with(null(1)),
            of(&[("q", T::Utf8)]),
            &["{q: x}"],
            &["{q: }"],
        ),
        (
            list(&[Some(1)], texts_with(texts_with(null(1)))),
            list(&[Some(1)], texts_with(texts_with(ints(&[Some(1)])))),
            T::List(item(of(&[("q", of(&[("q", T::Int64)]))]))),
            &["[{q: {q: }}]"],
            &["[{q: {q: 1}}]"],
        ),
        (
            map(texts(&[Some("k")]), null(1)),
            map(large(&[Some("l")]), ints(&[Some(1)])),
            {
                let entries = vec![
                    Field::new("key", T::LargeUtf8, false),
                    Field::new("value", T::Int64, true),
                ];
                let entries = T::Struct(entries.into());
                T::Map(Arc::new(Field::new("entries", entries, false)), false)
            },
            &["{k: }"],
            &["{l: 1}"],
        ),
        (
            stamps(TimeUnit::Second, &[1]),
            stamps(TimeUnit::Nanosecond, &[2]),
            T::Timestamp(TimeUnit::Nanosecond, None),
            &["1970-01-01T00:00:01"],
            &["1970-01-01T00:00:00.000000002"],
        ),
        (
            Arc::new(Time32SecondArray::from(vec![1])),
            Arc::new(Time64MicrosecondArray::from(vec![2])),
            T::Time64(TimeUnit::Microsecond),
            &["00:00:01"],
            &["00:00:00.000002"],
        ),
        (
            decimals(&[12], 5, 1),
            decimals(&[345], 4, 3),
            T::Decimal128(7, 3),
            &["1.200"],
            &["0.345"],
        ),
        (
            decimals(&[12], 30, 10),
            Arc::new(decimal256),
            T::Decimal256(59, 10),
            &["0.0000000012"],
            &["1.2000000000"],
        ),
        (
            ints(&[Some(1)]),
            floats(&[Some(2.5)]),
            T::Float64,
            &["1.0"],
            &["2.5"],
        ),
        (
            Arc::new(Int8Array::from(vec![1])),
            Arc::new(UInt16Array::from(vec![60_000])),
            T::Int32,
            &["1"],
            &["60000"],
        ),
    ];
    for (first, second, want, before, after) in cases {
        let shown = format!("{} and {}", first.data_type(), second.data_type());
        let some = |parts: [&[&str]; 3]| -> Vec<String> {
            parts
                .concat()
                .iter()
                .map(|text| (*text).to_owned())
                .collect()
        };
        let three = [first.clone(), second.clone(), first.clone()];
        let (data_type, values) =
            write(PARQUET, &three).unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert_eq!(values, some([before, after, before]), "{shown}");
        assert!(
            data_type.equals_datatype(&want),
            "{shown}: {data_type}, not {want}"
        );
        // A batch of the second type without values, between the two.
        for (without, shown_null) in [
            (second.slice(0, 0), &[][..]),
            (new_null_array(second.data_type(), 1), &[""][..]),
        ] {
            let three = [first.clone(), without, second.clone()];
            let (data_type, values) =
                write(PARQUET, &three).unwrap_or_else(|error| panic!("{shown}: {error}"));
            assert_eq!(values, some([before, shown_null, after]), "{shown}");
            assert!(
                data_type.equals_datatype(&want),
                "{shown}: {data_type}, not {want}"
            );
        }
        let three = [second.clone(), first.clone(), second.clone()];
        let (data_type, values) =
            write(PARQUET, &three).unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert_eq!(values, some([after, before, after]), "{shown}");
        assert!(
            data_type.equals_datatype(&want),
            "{shown}: {data_type}, not {want}"
        );
    }
}

/// Batches with different types of numbers: either every value is kept exactly, or the batch is refused.
#[test]
fn numbers_of_another_type_are_kept_exactly_or_refused() {
    let unsigned = |value: u64| -> ArrayRef { Arc::new(UInt64Array::from(vec![value])) };
    let (int, float) = (|value| ints(&[Some(value)]), |value| floats(&[Some(value)]));
    let exact: Vec<(ArrayRef, ArrayRef, DataType, [&str; 2])> = vec![
        (int(1), float(2.0), DataType::Float64, ["1.0", "2.0"]),
        (int(1), float(1.5), DataType::Float64, ["1.0", "1.5"]),
        (int(1), float(f64::NAN), DataType::Float64, ["1.0", "NaN"]),
        (
            int(1 << 53),
            Arc::new(Float32Array::from(vec![1.5])),
            DataType::Float64,
            ["9007199254740992.0", "1.5"],
        ),
        (int(-1), unsigned(5), DataType::Int64, ["-1", "5"]),
    ];
    for (one, other, want, values) in exact {
        let shown = format!("{} and {}", one.data_type(), other.data_type());
        let got = write(PARQUET, &[one.clone(), other.clone()]).unwrap();
        let forth = values.map(str::to_owned).to_vec();
        let back = forth.iter().rev().cloned().collect();
        assert_eq!(got, (want.clone(), forth), "{shown}");
        let got = write(PARQUET, &[other, one]).unwrap();
        assert_eq!(got, (want, back), "{shown}");
    }
    let refused: Vec<(ArrayRef, ArrayRef)> = vec![
        (float(1.5), int((1 << 53) + 1)),
        (float(1.5), int(i64::MAX)),
        (int(1), unsigned(u64::MAX)),
    ];
    for (one, other) in refused {
        let shown = [one.data_type().to_string(), other.data_type().to_string()];
        let (forth, back) = ([one.clone(), other.clone()], [other, one]);
        let types = [shown[0].as_str(), shown[1].as_str(), "changed half-way"];
        for (uri, batches, parts) in [
            (PARQUET, &forth, types.as_slice()),
            (SQLITE, &forth, &types),
            (PARQUET, &back, &types),
            (SQLITE, &back, &["cannot hold", "exactly"]),
        ] {
            let error = write(uri, batches).unwrap_err();
            let text = error.to_string();
            for part in ["\"v\""].iter().chain(parts) {
                assert!(text.contains(part), "{shown:?}: {text}");
            }
            assert_eq!(error.cause(), Cause::Plugin, "{text}");
        }
    }
}

#[test]
fn types_that_have_nothing_in_common_are_refused_and_named() {
    let zone = Arc::new(TimestampSecondArray::from(vec![1]).with_timezone("UTC"));
    let uuid = |name: &str| {
        let array: ArrayRef =
            Arc::new(FixedSizeBinaryArray::try_from_iter([[7u8; 16]].iter()).unwrap());
        let metadata: std::collections::HashMap<String, String> =
            [("ARROW:extension:name".to_owned(), name.to_owned())].into();
        let field = Field::new("u", array.data_type().clone(), true).with_metadata(metadata);
        let array: ArrayRef = Arc::new(StructArray::from(vec![(Arc::new(field), array)]));
        array
    };
    let pairs: Vec<(ArrayRef, ArrayRef)> = vec![
        (ints(&[Some(1)]), texts(&[Some("1")])),
        (
            texts(&[Some("x")]),
            Arc::new(BinaryArray::from(vec![&b"x"[..]])),
        ),
        (Arc::new(BooleanArray::from(vec![true])), ints(&[Some(1)])),
        (decimals(&[1], 3, 0), ints(&[Some(1)])),
        (
            decimals(&[1], 38, 0),
            Arc::new(
                Decimal256Array::from(vec![i256::ONE])
                    .with_precision_and_scale(76, 70)
                    .unwrap(),
            ),
        ),
        (stamps(TimeUnit::Second, &[1]), zone),
        (
            stamps(TimeUnit::Second, &[1]),
            Arc::new(Date32Array::from(vec![1])),
        ),
        (list(&[Some(1)], ints(&[Some(1)])), ints(&[Some(1)])),
        (list(&[Some(0)], null(0)), texts(&[Some("x")])),
        (
            structure(&[("a", ints(&[Some(1)]))]),
            map(texts(&[Some("a")]), ints(&[Some(1)])),
        ),
        (
            structure(&[("a", ints(&[Some(1)]))]),
            structure(&[("a", texts(&[Some("x")]))]),
        ),
        (uuid("arrow.uuid"), uuid("other.uuid")),
    ];
    for (first, second) in pairs {
        let error = write(PARQUET, &[first, second]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("changed half-way: expected column \"v\" of type "),
            "{text}"
        );
        assert_eq!(error.cause(), Cause::Plugin, "{text}");
    }
}

#[test]
fn columns_are_found_by_name_and_those_that_are_missing_or_more_are_named() {
    let fixture = Fixture::new();
    let sinks = [("output", PARQUET, "append")];
    let (a, b) = (ints(&[Some(1)]), texts(&[Some("x")]));
    let mut output = fixture.output(1, &sinks).unwrap();
    output
        .write(None, &batch(vec![("a", a.clone()), ("b", b.clone())]))
        .unwrap();
    output
        .write(None, &batch(vec![("b", b.clone()), ("a", a.clone())]))
        .unwrap();
    output
        .write(None, &batch(vec![("b", null(1)), ("a", a.clone())]))
        .unwrap();
    output
        .write(None, &batch(vec![("a", a.clone()), ("b", b.clone())]))
        .unwrap();
    finish(output).unwrap();
    let rows = read(&fixture.path("o_1.parquet"));
    let values = |name: &str| -> Vec<String> {
        let column = rows[0].column_by_name(name).unwrap();
        (0..4)
            .map(|row| array_value_to_string(column, row).unwrap())
            .collect()
    };
    assert_eq!(values("a"), ["1"; 4]);
    assert_eq!(values("b"), ["x", "x", "", "x"]);
    for (columns, words) in [
        (vec![("a", a.clone())], "1 columns (a), without \"b\""),
        (
            vec![("a", a.clone()), ("c", b.clone())],
            "without \"b\", with \"c\"",
        ),
        (
            vec![("a", a.clone()), ("b", b.clone()), ("c", b)],
            "3 columns (a, b, c), with \"c\"",
        ),
    ] {
        let mut output = fixture.output(2, &sinks).unwrap();
        let two = batch(vec![("a", a.clone()), ("b", texts(&[None]))]);
        output.write(None, &two).unwrap();
        let error = output.write(None, &batch(columns)).unwrap_err().to_string();
        assert!(
            error.contains("expected 2 columns (a, b)") && error.contains(words),
            "{error}"
        );
    }
}

/// When the type of another column changes, rows of every type are read back from staging and written
/// again unchanged.
#[test]
fn rows_before_a_change_are_written_anew_as_they_were() {
    let half = arrow::compute::cast(
        &Float64Array::from(vec![Some(1.5), None]),
        &DataType::Float16,
    )
    .unwrap();
    let uuid: ArrayRef =
        Arc::new(FixedSizeBinaryArray::try_from_iter([[7u8; 16], [8; 16]].iter()).unwrap());
    let keys = texts(&[Some("k"), Some("l")]);
    let mut arrays: Vec<ArrayRef> = vec![
        null(2),
        Arc::new(BooleanArray::from(vec![Some(true), None])),
        Arc::new(UInt8Array::from(vec![Some(255), None])),
        Arc::new(UInt64Array::from(vec![Some(u64::MAX), None])),
        ints(&[Some(i64::MIN), None]),
        half,
        floats(&[Some(f64::NAN), Some(-0.0)]),
        texts(&[Some("x"), None]),
        views(&[Some("a text that is not inlined"), None]),
        Arc::new(BinaryViewArray::from(vec![Some(&b"\xff"[..]), None])),
        uuid,
        Arc::new(Date32Array::from(vec![Some(-719_162), None])),
        Arc::new(Date64Array::from(vec![Some(-86_400_000), None])),
        Arc::new(Time32SecondArray::from(vec![Some(86_399), None])),
        Arc::new(Time64NanosecondArray::from(vec![Some(1), None])),
        stamps(TimeUnit::Second, &[-3600, 1]),
        Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), None]).with_timezone("+09:00")),
        Arc::new(DurationSecondArray::from(vec![Some(-1), None])),
        Arc::new(IntervalYearMonthArray::from(vec![Some(14), None])),
        Arc::new(IntervalDayTimeArray::from(vec![
            Some(IntervalDayTime::new(1, 2)),
            None,
        ])),
        Arc::new(
            Decimal32Array::from(vec![Some(-5), None])
                .with_precision_and_scale(9, 2)
                .unwrap(),
        ),
        Arc::new(
            Decimal64Array::from(vec![Some(-5), None])
                .with_precision_and_scale(18, 2)
                .unwrap(),
        ),
        decimals(&[-5, 10i128.pow(37)], 38, 2),
        decimals(&[123, -1], 3, -2),
        Arc::new(
            Decimal256Array::from(vec![Some(i256::MINUS_ONE), None])
                .with_precision_and_scale(76, 2)
                .unwrap(),
        ),
        categories(&[Some(1), None], views(&[Some("a"), Some("b")])),
        categories(&[Some(1), Some(0)], texts(&[None, Some("b")])),
        categories(&[Some(1), None], ints(&[Some(1), Some(2)])),
        categories(&[Some(1), None], list(&[Some(1), None], ints(&[Some(2)]))),
        Arc::new(
            RunArray::try_new(&Int32Array::from(vec![1, 2]), &texts(&[Some("a"), None])).unwrap(),
        ),
    ];
    let nested: Vec<ArrayRef> = arrays
        .iter()
        .flat_map(|array| {
            let struct_list = structure(&[("a", list(&[Some(1), Some(1)], array.clone()))]);
            [
                list(&[Some(2), None], array.clone()),
                list(&[Some(0), Some(2), Some(0)], array.clone()).slice(1, 2),
                large_list(&[1, 1], array.clone()),
                list_view(&[1, 0], &[1, 2], array.clone()),
                fixed(1, array.clone()),
                map(keys.clone(), array.clone()),
                struct_list,
            ]
        })
        .collect();
    arrays.extend(nested);
    for array in arrays {
        let shown = array.data_type().to_string();
        let plain = write(PARQUET, &[array.clone(), array.clone()]).unwrap();
        let fixture = Fixture::new();
        let mut output = fixture.output(1, &[("output", PARQUET, "append")]).unwrap();
        let rows = array.len();
        for other in [null(rows), texts(&vec![Some("x"); rows])] {
            output
                .write(None, &batch(vec![("n", other), ("v", array.clone())]))
                .unwrap();
        }
        assert_eq!(finish(output).unwrap()[0].rows, 2 * rows as u64);
        let batches = read(&fixture.path("o_1.parquet"));
        let column = batches[0].column_by_name("v").unwrap();
        let values: Vec<String> = (0..2 * rows)
            .map(|row| array_value_to_string(column, row).unwrap())
            .collect();
        assert_eq!(
            (column.data_type(), &values),
            (&plain.0, &plain.1),
            "{shown}"
        );
        // The values are also the published ones.
        let same = |row: usize| array_value_to_string(&array, row).unwrap();
        let is_changed = matches!(array.data_type(), DataType::Date64) || shown.contains("Date64");
        if !is_changed {
            assert_eq!(
                values[..rows],
                (0..rows).map(same).collect::<Vec<_>>(),
                "{shown}"
            );
        }
    }
}

/// How a SQLite sink stores values at the limits of their types.
#[test]
fn a_sqlite_sink_stores_values_at_the_edges_or_names_the_column() {
    let day = 86_400i64;
    let dates = |days: &[i32]| -> ArrayRef { Arc::new(Date32Array::from(days.to_vec())) };
    let zoned = TimestampMicrosecondArray::from(vec![-1, 253_402_300_800_000_000]);
    let stored: Vec<(ArrayRef, &[&str])> = vec![
        (
            dates(&[0, -719_162, -719_163, -719_529, 2_932_897]),
            &[
                "1970-01-01",
                "0001-01-01",
                "0000-12-31",
                "-0001-12-31",
                "+10000-01-01",
            ],
        ),
        (
            stamps(TimeUnit::Second, &[-day, 253_402_300_800, -62_135_596_801]),
            &[
                "1969-12-31T00:00:00",
                "+10000-01-01T00:00:00",
                "0000-12-31T23:59:59",
            ],
        ),
        (
            stamps(TimeUnit::Nanosecond, &[i64::MIN + 1, i64::MAX]),
            &[
                "1677-09-21T00:12:43.145224193",
                "2262-04-11T23:47:16.854775807",
            ],
        ),
        (
            Arc::new(zoned.with_timezone("Europe/Berlin")),
            &[
                "1969-12-31T23:59:59.999999+00:00",
                "+10000-01-01T00:00:00+00:00",
            ],
        ),
        (
            Arc::new(Time32SecondArray::from(vec![0, 86_399])),
            &["00:00:00", "23:59:59"],
        ),
        (
            Arc::new(Time64NanosecondArray::from(vec![1, 86_399_999_999_999])),
            &["00:00:00.000000001", "23:59:59.999999999"],
        ),
        (
            decimals(&[-5, 10i128.pow(38) - 1], 38, 38),
            &[
                "-0.00000000000000000000000000000000000005",
                "0.99999999999999999999999999999999999999",
            ],
        ),
        (decimals(&[-5, 123], 3, -2), &["-500", "12300"]),
        (
            Arc::new(UInt64Array::from(vec![0, 1 << 63, u64::MAX])),
            &["integer 0", "9223372036854775808", "18446744073709551615"],
        ),
        (
            floats(&[Some(f64::INFINITY), Some(f64::NEG_INFINITY), None]),
            &["real Inf", "real -Inf", ""],
        ),
        (
            categories(&[Some(0), None], dates(&[1])),
            &["1970-01-02", ""],
        ),
        (
            Arc::new(Date64Array::from(vec![86_400_000])),
            &["1970-01-02"],
        ),
        (
            Arc::new(RunArray::try_new(&Int32Array::from(vec![2]), &texts(&[Some("a")])).unwrap()),
            &["a", "a"],
        ),
    ];
    for (array, want) in stored {
        let shown = array.data_type().to_string();
        let (_, values) =
            write(SQLITE, &[array]).unwrap_or_else(|error| panic!("{shown}: {error}"));
        let text = |text: &&str| match text.is_empty() || text.contains(' ') {
            true => (*text).to_owned(),
            false => format!("text {text}"),
        };
        assert_eq!(values, want.iter().map(text).collect::<Vec<_>>(), "{shown}");
    }
    let refused: Vec<(ArrayRef, &str)> = vec![
        (floats(&[None, Some(f64::NAN)]), "NaN"),
        (Arc::new(Float32Array::from(vec![f32::NAN])), "NaN"),
        (
            stamps(TimeUnit::Microsecond, &[i64::MAX]),
            "9223372036854775807",
        ),
        (stamps(TimeUnit::Second, &[i64::MAX]), "9223372036854775807"),
        (dates(&[i32::MAX]), "2147483647"),
        (Arc::new(Time32SecondArray::from(vec![-1])), "-1 of type"),
        (
            Arc::new(Time64MicrosecondArray::from(vec![86_400_000_000])),
            "86400000000",
        ),
        (
            Arc::new(DurationSecondArray::from(vec![1])),
            "Duration(s); publish it as a number",
        ),
        (
            Arc::new(IntervalDayTimeArray::from(vec![IntervalDayTime::new(1, 2)])),
            "Interval(DayTime); publish it as a number",
        ),
        (
            list(&[Some(1)], ints(&[Some(1)])),
            "List(Int64); publish its parts as columns",
        ),
        (
            structure(&[("a", ints(&[Some(1)]))]),
            "Struct(\"a\": Int64); publish its parts",
        ),
    ];
    for (array, words) in refused {
        let shown = array.data_type().to_string();
        let error = write(SQLITE, &[array]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("column \"v\": ") && text.contains(words),
            "{shown}: {text}"
        );
        assert_eq!(error.cause(), Cause::Plugin, "{shown}");
    }
}

#[test]
fn columns_of_a_table_get_the_type_of_their_first_values() {
    let cases: Vec<(Vec<ArrayRef>, &[&str], &str)> = vec![
        (
            vec![floats(&[None]), texts(&[Some("1")])],
            &["", "text 1"],
            "TEXT",
        ),
        (
            vec![texts(&[Some("1")]), floats(&[None])],
            &["text 1", ""],
            "TEXT",
        ),
        (
            vec![null(1), ints(&[Some(1)])],
            &["", "integer 1"],
            "INTEGER",
        ),
        (
            vec![texts(&[None]), null(1), floats(&[Some(1.0)])],
            &["", "", "real 1.0"],
            "REAL",
        ),
        (
            vec![ints(&[Some(1)]), floats(&[Some(2.0)])],
            &["real 1.0", "real 2.0"],
            "REAL",
        ),
        (
            vec![
                stamps(TimeUnit::Second, &[1]),
                stamps(TimeUnit::Nanosecond, &[1]),
            ],
            &[
                "text 1970-01-01T00:00:01",
                "text 1970-01-01T00:00:00.000000001",
            ],
            "TEXT",
        ),
    ];
    for (arrays, want, declared) in cases {
        let (_, values) = write(SQLITE, &arrays).unwrap();
        assert_eq!(values, want);
        let fixture = Fixture::new();
        let mut output = fixture.output(1, &[("output", SQLITE, "append")]).unwrap();
        for array in arrays {
            output.write(None, &batch(vec![("v", array)])).unwrap();
        }
        finish(output).unwrap();
        let connection = rusqlite::Connection::open(fixture.path("o.db")).unwrap();
        let found: String = connection
            .query_row(
                "SELECT type FROM pragma_table_info('t') WHERE name = 'v'",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(found, declared);
    }
}

#[test]
fn values_that_a_parquet_file_cannot_hold_are_named_by_their_path() {
    let bad_date: ArrayRef = Arc::new(Date64Array::from(vec![Some(86_400_001), None]));
    // Arrow does not check this precision.
    let too_long = Decimal128Array::from(vec![1234]).with_data_type(DataType::Decimal128(3, 0));
    let negative = IntervalYearMonthArray::from(vec![-1]);
    let cases: Vec<(ArrayRef, &str, &str)> = vec![
        (
            bad_date.clone(),
            "v",
            "86400001 ms of type Date64 are no whole day",
        ),
        (list(&[Some(2)], bad_date.clone()), "v.item", "no whole day"),
        (
            structure(&[("a", list(&[Some(1), Some(1)], bad_date))]),
            "v.a.item",
            "no whole day",
        ),
        (stamps(TimeUnit::Second, &[i64::MIN]), "v", "verflow"),
        (
            list(&[Some(1)], stamps(TimeUnit::Second, &[i64::MAX])),
            "v.item",
            "verflow",
        ),
        (
            Arc::new(Time32SecondArray::from(vec![86_400])),
            "v",
            "86400 of type Time32(s) is no time of a day",
        ),
        (Arc::new(too_long), "v", "precision"),
        (
            map(
                texts(&[Some("k"), Some("l"), Some("k")]),
                ints(&[None, None, None]),
            ),
            "v",
            r#"it has a map with the key "k" twice"#,
        ),
        (
            list(
                &[Some(1)],
                map(ints(&[Some(5), Some(5)]), floats(&[None, None])),
            ),
            "v.item",
            r#"it has a map with the key "5" twice"#,
        ),
        (Arc::new(negative), "v", "negative interval"),
    ];
    for (array, column, words) in cases {
        let shown = array.data_type().to_string();
        let error = write(PARQUET, &[array]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("column {column:?}: ")) && text.contains(words),
            "{shown}: {text}"
        );
        assert_eq!(error.cause(), Cause::Plugin, "{shown}");
    }
}

/// Values that no row references are ignored.
#[test]
fn values_that_no_row_has_are_neither_checked_nor_evidence() {
    let dates: ArrayRef = Arc::new(Date64Array::from(vec![5, 86_400_000]));
    let sliced = list(&[Some(1), Some(1)], dates).slice(1, 1);
    assert_eq!(write(PARQUET, &[sliced]).unwrap().1, ["[1970-01-02]"]);
    let sliced = list(&[Some(1), Some(0)], ints(&[Some(5)])).slice(1, 1);
    let (data_type, values) =
        write(PARQUET, &[sliced, list(&[Some(1)], texts(&[Some("x")]))]).unwrap();
    assert_eq!(values, ["[]", "[x]"]);
    assert!(data_type.to_string().contains("Utf8"), "{data_type}");
}

/// Arrow leaves values under a null of a struct, a list or a map undefined.
#[test]
fn values_below_a_null_are_not_checked() {
    // The first value of each is invalid: no time of a day, no whole day, out of the range of
    // milliseconds.
    let times: ArrayRef = Arc::new(Time32SecondArray::from(vec![100_000_000, 5]));
    let dates: ArrayRef = Arc::new(Date64Array::from(vec![12_345, 86_400_000]));
    let far = stamps(TimeUnit::Second, &[i64::MAX, 5]);
    let nulls = || Some(vec![false, true].into());
    for (child, shown) in [
        (times, "00:00:05"),
        (dates, "1970-01-02"),
        (far, "1970-01-01T00:00:05"),
    ] {
        let fields = Fields::from(vec![Field::new("a", child.data_type().clone(), true)]);
        let inner: ArrayRef = Arc::new(StructArray::new(fields, vec![child.clone()], nulls()));
        let sizes = OffsetBuffer::from_lengths([1, 1]);
        let entries = map(ints(&[Some(1), Some(2)]), child.clone());
        let entries = entries.as_map();
        let DataType::Map(entry, _) = entries.data_type() else {
            unreachable!()
        };
        let twice = structure(&[("s", inner.clone())]);
        let cases: [(ArrayRef, String); 5] = [
            (inner, format!("{{a: {shown}}}")),
            (twice, format!("{{s: {{a: {shown}}}}}")),
            (
                Arc::new(ListArray::new(
                    field(&child),
                    sizes.clone(),
                    child.clone(),
                    nulls(),
                )),
                format!("[{shown}]"),
            ),
            (
                Arc::new(FixedSizeListArray::new(
                    field(&child),
                    1,
                    child.clone(),
                    nulls(),
                )),
                format!("[{shown}]"),
            ),
            (
                Arc::new(MapArray::new(
                    entry.clone(),
                    sizes,
                    entries.entries().clone(),
                    nulls(),
                    false,
                )),
                format!("{{2: {shown}}}"),
            ),
        ];
        for (array, want) in cases {
            let name = array.data_type().to_string();
            let found = write(PARQUET, std::slice::from_ref(&array)).unwrap().1;
            assert_eq!(found.last(), Some(&want), "{name}");
            assert_eq!(found.len(), 2, "{name}");
            // The same for a slice.
            let found = write(PARQUET, &[array.slice(1, 1)]).unwrap().1;
            assert_eq!(found, [want], "{name}");
        }
    }
}

#[test]
fn metadata_is_in_the_footer_and_fields_keep_theirs() {
    let metadata = |pairs: &[(&str, &str)]| -> std::collections::HashMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    };
    let uuid = metadata(&[
        ("ARROW:extension:name", "arrow.uuid"),
        ("ARROW:extension:metadata", ""),
    ]);
    let json = metadata(&[
        ("ARROW:extension:name", "arrow.json"),
        ("ARROW:extension:metadata", ""),
    ]);
    let fields = vec![
        Field::new("u", DataType::FixedSizeBinary(16), true).with_metadata(uuid.clone()),
        Field::new("j", DataType::Utf8View, true).with_metadata(json.clone()),
        Field::new("n", DataType::Null, true),
    ];
    let geo = metadata(&[
        ("geo", r#"{"version":"1.0.0"}"#),
        ("casparian.topic", "output"),
        ("ARROW:schema", "other"),
    ]);
    let schema = Arc::new(Schema::new_with_metadata(fields, geo));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(FixedSizeBinaryArray::try_from_iter([[7u8; 16]].iter()).unwrap()),
        views(&[Some("{}")]),
        null(1),
    ];
    let first = RecordBatch::try_new(schema, columns.clone()).unwrap();
    let columns = [columns[0].clone(), columns[1].clone(), texts(&[Some("x")])];
    let fields = [("u", &uuid), ("j", &json), ("n", &metadata(&[]))];
    let fields = fields
        .iter()
        .zip(&columns)
        .map(|((name, metadata), column)| {
            let field = Field::new(*name, column.data_type().clone(), true);
            field.with_metadata((*metadata).clone())
        });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let second = RecordBatch::try_new(schema, columns.to_vec()).unwrap();
    for batches in [vec![first.clone()], vec![first, second]] {
        let fixture = Fixture::new();
        let mut output = fixture.output(1, &[("output", PARQUET, "append")]).unwrap();
        for batch in &batches {
            output.write(None, batch).unwrap();
        }
        finish(output).unwrap();
        let file = File::open(fixture.path("o_1.parquet")).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let footer = reader.metadata().file_metadata();
        let pairs = footer.key_value_metadata().unwrap();
        let mut keys: Vec<&str> = pairs.iter().map(|pair| pair.key.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["ARROW:schema", "geo"]);
        let logical = |index: usize| {
            format!(
                "{:?}",
                footer.schema_descr().column(index).logical_type_ref()
            )
        };
        assert_eq!(
            (logical(0), logical(1)),
            ("Some(Uuid)".to_owned(), "Some(Json)".to_owned())
        );
        let schema = reader.schema();
        let geo = schema.metadata().get("geo").map(String::as_str);
        assert_eq!(geo, Some(r#"{"columns":{},"version":"1.0.0"}"#));
        for (name, want) in [("u", &uuid), ("j", &json)] {
            let found = schema.field_with_name(name).unwrap().metadata();
            assert_eq!(
                found.get("ARROW:extension:name"),
                want.get("ARROW:extension:name")
            );
        }
    }
}

/// Metadata that describes bytes, of a column that is text in the end.
#[test]
fn metadata_of_a_column_that_gets_another_type_is_left_out_and_noted() {
    let geo = r#"{"version":"1.1.0","primary_column":"g","columns":{"g":{"encoding":"WKB","geometry_types":[]}}}"#;
    let with = |array: ArrayRef, geo: Option<&str>| {
        let geo = geo.map(|text| ("geo".to_owned(), text.to_owned()));
        let metadata: std::collections::HashMap<String, String> = geo.into_iter().collect();
        let field = Field::new("g", array.data_type().clone(), true);
        let schema = Schema::new_with_metadata(vec![field], metadata);
        RecordBatch::try_new(Arc::new(schema), vec![array]).unwrap()
    };
    let text = || texts(&[Some("POINT (0 0)")]);
    let empty_line = [1, 2, 0, 0, 0, 0, 0, 0, 0];
    let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![empty_line.as_slice()]));
    let note = "topic \"output\": column \"g\": its entry in the metadata of GeoParquet was left out: \
                the encoding WKB needs bytes, and the column has the type Utf8";
    let cases = [
        (vec![with(text(), Some(geo))], &[note][..]),
        (vec![with(null(1), Some(geo)), with(text(), None)], &[note]),
        (vec![with(text(), None), with(null(1), Some(geo))], &[note]),
        (vec![with(bytes.clone(), Some(geo))], &[]),
        (
            vec![with(bytes.clone(), Some(geo)), with(bytes, Some("[]"))],
            &[
                "topic \"output\": metadata \"geo\" of the schema cannot be merged over all batches and was left out",
            ],
        ),
    ];
    for (batches, notes) in cases {
        let fixture = Fixture::new();
        let mut output = fixture.output(1, &[("output", PARQUET, "append")]).unwrap();
        for batch in &batches {
            output.write(None, batch).unwrap();
        }
        let staged = output.stage().unwrap();
        assert_eq!(staged.notes(), notes);
        granted(staged).unwrap();
        let file = File::open(fixture.path("o_1.parquet")).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let has_geo = reader.schema().metadata().contains_key("geo");
        assert_eq!(has_geo, notes.is_empty(), "{notes:?}");
    }
}

/// Readers do not open a file with a value that is no geometry in a column of geometries.
#[test]
fn values_that_are_no_geometries_are_refused_where_metadata_names_geometries() {
    let geo = r#"{"version":"1.1.0","primary_column":"v","columns":{"v":{"encoding":"WKB","geometry_types":[]}}}"#;
    let other = geo.replace("\"v\"", "\"w\"");
    let line: &[u8] = &[1, 2, 0, 0, 0, 0, 0, 0, 0];
    let with = |value: &[u8], geo: &str, extension: &str| {
        let array: ArrayRef = Arc::new(BinaryArray::from(vec![None, Some(value)]));
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let field = Field::new("v", array.data_type().clone(), true);
        let field = match extension {
            "" => field,
            name => field.with_metadata([pair("ARROW:extension:name", name)]),
        };
        let more = Field::new("w", array.data_type().clone(), true);
        let geo = (!geo.is_empty()).then(|| pair("geo", geo));
        let schema = Schema::new_with_metadata(
            vec![field, more],
            geo.into_iter().collect::<std::collections::HashMap<_, _>>(),
        );
        let lines = Arc::new(BinaryArray::from(vec![None, Some(line)]));
        RecordBatch::try_new(Arc::new(schema), vec![array, lines]).unwrap()
    };
    for (batches, is_refused) in [
        (vec![with(line, geo, "")], false),
        (vec![with(line, geo, "geoarrow.wkb")], false),
        (vec![with(b"x", "", "")], false),
        (vec![with(b"x", &other, "")], false),
        (vec![with(b"x", "", "geoarrow.wkt")], false),
        (vec![with(b"x", geo, "")], true),
        (vec![with(b"x", "", "geoarrow.wkb")], true),
        (vec![with(line, geo, ""), with(b"x", geo, "")], true),
        (vec![with(line, geo, ""), with(b"x", "", "")], true),
        (vec![with(b"x", "", ""), with(line, geo, "")], true),
    ] {
        for sink in [PARQUET, SQLITE] {
            let fixture = Fixture::new();
            let mut output = fixture.output(1, &[("output", sink, "append")]).unwrap();
            let mut written = batches.iter().map(|batch| output.write(None, batch));
            let refused = written.find_map(Result::err).map(|error| error.to_string());
            let reason = "its metadata names it as geometries in WKB, and a value is none";
            let has_reason =
                refused.is_some_and(|text| text.contains("column \"v\"") && text.contains(reason));
            assert_eq!(has_reason, is_refused && sink == PARQUET, "{batches:?}");
        }
    }
}

/// Batches of structs, each with another field.
fn growing(count: usize) -> impl Iterator<Item = RecordBatch> {
    (0..count).map(|number| {
        let name = format!("f{number}");
        batch(vec![("v", structure(&[(&name, ints(&[Some(1)]))]))])
    })
}

#[test]
fn types_change_a_bounded_number_of_times() {
    let fixture = Fixture::new();
    let sinks = [("output", PARQUET, "append")];
    let mut output = fixture.output(1, &sinks).unwrap();
    for batch in growing(limits::SEGMENTS_MAX + 1) {
        output.write(None, &batch).unwrap();
    }
    finish(output).unwrap();
    assert_eq!(rows(&fixture.path("o_1.parquet")), limits::SEGMENTS_MAX + 1);
    let mut output = fixture.output(2, &sinks).unwrap();
    let mut batches = growing(limits::SEGMENTS_MAX + 2);
    let error = batches
        .find_map(|batch| output.write(None, &batch).err())
        .unwrap();
    let text = error.to_string();
    assert!(text.contains("have changed more than 64 times"), "{text}");
    assert_eq!(error.cause(), Cause::Plugin);
    drop(output);
    assert_eq!(fixture.staged().len(), 0);
}

#[test]
fn rows_that_are_written_anew_count_once_and_can_be_stopped() {
    let fixture = Fixture::new();
    let noise = |part: i64| -> ArrayRef {
        let mixed = |number: i64| number.wrapping_mul(0x1E37_79B9_7F4A_7C15);
        Arc::new(Int64Array::from_iter_values(
            (part * 100_000..(part + 1) * 100_000).map(mixed),
        ))
    };
    let output = |limit: u64| {
        let job = job(
            None,
            Attempt::new(1, 0),
            &[("output", "parquet://o.parquet?compression=none", "append")],
        );
        let bounds = Bounds {
            output: limit,
            ..Bounds::default()
        };
        let mut output = JobOutput::bounded(fixture.root.clone(), Arc::new(job), bounds).unwrap();
        let texts = texts(&vec![Some("x"); 100_000]);
        let others = [null(100_000), texts, null(100_000)].into_iter();
        let written = others.zip(0..).try_for_each(|(other, part)| {
            output.write(None, &batch(vec![("n", noise(part)), ("v", other)]))
        });
        written.map(|()| output)
    };
    // The output is 2.4 MB. Segments and the file that replaces them are not counted together.
    let published = finish(output(3_000_000).unwrap()).unwrap();
    assert_eq!(published[0].rows, 300_000);
    assert!(
        (2_400_000..3_000_000).contains(&published[0].size_bytes),
        "{published:?}"
    );
    let error = output(2_000_000)
        .and_then(JobOutput::stage)
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, Error::Output { .. }), "{error}");
    let asked = std::cell::Cell::new(0);
    let goes_on = || asked.replace(asked.get() + 1) < 1;
    let stopped = output(0).unwrap().stage_while(&goes_on);
    assert!(matches!(stopped, Err(Error::Stopped)));
    assert_eq!(fixture.staged().len(), 0);
}

#[test]
fn fields_of_structs_are_found_by_name() {
    let names: Vec<String> = (0..1000).map(|number| format!("f{number}")).collect();
    let of = |name: &String, array: ArrayRef| -> (String, ArrayRef) { (name.clone(), array) };
    let nulls: Vec<(String, ArrayRef)> = names.iter().map(|name| of(name, null(1))).collect();
    let numbers = names.iter().rev().zip(0..);
    let numbers: Vec<(String, ArrayRef)> = numbers
        .map(|(name, number)| of(name, ints(&[Some(number)])))
        .collect();
    let structure = |fields: &[(String, ArrayRef)]| {
        let fields: Vec<(&str, ArrayRef)> = fields
            .iter()
            .map(|(name, array)| (name.as_str(), array.clone()))
            .collect();
        structure(&fields)
    };
    let (_, values) = write(PARQUET, &[structure(&nulls), structure(&numbers)]).unwrap();
    assert!(
        values[1].starts_with("{f0: 999, f1: 998, "),
        "{}",
        values[1]
    );
}

/// Converted to another type, nulls may need more memory than their batch.
#[test]
fn nulls_of_large_types_are_bounded() {
    let huge = |data_type: DataType| -> ArrayRef {
        let item = Arc::new(Field::new("item", data_type, true));
        new_empty_array(&DataType::FixedSizeList(item, 1 << 30))
    };
    let huge = huge(DataType::Float64);
    let float = || floats(&[None, None]);
    let cases: Vec<(ArrayRef, ArrayRef)> = vec![
        (huge.clone(), float()),
        (huge.clone(), null(2)),
        (list(&[Some(0)], huge.clone()), list(&[Some(2)], float())),
        (
            list(&[Some(0)], huge.clone()),
            list_view(&[0, 0], &[1, 1], float()),
        ),
        (
            map(texts(&[]), huge.clone()),
            map(texts(&[Some("k")]), float().slice(0, 1)),
        ),
    ];
    for (first, second) in cases {
        let shown = second.data_type().to_string();
        let error = write(PARQUET, &[first.clone(), second.clone()]).unwrap_err();
        assert!(matches!(error, Error::Row { .. }), "{shown}: {error}");
        // In the other order, rows are read back from staging.
        let error = write(PARQUET, &[second, first]);
        if let Err(error) = error {
            assert!(matches!(error, Error::Row { .. }), "{shown}: {error}");
        }
    }
    // Slices have one row where more would exceed the limit.
    let large = fixed(1 << 20, Arc::new(Float64Array::from(vec![0.0; 1 << 20])));
    let both = structure(&[("a", large), ("b", ints(&[Some(1)]))]);
    let one = structure(&[("b", ints(&[Some(1); 20]))]);
    let category = categories(&[Some(0); 20], structure(&[("b", ints(&[Some(1)]))]));
    for second in [one, category] {
        let (_, values) = write(PARQUET, &[both.clone(), second]).unwrap();
        assert!(values[0].starts_with("{a: [0.0, ") && values[20] == "{a: , b: 1}");
    }
    let fields: Vec<String> = (0..300).map(|number| format!("f{number}")).collect();
    let fields: Vec<(&str, ArrayRef)> = fields
        .iter()
        .map(|name| (name.as_str(), ints(&[Some(1)])))
        .collect();
    let (_, values) = write(PARQUET, &[floats(&vec![None; 100_000]), structure(&fields)]).unwrap();
    assert_eq!(values.len(), 100_001);
}
