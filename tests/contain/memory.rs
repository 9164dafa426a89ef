//! Memory of the worker: what a plugin sends is small, and what it stands for is not.

use crate::common::*;

/// Publishes what the input names.
const BOMBS: &str = r#"
import pyarrow as pa

def ree(rows, values):
    return pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), values)

def dictionary(rows, values):
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), values)

def text(size, type=pa.string()):
    return pa.array(["x" * size], type)

def fixed(size):
    return pa.array([b"x" * size], pa.binary(size))

def list_view(rows, count, values):
    offsets = pa.array([0] * rows, pa.int32())
    return pa.ListViewArray.from_arrays(offsets, pa.array([count] * rows, pa.int32()), values)

def views(rows, size):
    import struct
    view = struct.pack("<i4sii", size, b"xxxx", 0, 0) * rows
    buffers = [None, pa.py_buffer(view), pa.py_buffer(b"x" * size)]
    return pa.Array.from_buffers(pa.string_view(), rows, buffers)

def one(column):
    return [pa.table({"a": column})]

def anew(column):
    """Rows that are read back, because another column gets a type."""
    rows = len(column())
    for other in (pa.nulls(rows), pa.array(["x"] * rows)):
        yield pa.table({"a": column(), "b": other})

CASES = {
    "runs": lambda: one(ree(2_000, fixed(1_000_000))),
    "runs-of-text": lambda: one(ree(2_000, text(1_000_000, pa.large_string()))),
    "runs-of-dictionary": lambda: one(ree(20_000, dictionary(1, text(100_000)))),
    "dictionary-of-fixed": lambda: one(dictionary(500, fixed(1_000_000))),
    "dictionary-of-text": lambda: one(dictionary(5_000, text(100_000))),
    "dictionary-in-struct": lambda: one(pa.StructArray.from_arrays([dictionary(5_000, text(100_000))], ["x"])),
    "list-views": lambda: one(list_view(60, 1_000_000, pa.nulls(1_000_000, pa.int64()))),
    "list-views-of-text": lambda: one(list_view(2_000, 1, text(1_000_000))),
    "views": lambda: one(views(5_000, 100_000)),
    "nulls": lambda: one(fixed(1_000_000)) + one(pa.nulls(500)),
    "columns-in-batches": lambda: [pa.table({str(i): [1] for i in range(2_000)}) for _ in range(30)],
    "wide": lambda: [pa.table({str(i): [j + i / 7 for j in range(200)] for i in range(5_000)})],
    "runs-anew": lambda: anew(lambda: ree(500, text(1_000_000, pa.large_string()))),
    "views-anew": lambda: anew(lambda: views(5_000, 100_000)),
    "structs-anew": lambda: [
        pa.table({"a": pa.nulls(1_000_000)}),
        pa.table({"a": pa.array([{str(i): 1 for i in range(100)}])})],
    "row": lambda: one(pa.ListArray.from_arrays(pa.array([0, 20_000], pa.int32()), ree(20_000, text(100_000)))),
    "columns": lambda: [pa.table({str(i): [1] for i in range(60_000)})],
    "name": lambda: [pa.table({"n" * 50_000_000: [1]})],
    "metadata": lambda: [pa.table({"a": [1]}).replace_schema_metadata({"k": "v" * 50_000_000})],
    "frame": lambda: one(text(400_000_000)),
}

class Handler:
    def execute(self, path):
        yield from CASES[open(path).read()]()
"#;

/// Most memory that a worker has had, in MiB.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib / 1024
}

/// Runs a job of a worker of its own: its end, and the worker's peak.
fn run(case: &str, uri: Option<&str>) -> (serde_json::Value, u64) {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "bombs", BOMBS);
    if let Some(uri) = uri {
        sql(
            &database,
            &format!(
                "INSERT INTO cf_topic_config (plugin_name, topic_name, uri) VALUES ('bombs', 'output', '{uri}')"
            ),
        );
    }
    let file = dir.path().join("in");
    std::fs::write(&file, case).unwrap();
    let ids = submit(&database, "bombs", &[file]);
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let more = ["--slots", "1", "--job-buffer", "512Mi"];
    let mut worker = worker(&endpoint, &dir.path().join("out"), &more);
    let done = ended(&database, ids[0]);
    let peak = peak(worker.pid());
    worker.signal("-TERM");
    assert_eq!(worker.wait(), Some(0), "{case}: the worker lives");
    (done, peak)
}

/// A worker without jobs has about 20 MiB.
const IDLE: u64 = 40;

#[test]
fn what_expands_is_written_in_parts_or_fails_by_name_within_the_buffer() {
    const SQLITE: Option<&str> = Some("sqlite://rows.db/rows");
    let cases = [
        ("runs", None, ""),
        ("runs-of-text", None, ""),
        ("runs-of-dictionary", None, ""),
        ("dictionary-of-fixed", None, ""),
        ("dictionary-of-text", None, ""),
        ("dictionary-in-struct", None, ""),
        ("list-views", None, ""),
        ("list-views-of-text", None, ""),
        ("views", None, ""),
        ("nulls", None, ""),
        ("columns-in-batches", None, ""),
        ("wide", None, ""),
        ("runs-anew", None, ""),
        ("views-anew", None, ""),
        ("structs-anew", None, ""),
        ("dictionary-of-fixed", SQLITE, ""),
        ("dictionary-of-text", SQLITE, ""),
        ("views", SQLITE, ""),
        ("nulls", SQLITE, ""),
        ("list-views", SQLITE, "cannot store type"),
        ("row", None, "column \"a\": row 0"),
        ("columns", None, "60002 columns"),
        ("columns", SQLITE, "at most 2000 columns"),
        ("name", None, "column \"nnnn"),
        ("name", SQLITE, "its name has 50000000 bytes"),
        ("metadata", None, "the schema's metadata"),
        ("frame", None, "--job-buffer"),
        ("frame", SQLITE, "--job-buffer"),
    ];
    for (case, uri, failure) in cases {
        let (done, peak) = run(case, uri);
        let reason = done["error"].as_str().unwrap_or("");
        let what = format!("{case} {uri:?}: peak {peak} MiB: {reason:?}");
        println!("{what}");
        match failure {
            "" => assert_eq!(done["status"], "COMPLETED", "{what}"),
            words => {
                assert_eq!(done["status"], "FAILED", "{what}");
                assert!(reason.contains(words), "{what}");
            }
        }
        assert!(peak < 512 + IDLE, "{what}");
    }
}
