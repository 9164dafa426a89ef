//! The program `casparian-worker`; see `casparian::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    casparian::cli::worker_main(std::env::args_os().skip(1))
}
