//! Which tokens each layer leaves to the next (ToP: Li et al. 2023; notes, §1 and §2).

use super::{Head, Model, PoolMode};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What makes a token important: attention that it gets in a layer, a mean over the heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// From all tokens that are left (ToP's).
    Received,
    /// From the first token, `[CLS]`.
    First,
}

/// By which ranks tokens are kept, in each layer.
///
/// The first token of a text is always kept, and is not ranked. The `n` others are ranked by their score, ties by
/// position; rank `r`, 0 the best, falls into bin `r·B/n` of a layer's `B` bins, and the token goes where its bin is
/// off. What is gone does not come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSchedule {
    pub score: Score,
    /// Ids of tokens that rank before all others: separators. Mostly empty.
    pub protect: Vec<u32>,
    /// Tokens besides the first that a text keeps at least.
    pub least: usize,
    /// By layer: which bins are on. `None`: the layer leaves all tokens.
    pub layers: Vec<Option<Vec<bool>>>,
}

/// More bins than any text has tokens say nothing.
const MAX_BINS: usize = 1 << 16;

/// Which tokens of the last hidden state a head reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// The first of each text.
    First,
    /// All that are left.
    Left,
    /// Every one: those that are gone keep the state of the layer that they were last in.
    Every,
}

impl Head {
    /// See [`Reads`].
    pub fn reads(&self) -> Reads {
        match self {
            Head::SequenceClassification { mean: false, .. }
            | Head::Embedding { pool: PoolMode::Cls, .. } => Reads::First,
            Head::SequenceClassification { .. } | Head::Embedding { .. } => Reads::Left,
            Head::TokenClassification { .. }
            | Head::QuestionAnswering { .. }
            | Head::MaskedLm { .. }
            | Head::Bare { .. } => Reads::Every,
        }
    }
}

impl TokenSchedule {
    /// Keeps everything, in `layers` layers of a model whose head reads `reads`.
    pub fn keep_all(layers: usize, score: Score, reads: Reads) -> TokenSchedule {
        // A mean over nothing but [CLS] is another kind of embedding (notes, §7).
        let least = if reads == Reads::Left { 1 } else { 0 };
        TokenSchedule { score, protect: Vec::new(), least, layers: vec![None; layers] }
    }

    /// Whether any layer drops tokens.
    pub fn drops(&self) -> bool {
        self.layers.iter().any(Option::is_some)
    }

    /// Whether rank `rank` of `n` stays in `layer`.
    fn stays(&self, bins: &[bool], rank: usize, n: usize) -> bool {
        rank < self.least || bins[rank * bins.len() / n]
    }

    /// Tokens of a text, the first included, that are left of `tokens` behind `layer`.
    pub fn left(&self, layer: usize, tokens: usize) -> usize {
        let n = tokens - 1;
        match &self.layers[layer] {
            Some(bins) => 1 + (0..n).filter(|&rank| self.stays(bins, rank, n)).count(),
            None => tokens,
        }
    }

    /// Tokens of a text that enter each layer, and those that leave the last: `[layers + 1]`.
    pub fn lengths(&self, tokens: usize) -> Vec<usize> {
        let mut lengths = vec![tokens];
        for layer in 0..self.layers.len() {
            lengths.push(self.left(layer, lengths[layer]));
        }
        lengths
    }

    /// Behind each layer, the share of a text's tokens but the first that the bins leave of all: what a long text
    /// comes to.
    pub fn shares(&self) -> Vec<f64> {
        let mut left = 1.0;
        let behind = |bins: &Option<Vec<bool>>| {
            if let Some(bins) = bins {
                left *= bins.iter().filter(|on| **on).count() as f64 / bins.len() as f64;
            }
            left
        };
        self.layers.iter().map(behind).collect()
    }

    /// The tokens of one text that are left behind `layer`, ascending: `ids` are its tokens, `scores` their
    /// importance (the first one's counts for nothing).
    pub fn kept(&self, layer: usize, ids: &[u32], scores: &[f32]) -> Vec<usize> {
        let Some(bins) = &self.layers[layer] else { return (0..ids.len()).collect() };
        let ranked = self.ranked(ids, scores);
        let n = ranked.len();
        let stay = ranked.into_iter().enumerate().filter(|&(rank, _)| self.stays(bins, rank, n));
        let mut kept: Vec<usize> = std::iter::once(0).chain(stay.map(|(_, token)| token)).collect();
        kept.sort_unstable();
        kept
    }

    /// The tokens of a text but the first, the most important first; of equals the first.
    pub fn ranked(&self, ids: &[u32], scores: &[f32]) -> Vec<usize> {
        let mut ranked: Vec<usize> = (1..ids.len()).collect();
        let protected = |t: usize| self.protect.contains(&ids[t]);
        ranked.sort_by(|&a, &b| {
            protected(b).cmp(&protected(a)).then(scores[b].total_cmp(&scores[a]))
        });
        ranked
    }

    /// As config.json has it.
    pub fn to_json(&self) -> Value {
        let bits = |bins: &Vec<bool>| -> String {
            bins.iter().map(|&on| if on { '1' } else { '0' }).collect()
        };
        let layers: Vec<Option<String>> =
            self.layers.iter().map(|l| l.as_ref().map(bits)).collect();
        json!({
            "method": "top",
            "score": self.score,
            "protect": self.protect,
            "least": self.least,
            "layers": layers,
        })
    }

    /// Reads the `tokens` key of the `compress` entry of a config.json, for a model of `layers` layers.
    ///
    /// # Errors
    /// [`Error::Config`] for whatever [`TokenSchedule::to_json`] would not have written.
    pub(super) fn read(found: &Value, layers: usize) -> Result<Option<TokenSchedule>> {
        if found.is_null() {
            return Ok(None);
        }
        let bad = |key: &str, found: &Value, expected: &str| Error::Config {
            key: format!("compress.tokens{key}"),
            found: found.to_string(),
            expected: expected.into(),
            advice: "use the config.json that was written with these weights",
        };
        if found["method"] != "top" {
            return Err(bad(".method", &found["method"], "\"top\", which this build reads"));
        }
        let score = Score::deserialize(&found["score"])
            .map_err(|_| bad(".score", &found["score"], "\"received\" or \"first\""))?;
        let protect = Vec::<u32>::deserialize(&found["protect"])
            .map_err(|_| bad(".protect", &found["protect"], "a list of token ids"))?;
        let least = found["least"].as_u64().filter(|n| *n < 1 << 16);
        let least = least.ok_or_else(|| bad(".least", &found["least"], "a number of tokens"))?;
        let empty = Vec::new();
        let list = found["layers"].as_array().unwrap_or(&empty);
        if list.len() != layers {
            let expected = format!("{layers} entries");
            return Err(bad(".layers", &json!(list.len()), &expected));
        }
        let bins = |(i, value): (usize, &Value)| -> Result<Option<Vec<bool>>> {
            if value.is_null() {
                return Ok(None);
            }
            let bits = value.as_str().unwrap_or_default();
            let fits = (1..=MAX_BINS).contains(&bits.len());
            if !fits || !bits.bytes().all(|b| b == b'0' || b == b'1') {
                let expected = "null or a string of 0 and 1, one a bin";
                return Err(bad(&format!(".layers[{i}]"), value, expected));
            }
            Ok(Some(bits.bytes().map(|b| b == b'1').collect()))
        };
        let layers = list.iter().enumerate().map(bins).collect::<Result<_>>()?;
        Ok(Some(TokenSchedule { score, protect, least: least as usize, layers }))
    }
}

impl Model {
    /// See [`Reads`].
    pub fn reads(&self) -> Reads {
        self.head.reads()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{LAYERS, answers, batch, parts, reopen, tiny};
    use super::super::{Layer, Task, cost};
    use super::*;
    use proptest::prelude::*;

    fn bins(bits: &str) -> Option<Vec<bool>> {
        Some(bits.bytes().map(|b| b == b'1').collect())
    }

    fn one(bits: &str) -> TokenSchedule {
        TokenSchedule {
            layers: vec![bins(bits)],
            ..TokenSchedule::keep_all(1, Score::First, Reads::First)
        }
    }

    /// The numbers of the notes, §11.
    #[test]
    fn ranks_fall_into_bins() {
        assert_eq!(one("11111111110000000000").left(0, 12), 1 + 6);
        let ids: Vec<u32> = (0..8).collect();
        let scores = [9.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0]; // ranks of 1..8: 6 0 5 1 4 2 3
        assert_eq!(one("1110100000").kept(0, &ids, &scores), [0, 2, 4, 6, 7]); // ranks 0 to 3
        // Ties go by position, the protected first, whatever they score.
        let protecting = TokenSchedule { protect: vec![5], ..one("10") };
        assert_eq!(protecting.kept(0, &ids, &[0.5; 8]), [0, 1, 2, 3, 5]);
        assert_eq!(one("10").kept(0, &ids[..1], &[1.0]), [0]);
        let least = TokenSchedule { least: 2, ..one("0") };
        assert_eq!(least.kept(0, &ids, &scores), [0, 2, 4]);
        assert_eq!((least.left(0, 8), least.left(0, 2), least.left(0, 1)), (3, 2, 1));
        let three = TokenSchedule { layers: vec![bins("1011"), None, bins("01")], ..least };
        assert_eq!(three.shares(), [0.75, 0.75, 0.375]);
    }

    proptest! {
        #[test]
        fn prefixes_keep_what_the_formula_says(n in 0..300usize, size in 1..60usize, on in 0..60usize) {
            let on = on.min(size);
            let bits: String = (0..size).map(|b| if b < on { '1' } else { '0' }).collect();
            prop_assert_eq!(one(&bits).left(0, n + 1), 1 + (n * on).div_ceil(size));
        }

        #[test]
        fn what_is_kept_is_counted_and_in_order(
            scores in proptest::collection::vec(0..5u8, 1..40), bits in "[01]{1,30}", least in 0..3usize
        ) {
            let schedule = TokenSchedule { least, ..one(&bits) };
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let ids = vec![7; scores.len()];
            let kept = schedule.kept(0, &ids, &scores);
            prop_assert_eq!(kept.len(), schedule.left(0, scores.len()));
            prop_assert!(kept[0] == 0 && kept.windows(2).all(|w| w[0] < w[1]));
            let twice = TokenSchedule { layers: vec![bins(&bits); 2], ..schedule.clone() };
            prop_assert_eq!(twice.lengths(scores.len())[1], kept.len());
        }
    }

    #[test]
    fn schedules_are_written_and_read_again() {
        for (task, least) in [(Task::Embedding, 1), (Task::SequenceClassification, 0)] {
            let mut model = tiny("roberta", task, 70);
            let mut tokens = TokenSchedule::keep_all(LAYERS, Score::Received, model.reads());
            assert_eq!(tokens.least, least);
            tokens.layers[1] = bins("1101000");
            tokens.protect = vec![2];
            model.tokens = Some(tokens);
            let again = reopen(&model);
            assert_eq!(again.tokens, model.tokens);
            let batch = batch(71, &[9, 4]);
            assert_eq!(answers(&again, &batch, None), answers(&model, &batch, None));
            assert!(!model.loads_natively() && model.tensors_load_natively());
            // A layer that is gone takes its place in the schedule along.
            model.layers[0] = Layer { attention: None, ffn: None, bottleneck: None };
            let stored = model.compacted();
            assert_eq!(stored.tokens.expect("a schedule").layers, [bins("1101000"), None]);
        }
    }

    #[test]
    fn what_no_schedule_looks_like_is_refused() {
        let error = |key: &str, value: Value| {
            let mut parts = parts("bert", Task::Bare, 72);
            let mut model = parts.open();
            let mut tokens = TokenSchedule::keep_all(LAYERS, Score::First, Reads::Every);
            tokens.layers[0] = bins("10");
            model.tokens = Some(tokens);
            parts.config = model.config_json(&json!("tests"));
            parts.config["compress"]["tokens"][key] = value;
            let dir = tempfile::tempdir().expect("a temporary folder");
            parts.write(dir.path());
            Model::open(dir.path()).expect_err("no schedule").to_string()
        };
        insta::assert_snapshot!(error("method", json!("ltp")), @r#"config.json: `compress.tokens.method` is "ltp", expected "top", which this build reads; use the config.json that was written with these weights"#);
        insta::assert_snapshot!(error("score", json!("random")), @r#"config.json: `compress.tokens.score` is "random", expected "received" or "first"; use the config.json that was written with these weights"#);
        insta::assert_snapshot!(error("protect", json!([-1])), @"config.json: `compress.tokens.protect` is [-1], expected a list of token ids; use the config.json that was written with these weights");
        insta::assert_snapshot!(error("least", json!(null)), @"config.json: `compress.tokens.least` is null, expected a number of tokens; use the config.json that was written with these weights");
        insta::assert_snapshot!(error("layers", json!([null])), @"config.json: `compress.tokens.layers` is 1, expected 3 entries; use the config.json that was written with these weights");
        insta::assert_snapshot!(error("layers", json!(["10", "12", null])), @r#"config.json: `compress.tokens.layers[1]` is "12", expected null or a string of 0 and 1, one a bin; use the config.json that was written with these weights"#);
        insta::assert_snapshot!(error("layers", json!(["", null, null])), @r#"config.json: `compress.tokens.layers[0]` is "", expected null or a string of 0 and 1, one a bin; use the config.json that was written with these weights"#);
    }

    #[test]
    fn ranks_need_a_head() {
        let mut model = tiny("bert", Task::Bare, 73);
        model.layers[1].attention = None;
        let mut tokens = TokenSchedule::keep_all(LAYERS, Score::First, Reads::Every);
        tokens.layers[1] = bins("10");
        model.tokens = Some(tokens);
        insta::assert_snapshot!(model.validate().expect_err("no ranks"), @"layer 1 drops tokens and has no attention head, but tokens are ranked by the attention of their layer; run `tokens` after the passes that remove heads");
    }

    /// Only the first token's last layer: 10/12 of a layer's products less, and more at short lengths.
    #[test]
    fn what_no_head_reads_is_free() {
        let (first, every) =
            (tiny("bert", Task::SequenceClassification, 74), tiny("bert", Task::Bare, 74));
        let macs = |model: &Model| cost::layer_macs(model, None, 8);
        let (d, f, n) =
            (super::super::testing::HIDDEN as u64, super::super::testing::FFN as u64, 8);
        let layer = |n: u64, m: u64| 2 * n * d * d + 2 * m * d * d + 2 * m * n * d + 2 * m * d * f;
        assert_eq!(macs(&every), 3 * layer(n, n));
        assert_eq!(macs(&first), 2 * layer(n, n) + layer(n, 1));
    }
}
