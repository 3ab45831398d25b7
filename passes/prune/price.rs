//! What the parts of a model cost: in parameters, multiply-accumulates or milliseconds, linear in how open
//! the gates before them are.
//!
//! Five kinds of gates multiply each other (CoFi, Xia et al. 2022, §3.1): a unit costs something for every
//! hidden dimension that is left, if it is left itself and its block is. The triple sums factorise, and no
//! product of two rows of gates is ever formed.

use crate::model::slice::Masks;
use crate::model::{Config, Head, Layer, Model};

/// How open each gate is: 0 or 1 of a mask to cut with, or probabilities. Also a gradient in these.
#[derive(Debug, Clone, PartialEq)]
pub struct Open {
    /// By layer: one number a head, none where there is no attention.
    pub heads: Vec<Vec<f64>>,
    /// By layer: one number a unit, none where there is no feed-forward block.
    pub units: Vec<Vec<f64>>,
    /// `[layers]`; 0 where there is none.
    pub attention: Vec<f64>,
    /// `[layers]`; 0 where there is none.
    pub ffn: Vec<f64>,
    /// `[hidden]`
    pub hidden: Vec<f64>,
}

/// The cost of each kind of part: what is fixed, and what comes on top for each hidden dimension left.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Price {
    pub head: [f64; 2],
    pub unit: [f64; 2],
    /// An attention block besides its heads.
    pub attention: [f64; 2],
    /// A feed-forward block besides its units.
    pub ffn: [f64; 2],
    /// Embeddings and head of the model.
    pub rest: [f64; 2],
}

/// Gates of one kind, those above them multiplied in, and how many blocks they stand in.
struct Sums {
    hidden: f64,
    attention: f64,
    heads: f64,
    ffn: f64,
    units: f64,
}

impl Open {
    /// 1 for all that `model` has.
    pub fn all(model: &Model) -> Open {
        let heads = |l: &Layer| l.attention.as_ref().map(|a| vec![1.0; a.heads.len()]);
        let units = |l: &Layer| l.ffn.as_ref().map(|f| vec![1.0; f.units()]);
        let there = |is: bool| if is { 1.0 } else { 0.0 };
        let layers = &model.layers;
        Open {
            heads: layers.iter().map(|l| heads(l).unwrap_or_default()).collect(),
            units: layers.iter().map(|l| units(l).unwrap_or_default()).collect(),
            attention: layers.iter().map(|l| there(l.attention.is_some())).collect(),
            ffn: layers.iter().map(|l| there(l.ffn.is_some())).collect(),
            hidden: vec![1.0; model.config.hidden],
        }
    }

    /// Closes what `masks` close.
    pub fn cut(&mut self, masks: &Masks) {
        let close = |open: &mut Vec<f64>, mask: &[f32]| {
            open.iter_mut().zip(mask).filter(|(_, z)| **z == 0.0).for_each(|(o, _)| *o = 0.0);
        };
        self.heads.iter_mut().zip(&masks.heads).for_each(|(o, z)| close(o, z));
        self.units.iter_mut().zip(&masks.units).for_each(|(o, z)| close(o, z));
        close(&mut self.attention, &masks.attention);
        close(&mut self.ffn, &masks.ffn);
        close(&mut self.hidden, &masks.hidden);
    }

    /// 0 for all of it.
    pub fn none(all: &Open) -> Open {
        let zeros = |rows: &[Vec<f64>]| rows.iter().map(|r| vec![0.0; r.len()]).collect();
        Open {
            heads: zeros(&all.heads),
            units: zeros(&all.units),
            attention: vec![0.0; all.attention.len()],
            ffn: vec![0.0; all.ffn.len()],
            hidden: all.hidden.clone(), // of what is left, a model has a width
        }
    }

    fn sums(&self) -> Sums {
        let inside = |blocks: &[f64], parts: &[Vec<f64>]| -> f64 {
            blocks.iter().zip(parts).map(|(b, parts)| b * parts.iter().sum::<f64>()).sum()
        };
        Sums {
            hidden: self.hidden.iter().sum(),
            attention: self.attention.iter().sum(),
            heads: inside(&self.attention, &self.heads),
            ffn: self.ffn.iter().sum(),
            units: inside(&self.ffn, &self.units),
        }
    }
}

impl Price {
    /// What is left costs, with gates as `open` as this.
    pub fn of(&self, open: &Open) -> f64 {
        let n = open.sums();
        let at = |[fixed, each]: [f64; 2]| fixed + each * n.hidden;
        at(self.rest)
            + n.attention * at(self.attention)
            + n.heads * at(self.head)
            + n.ffn * at(self.ffn)
            + n.units * at(self.unit)
    }

    /// The derivative of [`Price::of`] by every gate.
    pub fn gradient(&self, open: &Open) -> Open {
        let n = open.sums();
        let at = |[fixed, each]: [f64; 2]| fixed + each * n.hidden;
        let part = |blocks: &[f64], parts: &[Vec<f64>], price: [f64; 2]| -> Vec<Vec<f64>> {
            blocks.iter().zip(parts).map(|(b, parts)| vec![b * at(price); parts.len()]).collect()
        };
        let block = |parts: &[Vec<f64>], price: [f64; 2], fixed: [f64; 2]| -> Vec<f64> {
            parts.iter().map(|p| at(fixed) + at(price) * p.iter().sum::<f64>()).collect()
        };
        let hidden = self.rest[1]
            + n.attention * self.attention[1]
            + n.heads * self.head[1]
            + n.ffn * self.ffn[1]
            + n.units * self.unit[1];
        Open {
            heads: part(&open.attention, &open.heads, self.head),
            units: part(&open.ffn, &open.units, self.unit),
            attention: block(&open.heads, self.head, self.attention),
            ffn: block(&open.units, self.unit, self.ffn),
            hidden: vec![hidden; open.hidden.len()],
        }
    }

    /// CoFi's expected size (its code; §3.1 has 4 · head_dim a head and dimension, without the biases):
    /// weights and biases of the blocks, the biases spread over heads and hidden dimensions.
    pub fn expected(config: &Config) -> Price {
        let [head, _] = shares(config);
        Price { head: [0.0, head / config.hidden as f64], unit: [0.0, 2.0], ..Price::default() }
    }

    /// As [`Price::expected`], of a model whose hidden width has no gates.
    pub fn expected_at_full_width(config: &Config) -> Price {
        let [head, unit] = shares(config);
        Price { head: [head, 0.0], unit: [unit, 0.0], ..Price::default() }
    }

    /// CoFi's count of what a mask leaves: weights of the blocks, without biases.
    pub fn hard(config: &Config) -> Price {
        let head = 4.0 * config.head_dim as f64;
        Price { head: [0.0, head], unit: [0.0, 2.0], ..Price::default() }
    }

    /// Parameters of `model`: [`cost::Cost::total`] less what is unused, of what a cut leaves.
    ///
    /// A head's or a pooler's first matrix loses columns with the hidden width, and keeps its rows. Where a
    /// masked-LM head ends in tables of the hidden width, which shrink with it, its first matrix would lose
    /// both: counted too high then, because a price is linear in the width.
    ///
    /// [`cost::Cost::total`]: crate::model::cost::Cost::total
    pub fn params(model: &Model) -> Price {
        let dim = model.config.head_dim as f64;
        let e = &model.embeddings;
        let tables = [e.position.as_ref(), e.token_type.as_ref(), e.task_type.as_ref()];
        let rows: usize = tables.into_iter().flatten().map(|t| t.shape[0]).sum();
        let mut rest = embedding_wide(model, (e.word.rows() + rows + 2) as f64); // 2: the LayerNorm
        if let Some(project) = &e.project {
            add(&mut rest, [0.0, (project.weight.cols() + 1) as f64]);
        }
        add(&mut rest, [model.relative_bias.as_ref().map_or(0, |t| t.numel()) as f64, 0.0]);
        match &model.head {
            Head::SequenceClassification { dense, out, .. } => {
                let rows = dense.weight.rows() as f64;
                add(&mut rest, [rows + out.params() as f64, rows]);
            }
            Head::TokenClassification { out } | Head::QuestionAnswering { out } => {
                add(&mut rest, [out.weight.rows() as f64; 2]);
            }
            Head::MaskedLm { dense, decoder, bias, .. } => {
                let decoder = decoder.as_ref().map_or(0, |t| t.shape[0]);
                // 3: the bias of `dense`, and its LayerNorm.
                add(&mut rest, embedding_wide(model, (decoder + 3) as f64));
                add(&mut rest, [bias.numel() as f64, dense.weight.rows() as f64]);
            }
            Head::Bare { pooler: Some(pooler), .. } => {
                add(&mut rest, [pooler.weight.rows() as f64; 2]);
            }
            Head::Embedding { .. } | Head::Bare { pooler: None, .. } => {}
        }
        Price {
            head: [3.0 * dim, 4.0 * dim],
            unit: [1.0, 2.0],
            attention: [0.0, 3.0], // the output's bias, and the LayerNorm
            ffn: [0.0, 3.0],
            rest,
        }
    }

    /// Multiply-accumulates of `model` over one text of `tokens` tokens, counted as
    /// [`cost::whole_macs`] does. FLOPs are twice this. For a masked-LM head see [`Price::params`].
    ///
    /// [`cost::whole_macs`]: crate::model::cost::whole_macs
    pub fn macs(model: &Model, tokens: usize) -> Price {
        let (dim, tokens) = (model.config.head_dim as f64, tokens as f64);
        let e = &model.embeddings;
        let project = e.project.as_ref().map_or(0, |p| p.weight.cols()) as f64;
        let mut rest = [0.0, tokens * project];
        match &model.head {
            Head::SequenceClassification { dense, out, .. } => {
                add(&mut rest, [out.weight.params() as f64, dense.weight.rows() as f64]);
            }
            Head::TokenClassification { out } | Head::QuestionAnswering { out } => {
                add(&mut rest, [0.0, tokens * out.weight.rows() as f64]);
            }
            Head::MaskedLm { dense, .. } => {
                add(&mut rest, [0.0, tokens * dense.weight.rows() as f64]);
                add(&mut rest, embedding_wide(model, tokens * e.word.rows() as f64));
            }
            Head::Bare { pooler: Some(pooler), .. } => {
                add(&mut rest, [0.0, pooler.weight.rows() as f64]);
            }
            Head::Embedding { .. } | Head::Bare { pooler: None, .. } => {}
        }
        Price {
            head: [2.0 * tokens * tokens * dim, 4.0 * tokens * dim],
            unit: [0.0, 2.0 * tokens],
            rest,
            ..Price::default()
        }
    }
}

/// Weights and biases of all blocks: what CoFi counts sparsity in (§3.1, there M). Embeddings, LayerNorms
/// and heads are outside.
pub fn prunable(config: &Config) -> f64 {
    let [attention, ffn] = blocks(config);
    (config.layers * (attention + ffn)) as f64
}

/// Weights and biases of one attention and one feed-forward block.
fn blocks(config: &Config) -> [usize; 2] {
    let (hidden, width, ffn) = (config.hidden, config.heads * config.head_dim, config.ffn);
    [4 * width * hidden + 3 * width + hidden, 2 * ffn * hidden + ffn + hidden]
}

/// What of its block falls to one head and to one unit, rounded down as in CoFi's code.
fn shares(config: &Config) -> [f64; 2] {
    let [attention, ffn] = blocks(config);
    [(attention / config.heads) as f64, (ffn / config.ffn) as f64]
}

/// `n` for every dimension of the embeddings, which is a hidden one unless they are projected.
fn embedding_wide(model: &Model, n: f64) -> [f64; 2] {
    match model.embeddings.project {
        Some(_) => [n * model.config.embedding as f64, 0.0],
        None => [0.0, n],
    }
}

fn add(sum: &mut [f64; 2], price: [f64; 2]) {
    sum[0] += price[0];
    sum[1] += price[1];
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::cost::{self, Cost};
    use crate::model::testing::*;
    use crate::model::{Task, family};
    use crate::train::gates;
    use serde_json::json;

    /// A BERT of this size.
    pub fn config(hidden: usize, layers: usize, heads: usize, ffn: usize) -> Config {
        let json = json!({
            "model_type": "bert", "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "intermediate_size": ffn, "vocab_size": 30522,
            "hidden_act": "gelu", "architectures": ["BertModel"],
        });
        Config::parse(json).expect("a config").0
    }

    /// Every gate as `f` says of its kind (0 heads, 1 units, 2 attention, 3 ffn, 4 hidden) and number.
    fn filled(config: &Config, mut f: impl FnMut(usize, usize) -> f64) -> Open {
        let mut count = 0;
        let mut row = |kind: usize, n: usize| -> Vec<f64> {
            count += n;
            (count - n..count).map(|i| f(kind, i)).collect()
        };
        Open {
            heads: (0..config.layers).map(|_| row(0, config.heads)).collect(),
            units: (0..config.layers).map(|_| row(1, config.ffn)).collect(),
            attention: row(2, config.layers),
            ffn: row(3, config.layers),
            hidden: row(4, config.hidden),
        }
    }

    fn uneven(config: &Config) -> Open {
        filled(config, |kind, i| ((i * 7 + kind * 3) % 11) as f64 / 11.0 + 0.01)
    }

    const PRICE: Price = Price {
        head: [3.0, 0.7],
        unit: [0.5, 0.2],
        attention: [2.0, 0.3],
        ffn: [1.1, 0.9],
        rest: [10.0, 1.3],
    };

    #[test]
    fn sizes_of_bert_base_are_those_of_cofi() {
        let bert = config(768, 12, 12, 3072);
        assert_eq!(blocks(&bert), [2_362_368, 4_722_432]);
        assert_eq!(shares(&bert), [196_864.0, 1_537.0]);
        assert_eq!(prunable(&bert), 85_017_600.0);
        assert_eq!(Price::hard(&bert).head, [0.0, 256.0]);

        let expected = Price::expected(&bert);
        assert!((expected.head[1] - 256.333).abs() < 1e-3);
        let ones = filled(&bert, |_, _| 1.0);
        assert!((expected.of(&ones) - 84_971_520.0).abs() < 1e-6);
        assert_eq!(Price::hard(&bert).of(&ones), 84_934_656.0);
        // 144 heads and 36,864 units.
        let full = 144.0 * 196_864.0 + 36_864.0 * 1_537.0;
        assert_eq!(Price::expected_at_full_width(&bert).of(&ones), full);
    }

    #[test]
    fn expected_sparsities_of_bert_base_are_those_of_cofi() {
        let bert = config(768, 12, 12, 3072);
        let sparsity = |price: Price, open: &Open| 1.0 - price.of(open) / prunable(&bert);
        let ones = filled(&bert, |_, _| 1.0);
        assert!((sparsity(Price::expected(&bert), &ones) - 0.000542005).abs() < 1e-9);
        assert!((sparsity(Price::hard(&bert), &ones) - 0.000975610).abs() < 1e-9);

        let at = |units: f32, others: f32| {
            let open =
                filled(&bert, |kind, _| gates::open(if kind == 1 { units } else { others }) as f64);
            sparsity(Price::expected(&bert), &open)
        };
        let b = gates::BOUND;
        // Probabilities are f32, three of them to a product.
        for (found, expected) in [
            (at(b, b), 0.00657969),
            (at(0.0, b), 0.11679888),
            (at(-b, -b), 0.99989537),
            (at(0.0, 10.0), 0.11257),
        ] {
            let digits = if expected == 0.11257 { 5e-6 } else { 2e-7 };
            assert!((found - expected).abs() < digits, "{found} {expected}");
        }
    }

    /// By hand over all triples of hidden dimension, layer and part.
    #[test]
    fn the_factorised_size_is_the_triple_sum() {
        let small = config(8, 2, 2, 6);
        let open = uneven(&small);
        let [head, _] = shares(&small);
        let mut size = 0.0;
        for k in &open.hidden {
            for l in 0..2 {
                for a in &open.heads[l] {
                    size += head / 8.0 * k * open.attention[l] * a;
                }
                for u in &open.units[l] {
                    size += 2.0 * k * open.ffn[l] * u;
                }
            }
        }
        let found = Price::expected(&small).of(&open);
        assert!((found - size).abs() < 1e-12 * size, "{found} {size}");
    }

    #[test]
    fn gates_that_are_all_open_or_shut_give_the_hard_count() {
        let small = config(8, 2, 2, 6);
        let mask = filled(&small, |kind, i| if (i + kind) % 3 == 0 { 0.0 } else { 1.0 });
        // Logits far beyond what `clamp` leaves.
        let open = filled(&small, |kind, i| {
            gates::open(if (i + kind) % 3 == 0 { -50.0 } else { 50.0 }) as f64
        });
        let [head, _] = shares(&small);
        // The same price a head, without its share of biases.
        let price = Price { head: Price::hard(&small).head, ..Price::expected(&small) };
        assert!((price.of(&open) - Price::hard(&small).of(&mask)).abs() < 1e-2);
        assert_eq!(head, 4.0 * 8.0 * 4.0 + 4.0 * 8.0 / 2.0);
    }

    /// The price is linear in each gate alone: a difference over any distance is the derivative.
    #[test]
    fn gradients_are_differences() {
        let small = config(8, 2, 2, 6);
        let open = uneven(&small);
        let gates = |open: &Open| -> Vec<f64> {
            let rows = open.heads.iter().chain(&open.units);
            let rows = rows.chain([&open.attention, &open.ffn, &open.hidden]);
            rows.flatten().copied().collect()
        };
        for (i, found) in gates(&PRICE.gradient(&open)).into_iter().enumerate() {
            let moved = |by: f64| {
                let mut gate = 0;
                let mut next = |x: &mut f64| {
                    *x += if gate == i { by } else { 0.0 };
                    gate += 1;
                };
                let mut open = open.clone();
                open.heads.iter_mut().chain(&mut open.units).flatten().for_each(&mut next);
                let rows = open.attention.iter_mut().chain(&mut open.ffn).chain(&mut open.hidden);
                rows.for_each(next);
                PRICE.of(&open)
            };
            let expected = moved(0.5) - moved(-0.5);
            assert!((found - expected).abs() < 1e-10, "gate {i}: {found} {expected}");
        }
    }

    fn cuts(mut model: Model) -> Model {
        let attention = model.layers[0].attention.as_ref().expect("there");
        model.layers[0].attention = Some(attention.select_heads(&[1, 3]).expect("dense"));
        let attention = model.layers[2].attention.as_ref().expect("there");
        model.layers[2].attention = Some(attention.select_heads(&[]).expect("dense"));
        let ffn = model.layers[1].ffn.as_ref().expect("there");
        model.layers[1].ffn = Some(ffn.select_units(&[0, 5, 6, 23]).expect("dense"));
        model.layers[1].attention = None;
        model.layers[2].ffn = None;
        model
    }

    fn gates_of_cuts(mut open: Open) -> Open {
        open.heads[0] = vec![0.0, 1.0, 0.0, 1.0];
        open.heads[2] = vec![0.0; HEADS];
        open.units[1] =
            (0..FFN).map(|u| if [0, 5, 6, 23].contains(&u) { 1.0 } else { 0.0 }).collect();
        open.attention[1] = 0.0;
        open.ffn[2] = 0.0;
        open
    }

    fn counted(model: &Model) -> [f64; 2] {
        let cost = Cost::of(model);
        let params = cost.total.params - cost.unused.params;
        [params as f64, cost::whole_macs(model, 9) as f64]
    }

    #[test]
    fn prices_are_what_cut_models_cost() {
        for (family, task) in every() {
            let model = tiny(family, task, 5);
            let cut = cuts(model.clone());
            let (all, left) = (Open::all(&model), Open::all(&cut));
            let prices = [Price::params(&model), Price::macs(&model, 9)];
            for (model, open) in
                [(&model, &all), (&cut, &left), (&cut, &gates_of_cuts(all.clone()))]
            {
                assert_eq!(prices.map(|p| p.of(open)), counted(model), "{family} {task:?}");
            }
        }
    }

    /// A model of three quarters of the width has heads of three quarters of the size: as many of the whole
    /// size as three.
    #[test]
    fn prices_are_what_a_narrower_model_costs() {
        const WIDTH: usize = HIDDEN * 3 / 4;
        let heads = [Task::TokenClassification, Task::QuestionAnswering, Task::Embedding];
        for (family, task) in family::TRAINED.iter().flat_map(|f| heads.map(|t| (f.model_type, t)))
        {
            let (model, narrow) = (tiny(family, task, 6), parts_of(family, task, 6, WIDTH).open());
            let mut open = Open::all(&model);
            open.hidden.truncate(WIDTH);
            open.heads.iter_mut().for_each(|h| h.truncate(HEADS * 3 / 4));
            let prices = [Price::params(&model), Price::macs(&model, 9)];
            assert_eq!(prices.map(|p| p.of(&open)), counted(&narrow), "{family} {task:?}");
        }
    }
}
