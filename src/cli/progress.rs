//! Progress on stderr: a bar on a terminal, lines otherwise.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use super::clean::clean;
use super::stderr::print_line;
use super::table::{first_line, one_line, thousands};

/// A file that has ended.
pub(super) struct Ended<'a> {
    pub(super) file: &'a str,
    pub(super) rows: u64,
    pub(super) error: Option<&'a str>,
}

pub(super) enum Progress {
    Bar(ProgressBar),
    Lines { total: u64, done: u64 },
    Quiet,
}

impl Progress {
    pub(super) fn new(total: u64, quiet: bool) -> Self {
        if quiet {
            return Progress::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            return Progress::Lines { total, done: 0 };
        }
        let bar = ProgressBar::new(total);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:32} {pos}/{len} files  {elapsed}  {msg}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        Progress::Bar(bar)
    }

    /// Shows a message about the preparation before the first file.
    pub(super) fn message(&self, text: &str) {
        match self {
            Progress::Bar(bar) => bar.set_message(one_line(text)),
            Progress::Lines { .. } => print_line(text),
            Progress::Quiet => {}
        }
    }

    /// Shows a message that is always shown, also in quiet mode.
    pub(super) fn note(&self, text: &str) {
        let text = format!("casparian: {}", one_line(text));
        match self {
            Progress::Bar(bar) => bar.println(text),
            Progress::Lines { .. } | Progress::Quiet => print_line(text),
        }
    }

    pub(super) fn ended(&mut self, ended: &Ended<'_>) {
        let file = one_line(ended.file);
        let text = match ended.error {
            None => format!("{file}: {} rows", thousands(ended.rows)),
            Some(error) => format!("{file}: FAILED: {}", clean(&first_line(error, 120))),
        };
        match self {
            Progress::Bar(bar) => {
                bar.inc(1);
                match ended.error {
                    None => bar.set_message(text),
                    Some(_) => bar.println(text),
                }
            }
            Progress::Lines { total, done } => {
                *done += 1;
                print_line(format_args!("[{done}/{total}] {text}"));
            }
            Progress::Quiet => {}
        }
    }

    /// Files that had ended are run again.
    pub(super) fn again(&mut self, count: usize) {
        let count = count as u64;
        match self {
            Progress::Bar(bar) => bar.dec(count),
            Progress::Lines { done, .. } => *done = done.saturating_sub(count),
            Progress::Quiet => {}
        }
    }

    pub(super) fn finish(self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
