//! Sizes as manifests write them: the part of Kubernetes quantities that makes sense for bytes.

/// Parses `1048576`, `64Ki`, `1.5Mi`, `1G` into bytes. A fraction of a byte is rounded up, as Kubernetes does.
///
/// Not read: exponents (`1e3`), milli-units (`100m`) and signs, which no size needs.
pub fn parse(text: &str) -> Result<u64, InvalidSize> {
    let invalid = || InvalidSize(text.to_owned());
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 || digits > 15 {
        return Err(invalid());
    }
    let whole: u128 = text[..digits].parse().map_err(|_| invalid())?;
    let mut rest = &text[digits..];
    let mut thousandths = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > 3 {
            return Err(invalid());
        }
        thousandths = fraction[..digits].parse::<u128>().map_err(|_| invalid())?;
        thousandths *= [100, 10, 1][digits - 1];
        rest = &fraction[digits..];
    }
    let unit: u128 = match rest {
        "" => 1,
        "k" => 1000,
        "M" => 1000 * 1000,
        "G" => 1000 * 1000 * 1000,
        "T" => 1000 * 1000 * 1000 * 1000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return Err(invalid()),
    };
    let bytes = whole * unit + (thousandths * unit).div_ceil(1000);
    Ok(u64::try_from(bytes).unwrap_or(u64::MAX))
}

/// A text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size; write it in bytes like 64Ki, 1Mi or 1048576")]
pub struct InvalidSize(String);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_as_kubernetes_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("64Ki", 64 << 10),
            ("1Mi", 1 << 20),
            ("15Mi", 15 << 20),
            ("1G", 1_000_000_000),
            ("1k", 1000),
            ("1.5Ki", 1536),
            ("0.001", 1),
            ("0.25Ki", 256),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "Ki", "1KB", "1 Mi", "-1", "+1", "1e3", "1.Mi", ".5Mi", "1mi", "100m", "１Mi", "1.2345Ki"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whole_numbers_of_a_unit_are_that_many_units(number in 0u64..1_000_000, unit in 0usize..9) {
            let (suffix, size) = [("", 1u64), ("k", 1000), ("M", 1_000_000), ("G", 1_000_000_000),
                ("T", 1_000_000_000_000), ("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("Ti", 1 << 40)][unit];
            prop_assert_eq!(parse(&format!("{number}{suffix}")), Ok(number * size));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,30}") {
            let _ = parse(&text);
        }
    }
}
