use super::writing::every_type;
use super::*;

fn table(root: &Fixture, sql: &str) -> i64 {
    let connection = rusqlite::Connection::open(root.path("x.db")).unwrap();
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn rows_go_into_a_sqlite_table_once_per_job() {
    let root = Fixture::new();
    let uri = "sqlite://x.db/my rows";
    root.publish(1, uri, "append").unwrap();
    root.publish(2, uri, "append").unwrap();
    root.publish(2, uri, "append").unwrap();
    let count = "SELECT count(*) FROM \"my rows\"";
    assert_eq!(
        table(&root, count),
        6,
        "a second attempt replaces its own rows"
    );
    assert!(matches!(
        root.publish(3, uri, "error"),
        Err(Error::Exists { .. })
    ));
    root.publish(4, uri, "replace").unwrap();
    assert_eq!(table(&root, count), 3);
    assert_eq!(
        table(
            &root,
            "SELECT sum(x) + max(_job_id) + max(_file_version_id) FROM \"my rows\""
        ),
        52
    );
    let mut output = root.output(5, &[("output", uri, "append")]).unwrap();
    output
        .write(
            None,
            &batch(vec![("other", Arc::new(Int64Array::from(vec![1])))]),
        )
        .unwrap();
    let error = finish(output).unwrap_err().to_string();
    assert!(error.contains("x, _job_id"), "{error}");
    assert_eq!(table(&root, count), 3);
}

#[test]
fn sqlite_stores_what_it_can_and_names_what_it_cannot() {
    let root = Fixture::new();
    let whole = every_type();
    let uri = format!("sqlite://{}/t", root.path("x.db").display());
    for nested in ["list", "struct"] {
        let column = whole.column_by_name(nested).unwrap().clone();
        let mut output = root.output(1, &[("output", &uri, "append")]).unwrap();
        let error = output
            .write(None, &batch(vec![(nested, column)]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(nested) && error.contains("cannot store"),
            "{error}"
        );
    }
    let schema = whole.schema();
    let flat: Vec<(&str, ArrayRef)> = schema
        .fields()
        .iter()
        .zip(whole.columns())
        .filter(|(field, _)| !["list", "struct"].contains(&field.name().as_str()))
        .map(|(field, column)| (field.name().as_str(), column.clone()))
        .collect();
    let mut output = root.output(1, &[("output", &uri, "append")]).unwrap();
    output.write(None, &batch(flat)).unwrap();
    finish(output).unwrap();
    let connection = rusqlite::Connection::open(root.path("x.db")).unwrap();
    let row: (
        String,
        Option<i64>,
        String,
        String,
        Vec<u8>,
        String,
        i64,
        String,
    ) = connection
        .query_row(
            "SELECT dictionary, \"null\", decimal, large, binary, date, bool, u64 FROM t LIMIT 1",
            [],
            |row| {
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    row.get(3)?,
                    row.get(4)?,
                    row.get(5)?,
                    row.get(6)?,
                    row.get(7)?,
                ))
            },
        )
        .unwrap();
    assert_eq!(
        row,
        (
            "a".into(),
            None,
            "123.45".into(),
            "x".into(),
            vec![0],
            "1970-01-01".into(),
            1,
            u64::MAX.to_string()
        )
    );
}
