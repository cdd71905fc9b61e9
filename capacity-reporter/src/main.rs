//! The capacity-reporter.

use std::process::ExitCode;

fn main() -> ExitCode {
    quarry_capacity_reporter::command_line::main()
}
