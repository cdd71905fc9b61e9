//! The closing line of a suite's program: what it says of itself.

/// How many tests passed and failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closing {
    pub passed: u64,
    pub failed: u64,
}

/// The last closing line of a test program's output: libtest's (`test result: ok. 3 passed; 0 failed; ...`) or a
/// plain `3 passed, 0 failed`.
pub(super) fn closing(output: &str) -> Option<Closing> {
    output.lines().rev().find_map(line)
}

fn line(line: &str) -> Option<Closing> {
    let counts =
        line.trim().strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")).map_or(line, |(_, c)| c);
    let mut parts = counts.trim().split([';', ',']).map(str::trim);
    let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some(Closing { passed, failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_understood_and_the_last_one_counts() {
        let libtest = "running 2 tests\ntest a ... ok\n\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\n";
        assert_eq!(closing(libtest), Some(Closing { passed: 1, failed: 1 }));
        assert_eq!(closing("3 passed, 1 failed\n4 passed, 0 failed\n"), Some(Closing { passed: 4, failed: 0 }));
        assert_eq!(closing("all is well, 0 failed\n"), None);
    }
}
