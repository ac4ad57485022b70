//! Sizes, times and rates as people write them.

/// `64`, `4k` or `1m`: bytes, in multiples of 1,024.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let wrong = || {
        format!(
            "'{text}' is no size: give bytes from 1 to {}, such as 64, 4k or 1m",
            super::protocol::LARGEST
        )
    };
    let lower = text.to_ascii_lowercase();
    let (number, factor) = match lower.strip_suffix('k') {
        Some(number) => (number, 1 << 10),
        None => match lower.strip_suffix('m') {
            Some(number) => (number, 1 << 20),
            None => (lower.as_str(), 1),
        },
    };
    let size = number
        .parse::<usize>()
        .ok()
        .and_then(|n| n.checked_mul(factor));
    size.filter(|size| (1..=super::protocol::LARGEST).contains(size))
        .ok_or_else(wrong)
}

/// `64 B`, `4 KiB`, `1 MiB`.
pub(crate) fn size(bytes: usize) -> String {
    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    match bytes {
        MIB.. if bytes.is_multiple_of(MIB) => format!("{} MiB", bytes / MIB),
        KIB.. if bytes.is_multiple_of(KIB) => format!("{} KiB", bytes / KIB),
        _ => format!("{bytes} B"),
    }
}

/// Nanoseconds as microseconds, with as many digits as say something.
pub(crate) fn microseconds(ns: u64) -> String {
    let us = ns as f64 / 1e3;
    match us {
        1000.0.. => format!("{us:.0}"),
        _ => format!("{us:.1}"),
    }
}

/// Nanoseconds with the unit that fits.
pub(crate) fn time(ns: u64) -> String {
    let ns = ns as f64;
    match ns {
        ..1e3 => format!("{ns:.0} ns"),
        ..1e6 => format!("{:.1} us", ns / 1e3),
        ..1e9 => format!("{:.1} ms", ns / 1e6),
        _ => format!("{:.1} s", ns / 1e9),
    }
}

/// Bytes a second as megabytes (10^6) a second.
pub(crate) fn megabytes(rate: f64) -> String {
    let rate = rate / 1e6;
    match rate {
        100.0.. => format!("{rate:.0}"),
        _ => format!("{rate:.1}"),
    }
}

pub(crate) fn connections(n: usize) -> String {
    match n {
        1 => "one connection".to_owned(),
        n => format!("{n} connections"),
    }
}

/// How many times the other it is.
pub(crate) fn ratio(this: f64, other: f64) -> String {
    match other > 0.0 {
        true => format!("{:.2}", this / other),
        false => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes, shown) in [
            ("64", 64, "64 B"),
            ("4k", 4096, "4 KiB"),
            ("1M", 1 << 20, "1 MiB"),
            ("1025", 1025, "1025 B"),
        ] {
            assert_eq!(parse_size(text), Ok(bytes));
            assert_eq!(size(bytes), shown);
        }
        for bad in [
            "",
            "0",
            "k",
            "-1",
            "2m",
            "1.5k",
            "99999999999999999999",
            "17592186044416m",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_the_unit_that_fits() {
        let times = [999, 1_500, 2_500_000, 3_000_000_000].map(time);
        assert_eq!(times, ["999 ns", "1.5 us", "2.5 ms", "3.0 s"]);
        assert_eq!([15_000, 2_000_000].map(microseconds), ["15.0", "2000"]);
        assert_eq!([12.5e6, 3.1e9].map(megabytes), ["12.5", "3100"]);
        assert_eq!(ratio(1.0, 0.0), "-");
    }
}
