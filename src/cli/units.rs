//! Shares and sizes as they are written on the command line.

use compress::report::parse_bytes;
use std::fmt::{Display, Formatter};
use std::str::FromStr;

/// A share that may be lost: `1%` or `0.01`. A number from 1 on needs the sign: `1` could be a point, or all there is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(pub f64);

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Share, String> {
        let found = number(text);
        match found.filter(|n| (0.0..=1.0).contains(n)) {
            Some(n) if n < 1.0 || text.ends_with('%') => Ok(Share(n)),
            _ => Err(match found.filter(|n| (1.0..=100.0).contains(n) && !text.ends_with('%')) {
                Some(n) => format!("write {n}% or {}", n / 100.0),
                None => "expected a share from 0 to 1, or from 0% to 100%".into(),
            }),
        }
    }
}

/// A share that is to be there: as [`Share`], but `1` is all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kept(pub f64);

impl FromStr for Kept {
    type Err = String;

    fn from_str(text: &str) -> Result<Kept, String> {
        match number(text).filter(|n| (0.0..=1.0).contains(n)) {
            Some(n) => Ok(Kept(n)),
            None => Err("expected a share from 0 to 1, or from 0% to 100%".into()),
        }
    }
}

/// What one time is of another: `0.5` or `50%`, above 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio(pub f64);

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Ratio, String> {
        match number(text).filter(|n| *n > 0.0 && n.is_finite()) {
            Some(n) => Ok(Ratio(n)),
            None => {
                Err("expected a number above 0: 0.5 or 50% is twice as fast as the original".into())
            }
        }
    }
}

/// `0.01`, also where it is written `1%`.
fn number(text: &str) -> Option<f64> {
    let (number, unit) = match text.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text, 1.0),
    };
    number.trim().parse::<f64>().ok().map(|n| n / unit)
}

/// Bytes: `20MB`, `19.5MiB`, `800 kB` or `20000000`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        match parse_bytes(text)? {
            0 => Err("expected at least one byte".into()),
            bytes => Ok(Size(bytes)),
        }
    }
}

/// The most bytes of a weight file: `5GB`, or a number of MB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShardSize(pub u64);

const MB: u64 = 1_000_000;

impl Default for ShardSize {
    fn default() -> Self {
        ShardSize(5000 * MB)
    }
}

impl FromStr for ShardSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ShardSize, String> {
        let bare = text.ends_with(|c: char| c.is_ascii_digit());
        match if bare { parse_bytes(&format!("{text}MB")) } else { parse_bytes(text) }? {
            0 => Err("expected at least one byte, as `5GB`, or a number of MB".into()),
            bytes => Ok(ShardSize(bytes)),
        }
    }
}

impl Display for ShardSize {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        match self.0 % MB {
            0 => write!(f, "{}", self.0 / MB),
            _ => write!(f, "{}B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_shares_are_read_with_their_units() {
        let sizes: Vec<Option<u64>> = ["20MB", "1.5 MiB", "0MB", "5 parsecs"]
            .iter()
            .map(|s| s.parse::<Size>().ok().map(|s| s.0))
            .collect();
        assert_eq!(sizes, [Some(20_000_000), Some(1_572_864), None, None]);
        let shares: Vec<Option<f64>> = ["1%", "0.01", "100%", "1.5", "-1%", "x", "NaN"]
            .iter()
            .map(|s| s.parse::<Share>().ok().map(|s| s.0))
            .collect();
        assert_eq!(shares, [Some(0.01), Some(0.01), Some(1.0), None, None, None, None]);
        let ratios = ["50%", "0.5", "1e6", "0", "-1", "inf", "NaN", "half"];
        let ratios = ratios.map(|s| s.parse::<Ratio>().ok().map(|r| r.0));
        assert_eq!(ratios, [Some(0.5), Some(0.5), Some(1e6), None, None, None, None, None]);
    }

    #[test]
    fn a_drop_of_one_is_a_point_or_everything() {
        let refused = |text: &str| text.parse::<Share>().unwrap_err();
        assert_eq!(refused("1"), "write 1% or 0.01");
        assert_eq!(refused("2.5"), "write 2.5% or 0.025");
        assert!(refused("101").starts_with("expected a share"));
        // Of what is to stay, 1 is all.
        assert_eq!("1".parse(), Ok(Kept(1.0)));
        assert_eq!("98%".parse(), Ok(Kept(0.98)));
        assert!("2".parse::<Kept>().is_err());
    }

    #[test]
    fn sizes_of_shards_are_megabytes_where_they_have_no_unit() {
        for (text, bytes, again) in [
            ("5000", 5_000_000_000, "5000"),
            ("5GB", 5_000_000_000, "5000"),
            ("1.5kB", 1500, "1500B"),
            ("7B", 7, "7B"),
            ("0.5", 500_000, "500000B"),
        ] {
            let size: ShardSize = text.parse().expect(text);
            assert_eq!((size.0, &size.to_string()[..]), (bytes, again), "{text}");
        }
        for wrong in ["", "0", "0GB", "0,5GB", "-1", "5 apples"] {
            assert!(wrong.parse::<ShardSize>().is_err(), "{wrong}");
        }
    }
}
