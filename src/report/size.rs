//! Numbers of bytes as people write them: the way back from [`super::bytes`].

/// Bytes of `20MB`, `19.5MiB`, `800 kB` or `20000000`; of a fraction of a byte, what is below.
///
/// # Errors
/// What was expected, in words.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let start = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ','));
    let (number, unit) = text.split_at(start.unwrap_or(text.len()));
    if number.contains(',') {
        let point = number.replacen(',', ".", 1);
        return Err(format!("`{text}` has a comma: a fraction is written `{point}{unit}`"));
    }
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => {
            return Err(format!(
                "`{text}` has none of the units B, kB, MB, GB, KiB, MiB and GiB: expected bytes, as 12000000, 12MB or 11.5MiB"
            ));
        }
    };
    match number.parse::<f64>() {
        Ok(n) if n * unit < 1e15 => Ok((n * unit) as u64),
        _ => Err(format!("`{text}` is no number of bytes, as 12000000, 12MB or 11.5MiB")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("20MB", 20_000_000),
            ("1mb", 1_000_000),
            ("1000KB", 1_000_000),
            ("1.5 MiB", 1_572_864),
            ("800kB", 800_000),
            (" 2gib ", 2 << 30),
            ("123", 123),
            ("7 B", 7),
            ("0.5", 0),
            ("0MB", 0),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "MB", "1e3", "-3MB", "1.2.3MB", "nan", "inf", "1000000000GB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
        insta::assert_snapshot!(parse_bytes("0,5MB").unwrap_err(), @"`0,5MB` has a comma: a fraction is written `0.5MB`");
        insta::assert_snapshot!(parse_bytes("12 apples").unwrap_err(), @"`12 apples` has none of the units B, kB, MB, GB, KiB, MiB and GiB: expected bytes, as 12000000, 12MB or 11.5MiB");
        insta::assert_snapshot!(parse_bytes("MB").unwrap_err(), @"`MB` is no number of bytes, as 12000000, 12MB or 11.5MiB");
    }
}
