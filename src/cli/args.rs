//! Command lines: each command has one table of flags, which parsing and `--help` use.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

/// One flag.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    pub(crate) long: &'static str,
    pub(crate) short: Option<char>,
    /// Name of its value; none for a flag without a value.
    pub(crate) value: Option<&'static str>,
    pub(crate) help: &'static str,
}

/// One command.
#[derive(Debug)]
pub(crate) struct Command {
    /// The command as typed, e.g. `casparian run`.
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Positional arguments in the usage line.
    pub(crate) usage: &'static str,
    pub(crate) flags: &'static [Flag],
    /// Text after the flags in the help.
    pub(crate) notes: &'static str,
}

/// Why a command line was not run.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// `--help` was given. Contains the text.
    Help(String),
    /// `--version` was given.
    Version,
    /// The command line is invalid: one line.
    Usage(String),
}

/// A parsed command line.
#[derive(Debug, Default)]
pub(crate) struct Typed {
    flags: Vec<(&'static str, OsString)>,
    pub(crate) positionals: Vec<OsString>,
}

impl Command {
    /// Parses arguments (without the command's name).
    pub(crate) fn parse(
        &self,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Typed, Refusal> {
        use lexopt::Arg;
        let mut typed = Typed::default();
        let mut parser = lexopt::Parser::from_args(arguments);
        let usage = |error: lexopt::Error| Refusal::Usage(format!("{error}; {}", self.hint()));
        while let Some(argument) = parser.next().map_err(usage)? {
            let flag = match argument {
                Arg::Long(long) => {
                    // The name in earlier releases.
                    let long = match long {
                        "guest-start" => "plugin-start",
                        long => long,
                    };
                    self.flags.iter().find(|flag| flag.long == long)
                }
                Arg::Short(short) => self.flags.iter().find(|flag| flag.short == Some(short)),
                Arg::Value(value) => {
                    typed.positionals.push(value);
                    continue;
                }
            };
            // Flags of the command take precedence: `--version` may be one of them.
            let Some(flag) = flag else {
                let unknown = match argument {
                    Arg::Long("help") | Arg::Short('h') => return Err(Refusal::Help(self.help())),
                    Arg::Long("version") | Arg::Short('V') => return Err(Refusal::Version),
                    Arg::Long(long) => format!("--{long}"),
                    Arg::Short(digit) if digit.is_ascii_digit() => {
                        format!("-{digit}; a negative number goes after --")
                    }
                    Arg::Short(short) => format!("-{short}"),
                    Arg::Value(_) => String::new(),
                };
                return Err(Refusal::Usage(format!(
                    "unknown option {unknown}; {}",
                    self.hint()
                )));
            };
            let value = match flag.value {
                Some(_) => parser.value().map_err(usage)?,
                None => OsString::new(),
            };
            typed.flags.push((flag.long, value));
        }
        Ok(typed)
    }

    fn hint(&self) -> String {
        format!("see `{} --help`", self.name)
    }

    /// The text of `--help`.
    pub(crate) fn help(&self) -> String {
        let mut out = format!("{}\n\nUsage: {} {}\n", self.about, self.name, self.usage);
        let rows: Vec<(String, &str)> = self
            .flags
            .iter()
            .map(|flag| {
                let short = flag
                    .short
                    .map_or("    ".to_owned(), |short| format!("-{short}, "));
                let value = flag
                    .value
                    .map_or(String::new(), |value| format!(" {value}"));
                (format!("  {short}--{}{value}", flag.long), flag.help)
            })
            .chain([("  -h, --help".to_owned(), "Print this help")])
            .collect();
        let width = rows.iter().map(|(left, _)| left.len()).max().unwrap_or(0) + 2;
        out.push_str("\nOptions:\n");
        for (left, help) in rows {
            for (index, line) in help.lines().enumerate() {
                let left = if index == 0 { left.as_str() } else { "" };
                // Writing to a String cannot fail.
                let _ = writeln!(out, "{left:width$}{line}");
            }
        }
        if !self.notes.is_empty() {
            let _ = write!(out, "\n{}\n", self.notes);
        }
        out
    }

    /// A usage error of this command.
    pub(crate) fn usage_error(&self, message: impl std::fmt::Display) -> Refusal {
        Refusal::Usage(format!("{message}; {}", self.hint()))
    }

    /// The last value of a flag, as text.
    pub(crate) fn text(&self, typed: &Typed, long: &str) -> Result<Option<String>, Refusal> {
        typed
            .last(long)
            .map(|value| {
                value.into_string().map_err(|value| {
                    self.usage_error(format!("--{long} {}: not UTF-8", value.display()))
                })
            })
            .transpose()
    }

    /// The last value of a flag, as a whole number in a range.
    pub(crate) fn number(
        &self,
        typed: &Typed,
        long: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.text(typed, long)? else {
            return Ok(None);
        };
        match text.parse::<u64>() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(self.usage_error(format!(
                "--{long} {text}: expected a whole number from {} to {}",
                range.start(),
                range.end()
            ))),
        }
    }

    /// The last value of a flag, as a number of bytes: `500M`, `20G` or, by powers of 1024, `20Gi`.
    pub(crate) fn size(&self, typed: &Typed, long: &str) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.text(typed, long)? else {
            return Ok(None);
        };
        crate::job::text::size(&text).map(Some).ok_or_else(|| {
            self.usage_error(format!(
                "--{long} {text}: expected bytes, such as 500M or 20G"
            ))
        })
    }

    /// The last value of a flag, as a path.
    pub(crate) fn path(&self, typed: &Typed, long: &str) -> Result<Option<PathBuf>, Refusal> {
        match typed.last(long) {
            Some(value) if value.is_empty() => {
                Err(self.usage_error(format!("--{long} is empty: expected a path")))
            }
            value => Ok(value.map(PathBuf::from)),
        }
    }

    /// Every value of a flag that may be repeated, as text.
    pub(crate) fn texts(&self, typed: &Typed, long: &str) -> Result<Vec<String>, Refusal> {
        let text = |value: &OsString| {
            value.clone().into_string().map_err(|value| {
                self.usage_error(format!("--{long} {}: not UTF-8", value.display()))
            })
        };
        typed.all(long).map(text).collect()
    }

    /// The value of a required flag, as text.
    pub(crate) fn required(&self, typed: &Typed, long: &str) -> Result<String, Refusal> {
        self.text(typed, long)?
            .ok_or_else(|| self.usage_error(format!("--{long} is missing")))
    }
}

impl Typed {
    pub(crate) fn has(&self, long: &str) -> bool {
        self.flags.iter().any(|(name, _)| *name == long)
    }

    pub(crate) fn last(&self, long: &str) -> Option<OsString> {
        self.flags
            .iter()
            .rev()
            .find(|(name, _)| *name == long)
            .map(|(_, value)| value.clone())
    }

    /// Every value of a flag that may be repeated.
    pub(crate) fn all(&self, long: &str) -> impl Iterator<Item = &OsString> {
        let given = self.flags.iter().filter(move |(name, _)| *name == long);
        given.map(|(_, value)| value)
    }

    /// Every value of a flag that may be repeated, as paths.
    #[cfg(any(feature = "sentinel", feature = "worker"))]
    pub(crate) fn paths(&self, long: &str) -> Vec<PathBuf> {
        self.all(long).map(PathBuf::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMAND: Command = Command {
        name: "tool do",
        about: "Does it.",
        usage: "[OPTIONS] FILE...",
        flags: &[
            Flag {
                long: "output",
                short: Some('o'),
                value: Some("DIR"),
                help: "Where\nto",
            },
            Flag {
                long: "json",
                short: None,
                value: None,
                help: "JSON",
            },
            Flag {
                long: "slots",
                short: None,
                value: Some("N"),
                help: "Slots",
            },
        ],
        notes: "",
    };

    fn parse(words: &[&str]) -> Result<Typed, Refusal> {
        COMMAND.parse(words.iter().map(OsString::from))
    }

    #[test]
    fn flags_and_positionals_come_in_any_order() {
        let typed = parse(&["a", "--json", "-o", "x", "b", "--output=y", "--", "--c"]).unwrap();
        assert!(typed.has("json"));
        assert_eq!(typed.last("output"), Some("y".into()));
        assert_eq!(typed.positionals, ["a", "b", "--c"]);
        assert!(COMMAND.number(&typed, "slots", 1..=9).unwrap().is_none());
    }

    #[test]
    fn a_commands_own_flags_come_before_those_of_the_program() {
        const OWN: Command = Command {
            flags: &[
                Flag {
                    long: "version",
                    short: Some('V'),
                    value: Some("V"),
                    help: "Its version",
                },
                Flag {
                    long: "help",
                    short: Some('h'),
                    value: None,
                    help: "Its help",
                },
            ],
            ..COMMAND
        };
        for words in [
            &["--version", "1.0"][..],
            &["--version=1.0"],
            &["-V", "1.0"],
        ] {
            let typed = OWN.parse(words.iter().map(OsString::from)).unwrap();
            assert_eq!(typed.last("version"), Some("1.0".into()), "{words:?}");
            assert!(matches!(parse(words), Err(Refusal::Version)), "{words:?}");
        }
        for word in ["--help", "-h"] {
            assert!(OWN.parse([word.into()]).unwrap().has("help"));
            assert!(matches!(parse(&[word]), Err(Refusal::Help(_))));
        }
    }

    #[test]
    fn mistakes_are_one_line_with_a_hint() {
        let bad = |words: &[&str]| match parse(words) {
            Err(Refusal::Usage(line)) => line,
            other => panic!("{other:?}"),
        };
        for (words, want) in [
            (&["--nope"][..], "unknown option --nope"),
            (&["-x"][..], "unknown option -x"),
            (&["-5"][..], "a negative number goes after --"),
            (&["--output"][..], "missing argument"),
            (&["--json=1"][..], "unexpected argument"),
        ] {
            let line = bad(words);
            assert!(
                line.contains(want) && line.contains("tool do --help"),
                "{line}"
            );
            assert_eq!(line.lines().count(), 1);
        }
        let typed = parse(&["--slots", "0"]).unwrap();
        let Err(Refusal::Usage(line)) = COMMAND.number(&typed, "slots", 1..=9) else {
            panic!()
        };
        assert!(line.contains("from 1 to 9"), "{line}");
    }

    #[test]
    fn sizes_have_units_by_powers_of_1000_or_1024() {
        let sizes = [
            ("0", Some(0)),
            ("17", Some(17)),
            ("17B", Some(17)),
            ("500M", Some(500_000_000)),
            ("2GB", Some(2_000_000_000)),
            ("2Gi", Some(2 << 30)),
            ("1TiB", Some(1 << 40)),
            ("3k", Some(3000)),
            ("", None),
            ("G", None),
            ("1i", None),
            ("-1", None),
            ("+1", None),
            ("1.5G", None),
            ("1E", None),
            ("99999999T", None),
            ("ü", None),
        ];
        for (text, want) in sizes {
            assert_eq!(crate::job::text::size(text), want, "{text}");
        }
    }

    #[test]
    fn help_shows_every_flag() {
        let help = COMMAND.help();
        for want in [
            "-o, --output DIR",
            "--json",
            "Usage: tool do [OPTIONS] FILE...",
        ] {
            assert!(help.contains(want), "{help}");
        }
    }
}
