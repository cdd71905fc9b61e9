//! The node plugin.

use std::process::ExitCode;

fn main() -> ExitCode {
    quarry_driver::command_line::main()
}
