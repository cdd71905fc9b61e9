//! The node plugin's command line.
fn main() {}
