//! Kubernetes' quantities of bytes.

/// A quantity that is none, or beyond 2^64.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a quantity of bytes such as 1073741824, 1Gi or 1.5G")]
pub struct QuantityError(String);

/// The bytes of a quantity as Kubernetes reads it; parts of a byte are rounded up, as a claim for them needs the byte.
///
/// # Errors
/// [`QuantityError`].
pub fn parse(text: &str) -> Result<u64, QuantityError> {
    read(text).ok_or_else(|| QuantityError(text.to_owned()))
}

fn read(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || fraction.contains('.') {
        return None;
    }
    let digits: u128 = digits.parse().ok()?;
    let mut below = i32::try_from(fraction.len()).ok()?;
    let mut value = digits;
    match suffix {
        "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei" => {
            let power = 1 + "KMGTPE".find(suffix.chars().next()?)?;
            value = value.checked_mul(1_u128 << (10 * u32::try_from(power).ok()?))?;
        }
        _ => below -= exponent(suffix)?,
    }
    let power = |exponent: i32| 10_u128.checked_pow(exponent.unsigned_abs());
    let bytes = if below > 0 {
        // So small that it is a part of a byte, or nothing.
        power(below).map_or(u128::from(value > 0), |divisor| value.div_ceil(divisor))
    } else if value == 0 {
        0
    } else {
        value.checked_mul(power(below)?)?
    };
    u64::try_from(bytes).ok()
}

/// The power of ten that a decimal suffix stands for.
fn exponent(suffix: &str) -> Option<i32> {
    Some(match suffix {
        "n" => -9,
        "u" => -6,
        "m" => -3,
        "" => 0,
        "k" => 3,
        "M" => 6,
        "G" => 9,
        "T" => 12,
        "P" => 15,
        "E" => 18,
        _ => suffix.strip_prefix(['e', 'E'])?.parse().ok().filter(|e: &i32| e.unsigned_abs() < 100)?,
    })
}

/// A number of bytes as people read it: with the largest binary suffix that loses nothing.
#[must_use]
pub fn format(bytes: u64) -> String {
    let suffixes = [(60, "Ei"), (50, "Pi"), (40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")];
    let whole = |(shift, _): &&(u32, &str)| bytes != 0 && bytes.trailing_zeros() >= *shift;
    suffixes
        .iter()
        .find(whole)
        .map_or_else(|| bytes.to_string(), |(shift, suffix)| format!("{}{suffix}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1Gi", 1 << 30),
            ("1.5Gi", 3 << 29),
            (".5Ki", 512),
            ("5.", 5),
            ("100M", 100_000_000),
            ("12e3", 12_000),
            ("12E", 12_000_000_000_000_000_000),
            ("1E3", 1000),
            ("1500m", 2),
            ("1n", 1),
            ("0n", 0),
            ("+3k", 3000),
            ("1e-99", 1),
            ("0e99", 0),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", ".", "Gi", "1gi", "1 Gi", "-1", "1..5", "16Ei", "1e99", "1e", "0x10", "1e1000"] {
            assert!(parse(text).unwrap_err().to_string().contains(text), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_with_the_largest_suffix_that_fits() {
        for (bytes, text) in
            [(0, "0"), (1 << 30, "1Gi"), (3 << 29, "1536Mi"), (1025, "1025"), (u64::MAX, "18446744073709551615")]
        {
            assert_eq!(format(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(bytes: u64, shift in 0_u32..64) {
            let bytes = bytes << shift;
            prop_assert_eq!(parse(&format(bytes)), Ok(bytes));
        }
    }
}
