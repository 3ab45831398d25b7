//! Times training steps: `cargo run --release --example step -- MODEL [BATCH] [TOKENS] [STEPS] [DROPOUT]`.
//!
//! Every text has the same length, and every weight is trained, the word table included. Prints tokens per
//! second of each step's whole work: forward, back, clipping, AdamW.

use compress::model::Model;
use compress::runtime::Batch;
use compress::train::backward::Signal;
use compress::train::objective::{Moment, Objective, Seen, Verdict};
use compress::train::tape::Dropout;
use compress::train::trainer::Trainer;
use compress::train::{head, losses, tape};
use compress::{Result, runtime::Encoder};
use std::path::Path;
use std::time::Instant;

/// Cross-entropy against classes that follow from the row.
struct Classes;

impl Objective for Classes {
    fn loss(&self, seen: &Seen) -> Result<Verdict> {
        let layers = seen.encoder.layers.len();
        let last = tape::hidden(seen.tapes, layers);
        let head = head::forward(seen.encoder, seen.batch, &last, &[], seen.dropout);
        let classes: Vec<_> = seen.batch.rows.iter().map(|&r| Some(r as u32 % 2)).collect();
        let loss = losses::cross_entropy(&head.values, head.width, &classes);
        Ok(Verdict {
            losses: vec![("task", loss.value)],
            signal: Signal::new(layers),
            head: Some((head, loss.grad)),
            own: Vec::new(),
        })
    }

    fn judge(&self, _: &Encoder) -> Result<Option<f64>> {
        Ok(None)
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |i: usize, default: f32| args.get(i).map_or(default, |a| a.parse().expect("a number"));
    let (texts, tokens, steps) =
        (number(1, 32.0) as usize, number(2, 32.0), number(3, 20.0) as usize);
    let (tokens, rate) = (tokens as usize, number(4, 0.0));
    let model = Model::open(Path::new(args.first().expect("a model")))?;
    let mut trainer = Trainer::new(&model, |_| true)?;
    let mut times = Vec::new();
    for step in 0..steps + 3 {
        let mut batch = Batch::default();
        for row in 0..texts {
            let id =
                |i: usize| ((step * 31 + row * 7919 + i * 104_729) % model.config.vocab) as u32;
            let ids: Vec<u32> = (0..tokens).map(id).collect();
            batch.push(&ids, &vec![0; tokens], row);
        }
        let start = Instant::now();
        let dropout = Dropout { hidden: rate, attention: rate, key: step as u64 };
        trainer.gather(&Classes, &batch, dropout, Moment { update: step as u32, part: 0 })?;
        trainer.update(&mut Classes, 1e-5, 0.01, 1.0)?;
        if step >= 3 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    let speed = |seconds: f64| (texts * tokens) as f64 / seconds;
    println!("median {:.0} tokens/s, best {:.0}", speed(times[times.len() / 2]), speed(times[0]));
    Ok(())
}
