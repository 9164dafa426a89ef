use ::parquet::basic::Compression as Codec;
use arrow::array::{
    Array, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float64Array,
    LargeStringArray, ListArray, NullArray, StringArray, StringViewArray, StructArray,
    TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use proptest::prelude::*;

use super::*;
use crate::job::{Compression, Target, parse_uri};

#[test]
fn uris_are_targets_or_errors_that_state_the_fault() {
    let parquet = |path: &str, compression| Target::Parquet {
        path: path.into(),
        compression,
    };
    let sqlite = |database: &str, table: &str| Target::Sqlite {
        database: database.into(),
        table: table.into(),
    };
    for (uri, want) in [
        (
            "parquet://o.parquet",
            parquet("o.parquet", Compression::Snappy),
        ),
        (
            "parquet://a/./b/?compression=zstd",
            parquet("a/b", Compression::Zstd),
        ),
        (
            "parquet://o?compression=lz4",
            parquet("o", Compression::Lz4),
        ),
        (
            "parquet://o?compression=none",
            parquet("o", Compression::None),
        ),
        ("sqlite:///abs/x.db/t", sqlite("/abs/x.db", "t")),
        ("sqlite://rel.db/t x", sqlite("rel.db", "t x")),
    ] {
        assert_eq!(parse_uri(uri).expect(uri), want);
    }
    let long = format!("parquet://{}.parquet", "x".repeat(300));
    for (uri, want) in [
        ("", "no scheme"),
        ("o.parquet", "no scheme"),
        ("s3://b/k", "unknown scheme"),
        ("parquet://", "no path"),
        ("parquet://.", "no path"),
        ("parquet:///abs", "relative"),
        ("parquet://a/../../b", "a part `..`"),
        ("parquet://a/../b", "a part `..`"),
        ("parquet://a\0b", "NUL"),
        ("parquet://o?compression=gzip", "snappy, zstd"),
        ("parquet://o?x=1", "unknown parameter"),
        ("parquet://.casparian/x", ".casparian"),
        (&long, "200 bytes"),
        ("sqlite://x.db", "no table"),
        ("sqlite://x.db/", "empty"),
        ("sqlite:///a/../b.db/t", "a part `..`"),
        ("sqlite://x.db/sqlite_master", "SQLite's own"),
        (
            "sqlite://x.db/CF_processing_queue",
            "makes a database a job queue",
        ),
        ("sqlite://x.db/SQLite_master", "SQLite's own"),
        ("sqlite://x.db/_casparian_output", "Casparian's own"),
        ("sqlite://x.db/_casparian_table", "Casparian's own"),
        ("sqlite://x.db/_Casparian_Key", "Casparian's own"),
        ("sqlite://x.db/t?mode=ro", "no parameters"),
    ] {
        let error = parse_uri(uri).expect_err(uri).to_string();
        assert!(error.contains(want), "{uri}: {error}");
    }
}

proptest! {
    #[test]
    fn no_uri_panics_or_leaves_the_root(text in ".{0,60}", path in "[a-z./?=]{0,40}") {
        for uri in [text.clone(), format!("parquet://{path}"), format!("sqlite://{path}")] {
            if let Ok(Target::Parquet { path, .. }) = parse_uri(&uri) {
                let mut parts = path.components();
                let inside = parts.all(|part| matches!(part, std::path::Component::Normal(_)));
                prop_assert!(inside, "it leaves the root");
            }
        }
    }
}

#[test]
fn output_is_visible_only_after_publishing_and_carries_its_ids() {
    let root = Fixture::new();
    let mut output = root
        .output(7, &[("output", "parquet://set/o.parquet", "append")])
        .unwrap();
    let schema = Schema::new_with_metadata(
        vec![Field::new("x", DataType::Int64, true)],
        std::collections::HashMap::from(
            [("casparian.topic", "output"), ("by", "us")]
                .map(|(key, value)| (key.to_owned(), value.to_owned())),
        ),
    );
    let batch = numbers(&[1, 2, 3]).with_schema(Arc::new(schema)).unwrap();
    output.write(Some("output"), &batch).unwrap();
    output.write(None, &batch).unwrap();
    assert!(root.files().is_empty());
    let staged = output.stage().unwrap();
    assert_eq!(staged.rows(), 6);
    assert!(root.files().is_empty());
    let artifacts = staged.publish(&[], &|| true).unwrap().artifacts;
    let path = root.path("set/o_7.parquet");
    assert_eq!(artifacts[0].uri, format!("file://{}", path.display()));
    assert_eq!(
        (artifacts[0].rows, artifacts[0].size_bytes),
        (6, path.metadata().unwrap().len())
    );
    assert_eq!(root.files(), ["set/o_7.parquet"]);
    assert_eq!(root.staged().len(), 0);
    let batch = &read(&path)[0];
    let schema = batch.schema();
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(names, ["x", "_job_id", "_file_version_id"]);
    let file = File::open(&path).unwrap();
    let stored = ParquetRecordBatchReaderBuilder::try_new(file)
        .unwrap()
        .schema()
        .clone();
    assert!(!stored.metadata().contains_key("casparian.topic"));
    assert!(stored.metadata().contains_key("by"));
    let ids = batch
        .column(1)
        .as_any()
        .downcast_ref::<Int64Array>()
        .unwrap();
    assert_eq!((ids.value(0), ids.null_count()), (7, 0));
}

#[test]
fn dropped_output_leaves_nothing() {
    let root = Fixture::new();
    let sinks = [("output", "parquet://o.parquet", "append")];
    let mut output = root.output(1, &sinks).unwrap();
    output.write(None, &numbers(&[1])).unwrap();
    drop(output);
    let mut output = root.output(1, &sinks).unwrap();
    output.write(None, &numbers(&[1])).unwrap();
    drop(output.stage().unwrap());
    assert_eq!((root.files(), root.staged().len()), (vec![], 0));
    // Without a batch no file is published. A batch without rows gives a file with a schema.
    assert!(finish(root.output(1, &sinks).unwrap()).unwrap().is_empty());
    let mut output = root.output(1, &sinks).unwrap();
    output.write(None, &numbers(&[])).unwrap();
    assert_eq!(finish(output).unwrap()[0].rows, 0);
    assert_eq!(rows(&root.path("o_1.parquet")), 0);
}

#[test]
fn topics_find_their_sinks_and_unknown_ones_get_a_file_of_their_own() {
    let root = Fixture::new();
    let sinks = [
        ("output", "parquet://a.parquet", "append"),
        ("rejects", "parquet://rejects/", "append"),
    ];
    let mut output = root.output(3, &sinks).unwrap();
    output.write(None, &numbers(&[1])).unwrap();
    output.write(Some("rejects"), &numbers(&[2, 3])).unwrap();
    output.write(Some("new/topic"), &numbers(&[4])).unwrap();
    output.write(None, &numbers(&[5])).unwrap();
    finish(output).unwrap();
    assert_eq!(
        root.files(),
        [
            "a_3.parquet",
            "plug_in_new_topic-f4cbb1dd33f5840d_3.parquet",
            "rejects/data_3.parquet"
        ]
    );
    assert_eq!(rows(&root.path("a_3.parquet")), 2);
    assert_eq!(rows(&root.path("rejects/data_3.parquet")), 4);
    assert_eq!(
        rows(&root.path("plug_in_new_topic-f4cbb1dd33f5840d_3.parquet")),
        1
    );
}

#[test]
fn compression_is_what_the_uri_names() {
    let root = Fixture::new();
    for (name, codec) in [
        ("snappy", Codec::SNAPPY),
        ("zstd", Codec::ZSTD(::parquet::basic::ZstdLevel::default())),
        ("lz4", Codec::LZ4_RAW),
        ("none", Codec::UNCOMPRESSED),
    ] {
        root.publish(
            1,
            &format!("parquet://{name}.parquet?compression={name}"),
            "append",
        )
        .unwrap();
        let file = File::open(root.path(&format!("{name}_1.parquet"))).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let found = reader.metadata().row_group(0).column(0).compression();
        assert_eq!(
            std::mem::discriminant(&found),
            std::mem::discriminant(&codec),
            "{name}"
        );
    }
}

#[test]
fn a_schema_that_changes_is_refused_and_null_columns_adapt() {
    let root = Fixture::new();
    let text: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
    let null: ArrayRef = Arc::new(NullArray::new(1));
    type Case<'a> = (Vec<(&'a str, ArrayRef)>, Option<&'a str>);
    let cases: Vec<Case<'_>> = vec![
        (
            vec![("x", text.clone())],
            Some("column \"x\" of type Int64"),
        ),
        (
            vec![("y", Arc::new(Int64Array::from(vec![1])))],
            Some("\"y\""),
        ),
        (
            vec![("x", null.clone()), ("z", null.clone())],
            Some("1 columns (x)"),
        ),
        (vec![("x", null)], None),
    ];
    for (columns, want) in cases {
        let mut output = root
            .output(1, &[("output", "parquet://o.parquet", "append")])
            .unwrap();
        output.write(None, &numbers(&[1])).unwrap();
        let result = output
            .write(None, &batch(columns))
            .map_err(|error| error.to_string());
        match want {
            None => {
                result.unwrap();
                finish(output).unwrap();
                assert_eq!(rows(&root.path("o_1.parquet")), 2);
            }
            Some(want) => {
                let error = result.unwrap_err();
                assert!(
                    error.contains("changed half-way") && error.contains(want),
                    "{error}"
                );
            }
        }
    }
    for columns in [
        vec![("_job_id", text.clone())],
        vec![("_file_version_id", text.clone())],
    ] {
        let mut output = root
            .output(1, &[("output", "parquet://o.parquet", "append")])
            .unwrap();
        let error = output.write(None, &batch(columns)).unwrap_err().to_string();
        assert!(error.contains("rename yours"), "{error}");
    }
}

#[test]
fn symbolic_links_and_files_in_the_way_do_not_lead_out() {
    let root = Fixture::new();
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), root.path("link")).unwrap();
    let error = root
        .publish(1, "parquet://link/o.parquet", "append")
        .unwrap_err()
        .to_string();
    assert!(error.contains("leads out"), "{error}");
    let error = root
        .publish(1, "parquet://link/new/o.parquet", "append")
        .unwrap_err()
        .to_string();
    assert!(error.contains("leads out"), "{error}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    fs::write(root.path("file"), "x").unwrap();
    assert!(matches!(
        root.publish(1, "parquet://file/o.parquet", "append"),
        Err(Error::Path { .. })
    ));
    assert_eq!(root.staged().len(), 0);
}

pub(super) fn every_type() -> RecordBatch {
    let dictionary: DictionaryArray<Int32Type> = vec!["a", "b"].into_iter().collect();
    let list =
        ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), None]), None]);
    let inner: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let structure = StructArray::from(vec![(
        Arc::new(Field::new("a", DataType::Int64, true)),
        inner,
    )]);
    let decimal = Decimal128Array::from(vec![12345, -1])
        .with_precision_and_scale(10, 2)
        .unwrap();
    batch(vec![
        ("dictionary", Arc::new(dictionary)),
        ("null", Arc::new(NullArray::new(2))),
        ("list", Arc::new(list)),
        ("struct", Arc::new(structure)),
        ("decimal", Arc::new(decimal)),
        (
            "stamp",
            Arc::new(TimestampMicrosecondArray::from(vec![0, 1]).with_timezone("UTC")),
        ),
        ("large", Arc::new(LargeStringArray::from(vec!["x", "y"]))),
        ("view", Arc::new(StringViewArray::from(vec!["x", "y"]))),
        (
            "binary",
            Arc::new(BinaryArray::from(vec![&b"\0"[..], b"1"])),
        ),
        ("date", Arc::new(Date32Array::from(vec![0, 1]))),
        ("bool", Arc::new(BooleanArray::from(vec![true, false]))),
        ("u64", Arc::new(UInt64Array::from(vec![u64::MAX, 0]))),
        ("float", Arc::new(Float64Array::from(vec![1.5, f64::MAX]))),
    ])
}

#[test]
fn every_type_goes_to_parquet() {
    let root = Fixture::new();
    let mut output = root
        .output(1, &[("output", "parquet://o.parquet", "append")])
        .unwrap();
    let batch = every_type();
    output.write(None, &batch).unwrap();
    finish(output).unwrap();
    let back = &read(&root.path("o_1.parquet"))[0];
    for (index, field) in batch.schema().fields().iter().enumerate() {
        let want = match field.data_type() {
            DataType::Utf8View => &DataType::LargeUtf8,
            DataType::Dictionary(_, values) => values.as_ref(),
            other => other,
        };
        let found = back.schema();
        let found = found.field(index).data_type();
        assert_eq!(found, want, "{}", field.name());
        if found == field.data_type() {
            assert_eq!(back.column(index), batch.column(index), "{}", field.name());
        }
    }
}

#[test]
fn timestamps_in_seconds_stay_timestamps() {
    let root = Fixture::new();
    let seconds = |value| -> RecordBatch {
        batch(vec![(
            "at",
            Arc::new(arrow::array::TimestampSecondArray::from(vec![value])),
        )])
    };
    let mut output = root
        .output(1, &[("output", "parquet://o.parquet", "append")])
        .unwrap();
    output.write(None, &seconds(1_700_000_000)).unwrap();
    output.write(None, &seconds(1)).unwrap();
    assert!(matches!(
        output.write(None, &seconds(i64::MAX)),
        Err(Error::Column { .. })
    ));
    finish(output).unwrap();
    let back = &read(&root.path("o_1.parquet"))[0];
    let want = arrow::array::TimestampMillisecondArray::from(vec![1_700_000_000_000, 1_000]);
    assert_eq!(back.column(0).as_ref(), &want as &dyn Array);
}

#[test]
fn row_groups_are_written_out_by_size() {
    let root = Fixture::new();
    let mut output = root
        .output(
            1,
            &[("output", "parquet://o.parquet?compression=none", "append")],
        )
        .unwrap();
    let mut seed = 1i64;
    let mut values = || -> Vec<i64> {
        (0..1 << 20)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                seed
            })
            .collect()
    };
    let large = batch(vec![
        ("a", Arc::new(Int64Array::from(values()))),
        ("b", Arc::new(Int64Array::from(values()))),
        ("c", Arc::new(Int64Array::from(values()))),
    ]);
    output.write(None, &large).unwrap();
    output.write(None, &large).unwrap();
    finish(output).unwrap();
    let file = File::open(root.path("o_1.parquet")).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    assert!(
        reader.metadata().num_row_groups() >= 3,
        "{}",
        reader.metadata().num_row_groups()
    );
    assert_eq!(rows(&root.path("o_1.parquet")), 2 << 20);
}

/// pyarrow and Polars fail on statistics that do not have the size of the column's values.
#[test]
fn long_values_of_a_fixed_size_have_no_statistics() {
    for (size, has_them) in [(63, true), (64, true), (65, false), (1000, false)] {
        let root = Fixture::new();
        let mut output = root
            .output(1, &[("output", "parquet://o.parquet", "append")])
            .unwrap();
        let value = vec![1u8; size];
        let values = [value.as_slice(), value.as_slice()].into_iter();
        let column = arrow::array::FixedSizeBinaryArray::try_from_iter(values).unwrap();
        let column: ArrayRef = Arc::new(column);
        let field = Arc::new(Field::new("s", column.data_type().clone(), true));
        let nested: ArrayRef = Arc::new(StructArray::from(vec![(field, column.clone())]));
        output
            .write(None, &batch(vec![("c", column), ("n", nested)]))
            .unwrap();
        finish(output).unwrap();
        let file = File::open(root.path("o_1.parquet")).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let group = reader.metadata().row_group(0);
        for index in [0, 1] {
            let statistics = group.column(index).statistics();
            let has_bounds = statistics.is_some_and(|found| found.min_bytes_opt().is_some());
            assert_eq!(has_bounds, has_them, "{size} {index}");
        }
    }
}

/// pyarrow cannot read nested texts of 2 GiB or more in one row group, even if they have few bytes in the
/// file.
#[test]
fn row_groups_of_repeated_texts_are_bounded_as_readers_hold_them() {
    let root = Fixture::new();
    let mut output = root
        .output(1, &[("output", "parquet://o.parquet", "append")])
        .unwrap();
    let texts = StringArray::from(vec!["x".repeat(256 << 10)]);
    let keys = arrow::array::Int32Array::from(vec![0; 1000]);
    let column: ArrayRef = Arc::new(DictionaryArray::<Int32Type>::new(keys, Arc::new(texts)));
    let field = Arc::new(Field::new("s", column.data_type().clone(), true));
    let column: ArrayRef = Arc::new(StructArray::from(vec![(field, column)]));
    let large = batch(vec![("l", column)]);
    for _ in 0..5 {
        output.write(None, &large).unwrap();
    }
    finish(output).unwrap();
    let file = File::open(root.path("o_1.parquet")).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let groups = reader.metadata().row_groups().iter();
    let rows: Vec<i64> = groups.map(|group| group.num_rows()).collect();
    assert_eq!(rows.iter().sum::<i64>(), 5000);
    assert!(rows.iter().all(|rows| *rows <= 2048), "{rows:?}");
}

#[test]
fn a_wide_batch_has_few_row_groups() {
    let root = Fixture::new();
    let mut output = root
        .output(1, &[("output", "parquet://o.parquet", "append")])
        .unwrap();
    let names: Vec<String> = (0..10_000).map(|number| format!("c{number}")).collect();
    let column = |start: usize, index: usize, rows: usize| -> ArrayRef {
        let value = |row: usize| ((start + row) * 10_007 + index * 31) as f64 / 7.0;
        Arc::new(Float64Array::from_iter_values((0..rows).map(value)))
    };
    // 25 rows, as many as a frame would have.
    for start in (0..1000).step_by(25) {
        let columns = names.iter().enumerate();
        let columns = columns.map(|(index, name)| (name.as_str(), column(start, index, 25)));
        output.write(None, &batch(columns.collect())).unwrap();
    }
    finish(output).unwrap();
    let file = File::open(root.path("o_1.parquet")).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let found = reader.metadata();
    assert_eq!(found.file_metadata().num_rows(), 1000);
    assert!(found.num_row_groups() <= 2, "{}", found.num_row_groups());
}
