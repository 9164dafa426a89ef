//! Command lines. Each command declares its flags once, by [`flags!`]: the declaration is a table, from which the
//! command line is read and `--help` is made, and a struct with a field for each flag, which [`Command::parse`]
//! fills.
//!
//! How values are read, such as numbers, sizes and paths, is in [`values`].

pub(super) mod values;

use std::ffi::OsString;
use std::fmt::Write as _;

pub(super) use values::Values;

use super::{Failure, usage_error};

/// One flag.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    /// Its name, without the hyphens.
    pub(crate) long: &'static str,
    /// Its short name.
    pub(crate) short: Option<char>,
    /// Name of its value; none for a flag without a value.
    pub(crate) value: Option<&'static str>,
    /// Lines of its help, as [`flags!`] joins them: each has a space before it and ends with a line feed.
    pub(crate) help: &'static str,
}

/// The flags of a command, and how they fill an `F`.
#[derive(Debug)]
pub(crate) struct Table<F> {
    /// The flags in the order of the help. Those of groups are among them.
    pub(crate) rows: &'static [Flag],
    /// Fills an `F` from what was given for each flag, in the order of `rows`.
    pub(crate) read: fn(&mut Given) -> Result<F, Failure>,
}

/// One command, whose flags fill an `F`.
#[derive(Debug)]
pub(crate) struct Command<F> {
    /// The command as typed, e.g. `casparian run`.
    pub(crate) name: &'static str,
    /// The first line of its help.
    pub(crate) about: &'static str,
    /// Positional arguments in the usage line.
    pub(crate) usage: &'static str,
    pub(crate) flags: Table<F>,
    /// Text after the flags in the help.
    pub(crate) notes: &'static str,
}

/// What was given for the flags of a table, in the order of the table.
#[derive(Debug)]
pub(crate) struct Given {
    rows: std::vec::IntoIter<Values>,
}

/// Declares the flags of a command, or a group of flags that several commands have.
///
/// ```text
/// flags! {
///     /// The flags of `casparian example`.
///     pub(super) struct ExampleFlags {
///         /// Its database.
///         database: DatabaseFlag;
///         /// Jobs at a time
///         /// (default 1)
///         slots: Option<usize> = "slots" | 's', "N" => values::number(1..=64);
///         /// Run again
///         force: bool = "force";
///     }
/// }
/// ```
///
/// A row has the lines of the flag's help, the field and its type, the flag's long name and, after `|`, its short
/// one. A flag with a value has the name of the value and, after `=>`, the function that reads it; without a value
/// the field is a `bool`. A row with nothing but a type is a group: a struct that `flags!` declares elsewhere, whose
/// flags are inserted there.
macro_rules! flags {
    (@rows $Group:ty, [$($help:literal)+]) => { <$Group>::TABLE.rows };
    (@rows $type:ty, [$($help:literal)+], $long:literal, [$($short:literal)?] $(, $value:literal)?) => {
        &[$crate::cli::args::Flag {
            long: $long,
            short: flags!(@option $($short)?),
            value: flags!(@option $($value)?),
            help: concat!($($help, "\n"),+),
        }]
    };
    (@option) => { None };
    (@option $some:literal) => { Some($some) };
    (@read $given:ident, $Group:ty) => { (<$Group>::TABLE.read)($given)? };
    (@read $given:ident, $type:ty, $long:literal) => { $given.switch() };
    (@read $given:ident, $type:ty, $long:literal, $read:expr) => { $given.value($read)? };
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $Name:ident {
            $(
                $(#[doc = $help:literal])+
                $field:ident: $type:ty
                    $(= $long:literal $(| $short:literal)? $(, $value:literal => $read:expr)?)?;
            )+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug)]
        $visibility struct $Name {
            $(
                $(#[doc = $help])+
                $visibility $field: $type,
            )+
        }

        impl $Name {
            /// The flags as data, and how they fill the struct.
            $visibility const TABLE: $crate::cli::args::Table<$Name> = {
                const PARTS: &[&[$crate::cli::args::Flag]] = &[$(
                    flags!(@rows $type, [$($help)+] $(, $long, [$($short)?] $(, $value)?)?)
                ),+];
                const COUNT: usize = $crate::cli::args::count(PARTS);
                const ROWS: [$crate::cli::args::Flag; COUNT] = $crate::cli::args::joined(PARTS);
                $crate::cli::args::Table { rows: &ROWS, read: $Name::read }
            };

            fn read(
                given: &mut $crate::cli::args::Given,
            ) -> Result<$Name, $crate::cli::Failure> {
                // The fields are read in this order, which is that of the table.
                Ok($Name {
                    $($field: flags!(@read given, $type $(, $long $(, $read)?)?),)+
                })
            }
        }
    };
}

pub(super) use flags;

/// The number of flags in the parts of a table.
pub(crate) const fn count(mut parts: &[&[Flag]]) -> usize {
    let mut count = 0;
    while let Some((part, rest)) = parts.split_first() {
        count += part.len();
        parts = rest;
    }
    count
}

/// Joins the `N` flags in the parts of a table.
pub(crate) const fn joined<const N: usize>(mut parts: &[&[Flag]]) -> [Flag; N] {
    const NONE: Flag = Flag {
        long: "",
        short: None,
        value: None,
        help: "",
    };
    let mut all = [NONE; N];
    let mut free: &mut [Flag] = &mut all;
    while let Some((part, rest)) = parts.split_first() {
        let mut part = *part;
        while let Some((flag, others)) = part.split_first() {
            let Some((next, remaining)) = { free }.split_first_mut() else {
                return all;
            };
            *next = *flag;
            free = remaining;
            part = others;
        }
        parts = rest;
    }
    all
}

impl Given {
    /// True if the next flag, which has no value, was given.
    pub(crate) fn switch(&mut self) -> bool {
        self.rows.next().is_some_and(|values| values.is_given())
    }

    /// Reads the values of the next flag.
    pub(crate) fn value<T>(
        &mut self,
        read: impl FnOnce(&Values) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        // There is a next one, because the table and what reads it are of the same declaration.
        read(&self.rows.next().unwrap_or_default())
    }
}

impl<F> Command<F> {
    /// Parses arguments (without the command's name) into the flags and the positional arguments.
    pub(crate) fn parse(
        &self,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<(F, Vec<OsString>), Failure> {
        let arguments = arguments.into_iter().collect();
        let (mut given, positionals) = split(self.flags.rows, arguments, &|| self.help())?;
        Ok(((self.flags.read)(&mut given)?, positionals))
    }

    /// The text of `--help`.
    pub(crate) fn help(&self) -> String {
        let mut out = format!("{}\n\nUsage: {} {}\n", self.about, self.name, self.usage);
        let rows: Vec<(String, &str)> = self
            .flags
            .rows
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
                let line = line.strip_prefix(' ').unwrap_or(line);
                // Writing to a String cannot fail.
                let _ = writeln!(out, "{left:width$}{line}");
            }
        }
        if !self.notes.is_empty() {
            let _ = write!(out, "\n{}\n", self.notes);
        }
        out
    }
}

/// A command of any flags, for lists of commands.
pub(crate) trait Described {
    fn name(&self) -> &'static str;
    fn about(&self) -> &'static str;

    #[cfg(test)]
    fn flags(&self) -> &'static [Flag];

    /// Why these arguments are refused.
    #[cfg(fuzzing)]
    fn refusal(&self, arguments: Vec<OsString>) -> Option<Failure>;
}

impl<F> Described for Command<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    #[cfg(test)]
    fn flags(&self) -> &'static [Flag] {
        self.flags.rows
    }

    #[cfg(fuzzing)]
    fn refusal(&self, arguments: Vec<OsString>) -> Option<Failure> {
        self.parse(arguments).err()
    }
}

/// Splits arguments into what is given for each flag and the positional arguments.
fn split(
    flags: &[Flag],
    arguments: Vec<OsString>,
    help: &dyn Fn() -> String,
) -> Result<(Given, Vec<OsString>), Failure> {
    use lexopt::Arg;
    let mut rows: Vec<Values> = flags.iter().map(|flag| Values::of(flag.long)).collect();
    let mut positionals = Vec::new();
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next().map_err(usage_error)? {
        let mut known = flags.iter().zip(&mut rows);
        let known = match argument {
            Arg::Long(long) => {
                // The name in earlier releases.
                let long = match long {
                    "guest-start" => "plugin-start",
                    long => long,
                };
                known.find(|(flag, _)| flag.long == long)
            }
            Arg::Short(short) => known.find(|(flag, _)| flag.short == Some(short)),
            Arg::Value(value) => {
                positionals.push(value);
                continue;
            }
        };
        // Flags of the command take precedence: `--version` may be one of them.
        let Some((flag, values)) = known else {
            let unknown = match argument {
                Arg::Long("help") | Arg::Short('h') => return Err(Failure::Help(help())),
                Arg::Long("version") | Arg::Short('V') => return Err(Failure::Version),
                Arg::Long(long) => format!("--{long}"),
                Arg::Short(digit) if digit.is_ascii_digit() => {
                    format!("-{digit}; a negative number goes after --")
                }
                Arg::Short(short) => format!("-{short}"),
                Arg::Value(_) => String::new(),
            };
            return Err(usage_error(format!("unknown option {unknown}")));
        };
        let value = match flag.value {
            Some(_) => parser.value().map_err(usage_error)?,
            None => OsString::new(),
        };
        values.push(value);
    }
    let rows = rows.into_iter();
    Ok((Given { rows }, positionals))
}

/// Refuses positional arguments.
pub(crate) fn no_positionals(positionals: &[OsString]) -> Result<(), Failure> {
    match positionals.first() {
        Some(word) => Err(usage_error(format!(
            "unexpected argument {:?}",
            word.to_string_lossy()
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    flags! {
        /// A group.
        struct Where {
            /// Where
            /// to
            output: Option<std::path::PathBuf> = "output" | 'o', "DIR" => values::path;
            /// JSON
            json: bool = "json";
        }
    }

    flags! {
        /// The flags of a command.
        struct Flags {
            /// Files
            file: Vec<String> = "file", "FILE" => values::texts;
            /// A group.
            target: Where;
            /// Slots
            slots: Option<u64> = "slots", "N" => values::number(1..=9);
        }
    }

    flags! {
        /// Flags with names that each program has.
        struct Own {
            /// Its version
            version: Option<String> = "version" | 'V', "V" => values::text;
            /// Its help
            help: bool = "help" | 'h';
        }
    }

    const COMMAND: Command<Flags> = Command {
        name: "tool do",
        about: "Does it.",
        usage: "[OPTIONS] FILE...",
        flags: Flags::TABLE,
        notes: "",
    };

    fn parse(words: &[&str]) -> Result<(Flags, Vec<OsString>), Failure> {
        COMMAND.parse(words.iter().map(OsString::from))
    }

    #[test]
    fn flags_and_positionals_come_in_any_order() {
        let words = [
            "a",
            "--json",
            "--file",
            "1",
            "-o",
            "x",
            "b",
            "--output=y",
            "--file=2",
            "--",
            "--c",
        ];
        let (flags, positionals) = parse(&words).unwrap();
        assert!(flags.target.json);
        assert_eq!(flags.target.output, Some("y".into()));
        assert_eq!(flags.file, ["1", "2"]);
        assert_eq!(positionals, ["a", "b", "--c"]);
        assert!(flags.slots.is_none());
    }

    #[test]
    fn a_commands_own_flags_come_before_those_of_the_program() {
        const OWN: Command<Own> = Command {
            name: "tool own",
            about: "",
            usage: "",
            flags: Own::TABLE,
            notes: "",
        };
        for words in [
            &["--version", "1.0"][..],
            &["--version=1.0"],
            &["-V", "1.0"],
        ] {
            let (own, _) = OWN.parse(words.iter().map(OsString::from)).unwrap();
            assert_eq!(own.version.as_deref(), Some("1.0"), "{words:?}");
            assert!(matches!(parse(words), Err(Failure::Version)), "{words:?}");
        }
        for word in ["--help", "-h"] {
            assert!(OWN.parse([word.into()]).unwrap().0.help);
            assert!(matches!(parse(&[word]), Err(Failure::Help(_))));
        }
    }

    #[test]
    fn mistakes_are_one_line() {
        for (words, want) in [
            (&["--nope"][..], "unknown option --nope"),
            (&["-x"][..], "unknown option -x"),
            (&["-5"][..], "a negative number goes after --"),
            (&["--output"][..], "missing argument"),
            (&["--output="][..], "--output is empty"),
            (&["--json=1"][..], "unexpected argument"),
            (
                &["--slots", "0"][..],
                "--slots 0: expected a whole number from 1 to 9",
            ),
        ] {
            let Err(Failure::Usage(line)) = parse(words) else {
                panic!("{words:?}")
            };
            assert!(line.contains(want), "{line}");
            assert_eq!(line.lines().count(), 1);
        }
        // The last value counts.
        let (flags, _) = parse(&["--slots", "0", "--slots", "3"]).unwrap();
        assert_eq!(flags.slots, Some(3));
    }

    #[test]
    fn help_shows_every_flag_in_the_order_of_the_declaration() {
        let help = COMMAND.help();
        let want = "Does it.\n\nUsage: tool do [OPTIONS] FILE...\n\nOptions:\n      --file FILE   Files\n  \
                    -o, --output DIR  Where\n                    to\n      --json        JSON\n      \
                    --slots N     Slots\n  -h, --help        Print this help\n";
        assert_eq!(help, want);
    }
}
