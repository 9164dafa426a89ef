use super::*;

#[test]
fn a_manifest_is_found_among_whatever_else_stands_there() {
    let source = "\u{feff}'''MANIFEST = PluginMetadata(pattern=\"no\")\n'''\r\nimport x # MANIFEST = '\nclass A:\n    MANIFEST = PluginMetadata(pattern='no')\nf(\nMANIFEST = 1)\nMANIFEST == 3\nMANIFESTO = 4\nx = \"\\\"\" \\\nMANIFEST\nMANIFEST: Optional['=', sdk.PluginMetadata] = sdk.PluginMetadata( # why\n  pattern = r'*.c\\v' \"s\"\n    \"v\", topic=('t'), priority=-0x1_0, sinks={'output': 'parquet://o/', \"b\": {'uri': 'sqlite://x/t', 'mode': 'replace'},},\n  subscriptions=('a', u'b'), version=None, more=[1.5, {2, 3}, (), {}],\n) ; x = 3 # MANIFEST = 4\nclass Handler: pass";
    let manifest = read_manifest(source).unwrap().unwrap();
    assert_eq!(
        manifest,
        Manifest {
            pattern: "*.c\\vsv".to_owned(),
            topic: "t".to_owned(),
            subscriptions: vec!["a".to_owned(), "b".to_owned()],
            priority: -16,
            sinks: vec![
                ManifestSink {
                    topic: "b".to_owned(),
                    uri: "sqlite://x/t".to_owned(),
                    mode: Some("replace".to_owned()),
                },
                ManifestSink {
                    topic: "output".to_owned(),
                    uri: "parquet://o/".to_owned(),
                    mode: None,
                },
            ],
            version: None,
            description: None,
        }
    );
    assert_eq!(read_manifest("class Handler: pass\n"), Ok(None));
}

#[test]
fn what_would_have_to_be_run_or_is_missing_is_refused_with_its_line() {
    let deep = format!("pattern={}", "[".repeat(100_000));
    let cases: &[(&str, usize, &str)] = &[
        ("topic='t'", 1, "pattern is missing"),
        ("pattern='', topic='t'", 1, "pattern is missing"),
        ("pattern='p'", 1, "topic is missing"),
        ("pattern=3, topic='t'", 1, "must be a string, not a number"),
        ("\npattern=os.environ['x']", 2, "os is no literal"),
        ("pattern='a' + 'b'", 1, "no literal"),
        ("pattern='a'.upper()", 1, "no literal"),
        ("pattern=f'{x}'", 1, "plain string"),
        ("pattern=b'x'", 1, "plain string"),
        ("pattern='a' f'b'", 1, "plain string"),
        ("'p', 't'", 1, "expected name=value"),
        ("**values", 1, "expected name=value"),
        ("pattern='p', pattern='q'", 1, "given twice"),
        ("pattern='p\nq'", 1, "not closed in its line"),
        ("pattern='''p", 1, "not closed"),
        ("pattern='\\x1'", 1, "cut short"),
        ("pattern='\\ud800'", 1, "no character"),
        ("pattern='\\N{BULLET}'", 1, "named characters"),
        ("x=1e999", 1, "64 bits"),
        ("x=9223372036854775808", 1, "64 bits"),
        ("x={1: 2}", 1, "keys of a dict"),
        ("x={'a': 2, 'b'}", 1, "expected a colon"),
        ("pattern='p', topic='t', priority=1.5", 1, "whole number"),
        ("pattern='p', topic='t', sinks=[]", 1, "must be a dict"),
        ("pattern='p', topic='t', sinks={'a': 1}", 1, "must be a URI"),
        ("pattern='p', topic='t', sinks={'a': {}}", 1, "has no uri"),
        (
            "pattern='p', topic='t', sinks={'a': {'uri': 'x', 'mode': 'y'}}",
            1,
            "append, replace or error",
        ),
        ("pattern='p', topic='t', subscriptions='a'", 1, "a list"),
        (
            "pattern='p', topic='t', subscriptions=[1]",
            1,
            "must be strings",
        ),
        (
            "pattern='p', topic='t') if x else f(",
            1,
            "nothing may follow",
        ),
        (
            "pattern='p', topic='t').replace(topic='u'",
            1,
            "nothing may follow",
        ),
        (
            "pattern='p', topic='t') or PluginMetadata(",
            1,
            "nothing may follow",
        ),
        ("x=)", 1, "expected a literal"),
        ("x=[1 2]", 1, "comma or ]"),
        (&deep, 1, "too deeply"),
    ];
    for (arguments, line, want) in cases {
        let source = format!("MANIFEST = PluginMetadata({arguments})\n");
        let error = read_manifest(&source).unwrap_err();
        assert_eq!(error.line, *line, "{source:.60}: {error}");
        assert!(error.reason.contains(want), "{source:.60}: {error}");
    }
    let twice = "MANIFEST = PluginMetadata(pattern='p', topic='t')\n".repeat(2);
    let error = read_manifest(&twice).unwrap_err();
    assert_eq!((error.line, &*error.reason), (2, "it is assigned twice"));
    let error = read_manifest("MANIFEST = Other()").unwrap_err();
    assert!(error.reason.contains("expected PluginMetadata"), "{error}");
}
