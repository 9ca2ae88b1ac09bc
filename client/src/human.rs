// SPDX-License-Identifier: GPL-2.0-only
//! Sizes and times as people write and read them.

/// `1.5 GiB` for a number of bytes.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// `12.3 ms` for a number of nanoseconds.
pub fn nanoseconds(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

/// Reads a size: a plain number is in units of `plain` bytes, as the C tool has it; `512M`, `2G`,
/// `1.5GiB` are bytes with binary units.
///
/// # Errors
///
/// A sentence about what is wrong.
pub fn parse_size(text: &str, plain: u64) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit
        .trim()
        .to_ascii_lowercase()
        .trim_end_matches("ib")
        .trim_end_matches('b')
    {
        "" if unit.is_empty() => plain,
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => {
            return Err(format!(
                "'{unit}' is not a unit: use K, M, G or T (1024-based)"
            ))
        }
    };
    let too_large = || format!("'{text}' is too large");
    if number.contains('.') {
        let value: f64 = number
            .parse()
            .map_err(|_| format!("'{text}' is not a size"))?;
        let bytes = value * factor as f64;
        if !(0.0..9.0e18).contains(&bytes) {
            return Err(too_large());
        }
        return Ok(bytes as u64);
    }
    if number.is_empty() {
        return Err(format!(
            "'{text}' is not a size: use a number such as 512 or 512M"
        ));
    }
    let value: u64 = number.parse().map_err(|_| too_large())?;
    value.checked_mul(factor).ok_or_else(too_large)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_numbers_are_in_the_c_tools_unit() {
        assert_eq!(parse_size("100", 1 << 20), Ok(100 << 20));
        assert_eq!(parse_size("100", 1), Ok(100));
    }

    #[test]
    fn units_are_binary_and_case_does_not_matter() {
        for text in ["2G", "2g", "2GiB", "2gb", "2048M", " 2 G"] {
            assert_eq!(parse_size(text, 1), Ok(2 << 30), "{text}");
        }
        assert_eq!(parse_size("1.5K", 1), Ok(1536));
        assert_eq!(parse_size("7B", 1 << 20), Ok(7));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "x",
            "-1",
            "1X",
            "99999999999999999999",
            "18446744073709551615K",
            ".",
            "1e3",
        ] {
            assert!(parse_size(text, 1).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(107_374_182), "102.4 MiB");
        assert_eq!(nanoseconds(12_345_678), "12.3 ms");
    }
}
