//! A whole forward pass of the checkpoint that the repository ships, or of the one that the environment
//! variable `MODEL` names. `MODEL=models/minilm-sst2 cargo bench --bench forward`

use compress::eval::latency::synthetic;
use compress::model::Model;
use compress::runtime::{Encoder, NoObserver};
use divan::Bencher;
use std::path::PathBuf;

fn main() {
    divan::main();
}

#[divan::bench(args = [(1, 16), (1, 64), (16, 32)])]
fn texts_of_tokens(bencher: Bencher, (texts, tokens): (usize, usize)) {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/reviews/model");
    let path = std::env::var_os("MODEL").map_or_else(|| PathBuf::from(shipped), PathBuf::from);
    let model = Model::open(&path).expect("a checkpoint");
    let encoder = Encoder::packed(&model).expect("a model that runs");
    let one = synthetic(&encoder.model.config, tokens);
    let mut batch = compress::runtime::Batch::default();
    (0..texts).for_each(|row| batch.push(&one.ids, &one.type_ids, row));
    bencher
        .counter(divan::counter::ItemsCount::new(texts * tokens))
        .bench_local(|| encoder.forward(&batch, None, &mut NoObserver).expect("a forward pass"));
}
