//! Shares and sizes as they are written on the command line.

use std::str::FromStr;

/// A share: `1%` or `0.01`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(pub f64);

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Share, String> {
        let (number, unit) = match text.strip_suffix('%') {
            Some(number) => (number, 100.0),
            None => (text, 1.0),
        };
        match number.trim().parse::<f64>() {
            Ok(n) if (0.0..=1.0).contains(&(n / unit)) => Ok(Share(n / unit)),
            _ => Err("expected a share from 0 to 1, or from 0% to 100%".into()),
        }
    }
}

/// Bytes: `20MB`, `19.5MiB`, `800 kB` or `20000000`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let start = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = text.split_at(start);
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "kib" => 1024.0,
            "mib" => 1024.0 * 1024.0,
            "gib" => 1024.0 * 1024.0 * 1024.0,
            _ => return Err("expected bytes with a unit of B, kB, MB, GB, KiB, MiB or GiB".into()),
        };
        match number.parse::<f64>() {
            Ok(n) if n > 0.0 && n * unit < 1e18 => Ok(Size((n * unit) as u64)),
            _ => Err("expected bytes, as `20MB` or `20000000`".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_shares_are_read_with_their_units() {
        let sizes = ["20MB", "1.5 MiB", "800kB", "123", "0MB", "MB", "1e3", "5 parsecs", "-3MB"];
        let sizes: Vec<Option<u64>> =
            sizes.iter().map(|s| s.parse::<Size>().ok().map(|s| s.0)).collect();
        assert_eq!(
            sizes,
            [
                Some(20_000_000),
                Some(1_572_864),
                Some(800_000),
                Some(123),
                None,
                None,
                None,
                None,
                None
            ]
        );
        let shares: Vec<Option<f64>> = ["1%", "0.01", "100%", "1.5", "-1%", "x", "NaN"]
            .iter()
            .map(|s| s.parse::<Share>().ok().map(|s| s.0))
            .collect();
        assert_eq!(shares, [Some(0.01), Some(0.01), Some(1.0), None, None, None, None]);
    }
}
