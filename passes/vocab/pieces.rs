//! What a tokenizer's model knows: its tokens, and what becomes unreachable without which.

use crate::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// The model of a tokenizer.json.
#[derive(Debug)]
pub struct Pieces {
    /// The model's own tokens by id; those added to it are not among them.
    pub tokens: BTreeMap<u32, String>,
    pub kind: Kind,
    /// What stands for a word, or a part of one, that cannot be cut into tokens.
    pub unknown: Option<u32>,
}

#[derive(Debug)]
pub enum Kind {
    /// The longest token first. `prefix` marks tokens inside of words.
    WordPiece { prefix: String },
    /// Pairs are merged in the order of the list.
    Bpe {
        prefix: String,
        suffix: String,
        /// By product: the pairs that make it.
        parts: HashMap<u32, Vec<[u32; 2]>>,
        byte_fallback: bool,
    },
    /// The segmentation with the largest sum of scores. `lowest`: the first token with the lowest score, which the
    /// price of what is unknown derives from.
    Unigram { lowest: Option<u32>, byte_fallback: bool },
}

impl Pieces {
    /// Reads `model` of a tokenizer.json.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for models other than WordPiece, BPE and Unigram; [`Error::Malformed`] for two tokens of
    /// one id, and merges whose parts or products are no tokens.
    pub fn read(json: &Value, path: &Path) -> Result<Pieces> {
        let model = &json["model"];
        let tokens = tokens(&model["vocab"], path)?;
        let mut ids = HashMap::with_capacity(tokens.len());
        for (&id, token) in &tokens {
            if let Some(first) = ids.insert(token.as_str(), id) {
                return Err(malformed(
                    path,
                    format!("the token {token:?} twice, with the ids {first} and {id}"),
                    "one id a token",
                ));
            }
        }
        let text = |key: &str| model[key].as_str().unwrap_or_default().to_string();
        let flag = |key: &str| model[key].as_bool().unwrap_or(false);
        let kind = match kind(model)? {
            "WordPiece" => {
                let prefix = model["continuing_subword_prefix"].as_str().unwrap_or("##");
                Kind::WordPiece { prefix: prefix.into() }
            }
            "BPE" => {
                let prefix = text("continuing_subword_prefix");
                let mut parts: HashMap<u32, Vec<[u32; 2]>> = HashMap::new();
                for merge in model["merges"].as_array().into_iter().flatten() {
                    let Some([left, right]) = pair(merge, path)? else { continue };
                    let known = |token: &str| {
                        ids.get(token).copied().ok_or_else(|| {
                            let found = format!(
                                "the merge of {left:?} and {right:?} without the token {token:?}"
                            );
                            malformed(path, found, "a token for both parts and for what they make")
                        })
                    };
                    let product = product(left, right, &prefix);
                    parts.entry(known(&product)?).or_default().push([known(left)?, known(right)?]);
                }
                Kind::Bpe {
                    prefix,
                    suffix: text("end_of_word_suffix"),
                    parts,
                    byte_fallback: flag("byte_fallback"),
                }
            }
            _ => {
                let pieces = model["vocab"].as_array().into_iter().flatten().enumerate();
                let mut lowest: Option<(u32, f64)> = None;
                for (id, score) in pieces.map(|(id, p)| (id as u32, p[1].as_f64().unwrap_or(0.0))) {
                    if lowest.is_none_or(|(_, least)| score < least) {
                        lowest = Some((id, score));
                    }
                }
                Kind::Unigram {
                    lowest: lowest.map(|(id, _)| id),
                    byte_fallback: flag("byte_fallback"),
                }
            }
        };
        let unknown = match &kind {
            Kind::Unigram { .. } => model["unk_id"].as_u64().map(|id| id as u32),
            _ => model["unk_token"].as_str().and_then(|token| ids.get(token).copied()),
        };
        Ok(Pieces { unknown, tokens, kind })
    }

    /// Tokens that no text may lose: single characters, bytes that stand for characters without a token, tokens that
    /// hold a character which has none of its own, and the lowest score.
    pub fn characters(&self) -> BTreeSet<u32> {
        let known: BTreeSet<&str> = self.tokens.values().map(String::as_str).collect();
        let needed = |token: &str| {
            let forms = self.forms(token);
            forms == [token]
                || self.is_byte(token)
                || forms.iter().any(|form| !known.contains(form.as_str()))
        };
        let lowest = match self.kind {
            Kind::Unigram { lowest, .. } => lowest,
            _ => None,
        };
        let needed = self.tokens.iter().filter(|(_, token)| needed(token)).map(|(&id, _)| id);
        needed.chain(lowest).collect()
    }

    /// The characters of `token`, each as the token that it is by itself at that place of a word.
    fn forms(&self, token: &str) -> Vec<String> {
        let (prefix, suffix) = match &self.kind {
            Kind::WordPiece { prefix } => (prefix.as_str(), ""),
            Kind::Bpe { prefix, suffix, .. } => (prefix.as_str(), suffix.as_str()),
            Kind::Unigram { .. } => ("", ""),
        };
        // `##` alone is two characters of a word.
        let stripped = token.strip_prefix(prefix).filter(|rest| !rest.is_empty());
        let inside = !prefix.is_empty() && stripped.is_some();
        let body = stripped.unwrap_or(token);
        let stripped = body.strip_suffix(suffix).filter(|rest| !rest.is_empty());
        let ends = !suffix.is_empty() && stripped.is_some();
        let body: Vec<char> = stripped.unwrap_or(body).chars().collect();
        let form = |(i, c): (usize, &char)| {
            let before = if inside || i > 0 { prefix } else { "" };
            let behind = if ends && i + 1 == body.len() { suffix } else { "" };
            format!("{before}{c}{behind}")
        };
        body.iter().enumerate().map(form).collect()
    }

    /// Whether `token` stands for a byte, as `<0x0A>` does.
    fn is_byte(&self, token: &str) -> bool {
        let (Kind::Bpe { byte_fallback, .. } | Kind::Unigram { byte_fallback, .. }) = self.kind
        else {
            return false;
        };
        let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        byte_fallback
            && digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
    }

    /// `id`, and of BPE all that it is made of: what `kept` lacks of them.
    pub fn closure(&self, id: u32, kept: &BTreeSet<u32>) -> BTreeSet<u32> {
        let (mut found, mut open) = (BTreeSet::new(), vec![id]);
        while let Some(id) = open.pop() {
            if kept.contains(&id) || !found.insert(id) {
                continue;
            }
            if let Kind::Bpe { parts, .. } = &self.kind {
                open.extend(parts.get(&id).into_iter().flatten().flatten());
            }
        }
        found
    }
}

/// The type of the model; files of early versions name none.
fn kind(model: &Value) -> Result<&'static str> {
    let found = match model["type"].as_str() {
        Some(name) => name,
        None if model["vocab"].is_array() => "Unigram",
        None if model["merges"].is_array() => "BPE",
        None if model["continuing_subword_prefix"].is_string() => "WordPiece",
        None => "unnamed",
    };
    ["WordPiece", "BPE", "Unigram"].into_iter().find(|known| *known == found).ok_or_else(|| {
        Error::Unsupported {
            what: "tokenizer model",
            found: found.into(),
            known: "WordPiece, BPE, Unigram".into(),
        }
    })
}

/// `{token: id}`, or a list of `[token, score]` by id.
fn tokens(vocab: &Value, path: &Path) -> Result<BTreeMap<u32, String>> {
    let mut tokens = BTreeMap::new();
    let mut add = |id: u64, token: &str| {
        let id = u32::try_from(id)
            .map_err(|_| malformed(path, format!("the id {id} of {token:?}"), "ids of 32 bits"))?;
        match tokens.insert(id, token.to_string()) {
            None => Ok(()),
            Some(other) => Err(malformed(
                path,
                format!("the id {id} for {other:?} and for {token:?}"),
                "one token an id",
            )),
        }
    };
    match vocab {
        Value::Object(map) => {
            for (token, id) in map {
                let id = id.as_u64().ok_or_else(|| {
                    malformed(path, format!("the id {id} of {token:?}"), "a number from 0 on")
                })?;
                add(id, token)?;
            }
        }
        Value::Array(list) => {
            for (id, piece) in list.iter().enumerate() {
                let token = piece[0].as_str().ok_or_else(|| {
                    malformed(path, format!("the piece {piece}"), "a token and its score")
                })?;
                add(id as u64, token)?;
            }
        }
        other => return Err(malformed(path, format!("the vocabulary {other}"), "tokens")),
    }
    Ok(tokens)
}

/// Both parts of a merge: `"a b"` or `["a", "b"]`; `None` for a line that states the version.
///
/// # Errors
/// [`Error::Malformed`] for anything else.
pub fn pair<'a>(merge: &'a Value, path: &Path) -> Result<Option<[&'a str; 2]>> {
    let parts = match merge {
        Value::String(line) if line.starts_with("#version") => return Ok(None),
        Value::String(line) => line.split(' ').collect::<Vec<_>>(),
        Value::Array(parts) => parts.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    match parts[..] {
        [left, right] => Ok(Some([left, right])),
        _ => Err(malformed(path, format!("the merge {merge}"), "two tokens")),
    }
}

/// What a pair merges to: the mark of a token inside of a word goes where it is one.
pub fn product(left: &str, right: &str, prefix: &str) -> String {
    // The library cuts as many bytes, whatever they are.
    format!("{left}{}", right.get(prefix.len()..).unwrap_or_default())
}

pub fn malformed(path: &Path, found: String, expected: &str) -> Error {
    Error::Malformed {
        path: path.into(),
        found,
        expected: expected.into(),
        advice: "fetch it again, or save it as tokenizer.json with a current Transformers",
    }
}
