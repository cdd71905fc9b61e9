//! The node plugin with its crash points, for tests: a program of its own, so that neither takes the other's place.

use std::process::ExitCode;

fn main() -> ExitCode {
    quarry_driver::command_line::main()
}
