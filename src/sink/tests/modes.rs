use super::*;
use crate::job::SinkError;

#[test]
fn modes_keep_replace_or_refuse_what_other_jobs_made() {
    let root = Fixture::new();
    fs::write(root.path("o_notes.parquet"), "unrelated").unwrap();
    root.publish(1, "parquet://o.parquet", "append").unwrap();
    root.publish(2, "parquet://o.parquet", "append").unwrap();
    root.publish(2, "parquet://o.parquet", "append").unwrap();
    assert_eq!(
        root.files(),
        ["o_1.parquet", "o_2.parquet", "o_notes.parquet"]
    );
    assert!(matches!(
        root.publish(3, "parquet://o.parquet", "error"),
        Err(Error::Exists { .. })
    ));
    root.publish(4, "parquet://o.parquet", "replace").unwrap();
    assert_eq!(root.files(), ["o_4.parquet", "o_notes.parquet"]);
    root.publish(4, "parquet://o.parquet", "error").unwrap();
    assert!(matches!(
        root.publish(5, "parquet://o.parquet", "sideways"),
        Err(Error::Sink(SinkError::Mode { .. }))
    ));
    let same = [
        ("a", "parquet://o.parquet", "append"),
        ("b", "parquet://./o.parquet", "append"),
    ];
    assert!(matches!(root.output(6, &same), Err(Error::SameFile { .. })));
}
