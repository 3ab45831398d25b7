//! Which weights the loop leaves, and where it keeps its state.

use super::*;
use crate::data::tokenizer::Encoded;
use crate::progress::Quiet;
use crate::train::fit::{History, Keep, Settings, fit};
use crate::train::objective::{Objective, Seen, Verdict};
use crate::train::sampling::Order;
use crate::train::schedule::Schedule;
use crate::train::state::StateFile;
use crate::train::trainer::Trainer;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Shortens the last hidden state, and judges the weights to be worse each time.
#[derive(Default)]
struct Worsening {
    judged: AtomicU32,
}

impl Objective for Worsening {
    fn loss(&self, seen: &Seen) -> crate::Result<Verdict> {
        let depth = seen.encoder.layers.len();
        let last = tape::hidden(seen.tapes, depth);
        let losses = vec![("length", 0.5 * dot(&last, &last))];
        let mut signal = Signal::new(depth);
        signal.add_hidden(depth, last, 1.0);
        Ok(Verdict { losses, signal, head: None, own: Vec::new() })
    }

    fn judge(&self, _: &Encoder) -> crate::Result<Option<f64>> {
        Ok(Some(self.judged.fetch_add(1, Ordering::Relaxed) as f64))
    }
}

/// Four updates with a judgement after each.
fn settings(keep: Keep, patience: usize) -> Settings {
    Settings {
        steps: 4,
        accumulate: 1,
        rate: 1e-2,
        warmup: 0,
        schedule: Schedule::Constant,
        decay: 0.0,
        clip: 0.0,
        dropout: 0.0,
        evaluate: 1,
        keep,
        patience,
        seed: 0,
    }
}

/// What is left of `model`, by name, after [`settings`].
fn trained(
    model: &Model,
    settings: &Settings,
    state: Option<&StateFile>,
) -> crate::Result<(Vec<Vec<f32>>, History)> {
    let batch = batch(150, &[5, 3, 4]);
    let text = |span: &[usize]| Encoded {
        ids: batch.ids[span[0]..span[1]].to_vec(),
        type_ids: batch.type_ids[span[0]..span[1]].to_vec(),
    };
    let texts: Vec<Encoded> = batch.starts.windows(2).map(text).collect();
    let mut trainer = Trainer::new(model, |_| true).expect("a model that trains");
    let (mut objective, order) = (Worsening::default(), Order::Given(vec![vec![0, 2], vec![1]]));
    let progress = ("fit", &Quiet as _);
    let history = fit(&mut trainer, &mut objective, &texts, &order, settings, state, progress)?;
    let values = trainer.parameters().into_iter().map(|p| p.values.clone()).collect();
    Ok((values, history))
}

#[test]
fn the_best_weights_or_the_last_are_kept() {
    let model = uneven("bert", Task::Bare, 151);
    let start: Vec<Vec<f32>> = {
        let mut trainer = Trainer::new(&model, |_| true).expect("a model that trains");
        trainer.parameters().into_iter().map(|p| p.values.clone()).collect()
    };
    let judged = |history: &History| history.points.iter().map(|p| p.judged).collect::<Vec<_>>();

    let (best, history) = trained(&model, &settings(Keep::Best, 2), None).expect("finite");
    assert!(best == start);
    assert_eq!((history.steps, history.best), (2, Some((0, 0.0))), "patience ends it");
    assert_eq!(judged(&history), [Some(0.0), Some(1.0), Some(2.0)]);

    let (last, history) = trained(&model, &settings(Keep::Last, 2), None).expect("finite");
    assert!(last != start);
    assert_eq!((history.steps, history.best), (4, None));
    assert_eq!(judged(&history), [0.0, 1.0, 2.0, 3.0, 4.0].map(Some));
    let silent = Settings { evaluate: 0, ..settings(Keep::Best, 0) };
    let (unjudged, _) = trained(&model, &silent, None).expect("finite");
    assert!(last == unjudged, "judging changes no weight");
}

#[test]
fn two_loops_of_a_pass_keep_states_of_their_own() {
    let model = uneven("bert", Task::Bare, 152);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("0-prune.safetensors");
    let first = StateFile { path, key: "a run".into(), every: Duration::ZERO };
    let second = first.part("finetune");
    let loops = [settings(Keep::Last, 0), Settings { steps: 2, ..settings(Keep::Best, 0) }];
    let run = |states: [Option<&StateFile>; 2]| {
        let one = |(settings, state)| trained(&model, settings, state).expect("finite");
        loops.iter().zip(states).map(one).collect::<Vec<_>>()
    };
    let alone = run([None, None]);
    let states = [Some(&first), Some(&second)];
    assert!(run(states) == alone);
    let entries = std::fs::read_dir(&folder).expect("a folder").flatten();
    let mut names: Vec<_> = entries.map(|e| e.file_name().into_string().expect("ASCII")).collect();
    names.sort();
    assert_eq!(names, ["0-prune-finetune.safetensors", "0-prune.safetensors"]);
    // Each goes on from its own end.
    assert!(run(states) == alone);

    std::fs::write(&second.path, "cut").expect("a file");
    assert!(trained(&model, &loops[0], states[0]).is_ok());
    let error = trained(&model, &loops[1], states[1]).expect_err("damaged").to_string();
    assert!(error.contains("0-prune-finetune.safetensors: found"), "{error}");
    assert!(error.ends_with("; remove it to start anew"), "{error}");
}
