//! MANIFEST: read as Python's own `ast` reads it, and used by `deploy`.

use std::io::Write;
use std::process::Stdio;

use casparian::store::{Manifest, read_manifest};
use serde_json::{Value, json};

use crate::common::*;

/// What `ast` makes of the sources on standard input: a JSON list of the arguments of MANIFEST,
/// or null where they are no literals or there is none.
const READ: &str = r#"
import ast, json, sys
def read(source):
    found = None
    try:
        for node in ast.parse(source.encode()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, 'target', None)]
            if any(isinstance(t, ast.Name) and t.id == 'MANIFEST' for t in targets):
                if node.value.args or any(k.arg is None for k in node.value.keywords):
                    return None
                found = {k.arg: ast.literal_eval(k.value) for k in node.value.keywords}
    except (ValueError, SyntaxError):
        return None
    return found
json.dump([read(source) for source in json.load(sys.stdin)], sys.stdout, default=list)
"#;

fn as_json(manifest: &Manifest) -> Value {
    let sinks: serde_json::Map<String, Value> = manifest
        .sinks
        .iter()
        .map(|sink| {
            let value = match &sink.mode {
                None => json!(sink.uri),
                Some(mode) => json!({"uri": sink.uri, "mode": mode}),
            };
            (sink.topic.clone(), value)
        })
        .collect();
    json!({
        "pattern": manifest.pattern,
        "topic": manifest.topic,
        "subscriptions": manifest.subscriptions,
        "priority": manifest.priority,
        "sinks": sinks,
        "version": manifest.version,
        "description": manifest.description,
    })
}

#[test]
fn a_manifest_is_read_as_python_reads_it() {
    let arguments = [
        "pattern='*.csv', topic='sales'",
        "pattern=\"a\\tb\\x41\\u20ac\\U0001d11e\\101\\0\\q\\'\\\"\\\\\", topic='''t\n'u\"'''",
        "pattern=r'\\d+\\'', topic=R\"\\\"\" u'x'\n  'y' # )'\n",
        "pattern=('a' 'b'), topic=(('t')), priority=- 0x1F,",
        "pattern='p', topic='t', priority=+1_000, subscriptions=('a',)",
        "pattern='p', topic='t', priority=0o17, subscriptions=[], sinks={}",
        "pattern='p', topic='t', priority=0b101, sinks={'a': 'x', \"b\": {'uri': 'y', 'mode': 'replace'},}",
        "pattern='p', topic='t', version='1', description='two\\\nlines'",
        "pattern='p', topic='t', version=None, more=[1.5, .5, 1., 1e3, 1E-3, (), {1: 2} if False else 3]",
        "pattern='p', topic='t', more=[1.5, .5, 1., 1e3, 1E-3, (), {1}, {'a': {'b': (None,)}}]",
        "pattern='p' + 'q', topic='t'",
        "pattern=f'p', topic='t'",
        "pattern='p', topic=t",
        "pattern='p', **more",
        "'p', 't'",
        "pattern='p', topic='t', priority=-(1)",
        "pattern='a\rb', topic='t'",
        "pattern='''a\r\nb\rc''', topic='t'",
        "pattern='ü€𝄞', topic='t'",
    ];
    let around = [
        ("", "\nclass Handler: pass\n"),
        (
            "\u{feff}'''doc\nMANIFEST = PluginMetadata(pattern='no', topic='no')\n'''\n",
            "",
        ),
        (
            "class A:\n    MANIFEST = 3\nx = '\\'' \"\\\\\" # '''\nf(\nMANIFEST=2)\n",
            "# end",
        ),
        ("import sdk\r\nx = 1 \\\r\n  + 2\r\n", "\r\n"),
        (
            "import sdk\rx = 1 \\\r  + 2\r# c\r",
            "\rclass Handler: pass\r",
        ),
        // Form feeds are blanks, and one at the start of a line begins its indentation anew.
        ("x = 1\n\x0c", "\x0c\n"),
        ("x = 1\n\x0c\n \t\x0c", " \x0c# end"),
        ("x = 'a\x0cb'\x0c\n", ""),
        // None of these ends a line.
        ("# \x0c", "\n"),
        ("# \x0b", "\n"),
        ("# \u{85}", "\n"),
        ("# \u{2028}", "\n"),
        ("x = '\u{2029}\x1c'\n", "\n"),
    ];
    let mut sources = Vec::new();
    for (before, after) in around {
        for arguments in arguments {
            sources.push(format!(
                "{before}MANIFEST = sdk.PluginMetadata({arguments}){after}"
            ));
        }
        sources.push(format!("{before}{after}"));
    }
    sources.push("MANIFEST : 'Some.Type' = PluginMetadata(pattern='p', topic='t')".to_owned());
    for example in ["flights", "flights_pandas", "flights_topics"] {
        let path = root().join(format!("examples/plugins/{example}.py"));
        sources.push(std::fs::read_to_string(path).unwrap());
    }
    let mut child = std::process::Command::new(python())
        .args(["-c", READ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(json!(sources).to_string().as_bytes())
        .unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let theirs: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(theirs.len(), sources.len());
    let mut read = 0;
    for (source, theirs) in sources.iter().zip(theirs) {
        let ours = read_manifest(source).ok().flatten();
        let Value::Object(mut theirs) = theirs else {
            assert_eq!(ours, None, "Python reads none: {source}");
            continue;
        };
        // A sign before brackets is the one literal of Python's that is not read here.
        if source.contains("-(1)") {
            assert_eq!(ours, None);
            continue;
        }
        read += 1;
        theirs.remove("more");
        let ours = as_json(&ours.unwrap_or_else(|| panic!("not read: {source}")));
        for (name, value) in ours.as_object().unwrap() {
            let theirs = theirs.remove(name).unwrap_or_else(|| match name.as_str() {
                "subscriptions" => json!([]),
                "sinks" => json!({}),
                "priority" => json!(0),
                _ => Value::Null,
            });
            assert_eq!(*value, theirs, "{name} of {source}");
        }
        assert!(theirs.is_empty(), "{theirs:?} of {source}");
    }
    assert!(read > 40, "{read}");
}

#[test]
fn deploy_takes_version_and_sinks_of_the_manifest_and_refuses_a_bad_one() {
    let dir = tempfile::tempdir().unwrap();
    let source = |manifest: &str| {
        format!(
            "import pyarrow as pa\nfrom casparian_flow.sdk import PluginMetadata\n{manifest}\nclass Handler:\n    def execute(self, path):\n        yield pa.table({{'x': [1]}})\n"
        )
    };
    let good = "MANIFEST = PluginMetadata(pattern='*', topic='t', version='7.1',\n    sinks={'output': 'parquet://there/?compression=zstd'})";
    let database = database_with(dir.path(), "p", &source(good));
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    let ids = submit(&database, "p", std::slice::from_ref(&input));
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let _worker = worker(&endpoint, &out, &["--slots", "1"]);
    let done = ended(&database, ids[0]);
    assert_eq!(done["status"], "COMPLETED", "{done}");
    assert!(out.join(format!("there/data_{}.parquet", ids[0])).exists());
    for (manifest, want) in [
        (
            "MANIFEST = PluginMetadata(pattern='*',\n    topic=str(1))",
            "line 4: MANIFEST: str is no literal",
        ),
        (
            "MANIFEST = PluginMetadata(topic='t')",
            "line 3: MANIFEST: pattern is missing",
        ),
        (
            "MANIFEST = PluginMetadata(pattern='*', topic='t', sinks={'a': 'parquet://../x'})",
            "MANIFEST: sink of \"a\"",
        ),
    ] {
        let plugin = dir.path().join("p.py");
        std::fs::write(&plugin, source(manifest)).unwrap();
        let output = casparian(&[
            "deploy",
            plugin.to_str().unwrap(),
            "--database",
            database.to_str().unwrap(),
        ]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(want), "{}", stderr(&output));
    }
}
