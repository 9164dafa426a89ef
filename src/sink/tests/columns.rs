//! Names and types of columns that a sink cannot store. The error message has the column and advice.

use arrow::array::{StructArray, new_null_array};
use arrow::datatypes::{
    DataType, Field, Fields, IntervalUnit, Schema, TimeUnit, UnionFields, UnionMode,
};

use super::*;
use crate::job::Cause;

/// One row with a number in each of these columns.
fn named(names: &[&str]) -> RecordBatch {
    let fields: Vec<Field> = names
        .iter()
        .map(|name| Field::new(*name, DataType::Int64, true))
        .collect();
    let column: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let columns = vec![column; names.len()];
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// The same, as a struct column `s` with these fields.
fn nested(names: &[&str]) -> RecordBatch {
    batch(vec![("s", Arc::new(StructArray::from(named(names))))])
}

fn error(uri: &str, batch: &RecordBatch) -> Result<Vec<Artifact>, Error> {
    let fixture = Fixture::new();
    let mut output = fixture.output(1, &[("output", uri, "append")])?;
    output.write(None, batch)?;
    finish(output)
}

#[test]
fn names_that_a_sink_cannot_store_are_the_plugins_fault_and_named() {
    let many: Vec<String> = (0..1999).map(|number| format!("c{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let both: &[&str] = &["parquet://o.parquet", "sqlite://o.db/rows"];
    let (parquet, sqlite) = (&both[..1], &both[1..]);
    let same = "there is more than one column of this name; give each a name of its own";
    let nul = "its name has a NUL; rename it";
    let cases = [
        (both, named(&["x", "y", "x"]), "\"x\"", same),
        (
            sqlite,
            named(&["A", "a"]),
            "\"a\"",
            "without regard to case",
        ),
        (sqlite, named(&["_JOB_ID"]), "\"_JOB_ID\"", "rename yours"),
        (both, named(&["_job_id"]), "\"_job_id\"", "rename yours"),
        (
            sqlite,
            named(&["_database"]),
            "\"_database\"",
            "rename yours",
        ),
        (
            sqlite,
            named(&["_Incarnation"]),
            "\"_Incarnation\"",
            "rename yours",
        ),
        (sqlite, named(&["a\0b"]), "\"a\\0b\"", nul),
        (sqlite, named(&many), "\"c1998\"", "at most 2000 columns"),
    ];
    for (uris, batch, column, words) in cases {
        for uri in uris {
            let error = error(uri, &batch).unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with(&format!("column {column}: ")),
                "{uri}: {text}"
            );
            assert!(text.contains(words), "{uri} {column}: {text}");
            assert_eq!(error.cause(), Cause::Plugin, "{uri} {column}");
        }
    }
    for (uris, batch) in [
        (
            parquet,
            named(&["A", "a", "_JOB_ID", "a\0b", "_database", "_incarnation"]),
        ),
        (parquet, nested(&["A", "a"])),
        (parquet, named(&many)),
        (sqlite, named(&many[1..])),
        (both, named(&["", "a.b", "a\"b", "ä"])),
    ] {
        for uri in uris {
            assert_eq!(error(uri, &batch).unwrap().len(), 1, "{uri}");
        }
    }
}

/// A nullable field.
fn field(name: &str, data_type: &DataType) -> Arc<Field> {
    Arc::new(Field::new(name, data_type.clone(), true))
}

fn structure(fields: &[Arc<Field>]) -> DataType {
    DataType::Struct(fields.to_vec().into())
}

fn map(value: &DataType) -> DataType {
    let key = Arc::new(Field::new("key", DataType::Utf8, false));
    let entries = structure(&[key, field("value", value)]);
    DataType::Map(Arc::new(Field::new("entries", entries, false)), false)
}

fn dictionary(value: &DataType) -> DataType {
    DataType::Dictionary(Box::new(DataType::Int8), Box::new(value.clone()))
}

/// One row with a number in column `n` and a null of the type in column `a`.
fn typed(data_type: &DataType) -> RecordBatch {
    let fields = vec![field("n", &DataType::Int64), field("a", data_type)];
    let columns = vec![
        Arc::new(Int64Array::from(vec![1])) as ArrayRef,
        new_null_array(data_type, 1),
    ];
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

#[test]
fn types_that_readers_do_not_open_are_named() {
    let int = DataType::Int64;
    let deep = |levels: usize, wrap: &dyn Fn(&DataType) -> DataType| {
        (0..levels).fold(int.clone(), |inner, _| wrap(&inner))
    };
    let list = |inner: &DataType| DataType::List(field("item", inner));
    let fixed = |inner: &DataType| DataType::FixedSizeList(field("item", inner), 1);
    let within = |inner: &DataType| structure(&[field("x", inner)]);
    let both = |inner: &DataType| list(&within(inner));
    let twice = structure(&[field("x", &int), field("x", &DataType::Utf8)]);
    let (names, depth) = ("more than one field named \"x\"", "within each other");
    let refused = [
        (twice.clone(), "a", names),
        (list(&twice), "a.item", names),
        (map(&twice), "a.entries.value", names),
        (dictionary(&within(&twice)), "a.x", names),
        (deep(21, &list), "a.item.item", depth),
        (deep(21, &fixed), "a.item.item", depth),
        (deep(21, &map), "a.entries.value.entries", depth),
        (deep(49, &within), "a.x.x", depth),
        (deep(21, &both), "a.item.x.item", depth),
    ];
    for (data_type, column, words) in refused {
        let error = error("parquet://o.parquet", &typed(&data_type)).unwrap_err();
        let text = error.to_string();
        let start = format!("column \"{column}");
        assert!(text.starts_with(&start) && text.contains(words), "{text}");
        assert_eq!(error.cause(), Cause::Plugin, "{text}");
    }
    for data_type in [
        deep(20, &list),
        deep(20, &map),
        deep(48, &within),
        deep(20, &both),
    ] {
        error("parquet://o.parquet", &typed(&data_type)).unwrap();
    }
}

#[test]
fn types_that_a_sink_cannot_store_are_the_plugins_fault_and_named() {
    let members = [field("x", &DataType::Int64), field("y", &DataType::Utf8)];
    let members = UnionFields::try_new([0, 1], members).unwrap();
    let dense = DataType::Union(members.clone(), UnionMode::Dense);
    let sparse = DataType::Union(members, UnionMode::Sparse);
    let interval = DataType::Interval(IntervalUnit::MonthDayNano);
    let empty = DataType::Struct(Fields::empty());
    let unsupported = [
        (dense, "Union("),
        (sparse, "Union("),
        (interval, "Interval(MonthDayNano); publish its months"),
        (empty, "Struct("),
        (DataType::Decimal256(75, -2), "Decimal256(75, -2)"),
        (DataType::FixedSizeBinary(0), "FixedSizeBinary(0)"),
    ];
    let (parquet, sqlite) = ("parquet://o.parquet", "sqlite://o.db/rows");
    let expect = |uri: &str, data_type: &DataType, column: &str, words: &str| {
        let error = error(uri, &typed(data_type)).unwrap_err();
        let text = error.to_string();
        let start = format!("column {column:?}: a ");
        assert!(text.starts_with(&start), "{uri} {data_type}: {text}");
        assert!(text.contains(words), "{uri} {data_type}: {text}");
        assert!(text.len() < 600, "{uri} {data_type}: {text}");
        assert_eq!(error.cause(), Cause::Plugin, "{uri} {data_type}");
    };
    for (bad, words) in &unsupported {
        let inner = structure(&[field("b", &DataType::Utf8), field("c", bad)]);
        for (data_type, column) in [
            (bad.clone(), "a"),
            (inner.clone(), "a.c"),
            (DataType::List(field("item", bad)), "a.item"),
            (DataType::LargeList(field("item", &inner)), "a.item.c"),
            (DataType::FixedSizeList(field("item", bad), 2), "a.item"),
            (DataType::ListView(field("item", bad)), "a.item"),
            (map(bad), "a.entries.value"),
            (dictionary(bad), "a"),
            (dictionary(&inner), "a.c"),
        ] {
            expect(parquet, &data_type, column, words);
        }
    }
    for data_type in [&unsupported[0].0, &unsupported[1].0, &unsupported[2].0] {
        let list = DataType::List(field("item", data_type));
        for data_type in [data_type.clone(), structure(&[field("c", data_type)]), list] {
            expect(sqlite, &data_type, "a", "SQLite sink cannot store type");
        }
    }
    // A type whose text is long.
    let many: Vec<Arc<Field>> = (0..1000)
        .map(|number| field(&format!("field_{number}"), &DataType::Int64))
        .collect();
    expect(sqlite, &structure(&many), "a", "Struct(");
}

#[test]
fn types_that_a_parquet_sink_stores_are_not_refused() {
    use DataType as T;
    let plain = [
        T::Null,
        T::Boolean,
        T::Int8,
        T::UInt64,
        T::Float16,
        T::Float64,
        T::Utf8,
        T::LargeUtf8,
        T::Utf8View,
        T::Binary,
        T::BinaryView,
        T::FixedSizeBinary(3),
        T::Date32,
        T::Date64,
        T::Time32(TimeUnit::Second),
        T::Time64(TimeUnit::Nanosecond),
        T::Timestamp(TimeUnit::Second, None),
        T::Timestamp(TimeUnit::Nanosecond, Some("Europe/Berlin".into())),
        T::Duration(TimeUnit::Microsecond),
        T::Interval(IntervalUnit::YearMonth),
        T::Interval(IntervalUnit::DayTime),
        T::Decimal32(9, 2),
        T::Decimal64(18, 2),
        T::Decimal128(38, 38),
        T::Decimal256(76, 0),
    ];
    for data_type in &plain {
        let inner = structure(&[field("c", data_type)]);
        let mut all = vec![
            data_type.clone(),
            inner.clone(),
            T::List(field("item", &inner)),
            T::FixedSizeList(field("item", data_type), 2),
            map(data_type),
        ];
        // No program creates dictionaries of nulls.
        if *data_type != T::Null {
            all.push(dictionary(data_type));
        }
        for data_type in all {
            let published = error("parquet://o.parquet", &typed(&data_type));
            let published = published.unwrap_or_else(|error| panic!("{data_type}: {error}"));
            assert_eq!(published.len(), 1, "{data_type}");
        }
    }
}
