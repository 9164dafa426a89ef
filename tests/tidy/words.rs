//! Keeps retired words out of sources, documents and `--help`.
//!
//! The words are those that this project once used in a sense of its own, where the field has a term:
//! [`RETIRED`] names the term. Identifiers are split at underscores and at the humps of camel case, so `said`
//! is found in `is_said` and `SaidTwice`. A retired phrase is found over the end of a line, too.
//!
//! `hold` is not retired, because "holds a lock" and "holds a lease" are terms of the field; as a noun it is
//! a *lease*. Nor are `gone`, `here` and `away`, unless a peer or file "is gone".

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::root;

/// Words and phrases that are not used any more, and what to write.
const RETIRED: &[(&[&str], &str)] = &[
    (&["octet", "octets"], "byte"),
    (&["guest", "guests"], "plugin process"),
    (
        &["nobody", "somebody", "everybody", "anybody", "whoever"],
        "the actor: no peer, another program, any user, the process that …",
    ),
    (
        &["say", "says", "said", "saying"],
        "report, state, name, print, contain",
    ),
    (
        &["tell", "tells", "told", "telling"],
        "report, notify, show; distinguish",
    ),
    (&["hear", "hears", "heard", "hearing"], "receive"),
    (
        &["turn", "turns"],
        "event-loop iteration, transaction, order",
    ),
    (
        &["look", "looks", "looked", "looking"],
        "read, poll, check, search",
    ),
    (
        &["place", "places", "placed"],
        "index, position, path, location",
    ),
    (
        &["is gone", "are gone", "was gone", "were gone"],
        "is removed, missing, disconnected, has ended",
    ),
    (
        &["is away", "are away", "was away", "were away"],
        "is moved, unmounted, reconnecting",
    ),
    (&["is here", "are here"], "is connected, exists"),
];

/// Standard phrases with a retired word in them, which are used everywhere.
const STANDARD: &[&str] = &[
    "in place",
    "in turn",
    "look up",
    "looks up",
    "looked up",
    "looking up",
];

/// Where a retired word stays: the start of the path, or the command; the word, or `*` for all of them; why.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("src/cli/args.rs", "guest", "an option of earlier releases"),
    ("src/cli/fsck/report.rs", "place", FSCK_KEY),
    ("src/cli/fsck.rs", "place", FSCK_KEY),
    ("casparian fsck", "place", FSCK_KEY),
    ("src/store/attempts.rs", "guest", METRIC),
    ("src/worker/receipt.rs", "guest", METRIC),
    ("docs/security.md", "nobody", USER),
    ("docs/plugins.md", "nobody", USER),
];
const FSCK_KEY: &str = "a key in the JSON of `casparian fsck`";
const USER: &str = "the name of a user";
const METRIC: &str = "a metric in receipts of the control protocol";

/// What is searched: files, and folders with the ends of names of their files.
const SEARCHED: &[(&str, &[&str])] = &[
    ("README.md", &[]),
    ("ARCHITECTURE.md", &[]),
    ("CONTRIBUTING.md", &[]),
    ("SECURITY.md", &[]),
    ("docs", &["md"]),
    ("benches/README.md", &[]),
    ("fuzz/README.md", &[]),
    ("src", &["rs", "py", "sql"]),
];

/// A word in lower case and the number of its line, or the end of a sentence or expression.
#[derive(Debug, PartialEq)]
enum Token {
    Word(String, usize),
    End,
}

/// The words of a text, with identifiers split into their parts.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let bytes = line.as_bytes();
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if byte.is_ascii_alphabetic() {
                let rest = &line[at..];
                let word = &rest[..word_length(rest.as_bytes())];
                tokens.push(Token::Word(word.to_ascii_lowercase(), index + 1));
                at += word.len();
                continue;
            }
            // An escape, such as the `\n` of "\nword".
            at += match (byte, bytes.get(at + 1)) {
                (b'\\', Some(b'n' | b't' | b'r' | b'0')) => 2,
                _ => 1,
            };
            if b".,:;()[]{}<>|=".contains(byte) && tokens.last() != Some(&Token::End) {
                tokens.push(Token::End);
            }
        }
    }
    tokens
}

/// The length of the word at the start: `is` in `isHeard`, `HTTP` in `HTTPServer`, `Heard` in `HeardTwice`.
fn word_length(bytes: &[u8]) -> usize {
    let is_upper = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_uppercase);
    let is_lower = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_lowercase);
    let mut end = 1;
    if is_upper(0) && is_upper(1) {
        while is_upper(end) && !is_lower(end + 1) {
            end += 1;
        }
        return end;
    }
    while is_lower(end) {
        end += 1;
    }
    end
}

/// The retired words in a text: the number of the line, the word, and what replaces it.
fn hits(text: &str) -> Vec<(usize, &'static str, &'static str)> {
    let tokens = tokens(text);
    let begins = |at: usize, phrase: &str| {
        let mut words = phrase.split(' ').enumerate();
        words.all(|(offset, word)| match tokens.get(at + offset) {
            Some(Token::Word(found, _)) => found == word,
            _ => false,
        })
    };
    let mut hits = Vec::new();
    let mut standard = 0;
    for (at, token) in tokens.iter().enumerate() {
        if let Some(phrase) = STANDARD.iter().find(|phrase| begins(at, phrase)) {
            standard = at + phrase.split(' ').count();
        }
        let Token::Word(_, line) = token else {
            continue;
        };
        if at < standard {
            continue;
        }
        for (words, instead) in RETIRED {
            let found = words.iter().find(|word| begins(at, word));
            hits.extend(found.map(|word| (*line, *word, *instead)));
        }
    }
    hits
}

/// The retired words of several texts, without those that are allowed.
struct Found {
    refused: Vec<String>,
    /// Which entries of [`ALLOWED`] were needed.
    needed: Vec<bool>,
}

impl Found {
    fn new() -> Self {
        Found {
            refused: Vec::new(),
            needed: vec![false; ALLOWED.len()],
        }
    }

    fn search(&mut self, name: &str, text: &str) {
        for (line, word, instead) in hits(text) {
            let is_it = |(of, allowed, _): &(&str, &str, &str)| {
                Path::new(name).starts_with(of) && ["*", word].contains(allowed)
            };
            match ALLOWED.iter().position(is_it) {
                Some(index) => self.needed[index] = true,
                None => {
                    let line = format!("{name}:{line}: {word:?}, instead: {instead}");
                    self.refused.push(line);
                }
            }
        }
    }

    /// `is_searched` is true for the first fields of [`ALLOWED`] whose texts were searched.
    fn check(self, is_searched: impl Fn(&str) -> bool) {
        let refused = self.refused.join("\n");
        assert!(refused.is_empty(), "retired words:\n{refused}");
        for ((of, word, why), is_needed) in ALLOWED.iter().zip(self.needed) {
            assert!(
                is_needed || !is_searched(of),
                "ALLOWED lists {word:?} ({why}) of {of}, which has no such word"
            );
        }
    }
}

fn files(below: &Path, ends: &[&str]) -> Vec<PathBuf> {
    if below.is_file() {
        return vec![below.to_path_buf()];
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        let end = path.extension().and_then(|end| end.to_str());
        if path.is_dir() {
            files.extend(self::files(&path, ends));
        } else if end.is_some_and(|end| ends.contains(&end)) {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn no_retired_word_is_in_sources_and_documents() {
    let mut found = Found::new();
    for (below, ends) in SEARCHED {
        for path in files(&root().join(below), ends) {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
            found.search(name, &fs::read_to_string(&path).unwrap());
        }
    }
    found.check(|of| !of.starts_with("casparian"));
}

#[test]
fn no_retired_word_is_in_help() {
    let help = |program: &str, command: Option<&str>| {
        let output = Command::new(program).args(command).arg("--help").output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program} {command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    // Without the feature `cli` there are no programs.
    let Some(program) = option_env!("CARGO_BIN_EXE_casparian") else {
        return;
    };
    let mut found = Found::new();
    let overview = help(program, None);
    found.search("casparian", &overview);
    let (_, commands) = overview.split_once("\nCommands:\n").unwrap();
    let commands = commands.lines().take_while(|line| line.starts_with("  "));
    let commands = commands.filter_map(|line| line.split_whitespace().next());
    let commands: Vec<&str> = commands.collect();
    assert!(commands.contains(&"run"), "{overview}");
    for command in commands {
        found.search(
            &format!("casparian {command}"),
            &help(program, Some(command)),
        );
    }
    for program in [
        option_env!("CARGO_BIN_EXE_casparian-sentinel"),
        option_env!("CARGO_BIN_EXE_casparian-worker"),
    ] {
        let program = program.unwrap();
        found.search(program, &help(program, None));
    }
    found.check(|of| of.starts_with("casparian"));
}

#[test]
fn words_are_found_in_identifiers_escapes_and_over_the_ends_of_lines() {
    for (text, words) in [
        ("fn is_said() {}", &["said"] as &[_]),
        ("struct NobodyHeard;", &["nobody", "heard"]),
        ("const TOLD_TWICE: u8", &["told"]),
        ("\"a\\nplace\"", &["place"]),
        ("// It is\n    /// gone.", &["is gone"]),
        ("fn is_gone()", &["is gone"]),
        ("It is. Gone", &[]),
        ("return the_lookup(placeholder, replaced, essay)", &[]),
        ("open_in_place, looked up, in\n// turn", &[]),
        ("in its place", &["place"]),
        ("HTTPGuest2", &["guest"]),
    ] {
        let found: Vec<&str> = hits(text).into_iter().map(|(_, word, _)| word).collect();
        assert_eq!(found, words, "{text}");
    }
}
