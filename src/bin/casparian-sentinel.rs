//! The program `casparian-sentinel`; see `casparian::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    casparian::cli::sentinel_main(std::env::args_os().skip(1))
}
