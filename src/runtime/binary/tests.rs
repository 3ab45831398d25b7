//! The forward pass of binary activations, against one written out in f64.

use super::*;
use crate::model::testing::*;
use crate::model::{Model, Score, Task, TokenSchedule, family};
use crate::runtime::{Batch, Encoder, Everything, NoObserver, Observer};

/// The tensors of a checkpoint, by name.
struct Stored<'a>(&'a Parts);

type Rows = Vec<Vec<f64>>;

impl Stored<'_> {
    fn numbers(&self, name: &str) -> Vec<f64> {
        let tensor = self.0.tensors.iter().find(|t| t.name == name).expect("a tensor of this name");
        tensor.to_f32().expect("floats").iter().map(|&x| x.into()).collect()
    }

    fn number(&self, name: &str) -> f64 {
        self.numbers(name)[0]
    }

    /// `x·Wᵀ + b`, of signs of weights and inputs where `signs`.
    fn linear(&self, name: &str, x: &Rows, signs: bool) -> Rows {
        let mut w = self.numbers(&format!("{name}.weight"));
        let bias = self.numbers(&format!("{name}.bias"));
        let mut x = x.clone();
        if signs {
            let n = w.len() as f64;
            let scale = w.iter().map(|w| w.abs()).sum::<f64>() / n;
            let mean = w.iter().sum::<f64>() / n;
            w.iter_mut().for_each(|w| *w = scale * (*w - mean).signum());
            let shift = self.numbers(&format!("{name}.move.bias"));
            let alpha = self.number(&format!("{name}.input_clip_val"));
            for row in &mut x {
                row.iter_mut().zip(&shift).for_each(|(x, b)| *x = alpha * (*x + b).signum());
            }
        }
        let width = w.len() / bias.len();
        let out = |row: &Vec<f64>| {
            let one =
                |(w, b): (&[f64], &f64)| b + w.iter().zip(row).map(|(w, x)| w * x).sum::<f64>();
            w.chunks(width).zip(&bias).map(one).collect()
        };
        x.iter().map(out).collect()
    }

    fn norm(&self, name: &str, x: &Rows) -> Rows {
        let [weight, bias] = ["weight", "bias"].map(|part| self.numbers(&format!("{name}.{part}")));
        let one = |row: &Vec<f64>| {
            let n = row.len() as f64;
            let mean = row.iter().sum::<f64>() / n;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let parts = row.iter().zip(weight.iter().zip(&bias));
            parts.map(|(x, (w, b))| (x - mean) / (variance + 1e-12).sqrt() * w + b).collect()
        };
        x.iter().map(one).collect()
    }

    /// One text through one layer.
    fn layer(&self, at: &str, x: &Rows) -> Rows {
        let attention = format!("{at}attention.self.");
        let part = |name: &str, signs| self.linear(&format!("{attention}{name}"), x, signs);
        let signed = |name: &str, clip: &str| {
            let alpha = self.number(&format!("{attention}{clip}"));
            let mut rows = part(name, true);
            rows.iter_mut().flatten().for_each(|x| *x = alpha * x.signum());
            rows
        };
        let (q, k) = (signed("query", "clip_query"), signed("key", "clip_key"));
        let v = signed("value", "clip_value");
        let [q_p, k_p, q_m, k_m, v_p] =
            ["q_p", "k_p", "q_m", "k_m", "v_p"].map(|name| part(name, false));
        let alpha = self.number(&format!("{attention}clip_attn"));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let dim = HIDDEN / HEADS;
        let mut context = vec![vec![0.0; HIDDEN]; x.len()];
        for head in (0..HIDDEN).step_by(dim) {
            let columns = head..head + dim;
            for i in 0..x.len() {
                let score = |j: usize| {
                    let residual =
                        dot(&q_m[i], &k_p[j]) + dot(&q_p[i], &k_m[j]) + dot(&q_p[i], &k_p[j]);
                    let main = dot(&q[i][columns.clone()], &k[j][columns.clone()]);
                    ((main + residual) / (dim as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = (0..x.len()).map(score).collect();
                let total: f64 = scores.iter().sum();
                for (j, score) in scores.iter().enumerate() {
                    let p = alpha * (score / total / alpha).round().clamp(0.0, 1.0);
                    for c in columns.clone() {
                        context[i][c] += p * v[j][c] + p * v_p[j][0];
                    }
                }
            }
        }
        let add = |a: &Rows, b: &Rows| -> Rows {
            let row =
                |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a + b).collect();
            a.iter().zip(b).map(row).collect()
        };
        let out = self.linear(&format!("{at}attention.output.dense"), &context, true);
        let x = self.norm(&format!("{at}attention.output.LayerNorm"), &add(&out, x));
        let mut units = self.linear(&format!("{at}intermediate.dense"), &x, true);
        units.iter_mut().flatten().for_each(|u| *u *= 0.5 * (1.0 + erf(*u / 2f64.sqrt())));
        let out = self.linear(&format!("{at}output.dense"), &units, true);
        self.norm(&format!("{at}output.LayerNorm"), &add(&out, &x))
    }

    /// Logits of one text.
    fn classify(&self, ids: &[u32], types: &[u32]) -> Vec<f64> {
        let words = self.numbers("bert.embeddings.word_embeddings.weight");
        let table = |name: &str| self.numbers(&format!("bert.embeddings.{name}.weight"));
        let (positions, kinds) = (table("position_embeddings"), table("token_type_embeddings"));
        let mean = words.iter().sum::<f64>() / words.len() as f64;
        let row = |(t, (&id, &kind)): (usize, (&u32, &u32))| {
            let word = &words[id as usize * HIDDEN..(id as usize + 1) * HIDDEN];
            let scale = word.iter().map(|w| w.abs()).sum::<f64>() / HIDDEN as f64;
            let at = |i: usize| {
                let (position, kind) =
                    (positions[t * HIDDEN + i], kinds[kind as usize * HIDDEN + i]);
                scale * (word[i] - mean).signum() + position + kind
            };
            (0..HIDDEN).map(at).collect()
        };
        let sum: Rows = ids.iter().zip(types).enumerate().map(row).collect();
        let mut x = self.norm("bert.embeddings.LayerNorm", &sum);
        for layer in 0..LAYERS {
            x = self.layer(&format!("bert.encoder.layer.{layer}."), &x);
        }
        let first = vec![x[0].clone()];
        let dense = self.linear("bert.pooler.dense", &first, true);
        let normed = self.norm("bert.pooler.LayerNorm", &dense);
        let pooled = normed[0].iter().zip(&first[0]).map(|(y, x)| (y + x).tanh()).collect();
        self.linear("classifier", &vec![pooled], false).remove(0)
    }
}

/// By its series, to 1e-12 for what a normal unit is.
fn erf(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn a_classifier_says_what_its_formulas_say() {
    for seed in 1..6 {
        let parts = latent("bert", Task::SequenceClassification, 10 * seed);
        let model = parts.open();
        let batch = batch(seed, &[7, 1, 12]);
        let found = answers(&model, &batch, None);
        let expected: Vec<f32> = batch
            .starts
            .windows(2)
            .flat_map(|s| {
                Stored(&parts).classify(&batch.ids[s[0]..s[1]], &batch.type_ids[s[0]..s[1]])
            })
            .map(|x| x as f32)
            .collect();
        assert!(distance(&found, &expected) < 1e-4, "{seed}: {found:?}, {expected:?}");
    }
}

fn said(model: &Model, batch: &Batch, observer: &mut dyn Observer) -> Vec<f32> {
    let encoder = Encoder::new(model).expect("a model that runs");
    encoder.forward(batch, None, observer).expect("ids inside the tables").values
}

#[test]
fn what_nobody_reads_may_be_left_out() {
    let mut changed = 0;
    for family in family::TRAINED {
        for task in [Task::SequenceClassification, Task::Embedding, Task::Bare] {
            let mut model = latent(family.model_type, task, 3).open();
            let batch = batch(4, &[9, 2, 5]);
            let what = format!("{} {task:?}", family.model_type);
            let agree = |model: &Model, what: &str| {
                let (gathered, plain) =
                    (said(model, &batch, &mut NoObserver), said(model, &batch, &mut Everything));
                assert!(distance(&gathered, &plain) < 1e-5, "{what}");
                gathered
            };
            let all = agree(&model, &what);
            for score in [Score::First, Score::Received] {
                let mut tokens = TokenSchedule::keep_all(LAYERS, score, model.reads());
                tokens.layers[1] = Some(vec![true, false]);
                model.tokens = Some(tokens);
                let fewer = agree(&model, &format!("{what} {score:?}"));
                changed += (fewer != all) as usize;
            }
        }
    }
    assert!(changed > 20, "{changed} of 42 answers change with the tokens that are left");
}

#[test]
fn masks_of_one_change_nothing() {
    let model = latent("bert", Task::Bare, 5).open();
    let batch = batch(6, &[9, 2]);
    let ones = crate::model::slice::Masks::ones(&model);
    assert_eq!(answers(&model, &batch, Some(&ones)), answers(&model, &batch, None));
}

/// `[len, len]`: `a·bᵀ`.
fn outer(a: &[f32], b: &[f32], rank: usize) -> Vec<f32> {
    let row = |a: &[f32]| -> Vec<f32> {
        b.chunks(rank).map(|b| a.iter().zip(b).map(|(a, b)| a * b).sum()).collect()
    };
    a.chunks(rank).flat_map(row).collect()
}

fn plus(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// The notes, §2.1 and §9, test 5.
#[test]
fn estimators_that_know_the_residuals_make_the_scores_whole() {
    let (len, dim) = (4, 3);
    let (q, k) = (gaussian(len * dim, 1), gaussian(len * dim, 2));
    let signs = |x: &[f32]| {
        let mut signs = x.to_vec();
        kernels::signs(&mut signs, 0.8);
        signs
    };
    let (q_m, k_m) = (signs(&q), signs(&k));
    let rest = |x: &[f32], m: &[f32]| -> Vec<f32> { x.iter().zip(m).map(|(x, m)| x - m).collect() };
    let (q_p, k_p) = (rest(&q, &q_m), rest(&k, &k_m));
    let main = outer(&q_m, &k_m, dim);
    let e = Estimates { rank: dim, q_p, k: plus(&k_m, &k_p), q_m, k_p };
    let found = plus(&main, &e.bracket(0, len, 1.0));
    assert!(distance(&found, &outer(&q, &k, dim)) < 1e-6, "{found:?}");
}

#[test]
fn the_bracket_is_a_difference_of_two_products_and_starts_at_its_text() {
    let (tokens, rank) = (7, 1);
    let [q_p, q_m, k_p, k_m] = [3, 4, 5, 6].map(|seed| gaussian(tokens * rank, seed));
    let expected = {
        let of = |x: &[f32]| x[2..7].to_vec();
        let whole = outer(&plus(&of(&q_m), &of(&q_p)), &plus(&of(&k_m), &of(&k_p)), rank);
        let main = outer(&of(&q_m), &of(&k_m), rank);
        whole.iter().zip(main).map(|(a, b)| 0.5 * (a - b)).collect::<Vec<_>>()
    };
    let e = Estimates { rank, k: plus(&k_m, &k_p), q_p, q_m, k_p };
    let found = e.bracket(2, 5, 0.5);
    assert!(distance(&found, &expected) < 1e-6, "{found:?}");
    // Of rank two: no three rows and columns are independent.
    let at = |r: usize, c: usize| f64::from(found[r * 5 + c]);
    let minor = |r: [usize; 3], c: [usize; 3]| {
        let two = |a: usize, b: usize, x: usize, y: usize| {
            at(r[a], c[x]) * at(r[b], c[y]) - at(r[a], c[y]) * at(r[b], c[x])
        };
        at(r[0], c[0]) * two(1, 2, 1, 2) - at(r[0], c[1]) * two(1, 2, 0, 2)
            + at(r[0], c[2]) * two(1, 2, 0, 1)
    };
    for (r, c) in [([0, 1, 2], [0, 1, 2]), ([0, 2, 4], [1, 2, 3]), ([1, 3, 4], [0, 3, 4])] {
        assert!(minor(r, c).abs() < 1e-5, "{}", minor(r, c));
    }
}
