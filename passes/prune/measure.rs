//! What parts cost in time, on the machine that this runs on.

use super::price::Price;
use crate::Result;
use crate::eval::latency;
use crate::model::{Activation, Activations, FeedForward, Model, NormKind};
use crate::runtime::{
    Batch, Dense, Encoder, NoObserver, RunAttention, RunFeedForward, RunNorm, RunPositions,
};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Shares of the heads or units, and of the hidden width, that blocks are timed at: from what little a
/// strong cut leaves to all.
const PARTS: [f64; 3] = [0.125, 0.5, 1.0];
const WIDTHS: [f64; 3] = [0.5, 0.75, 1.0];

/// Timed rounds over all blocks: as many as this if there is time, and no fewer than that.
const MOST_ROUNDS: usize = 25;
const LEAST_ROUNDS: usize = 3;
const BUDGET: Duration = Duration::from_secs(1);

impl Price {
    /// Milliseconds of `model` on one thread, over a batch of `batch` texts of `tokens` tokens each. Attention
    /// and feed-forward blocks of several sizes, of made-up weights, are timed in turn, and a price is fitted
    /// to the medians. Embeddings and head are timed as they are and taken to grow with the hidden width.
    /// Never the same twice.
    ///
    /// # Errors
    /// As [`Encoder::forward`]: more tokens than the model has positions.
    pub fn measured(model: &Model, batch: usize, tokens: usize) -> Result<Price> {
        latency::on_one_thread(|| Price::timed(model, batch, tokens))
    }

    fn timed(model: &Model, batch: usize, tokens: usize) -> Result<Price> {
        let outside = Model { layers: Vec::new(), ..model.clone() };
        let encoder = Encoder::packed(&outside)?;
        let texts = texts(&encoder, batch, tokens);
        encoder.forward(&texts, None, &mut NoObserver)?;

        let (hidden, layers) = (model.config.hidden, || model.layers.iter());
        let heads = layers().flat_map(|l| &l.attention).map(|a| a.heads.len()).max().unwrap_or(0);
        let units = layers().flat_map(|l| &l.ffn).map(FeedForward::units).max().unwrap_or(0);
        let indices: Vec<usize> = (0..heads).collect();
        let attention = grid(heads, hidden, |n, width| {
            let block = attention(model, &indices[..n], width);
            let (x, encoder, texts) = (numbers(texts.tokens() * width), &encoder, &texts);
            Box::new(move || {
                let state = encoder.attention_context(&block, &x, texts, None, &mut |_, _, _| {});
                black_box(block.finish(&state.context, &x));
            })
        });
        let ffn = grid(units, hidden, |n, width| {
            let block = ffn(model.config.activation, model.config.eps, n, width);
            let x = numbers(texts.tokens() * width);
            Box::new(move || {
                black_box(block.finish(&block.units(&x), &x));
            })
        });
        let rest = || {
            black_box(encoder.forward(&texts, None, &mut NoObserver)).expect("ran before");
        };

        let blocks = attention.iter().chain(&ffn).map(|b| &*b.work);
        let times = medians(&blocks.chain([&rest as &dyn Fn()]).collect::<Vec<_>>());
        let (attention_ms, others) = times.split_at(attention.len());
        let (ffn_ms, rest_ms) = others.split_at(ffn.len());
        let [attention, head] = fit(&attention, attention_ms);
        let [ffn, unit] = fit(&ffn, ffn_ms);
        Ok(Price { head, unit, attention, ffn, rest: [0.0, rest_ms[0] / hidden as f64] })
    }
}

/// A block of some size, to be run.
struct Block<'a> {
    /// Heads or units.
    parts: usize,
    width: usize,
    work: Box<dyn Fn() + 'a>,
}

/// Blocks of every share of `parts` heads or units and every share of the hidden width.
fn grid<'a>(
    parts: usize,
    hidden: usize,
    build: impl Fn(usize, usize) -> Box<dyn Fn() + 'a>,
) -> Vec<Block<'a>> {
    if parts == 0 {
        return Vec::new();
    }
    let at = |share: f64, n: usize| ((share * n as f64).round() as usize).max(1);
    let sizes = PARTS.iter().flat_map(|p| WIDTHS.iter().map(|w| (at(*p, parts), at(*w, hidden))));
    sizes.map(|(parts, width)| Block { parts, width, work: build(parts, width) }).collect()
}

fn texts(encoder: &Encoder, batch: usize, tokens: usize) -> Batch {
    let one = latency::synthetic(&encoder.model.config, tokens);
    let mut texts = Batch::default();
    (0..batch).for_each(|row| texts.push(&one.ids, &one.type_ids, row));
    texts
}

fn attention<'a>(model: &Model, heads: &'a [usize], width: usize) -> RunAttention<'a> {
    let inner = heads.len() * model.config.head_dim;
    RunAttention {
        query: dense(inner, width),
        key: dense(inner, width),
        value: dense(inner, width),
        output: dense(width, inner),
        norm: norm(width, model.config.eps),
        heads: std::borrow::Cow::Borrowed(heads),
        head_dim: model.config.head_dim,
        binary: None,
        positions: RunPositions::default(),
    }
}

fn ffn(activation: Activation, eps: f32, units: usize, width: usize) -> RunFeedForward<'static> {
    let norm = norm(width, eps);
    RunFeedForward {
        up: dense(units, width),
        gate: None,
        down: dense(width, units),
        norm,
        activation,
    }
}

fn dense(out: usize, input: usize) -> Dense<'static> {
    let mut weight = numbers(out * input);
    weight.iter_mut().for_each(|w| *w /= (input as f32).sqrt()); // as much comes out as goes in
    let activations = Activations::Exact;
    Dense {
        weight: weight.into(),
        integers: None,
        panels: None,
        bias: Some(numbers(out).into()),
        out,
        input,
        activations,
        elastic: None,
    }
    .laid_out()
}

fn norm(width: usize, eps: f32) -> RunNorm<'static> {
    RunNorm {
        weight: vec![1.0; width].into(),
        bias: vec![0.0; width].into(),
        eps,
        kind: Some(NormKind::Behind),
    }
}

/// Numbers in (-1, 1) that are no zeros: how long a product takes does not depend on more.
fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + 13) % 509) as f32 / 254.5 - 0.999).collect()
}

/// How long each takes, in milliseconds. They run in turn, so that all see the same noise; the first round
/// warms up and does not count.
fn medians(work: &[&dyn Fn()]) -> Vec<f64> {
    let mut times = vec![Vec::new(); work.len()];
    work.iter().for_each(|work| work());
    let begin = Instant::now();
    for round in 0..MOST_ROUNDS {
        if round >= LEAST_ROUNDS && begin.elapsed() > BUDGET {
            break;
        }
        for (work, times) in work.iter().zip(&mut times) {
            let start = Instant::now();
            work();
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    times.into_iter().map(median).collect()
}

/// Prices of a block and of each of its parts, none below zero, with the least squares of relative errors:
/// a small block is to be priced as well as a large one.
fn fit(blocks: &[Block], times_ms: &[f64]) -> [[f64; 2]; 2] {
    let most = |of: fn(&Block) -> usize| blocks.iter().map(of).max().unwrap_or(1) as f64;
    // In shares of the largest, so that all four columns are of a size.
    let (parts, width) = (most(|b| b.parts), most(|b| b.width));
    let rows: Vec<[f64; 4]> = blocks
        .iter()
        .zip(times_ms)
        .map(|(block, ms)| {
            let (n, w) = (block.parts as f64 / parts, block.width as f64 / width);
            [1.0, w, n, n * w].map(|x| x / ms.max(1e-6))
        })
        .collect();
    let [fixed, each, part, part_each] = least_squares(&rows);
    [[fixed, each / width], [part / parts, part_each / (parts * width)]]
}

/// `x ≥ 0` with the least `Σ (row · x − 1)²`: one coordinate after the other to where it is best, which
/// comes to the minimum because the sum is convex.
fn least_squares(rows: &[[f64; 4]]) -> [f64; 4] {
    let dot = |i: usize, j: usize| rows.iter().map(|r| r[i] * r[j]).sum::<f64>();
    let matrix: [[f64; 4]; 4] = std::array::from_fn(|i| std::array::from_fn(|j| dot(i, j)));
    let right: [f64; 4] = std::array::from_fn(|i| rows.iter().map(|r| r[i]).sum());
    let mut x = [0.0; 4];
    // Columns resemble each other: 20,000 sweeps leave six digits. They take a millisecond.
    for _ in 0..20_000 {
        for i in 0..4 {
            if matrix[i][i] > 0.0 {
                let slope: f64 = (0..4).map(|j| matrix[i][j] * x[j]).sum::<f64>() - right[i];
                x[i] = f64::max(0.0, x[i] - slope / matrix[i][i]);
            }
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::super::price::Open;
    use super::*;
    use crate::model::testing::*;
    use crate::model::{Task, family};

    fn blocks(price: impl Fn(f64, f64) -> f64) -> [[f64; 2]; 2] {
        let blocks = grid(16, 400, |_, _| Box::new(|| {}));
        let times: Vec<f64> =
            blocks.iter().map(|b| price(b.parts as f64, b.width as f64)).collect();
        fit(&blocks, &times)
    }

    #[test]
    fn a_fit_finds_the_price_that_made_the_times() {
        let [fixed, part] = blocks(|n, w| 0.3 + 0.001 * w + n * (0.02 + 0.0005 * w));
        for (found, expected) in fixed.into_iter().chain(part).zip([0.3, 0.001, 0.02, 0.0005]) {
            assert!((found / expected - 1.0).abs() < 1e-4, "{found} {expected}");
        }
        // What would be a negative price of a head is none, and the rest makes up for it.
        let [fixed, part] = blocks(|n, w| 1.0 + n * (0.0005 * w - 0.01));
        assert!(part[0] == 0.0 && part[1] > 0.0 && fixed.iter().all(|p| *p >= 0.0), "{part:?}");
        assert_eq!(fit(&[], &[]), [[0.0; 2]; 2]);
    }

    #[test]
    fn all_that_a_model_has_takes_time_and_less_takes_no_more() {
        for family in family::TRAINED {
            let mut model = tiny(family.model_type, Task::Bare, 30);
            let price = Price::measured(&model, 2, 9).expect("runs");
            let all = Open::all(&model);
            model.layers[0].attention = None;
            let left = Open::all(&model);
            let mut narrow = all.clone();
            narrow.hidden[3] = 0.0;
            assert!(price.of(&left) > 0.0 && price.of(&left) < price.of(&all), "{price:?}");
            assert!(price.of(&narrow) <= price.of(&all));
        }
    }

    #[test]
    fn what_is_not_there_costs_nothing() {
        let mut model = tiny("bert", Task::SequenceClassification, 31);
        model.layers.iter_mut().for_each(|l| l.attention = None);
        let price = Price::measured(&model, 1, 3).expect("runs");
        assert_eq!((price.attention, price.head), ([0.0; 2], [0.0; 2]));
        assert!(price.of(&Open::all(&model)) > 0.0);
        Price::measured(&model, 1, 1000).expect_err("more tokens than positions");
    }
}
