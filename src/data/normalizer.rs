//! What normalizers of a hostile tokenizer.json may not do: the library would run them until memory is gone.

use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

/// Bytes that any text may become. The library takes 17 times that: each has two places in the text it came from.
const ROOM: usize = 16 << 20;
/// How many times as long as it is a longer text may become.
const TIMES: usize = 64;

/// How much longer the normalizers of a tokenizer can make a text.
#[derive(Debug, Clone, Default)]
pub struct Growth {
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
struct Step {
    normalizer: NormalizerWrapper,
    /// Bytes that it makes of one, at most.
    factor: usize,
    /// Bytes that it puts before a text, or before a piece of one between added tokens.
    before: usize,
}

impl Growth {
    /// Of `normalizer` of a tokenizer.json.
    ///
    /// # Errors
    /// If it is none, or has a table of SentencePiece's that says to be longer than it is: before it reads on, the library
    /// would set aside what it says, up to 4 GiB.
    pub fn new(normalizer: &Value) -> tokenizers::Result<Growth> {
        let mut growth = Growth::default();
        if !normalizer.is_null() {
            check_tables(normalizer)?;
            // As the library understands it: a step need not say its type, and may have fields that are no steps.
            let read: NormalizerWrapper = serde_json::from_value(normalizer.clone())?;
            growth.extend(&serde_json::to_value(&read)?)?;
        }
        Ok(growth)
    }

    /// `normalizer`: as the library writes it.
    fn extend(&mut self, normalizer: &Value) -> tokenizers::Result<()> {
        if let Some(inner) = normalizer["normalizers"].as_array() {
            return inner.iter().try_for_each(|n| self.extend(n));
        }
        let text = |value: &Value| value.as_str().map_or(0, str::len);
        let (factor, before) = match normalizer["type"].as_str() {
            Some("Replace") => {
                let content = text(&normalizer["content"]);
                match text(&normalizer["pattern"]["String"]) {
                    // A regular expression may match what is empty.
                    0 => (content.saturating_add(1), content),
                    pattern => (content.div_ceil(pattern).max(1), 0),
                }
            }
            Some("Prepend") => (1, text(&normalizer["prepend"])),
            // Unicode, UAX 15: at most 11 times, and lower case of some letters is longer.
            Some("BertNormalizer" | "NFD" | "NFKD" | "NFC" | "NFKC") => (12, 0),
            Some("Lowercase" | "ByteLevel") => (2, 0),
            Some("Precompiled") => {
                let base64 = normalizer["precompiled_charsmap"].as_str().unwrap_or_default();
                (longest_entry(base64)?, 0)
            }
            Some("Strip" | "StripAccents" | "Nmt") => (1, 0),
            _ => (TIMES, 0),
        };
        let normalizer = serde_json::from_value(normalizer.clone())?;
        self.steps.push(Step { normalizer, factor, before });
        Ok(())
    }

    /// How long `text` may become, where that is too long.
    ///
    /// # Errors
    /// If a normalizer fails.
    pub fn excess(&self, text: &str) -> tokenizers::Result<Option<usize>> {
        let most = text.len().saturating_mul(TIMES).max(ROOM);
        if self.steps.iter().fold(text.len(), |len, step| step.at_most(len)) <= most {
            return Ok(None);
        }
        // Few texts are what a bound must allow for: of this one, step by step.
        let mut normalized = NormalizedString::from(text);
        for step in &self.steps {
            let bound = step.at_most(normalized.get().len());
            if bound > most {
                return Ok(Some(bound));
            }
            step.normalizer.normalize(&mut normalized)?;
        }
        Ok(None)
    }
}

impl Step {
    /// Bytes that it makes of `len`.
    fn at_most(&self, len: usize) -> usize {
        let before = self.before.saturating_mul(len.saturating_add(1));
        len.saturating_mul(self.factor).saturating_add(before)
    }
}

/// Looks at every table of SentencePiece's, wherever it stands: to read one that lies may take gigabytes.
fn check_tables(normalizer: &Value) -> tokenizers::Result<()> {
    match normalizer {
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| match value {
            Value::String(base64) if name == "precompiled_charsmap" => {
                longest_entry(base64).map(drop)
            }
            value => check_tables(value),
        }),
        Value::Array(values) => values.iter().try_for_each(check_tables),
        _ => Ok(()),
    }
}

/// Bytes of the longest string that a table of SentencePiece's puts in the place of another: behind a number, so many bytes of a
/// trie, and then these strings, each ended by a zero.
fn longest_entry(base64: &str) -> tokenizers::Result<usize> {
    let Some(bytes) = decode(base64) else { return Ok(1) }; // the library refuses it
    let Some((stated, rest)) = bytes.split_first_chunk::<4>() else { return Ok(1) };
    let stated = u32::from_le_bytes(*stated) as usize;
    let Some(strings) = rest.get(stated..) else {
        let held = bytes.len();
        return Err(
            format!("a `precompiled_charsmap` of {held} bytes that says to hold {stated}").into()
        );
    };
    Ok(strings.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0).max(1))
}

/// None where `base64` is none.
fn decode(base64: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(base64.len() / 4 * 3);
    let (mut number, mut bits) = (0u32, 0);
    for c in base64.trim_end_matches('=').bytes() {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (number, bits) = (number << 6 | u32::from(six), bits + 6);
        if bits >= 8 {
            bits -= 8;
            bytes.push((number >> bits) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn excess(normalizer: Value, text: &str) -> Option<usize> {
        Growth::new(&normalizer).expect("a normalizer").excess(text).expect("it runs")
    }

    fn replace(pattern: &str, content: &str) -> Value {
        json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
    }

    #[test]
    fn normalizers_that_double_a_text_again_and_again_are_seen_before_they_run() {
        let doubles = |times| {
            let steps: Vec<Value> = (0..times).map(|_| replace("a", "aa")).collect();
            json!({"type": "Sequence", "normalizers": steps})
        };
        assert_eq!(excess(doubles(24), "a"), None);
        // The 25th would make 32 MiB; what was made until then is 16 MiB.
        assert_eq!(excess(doubles(60), "a"), Some(32 << 20));
        // Nothing to replace, nothing made.
        assert_eq!(excess(doubles(60), "b"), None);
        let nested = json!({"type": "Sequence", "normalizers": [doubles(30), doubles(30)]});
        assert_eq!(excess(nested, "a"), Some(32 << 20));
    }

    /// The library goes by the fields where there is no type, and looks at no others.
    #[test]
    fn steps_are_what_the_library_takes_them_for() {
        let nameless = json!({"pattern": {"String": "a"}, "content": "aa"});
        let steps = |step: &Value| {
            let steps = vec![step.clone(); 60];
            excess(json!({"type": "Sequence", "normalizers": steps}), "a")
        };
        assert_eq!(steps(&nameless), Some(32 << 20));
        let mut more = replace("a", "aa");
        more["normalizers"] = json!([]);
        assert_eq!(steps(&more), Some(32 << 20));
        let table =
            json!({"type": "Precompiled", "precompiled_charsmap": "/P///w==", "normalizers": []});
        let err = Growth::new(&json!({"type": "Sequence", "normalizers": [table]}));
        assert!(err.expect_err("4 GiB").to_string().contains("that says to hold 4294967292"));
    }

    #[test]
    fn one_step_may_be_too_much() {
        let long = "x".repeat(1 << 20);
        assert_eq!(excess(replace("a", &long), &"a".repeat(10)), None);
        assert_eq!(excess(replace("a", &long), &"a".repeat(20)), Some(20 << 20));
        let empty = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": long});
        assert!(excess(empty, &"a".repeat(20)).is_some());
        let before = json!({"type": "Prepend", "prepend": long});
        assert!(excess(before, &"a".repeat(20)).is_some());
    }

    #[test]
    fn long_texts_go_through_usual_normalizers() {
        let usual = json!({"type": "Sequence", "normalizers": [
            replace("``", "\""), {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            {"type": "Prepend", "prepend": "\u{2581}"}, replace(" ", "\u{2581}"),
        ]});
        assert_eq!(excess(usual, &"Ein Satz, é ﷺ. ".repeat(40_000)), None);
        let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true});
        assert_eq!(excess(bert, &"好".repeat(1_000_000)), None);
        assert_eq!(excess(Value::Null, &"a".repeat(20_000_000)), None);
    }

    #[test]
    fn tables_of_sentencepiece_are_read_as_far_as_is_needed() {
        assert_eq!(decode("CAAAAGFiYwBh").as_deref(), Some(&[8, 0, 0, 0, 97, 98, 99, 0, 97][..]));
        assert_eq!(decode("YQ==").as_deref(), Some(&b"a"[..]));
        assert_eq!(decode("a b"), None);
        // No trie, and the strings "abc" and "a".
        assert_eq!(longest_entry("AAAAAGFiYwBhAA==").expect("a table"), 3);
        let err = longest_entry("/P///w==").expect_err("4 GiB").to_string();
        assert_eq!(err, "a `precompiled_charsmap` of 4 bytes that says to hold 4294967292");
        assert_eq!(longest_entry("").expect("left to the library"), 1);
    }
}
