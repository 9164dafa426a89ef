//! MANIFEST of a plugin's source: as arbitrary text, and as generated valid Python.

use arbitrary::Unstructured;
use casparian::store::{Manifest, ManifestSink, read_manifest};

/// Letters, each with a form in Python source that means it.
const LETTERS: [(&str, &str); 12] = [
    ("a", "a"),
    ("ü", "ü"),
    ("\n", "\\n"),
    ("'", "\\'"),
    ("\"", "\\\""),
    ("\\", "\\\\"),
    ("\u{7}", "\\a"),
    ("A", "\\101"),
    ("é", "\\xe9"),
    ("€", "\\u20ac"),
    ("𝄞", "\\U0001d11e"),
    ("", "\\\n"),
];

/// A text and a Python expression for it.
fn text(plan: &mut Unstructured) -> (String, String) {
    let (mut value, mut source) = (String::new(), String::new());
    for part in 0..1 + plan.int_in_range(0..=2u8).unwrap_or(0) {
        // Adjacent quotes could begin a triple-quoted string.
        let apart = match part {
            0 => "",
            _ => [" ", "u", "\n", " # '\n"][plan.choose_index(4).unwrap_or(0)],
        };
        source.push_str(apart);
        let quote = ["'", "\"", "'''", "\"\"\""][plan.choose_index(4).unwrap_or(0)];
        if apart != "u" {
            source.push_str(["", "u", "U"][plan.choose_index(3).unwrap_or(0)]);
        }
        source.push_str(quote);
        for _ in 0..plan.int_in_range(0..=6u8).unwrap_or(0) {
            let (letter, written) = LETTERS[plan.choose_index(LETTERS.len()).unwrap_or(0)];
            value.push_str(letter);
            source.push_str(written);
        }
        source.push_str(quote);
    }
    (value, source)
}

fn comma(plan: &mut Unstructured, source: &mut String) {
    source.push_str([",", ", ", ",\n", " , # ')\n"][plan.choose_index(4).unwrap_or(0)]);
}

/// A MANIFEST and a source that contains it.
fn written(plan: &mut Unstructured) -> (Manifest, String) {
    let mut source = [
        "",
        "# \"\n",
        "x = [\n1, '''\nMANIFEST = '''] \\\n\n",
        "\u{feff}",
    ][plan.choose_index(4).unwrap_or(0)]
    .to_owned();
    source.push_str("MANIFEST = sdk.PluginMetadata(");
    let (pattern, pattern_source) = text(plan);
    let (pattern, pattern_source) = (format!("{pattern}p"), format!("({pattern_source} 'p')"));
    source.push_str(&format!("pattern={pattern_source}"));
    comma(plan, &mut source);
    let (topic, topic_source) = text(plan);
    let (topic, topic_source) = (format!("t{topic}"), format!("'t'{topic_source}"));
    source.push_str(&format!("topic = {topic_source}"));
    comma(plan, &mut source);
    let priority: i64 = plan.int_in_range(-1 << 40..=1 << 40).unwrap_or(0);
    source.push_str(&match plan.choose_index(4).unwrap_or(0) {
        0 => format!("priority={priority}"),
        1 if priority >= 0 => format!("priority=+{priority:#x}"),
        2 if priority >= 0 => format!("priority=(0O{priority:o})"),
        _ => format!("priority=-{}", priority.wrapping_neg()),
    });
    comma(plan, &mut source);
    let mut subscriptions = Vec::new();
    let (open, close) = [("[", "]"), ("(", ")"), ("{", "}")][plan.choose_index(3).unwrap_or(0)];
    source.push_str(&format!("subscriptions={open}"));
    for _ in 0..1 + plan.int_in_range(0..=3u8).unwrap_or(0) {
        let (value, value_source) = text(plan);
        subscriptions.push(value);
        source.push_str(&value_source);
        comma(plan, &mut source);
    }
    source.push_str(close);
    comma(plan, &mut source);
    let mut sinks = std::collections::BTreeMap::new();
    source.push_str("sinks={");
    for _ in 0..plan.int_in_range(0..=3u8).unwrap_or(0) {
        let (topic, topic_source) = text(plan);
        let (uri, uri_source) = text(plan);
        let mode = [None, Some("append"), Some("replace")][plan.choose_index(3).unwrap_or(0)];
        source.push_str(&match mode {
            None => format!("{topic_source}: {uri_source}"),
            Some(mode) => format!("{topic_source}:{{'mode': '{mode}', 'uri' : {uri_source}}}"),
        });
        let mode = mode.map(str::to_owned);
        sinks.insert(topic.clone(), ManifestSink { topic, uri, mode });
        comma(plan, &mut source);
    }
    source.push_str("})\nclass Handler: pass");
    let manifest = Manifest {
        pattern,
        topic,
        subscriptions,
        priority,
        sinks: sinks.into_values().collect(),
        version: None,
        description: None,
    };
    (manifest, source)
}

pub fn run(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else {
        return;
    };
    if choice & 1 == 0 {
        let (manifest, source) = written(&mut Unstructured::new(rest));
        assert_eq!(
            read_manifest(&source),
            Ok(Some(manifest.clone())),
            "{source}"
        );
        let (written, rest) = source.rsplit_once('\n').expect("a line behind it");
        for more in [" # if x", "; x = 1", "\\\n", " "] {
            let source = format!("{written}{more}\n{rest}");
            assert_eq!(
                read_manifest(&source),
                Ok(Some(manifest.clone())),
                "{source}"
            );
        }
        for more in [" if x else y", ".f()", " or z", "[0]", ", 1", "()"] {
            let source = format!("{written}{more}\n{rest}");
            assert!(read_manifest(&source).is_err(), "{source}");
        }
        return;
    }
    let Ok(source) = std::str::from_utf8(rest) else {
        return;
    };
    match read_manifest(source) {
        Ok(None) => {}
        Ok(Some(manifest)) => {
            assert!(source.contains("MANIFEST") && source.contains("PluginMetadata"));
            assert!(!manifest.pattern.is_empty() && !manifest.topic.is_empty());
            // Text behind its statement must not change the result.
            let more = format!("{source}\nx = 1\n");
            if let Ok(again) = read_manifest(&more) {
                assert_eq!(again, Some(manifest));
            }
        }
        Err(error) => {
            let lines = 1 + source.chars().filter(|c| matches!(c, '\n' | '\r')).count();
            assert!((1..=lines).contains(&error.line), "{error}");
            assert!(!error.reason.is_empty() && error.to_string().len() < 400);
        }
    }
}
