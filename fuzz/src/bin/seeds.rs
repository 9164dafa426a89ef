//! Writes initial inputs into `corpus/`: from `tests/data`, from the specification, and made by
//! hand. Existing inputs are kept. Afterwards run `fuzz/run-all` and `fuzz/minimise`.

use std::fs;
use std::path::{Path, PathBuf};

use casparian::zmtp::Greeting;
use serde_json::Value;

fn data(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/data")
        .join(path);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn seed(target: &str, name: &str, bytes: &[u8]) {
    let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(format!("seed-{name}")), bytes).unwrap();
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}

const CAPTURES: [&str; 6] = [
    "null_heartbeat.client",
    "null_heartbeat.server",
    "null_identity.client",
    "null_no_identity.client",
    "plain.client",
    "curve.client",
];

fn zmtp() {
    for mechanism in ["NULL", "PLAIN", "CURVE"] {
        seed("greeting", mechanism, &Greeting::encode(mechanism));
    }
    for name in CAPTURES {
        let bytes = data(&format!("zmtp/{name}.bin"));
        seed("greeting", name, &bytes[..64]);
        // The first byte also chooses the blocking call that follows.
        for choice in 128..136u8 {
            let name = format!("{name}-{choice}");
            seed("router", &name, &[&[choice], &bytes[..]].concat());
        }
        // Every frame's body as a command, and all frames behind the first as input of an open
        // connection.
        let mut rest = &bytes[64..];
        let mut count = 0;
        while let [flags, size, ..] = rest {
            let (head, size) = match flags & 2 {
                0 => (2, usize::from(*size)),
                _ => (
                    9,
                    u64::from_be_bytes(rest[1..9].try_into().unwrap()) as usize,
                ),
            };
            if flags & 4 != 0 {
                seed(
                    "commands",
                    &format!("{name}-{count}"),
                    &rest[head..head + size],
                );
            }
            rest = &rest[head + size..];
            if count == 0 {
                seed("frames", name, &[&[1, 2, 3, 250], rest].concat());
            }
            count += 1;
        }
    }
    let frames: &[(&str, &[u8])] = &[
        ("more", b"\x01\x01a\x01\0\0\x01b"),
        ("ping", b"\x04\x0b\x04PING\0\x01abcd\0\0"),
        ("long", b"\x02\0\0\0\0\0\0\0\x01a"),
        ("huge", b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff"),
        ("reserved", b"\x08\0"),
        ("error", b"\x04\x09\x05ERROR\x02no"),
    ];
    for (name, bytes) in frames {
        seed("frames", name, &[&[1, 2, 3, 250], *bytes].concat());
    }
    // Plans: 10 and 11 write, 0 and 1 deliver, 8 and 9 queue a message, 14 advances the time.
    let honest = [
        0, 10, 255, 255, 0x01, 255, 11, 255, 255, 0x00, 255, 10, 255, 255, 0x01, 255, 11, 255, 255,
        0x00, 255, 8, 20, 9, 30, 10, 255, 255, 0x01, 255, 11, 255, 255, 0x00, 255, 0xFE,
    ];
    let changed = [
        0, 10, 255, 255, 0x07, 0, 70, 1, 11, 255, 255, 0x06, 0, 80, 255, 10, 255, 255, 0x01, 3,
    ];
    for target in ["connection_null", "connection_plain", "connection_curve"] {
        let first: &[u8] = if target == "connection_null" {
            &[]
        } else {
            &[9]
        };
        seed(target, "honest", &[first, &honest].concat());
        seed(target, "changed", &[first, &changed].concat());
        seed(target, "wrong", &[&[1], &honest[..]].concat());
    }
    seed(
        "connection_plain",
        "password",
        &[&[0], &honest[..]].concat(),
    );
    seed("connection_curve", "server", &[&[2], &honest[..]].concat());
    seed(
        "curve_handshake",
        "honest",
        &[0, 1, 1, 5, 5, b'h', b'e', b'l', b'l', b'o'],
    );
    for sealed in 0..8u8 {
        seed(
            "curve_handshake",
            &format!("box-{sealed}"),
            &[1, sealed, 0, 3, 1, 1, 1, 5],
        );
    }
}

/// A deployment that a sentinel accepts.
const DEPLOY: &str = r#"{"plugin_name":"sales","version":"1","source_code":"MANIFEST = PluginMetadata(pattern='*.csv', topic='t', sinks={'t': 'parquet://t/'})\n","lockfile_content":"version = 1\n","env_hash":"","artifact_hash":"","signature":"","publisher_name":"ana","system_requirements":["glibc_2.31"]}"#;

fn protocol() {
    let vectors: Value = serde_json::from_slice(&data("protocol/v4.json")).unwrap();
    for group in ["valid", "tolerated", "invalid"] {
        for vector in vectors[group].as_array().unwrap() {
            let name = vector["name"].as_str().unwrap();
            let header = unhex(vector["header_hex"].as_str().unwrap());
            let payload = match (&vector["payload_utf8"], &vector["payload_hex"]) {
                (Value::String(text), _) => text.clone().into_bytes(),
                (_, Value::String(hex)) => unhex(hex),
                _ => Vec::new(),
            };
            let mut message = vec![header.len() as u8];
            message.extend(&header);
            message.push(payload.len().min(255) as u8);
            message.extend(&payload);
            seed("protocol", name, &message);
            let opcode = header.get(1).copied().unwrap_or(0);
            seed("payloads", name, &[&[opcode], &payload[..]].concat());
        }
    }
    seed(
        "payloads",
        "deploy-taken",
        &[&[10], DEPLOY.as_bytes()].concat(),
    );
}

fn texts() {
    let endpoints = [
        "tcp://127.0.0.1:5555",
        "tcp://*:*",
        "tcp://[::1]:0",
        "tcp://[fe80::1%eth0]:65535",
        "ipc:///tmp/socket",
        "ipc://*",
        "ipc://@name",
        "udp://x:1",
    ];
    let sinks = [
        "parquet://out.parquet",
        "parquet://a/b.parquet?compression=zstd",
        "sqlite:///abs/path.db/table",
        "sqlite://rel.db/table",
        "parquet://../x",
        "csv://x",
    ];
    let key = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";
    let secret = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs";
    let keys = [
        key.to_owned(),
        secret.to_owned(),
        format!("# workers\n{key} w-1\n"),
        format!("{key}\n{key}\n"),
        "0".repeat(40),
    ];
    let lines = [
        "--bind\0tcp://*:5555\0--insecure",
        "-c\0tcp://h:1\0-o\0out\0--slots\04",
        "plugin.py\0folder\0--output=x",
        "--curve-secret-key\0f\0--authorized-keys\0g",
        "--help",
        "-V",
        "--lease\0-1",
        "--\0-x",
    ];
    for (target, texts) in [
        ("endpoint", endpoints.map(str::to_owned).to_vec()),
        ("sink_uri", sinks.map(str::to_owned).to_vec()),
        ("keys", keys.to_vec()),
        ("command_line", lines.map(str::to_owned).to_vec()),
    ] {
        for (number, text) in texts.iter().enumerate() {
            seed(target, &number.to_string(), text.as_bytes());
        }
    }
}

fn manifests() {
    let examples = ["flights", "flights_pandas", "flights_topics"];
    for name in examples {
        let source = data(&format!("../../examples/plugins/{name}.py"));
        seed("manifest", name, &[&[1], &source[..]].concat());
    }
    for (number, arguments) in [
        r"pattern='*.csv', topic='t'",
        r"pattern=r'*\x', topic='t' u'u', priority=-0x1_0,",
        r"pattern='p', topic='t', sinks={'output': 'parquet://o/', 'b': {'uri': 'x', 'mode': 'error'}}",
        r"pattern='p', topic='t', subscriptions=('a', 'b'), version='1.0', more=[1.5e-3, {2}, None, True]",
        r"pattern=os.environ['x']",
        r"'a' f'{b}'",
        "pattern='''p\\\nq\\x41\\u20ac\\101''', # )\n topic = (\n't')",
    ]
    .iter()
    .enumerate()
    {
        let source = format!("\x01import x\nMANIFEST = PluginMetadata({arguments})\nclass A: pass\n");
        seed("manifest", &number.to_string(), source.as_bytes());
        let plan: Vec<u8> = (0..150u32)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> (13 + number)) as u8)
            .collect();
        seed(
            "manifest",
            &format!("plan-{number}"),
            &[&[0], &plan[..]].concat(),
        );
    }
}

fn main() {
    zmtp();
    manifests();
    protocol();
    texts();
    for name in [
        "dictionary_column",
        "error_after_one_batch",
        "no_output",
        "pandas_frame",
        "schema_changes",
        "three_rows",
        "two_batches_strings_nulls",
    ] {
        let bytes = data(&format!("bridge/{name}.bin"));
        seed("bridge", name, &[&[9], &bytes[..]].concat());
    }
    for number in 0..8u8 {
        let bytes: Vec<u8> = (0..200u32)
            .map(|at| {
                (at.wrapping_mul(2_654_435_761)
                    .wrapping_add(u32::from(number) * 977)
                    >> 13) as u8
            })
            .collect();
        seed("sentinel", &number.to_string(), &bytes);
        seed("engine", &number.to_string(), &bytes);
        // Securities and options, then steps: both sockets bind and connect, then the bytes follow.
        let mut socket = vec![number * 28, 0, 0, 0, 0, 0, 0, 0, 2, 128, 64 + 5, 200];
        socket.extend(&bytes);
        seed("socket", &number.to_string(), &socket);
        let edits: Vec<u8> = bytes
            .iter()
            .copied()
            .take(usize::from(number) * 4)
            .collect();
        seed("schema", &number.to_string(), &edits);
    }
}
