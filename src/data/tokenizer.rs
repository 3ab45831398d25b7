//! Texts to token ids, with the tokenizer that lies beside a checkpoint.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::utils::truncation::{TruncationParams, TruncationStrategy, truncate_encodings};
use tokenizers::{AddedToken, Encoding, PostProcessor};

use crate::data::normalizer::Growth;
use crate::data::tables::Example;
use crate::error::{Error, Result};

/// Beyond every vocabulary, as in config.json: lists by id still fit memory.
const MAX_TOKENS: usize = 1 << 24;

/// One tokenized example, special tokens included, not padded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// `[tokens]`, at least one.
    pub ids: Vec<u32>,
    /// Which text of a pair a token belongs to, `[tokens]`.
    pub type_ids: Vec<u32>,
}

/// Where a token stands in the texts it was made of. Byte-level tokenizers cut characters into several
/// tokens, which then stand in the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// In the second text.
    pub in_pair: bool,
    /// In characters of that text.
    pub start: u32,
    /// Exclusive.
    pub end: u32,
}

/// A tokenizer that neither pads nor truncates by itself, and gives the same ids every time.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    growth: Growth,
    /// The file it was read from, for messages.
    path: PathBuf,
    config: Config,
}

/// What we use of `tokenizer_config.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Config {
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    /// A float: Transformers writes 1e30, as an integer, for "no limit".
    model_max_length: Option<f64>,
    mask_token: Option<Special>,
    pad_token: Option<Special>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Special {
    Token(String),
    Added { content: String },
}

impl Tokenizer {
    /// The tokenizer of a checkpoint: `tokenizer.json`, else BERT's WordPiece over `vocab.txt` with
    /// the options of `tokenizer_config.json` (lower-cased unless it says otherwise), else None.
    ///
    /// # Errors
    /// [`Error::Read`]; [`Error::Malformed`] for a file that is no tokenizer, or is one that fails
    /// on the text `a` or has ids that no word table has.
    pub fn load(folder: &Path) -> Result<Option<Tokenizer>> {
        let config: Config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let (json, vocab) = (folder.join("tokenizer.json"), folder.join("vocab.txt"));
        let ((inner, growth), path) = if let Some(bytes) = read(&json)? {
            (guarded(&json, || from_json(&bytes))?, json)
        } else if let Some(bytes) = read(&vocab)? {
            let inner = guarded(&vocab, || from_vocab(&bytes, &config))?;
            ((inner, Growth::default()), vocab)
        } else {
            return Ok(None);
        };
        let tokenizer = Tokenizer { inner, growth, path, config };
        let size = tokenizer.vocab_size();
        if size > MAX_TOKENS {
            return Err(Error::Malformed {
                path: tokenizer.path,
                found: format!("a token with the id {}", size - 1),
                expected: format!("ids below {MAX_TOKENS}"),
                advice: "fetch it again, or save it as tokenizer.json with a current Transformers",
            });
        }
        tokenizer.encode("a", None, usize::MAX)?;
        tokenizer.encode("a", Some("a"), usize::MAX)?;
        Ok(Some(tokenizer))
    }

    /// `text`, or `text` and `pair`, in at most `max_tokens` tokens.
    ///
    /// What is too long loses its end; of a pair, the longer text first until both are equally
    /// long, then both (Transformers' `longest_first`). Special tokens count.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when `max_tokens` has no room for a token of text, or the text makes no
    /// token at all; [`Error::Malformed`] when the tokenizer contradicts itself.
    pub fn encode(&self, text: &str, pair: Option<&str>, max_tokens: usize) -> Result<Encoded> {
        Ok(self.run(text, pair, max_tokens, false)?.0)
    }

    /// As [`Tokenizer::encode`], with the place that each token comes from (None: it was added), for
    /// labels of words and answers in a context. Of a pair only the second text is cut, so that a question
    /// stays whole; where the first alone is too long, both are, as `encode` does it.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode_placed(
        &self,
        text: &str,
        pair: Option<&str>,
        max_tokens: usize,
    ) -> Result<(Encoded, Vec<Option<Origin>>)> {
        self.run(text, pair, max_tokens, true)
    }

    /// - `placed`: origins are found, and of a pair the second text is cut first.
    fn run(
        &self,
        text: &str,
        pair: Option<&str>,
        max_tokens: usize,
        placed: bool,
    ) -> Result<(Encoded, Vec<Option<Origin>>)> {
        let special = self.special_tokens(pair.is_some());
        if max_tokens <= special {
            return Err(Error::Mismatch {
                found: format!("at most {max_tokens} tokens were asked for"),
                expected: format!("{special} special tokens and at least one of the text must fit"),
                advice: "raise the maximal length",
            });
        }
        for text in [Some(text), pair].into_iter().flatten() {
            if let Some(bytes) = guarded(&self.path, || self.growth.excess(text))? {
                return Err(Error::Malformed {
                    path: self.path.clone(),
                    found: format!(
                        "normalizers that can make {bytes} bytes of a text of {}",
                        text.len()
                    ),
                    expected: "ones that keep texts about as long as they are".into(),
                    advice: "use the tokenizer that the checkpoint was published with",
                });
            }
        }
        let mut room = TruncationParams { max_length: max_tokens - special, ..Default::default() };
        let (encoding, places) = guarded(&self.path, || {
            // Not both texts at once: truncation is then a setting of the tokenizer.
            let encode = |text| match placed {
                true => self.inner.encode_char_offsets(text, false),
                false => self.inner.encode_fast(text, false),
            };
            let (text, pair) = (encode(text)?, pair.map(encode).transpose()?);
            if placed && pair.is_some() && text.len() < room.max_length {
                room.strategy = TruncationStrategy::OnlySecond;
            }
            let (text, pair) = truncate_encodings(text, pair, &room)?;
            // Not from the result below: what trims spaces off places has been at work already, and would
            // trim once more.
            let places = [(false, Some(&text)), (true, pair.as_ref())];
            let places: Vec<Origin> = match placed {
                true => places.into_iter().flat_map(|(in_pair, e)| origins(in_pair, e)).collect(),
                false => Vec::new(),
            };
            Ok((self.inner.post_process(text, pair, true)?, places))
        })?;
        if encoding.is_empty() {
            return Err(Error::Mismatch {
                found: format!("the text {text:?} makes no token"),
                expected: "every text needs one".into(),
                advice: "drop that text",
            });
        }
        let mut places = places.into_iter();
        let added = encoding.get_special_tokens_mask().iter().map(|&added| added != 0);
        let origins = added.map(|added| if added { None } else { places.next() }).collect();
        let (ids, type_ids) = (encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec());
        Ok((Encoded { ids, type_ids }, origins))
    }

    /// [`Tokenizer::encode`] for every example, in their order, on all threads of the current pool.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode_all(&self, examples: &[Example], max_tokens: usize) -> Result<Vec<Encoded>> {
        let encode = |e: &Example| self.encode(&e.text, e.pair.as_deref(), max_tokens);
        examples.par_iter().map(encode).collect()
    }

    /// The whole tokenizer as tokenizer.json holds it: the file as it is, where there is one.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn json(&self) -> Result<Value> {
        if !self.is_json() {
            return self.to_json();
        }
        let gone = || Error::Read { path: self.path.clone(), source: ErrorKind::NotFound.into() };
        let bytes = read(&self.path)?.ok_or_else(gone)?;
        guarded(&self.path, || Ok(serde_json::from_slice(&bytes)?))
    }

    /// The whole tokenizer as it is now, whatever file it was read from.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn to_json(&self) -> Result<Value> {
        guarded(&self.path, || Ok(serde_json::to_value(&self.inner)?))
    }

    /// Whether it was read from tokenizer.json.
    pub fn is_json(&self) -> bool {
        self.path.extension().is_some_and(|e| e == "json")
    }

    /// Another tokenizer.json in the place of this one, with the same settings beside it.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn with_json(&self, json: &Value) -> Result<Tokenizer> {
        let (inner, growth) = guarded(&self.path, || from_json(&serde_json::to_vec(json)?))?;
        Ok(Tokenizer { inner, growth, path: self.path.clone(), config: self.config.clone() })
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every token with its id, those added to the model's own vocabulary included.
    pub fn tokens(&self) -> HashMap<String, u32> {
        self.inner.get_vocab(true)
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How many tokens are added to a text or a pair.
    pub fn special_tokens(&self, is_pair: bool) -> usize {
        self.inner.get_post_processor().map_or(0, |p| p.added_tokens(is_pair))
    }

    /// The longest sequence the model was made for, in tokens, if `tokenizer_config.json` says one.
    pub fn max_length(&self) -> Option<usize> {
        // 2^20: beyond every encoder; what is above stands for "no limit".
        self.config.model_max_length.filter(|n| (1.0..=1048576.0).contains(n)).map(|n| n as usize)
    }

    /// One more than the largest id: an embedding table needs so many rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// Ids that stand for no text: padding, unknown, separators and the like. Masked-LM training leaves
    /// them alone.
    pub fn special_ids(&self) -> BTreeSet<u32> {
        let added = self.inner.get_added_tokens_decoder();
        added.into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect()
    }

    /// Ids of words that vocabularies keep in reserve: no text makes them.
    pub fn unused_ids(&self) -> BTreeSet<u32> {
        let reserve = ["[unused", "<unused", "madeupword"];
        let vocab = self.inner.get_vocab(true).into_iter();
        let unused = vocab.filter(|(word, _)| reserve.iter().any(|r| word.starts_with(r)));
        unused.map(|(_, id)| id).collect()
    }

    pub fn mask_id(&self) -> Option<u32> {
        self.special_id(&self.config.mask_token, ["[MASK]", "<mask>"])
    }

    pub fn pad_id(&self) -> Option<u32> {
        self.special_id(&self.config.pad_token, ["[PAD]", "<pad>"])
    }

    fn special_id(&self, configured: &Option<Special>, usual: [&str; 2]) -> Option<u32> {
        let configured = configured.as_ref().map(|special| match special {
            Special::Token(token) | Special::Added { content: token } => token.as_str(),
        });
        configured.into_iter().chain(usual).find_map(|token| self.inner.token_to_id(token))
    }
}

/// The maximal length, in tokens, of a sentence-transformers folder: `max_seq_length` of its
/// `sentence_bert_config.json`. It is what such a model was evaluated with, and is often shorter
/// than [`Tokenizer::max_length`].
///
/// # Errors
/// [`Error::Read`]; [`Error::Malformed`] if the file is not JSON or the length is not a number.
pub fn sentence_max_length(folder: &Path) -> Result<Option<usize>> {
    #[derive(Deserialize)]
    struct Sentence {
        max_seq_length: Option<usize>,
    }
    let sentence: Option<Sentence> = read_json(&folder.join("sentence_bert_config.json"))?;
    Ok(sentence.and_then(|s| s.max_seq_length).filter(|&n| n > 0))
}

fn from_json(bytes: &[u8]) -> tokenizers::Result<(tokenizers::Tokenizer, Growth)> {
    #[derive(Deserialize)]
    struct Hostile {
        #[serde(default)]
        normalizer: Value,
        #[serde(default)]
        added_tokens: Vec<Value>,
    }
    let hostile: Hostile = serde_json::from_slice(bytes)?;
    let growth = Growth::new(&hostile.normalizer)?;
    // These are normalized while they are read.
    let added = hostile.added_tokens.iter().filter_map(|token| token["content"].as_str());
    for token in added {
        if let Some(bytes) = growth.excess(token)? {
            return Err(format!("a token of {} bytes that becomes {bytes}", token.len()).into());
        }
    }
    let mut inner = tokenizers::Tokenizer::from_bytes(bytes)?;
    inner.with_truncation(None)?.with_padding(None);
    // BPE dropout is for training: it draws other ids each time.
    if let ModelWrapper::BPE(bpe) = inner.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        inner.with_model(bpe);
    }
    Ok((inner, growth))
}

/// BERT's tokenizer: the line of a token in `vocab` is its id.
fn from_vocab(vocab: &[u8], config: &Config) -> tokenizers::Result<tokenizers::Tokenizer> {
    let vocab = WordPiece::read_bytes(vocab.trim_ascii_end())?;
    let id = |token: &str| {
        vocab.get(token).copied().ok_or_else(|| format!("a vocabulary without `{token}`"))
    };
    id("[UNK]")?;
    let template = TemplateProcessing::builder()
        .try_single("[CLS]:0 $A:0 [SEP]:0")?
        .try_pair("[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1")?
        .special_tokens(vec![("[CLS]", id("[CLS]")?), ("[SEP]", id("[SEP]")?)])
        .build()?;
    let special: Vec<AddedToken> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        .into_iter()
        .filter(|token| vocab.contains_key(*token))
        .map(|token| AddedToken::from(token, true))
        .collect();

    let mut inner = tokenizers::Tokenizer::new(WordPiece::builder().vocab(vocab).build()?);
    let (clean_text, chinese) = (true, config.tokenize_chinese_chars.unwrap_or(true));
    let lowercase = config.do_lower_case.unwrap_or(true);
    let normalizer = BertNormalizer::new(clean_text, chinese, config.strip_accents, lowercase);
    inner.with_normalizer(Some(normalizer))?;
    inner.with_pre_tokenizer(Some(BertPreTokenizer)).with_post_processor(Some(template));
    inner.add_special_tokens(special)?;
    Ok(inner)
}

fn origins(in_pair: bool, encoding: Option<&Encoding>) -> impl Iterator<Item = Origin> + '_ {
    let place = move |&(start, end): &(usize, usize)| Origin {
        in_pair,
        start: start as u32,
        end: end as u32,
    };
    encoding.into_iter().flat_map(Encoding::get_offsets).map(place)
}

/// Runs the library over a tokenizer we did not write. It indexes by what the file says (a template
/// may name a token that is not there), so a bad file can make it panic.
fn guarded<T>(path: &Path, run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let found = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "parts that contradict each other".into(),
    };
    Err(Error::Malformed {
        path: path.into(),
        found,
        expected: "a complete tokenizer".into(),
        advice: "fetch it again, or save it as tokenizer.json with a current Transformers",
    })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let parse = |bytes: Vec<u8>| {
        serde_json::from_slice(&bytes).map_err(|error| Error::Malformed {
            path: path.into(),
            found: error.to_string(),
            expected: "the JSON that Transformers writes".into(),
            advice: "fetch the checkpoint again",
        })
    };
    read(path)?.map(parse).transpose()
}

/// The content of a file, None if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    // A pipe would wait for ever, and no tokenizer is this large: XLM-R's has 17 MB.
    const LIMIT: u64 = 256 << 20;
    if let Ok(metadata) = fs::metadata(path)
        && (!metadata.is_file() || metadata.len() > LIMIT)
    {
        return Err(Error::Malformed {
            path: path.to_path_buf(),
            found: match metadata.is_file() {
                true => format!("{} bytes", metadata.len()),
                false => "a folder, pipe or device".into(),
            },
            expected: format!("a regular file of at most {LIMIT} bytes"),
            advice: "copy it from the model that this one was trained from",
        });
    }
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const VOCAB: &str =
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\n##b\n##c\né\ne\nE\n好\n好好\n##好\n";

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    fn load(files: &[(&str, &str)]) -> Result<Tokenizer> {
        Tokenizer::load(folder(files).path()).map(|t| t.expect("a tokenizer file is there"))
    }

    /// `VOCAB` as a tokenizer.json, after `change`.
    fn changed_json(change: impl FnOnce(&mut Value)) -> String {
        let tokenizer = load(&[("vocab.txt", VOCAB)]).unwrap();
        let mut json: Value =
            serde_json::from_str(&tokenizer.inner.to_string(false).unwrap()).unwrap();
        change(&mut json);
        json.to_string()
    }

    #[test]
    fn no_tokenizer_file_is_none() {
        assert!(Tokenizer::load(folder(&[]).path()).unwrap().is_none());
    }

    #[test]
    fn vocab_txt_is_bert() {
        let t = load(&[("vocab.txt", VOCAB)]).unwrap();
        let single = t.encode("Abc x", None, 99).unwrap();
        assert_eq!(single.ids, [2, 5, 8, 9, 1, 3]);
        assert_eq!(single.type_ids, [0; 6]);
        let pair = t.encode("a b", Some("c"), 99).unwrap();
        assert_eq!(pair.ids, [2, 5, 6, 3, 7, 3]);
        assert_eq!(pair.type_ids, [0, 0, 0, 0, 1, 1]);
        assert_eq!((t.vocab_size(), t.mask_id(), t.pad_id()), (16, Some(4), Some(0)));
        assert_eq!(t.max_length(), None);
    }

    #[test]
    fn special_tokens_in_a_text_are_found() {
        let t = load(&[("vocab.txt", VOCAB)]).unwrap();
        assert_eq!(t.encode("a [MASK]", None, 99).unwrap().ids, [2, 5, 4, 3]);
    }

    #[test]
    fn accents_fall_with_case_unless_configured() {
        let ids = |config: &str| {
            let t = load(&[("vocab.txt", VOCAB), ("tokenizer_config.json", config)]).unwrap();
            t.encode("É", None, 99).unwrap().ids[1]
        };
        assert_eq!(ids("{}"), 11);
        assert_eq!(ids(r#"{"strip_accents": false}"#), 10);
        assert_eq!(ids(r#"{"do_lower_case": false}"#), 1);
        assert_eq!(ids(r#"{"do_lower_case": false, "strip_accents": true}"#), 12);
    }

    #[test]
    fn chinese_characters_are_words_unless_configured() {
        let ids = |config: &str| {
            let t = load(&[("vocab.txt", VOCAB), ("tokenizer_config.json", config)]).unwrap();
            t.encode("好好", None, 99).unwrap().ids
        };
        assert_eq!(ids("{}"), [2, 13, 13, 3]);
        assert_eq!(ids(r#"{"tokenize_chinese_chars": false}"#), [2, 14, 3]);
    }

    #[test]
    fn truncation_keeps_the_head_and_takes_from_the_longer_text() {
        let t = load(&[("vocab.txt", VOCAB)]).unwrap();
        assert_eq!(t.encode("a b c a", None, 4).unwrap().ids, [2, 5, 6, 3]);
        let pair = |text, pair, n| t.encode(text, Some(pair), n).unwrap().ids;
        assert_eq!(pair("a b c a", "b", 6), [2, 5, 6, 3, 6, 3]);
        assert_eq!(pair("b", "a b c a", 6), [2, 6, 3, 5, 6, 3]);
        assert_eq!(pair("a b c a", "a b c", 8), [2, 5, 6, 7, 3, 5, 6, 3]);
    }

    /// Sequence and characters of each token, `-` for those added.
    fn places(t: &Tokenizer, text: &str, pair: Option<&str>, n: usize) -> Vec<String> {
        let (encoded, origins) = t.encode_placed(text, pair, n).unwrap();
        assert_eq!((encoded.ids.len(), encoded.type_ids.len()), (origins.len(), origins.len()));
        let place = |o: Origin| format!("{}:{}-{}", u8::from(o.in_pair), o.start, o.end);
        origins.into_iter().map(|o| o.map_or("-".into(), place)).collect()
    }

    #[test]
    fn places_count_characters_of_the_text_as_it_was_written() {
        let t = load(&[("vocab.txt", VOCAB)]).unwrap();
        // The second é is two characters, and loses the second.
        let found = places(&t, "É e\u{301} [MASK]", Some(" 好abc"), 99);
        assert_eq!(
            found,
            ["-", "0:0-1", "0:2-3", "0:5-11", "-", "1:1-2", "1:2-3", "1:3-4", "1:4-5", "-"]
        );
        assert_eq!(places(&t, "abx", None, 99), ["-", "0:0-3", "-"]);
    }

    #[test]
    fn with_places_a_pair_loses_only_the_end_of_its_second_text() {
        let t = load(&[("vocab.txt", VOCAB)]).unwrap();
        let pair = |text, pair, n| t.encode_placed(text, Some(pair), n).unwrap().0.ids;
        assert_eq!(pair("a b c a", "a b c", 8), [2, 5, 6, 7, 5, 3, 5, 3]);
        // The question alone is too long.
        assert_eq!(
            pair("a b c a a", "a b c", 8),
            t.encode("a b c a a", Some("a b c"), 8).unwrap().ids
        );
        assert_eq!(places(&t, "a b c", Some("a b c"), 8)[4..], ["-", "1:0-1", "1:2-3", "-"]);
        assert_eq!(places(&t, "a b c", None, 4), ["-", "0:0-1", "0:2-3", "-"]);
    }

    #[test]
    fn places_are_known_without_a_post_processor() {
        let json = changed_json(|t| t["post_processor"] = Value::Null);
        let t = load(&[("tokenizer.json", &json)]).unwrap();
        assert_eq!(places(&t, "a b", None, 1), ["0:0-1"]);
        assert_eq!(places(&t, "a b", Some("c b"), 3), ["0:0-1", "0:2-3", "1:0-1"]);
    }

    #[test]
    fn special_tokens_have_known_ids() {
        let t = load(&[("vocab.txt", VOCAB)]).unwrap();
        assert_eq!(t.special_ids().into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn stored_truncation_and_padding_are_ignored() {
        let json = changed_json(|t| {
            t["truncation"] = json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
            t["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"});
        });
        let t = load(&[("tokenizer.json", &json)]).unwrap();
        assert_eq!(t.encode("a b c", None, 99).unwrap().ids, [2, 5, 6, 7, 3]);
    }

    #[test]
    fn tokenizer_json_goes_before_vocab_txt() {
        let json = changed_json(|t| t["model"]["vocab"]["z"] = json!(40));
        let t = load(&[("tokenizer.json", &json), ("vocab.txt", VOCAB)]).unwrap();
        assert_eq!(t.encode("z", None, 99).unwrap().ids, [2, 40, 3]);
        assert_eq!(t.vocab_size(), 41);
    }

    #[test]
    fn many_texts_come_back_in_order() {
        let t = load(&[("vocab.txt", VOCAB)]).unwrap();
        let examples: Vec<Example> =
            (0..100).map(|i| Example { text: "a ".repeat(i), ..Default::default() }).collect();
        let lengths: Vec<_> =
            t.encode_all(&examples, 52).unwrap().iter().map(|e| e.ids.len()).collect();
        assert_eq!(lengths, (0..100).map(|i| i.min(50) + 2).collect::<Vec<_>>());
    }

    #[test]
    fn config_names_the_special_tokens_and_the_length() {
        let config = r#"{"mask_token": {"content": "b", "lstrip": true}, "pad_token": "c", "model_max_length": 512}"#;
        let t = load(&[("vocab.txt", VOCAB), ("tokenizer_config.json", config)]).unwrap();
        assert_eq!((t.mask_id(), t.pad_id(), t.max_length()), (Some(6), Some(7), Some(512)));
    }

    #[test]
    fn a_length_of_1e30_is_no_limit() {
        let config = r#"{"model_max_length": 1000000000000000019884624838656}"#;
        let t = load(&[("vocab.txt", VOCAB), ("tokenizer_config.json", config)]).unwrap();
        assert_eq!(t.max_length(), None);
    }

    #[test]
    fn sentence_transformers_state_their_length() {
        let with =
            |json| sentence_max_length(folder(&[("sentence_bert_config.json", json)]).path());
        assert_eq!(with(r#"{"max_seq_length": 256, "do_lower_case": false}"#).unwrap(), Some(256));
        assert_eq!(with(r#"{"max_seq_length": null}"#).unwrap(), None);
        assert!(matches!(with("{").unwrap_err(), Error::Malformed { .. }));
        assert_eq!(sentence_max_length(folder(&[]).path()).unwrap(), None);
    }

    #[test]
    fn refuses_a_length_without_room_for_text() {
        let err = load(&[("vocab.txt", VOCAB)]).unwrap().encode("a", Some("b"), 3).unwrap_err();
        assert_eq!(
            err.to_string(),
            "at most 3 tokens were asked for, but 3 special tokens and at least one of the text \
             must fit; raise the maximal length"
        );
    }

    #[test]
    fn refuses_a_text_without_tokens() {
        let json = changed_json(|t| t["post_processor"] = Value::Null);
        let t = load(&[("tokenizer.json", &json)]).unwrap();
        assert!(matches!(t.encode(" ", None, 9).unwrap_err(), Error::Mismatch { .. }));
    }

    #[test]
    fn refuses_what_is_no_tokenizer() {
        let no_sep = VOCAB.replace("[SEP]", "x");
        let cases = [
            ("tokenizer.json", ""),
            ("tokenizer.json", "{}"),
            ("vocab.txt", ""),
            ("vocab.txt", &no_sep),
        ];
        for (name, content) in cases {
            let err = load(&[(name, content)]).unwrap_err();
            assert!(matches!(err, Error::Malformed { .. }), "{name}: {err}");
        }
        let err = load(&[("vocab.txt", VOCAB), ("tokenizer_config.json", "[")]).unwrap_err();
        assert!(matches!(err, Error::Malformed { .. }));
    }

    #[test]
    fn refuses_ids_beyond_every_word_table() {
        let json = changed_json(|t| t["model"]["vocab"]["z"] = json!(4_000_000_000u32));
        let err = load(&[("tokenizer.json", &json)]).unwrap_err().to_string();
        assert!(
            err.contains("found a token with the id 4000000000, expected ids below 16777216;"),
            "{err}"
        );
    }

    #[test]
    fn a_table_that_says_to_be_longer_than_it_is_is_refused() {
        let load = |base64: &str| {
            let json = changed_json(|t| {
                let table = json!({"type": "Precompiled", "precompiled_charsmap": base64});
                t["normalizer"] = json!({"type": "Sequence", "normalizers": [table]});
            });
            load(&[("tokenizer.json", &json)]).unwrap_err().to_string()
        };
        let found =
            "found a `precompiled_charsmap` of 4 bytes that says to hold 4294967292, expected";
        assert!(load("/P///w==").contains(found), "{}", load("/P///w=="));
        // 8, and as many: it is the library that finds no entry in them.
        assert!(load("CAAAAAAAAAAAAAAA").contains("parts that contradict each other"));
    }

    #[test]
    fn normalizers_that_would_fill_memory_are_refused() {
        let grows = |text: &str| {
            let step =
                json!({"type": "Replace", "pattern": {"String": text}, "content": text.repeat(2)});
            changed_json(|t| {
                t["normalizer"] = json!({"type": "Sequence", "normalizers": vec![&step; 64]});
            })
        };
        // `a` is what a tokenizer is tried with; others show when they come.
        let err = load(&[("tokenizer.json", &grows("a"))]).unwrap_err().to_string();
        assert!(
            err.contains("normalizers that can make 33554432 bytes of a text of 1, expected"),
            "{err}"
        );
        let t = load(&[("tokenizer.json", &grows("q"))]).unwrap();
        assert!(t.encode("a b", None, 9).is_ok());
        assert!(matches!(t.encode("a", Some("q"), 9).unwrap_err(), Error::Malformed { .. }));
        // Added tokens are normalized as well.
        let err = load(&[("tokenizer.json", &grows("["))]).unwrap_err().to_string();
        assert!(err.contains("a token of 5 bytes that becomes"), "{err}");
    }

    #[test]
    fn a_template_with_an_unknown_token_is_an_error_and_no_panic() {
        let json = changed_json(|t| t["post_processor"]["special_tokens"] = json!({}));
        let err = load(&[("tokenizer.json", &json)]).unwrap_err();
        assert!(err.to_string().contains("parts that contradict each other"), "{err}");
    }
}
