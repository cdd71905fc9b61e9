//! The log's filter changes while the process runs. On its own, since a process has one log.

use quarry_driver::telemetry::{LogFormat, refilter, start};

#[test]
fn the_filter_changes_while_the_driver_runs() {
    assert!(refilter("debug").unwrap_err().to_string().contains("not started"));
    start(LogFormat::Json, "info").unwrap();
    let says_debug = || tracing::enabled!(target: "quarry_driver::lvm", tracing::Level::DEBUG);
    assert!(!says_debug());
    assert_eq!(refilter("info,quarry_driver::lvm=debug").unwrap(), "info");
    assert!(says_debug());
    assert!(!tracing::enabled!(target: "quarry_driver::csi", tracing::Level::DEBUG));
    // One that is none changes nothing, and says why.
    let error = refilter("info,quarry_driver=loud").unwrap_err();
    assert!(format!("{error:#}").contains("loud"), "{error:#}");
    assert!(says_debug());
    refilter("warn").unwrap();
    assert!(!says_debug());
}
