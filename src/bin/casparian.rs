//! The program `casparian`; see `casparian::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    casparian::cli::main(std::env::args_os().skip(1))
}
