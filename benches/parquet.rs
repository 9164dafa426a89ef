//! Writing Parquet as a job does: batches in, staged and synced file out.
//!
//! 1 M rows × 6 columns (int64, float64, two strings of few values, timestamp, bool), snappy.
//! What the file's SHA-256 costs, which the writer computes along the way, is measured apart over the
//! same bytes.
//! `cargo bench --bench parquet`; `CASPARIAN_BENCH_SMOKE=1` (or `--test`) writes a tenth, once.
//! `python benches/parquet_peers.py` writes the same table with pyarrow, Polars and DuckDB.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use casparian::job::{Attempt, Job, Plugin, Sink};
use casparian::sink::{JobOutput, Root, RootOptions};
use sha2::{Digest, Sha256};

const BATCH_ROWS: usize = 64 << 10;

fn batch(start: usize, rows: usize) -> RecordBatch {
    let numbers = start..start + rows;
    let carriers = ["UA", "AA", "DL", "B6", "EV", "WN", "9E", "US"];
    // A multiplicative hash: values that do not compress to nothing.
    let mix = |n: usize| (n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let columns: Vec<(&str, ArrayRef)> = vec![
        (
            "id",
            Arc::new(Int64Array::from_iter_values(
                numbers.clone().map(|n| n as i64),
            )),
        ),
        (
            "value",
            Arc::new(Float64Array::from_iter_values(
                numbers
                    .clone()
                    .map(|n| (mix(n) >> 11) as f64 / (1u64 << 53) as f64),
            )),
        ),
        (
            "carrier",
            Arc::new(StringArray::from_iter_values(
                numbers.clone().map(|n| carriers[(mix(n) >> 61) as usize]),
            )),
        ),
        (
            "tail",
            Arc::new(StringArray::from_iter_values(
                numbers
                    .clone()
                    .map(|n| format!("N{:05}", (mix(n) >> 40) % 4000)),
            )),
        ),
        (
            "at",
            Arc::new(TimestampMicrosecondArray::from_iter_values(
                numbers
                    .clone()
                    .map(|n| 1_356_998_400_000_000 + n as i64 * 60_000_000),
            )),
        ),
        (
            "late",
            Arc::new(BooleanArray::from_iter(
                numbers.map(|n| Some(mix(n) >> 62 == 0)),
            )),
        ),
    ];
    RecordBatch::try_from_iter(columns).expect("batch")
}

fn main() {
    let smoke = std::env::var_os("CASPARIAN_BENCH_SMOKE").is_some()
        || std::env::args().any(|argument| argument == "--test");
    let (rows, rounds) = if smoke { (100_000, 1) } else { (1_000_000, 9) };
    let batches: Vec<RecordBatch> = (0..rows)
        .step_by(BATCH_ROWS)
        .map(|start| batch(start, BATCH_ROWS.min(rows - start)))
        .collect();
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::open(folder.path(), RootOptions::default()).expect("root");
    let root = Arc::new(root);
    let sinks: Arc<[Sink]> =
        [Sink::parse("output", "parquet://o.parquet", "append").expect("sink")].into();
    let mut seconds = Vec::new();
    let mut hashing = Vec::new();
    let mut size = 0;
    for round in 0..rounds {
        let start = Instant::now();
        let job = Job {
            attempt: Attempt::new(round, 1),
            file_path: String::new(),
            file_version_id: 1,
            content: None,
            sinks: sinks.clone(),
            parameters: Default::default(),
            plugin: Arc::new(Plugin {
                name: "bench".to_owned(),
                ..Plugin::default()
            }),
            database: Some("0123456789abcdef0123456789abcdef".into()),
            previous: Vec::new(),
            history: Default::default(),
        };
        let mut output = JobOutput::new(root.clone(), Arc::new(job)).expect("output");
        for batch in &batches {
            output.write(None, batch).expect("write");
        }
        let staged = output.stage().expect("stage");
        let artifacts = staged.publish(&[], &|| true).expect("publish").artifacts;
        seconds.push(start.elapsed().as_secs_f64());
        let artifact = artifacts.first().expect("a file");
        size = artifact.size_bytes;
        let path = artifact.uri.strip_prefix("file://");
        let bytes = std::fs::read(path.unwrap_or(&artifact.uri)).expect("the file");
        let start = Instant::now();
        let hash = Sha256::digest(&bytes);
        hashing.push(start.elapsed().as_secs_f64());
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(artifact.sha256.as_ref(), Some(&hex), "the recorded hash");
    }
    seconds.sort_by(f64::total_cmp);
    hashing.sort_by(f64::total_cmp);
    println!(
        "casparian  {rows} rows: median {:.1} ms (min {:.1}), {:.1} MB, with fsync and the two id columns",
        seconds[seconds.len() / 2] * 1e3,
        seconds[0] * 1e3,
        size as f64 / 1e6,
    );
    let hash = hashing[hashing.len() / 2];
    println!(
        "SHA-256 of its bytes: median {:.1} ms, {:.2} of the whole",
        hash * 1e3,
        hash / seconds[seconds.len() / 2],
    );
}
