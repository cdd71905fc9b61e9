//! Lines of cgroup files that begin with a device's number: `254:0 rbps=max wbps=1048576`, `254:0 800`, `default 100`.

use std::collections::BTreeMap;

use crate::device_number::DeviceNumber;

/// The key of `io.stat` for the microseconds that iocost charged.
pub const CHARGED: &str = "cost.usage";

/// What follows a device's number, by device. Lines that begin otherwise are not about one device.
pub fn lines(text: &str) -> impl Iterator<Item = (DeviceNumber, &str)> {
    text.lines().filter_map(|line| {
        let (number, rest) = line.split_once(' ')?;
        Some((number.parse().ok()?, rest.trim()))
    })
}

/// What follows one device's number.
pub fn line(text: &str, device: DeviceNumber) -> Option<&str> {
    lines(text).find(|(number, _)| *number == device).map(|(_, rest)| rest)
}

/// `key=value` pairs.
pub fn fields(rest: &str) -> BTreeMap<&str, &str> {
    rest.split_ascii_whitespace().filter_map(|pair| pair.split_once('=')).collect()
}

/// The number that a device's line has under a key.
pub fn number<T: std::str::FromStr>(text: &str, device: DeviceNumber, key: &str) -> Option<T> {
    fields(line(text, device)?).get(key)?.parse().ok()
}

/// Whether every pair of `wanted` is in `found`: numbers are compared as numbers, since the kernel writes `0.00` for what
/// it was given as `0`.
pub fn contains(found: &str, wanted: &str) -> bool {
    let found = fields(found);
    fields(wanted).into_iter().all(|(key, value)| {
        found.get(key).is_some_and(|is| {
            *is == value
                || matches!((is.parse::<f64>(), value.parse::<f64>()), (Ok(is), Ok(value)) if (is - value).abs() < 0.005)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const QOS: &str = "8:0 enable=0 ctrl=auto rpct=0.00\n254:0 enable=1 ctrl=user rpct=0.00 rlat=25000 wpct=0.00 \
                       wlat=25000 min=100.00 max=100.00\n";

    #[test]
    fn a_devices_line_is_found_and_compared_by_value() {
        let device = DeviceNumber { major: 254, minor: 0 };
        let line = line(QOS, device).unwrap();
        assert!(contains(line, "enable=1 ctrl=user rpct=0 min=100 max=100"));
        assert_eq!(number::<u64>(QOS, device, "rlat"), Some(25000));
        assert_eq!(number::<u64>(QOS, device, "ctrl"), None);
        assert!(!contains(line, "enable=0"));
        assert!(!contains(line, "min=50"));
        assert!(!contains(line, "absent=1"));
        assert_eq!(super::line(QOS, DeviceNumber { major: 254, minor: 256 }), None);
        assert_eq!(lines("default 100\n254:0 800\n").collect::<Vec<_>>(), [(device, "800")]);
    }
}
