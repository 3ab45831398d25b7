//! A whole training step (forward, back, clipping, AdamW over every weight, the word table included) of the
//! checkpoint that the repository ships, or of the classifier that the environment variable `MODEL` names.
//! `MODEL=models/minilm-sst2 cargo bench --bench train`

use compress::data::Targets;
use compress::eval::latency::synthetic;
use compress::model::Model;
use compress::runtime::Batch;
use compress::train::objective::Moment;
use compress::train::tape::Dropout;
use compress::train::task::TaskObjective;
use compress::train::trainer::Trainer;
use divan::Bencher;
use std::path::PathBuf;

fn main() {
    keep_freed_buffers();
    divan::main();
}

/// As the command line does where it trains.
fn keep_freed_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters, before any thread is started.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 16 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 << 20);
    }
}

#[divan::bench(args = [0.0, 0.1])]
fn step_of_32_texts_of_32_tokens(bencher: Bencher, rate: f32) {
    const TEXTS: usize = 32;
    const TOKENS: usize = 32;
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/reviews/model");
    let path = std::env::var_os("MODEL").map_or_else(|| PathBuf::from(shipped), PathBuf::from);
    let model = Model::open(&path).expect("a checkpoint");
    let one = synthetic(&model.config, TOKENS);
    let mut batch = Batch::default();
    (0..TEXTS).for_each(|row| batch.push(&one.ids, &one.type_ids, row));
    let targets = Targets::Classes((0..TEXTS as u32).map(|row| row % 2).collect());
    let mut objective = TaskObjective {
        vocab: model.config.vocab,
        targets: Some(&targets),
        masker: None,
        rows: (0..TEXTS).collect(),
        held: Vec::new(),
        seed: 0,
    };
    let mut trainer = Trainer::new(&model, |_| true).expect("a model that trains");
    let mut update = 0;
    bencher.counter(divan::counter::ItemsCount::new(TEXTS * TOKENS)).bench_local(|| {
        let dropout = Dropout { hidden: rate, attention: rate, key: update as u64 };
        trainer.gather(&objective, &batch, dropout, Moment { update, part: 0 }).expect("runs");
        trainer.update(&mut objective, 1e-5, 0.01, 1.0).expect("finite");
        update += 1;
    });
}
