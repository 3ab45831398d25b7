//! Any tensors as CoFi's masks of a small model: an error or a model that is cut, never a panic.
#![no_main]

use compress::eval::latency::synthetic;
use compress::model::{Model, Outline};
use compress::pass::{Context, Pass, PlanContext};
use compress::passes::prune::Prune;
use compress::runtime::{Encoder, NoObserver};
use compress_fuzz::{folder, on_one_thread};
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::LazyLock;

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/gradients");
    Model::open(Path::new(path)).expect("the fixture opens")
});

fuzz_target!(
    init: on_one_thread(),
    |bytes: &[u8]| {
        let folder = folder(bytes, &["zs.safetensors"]);
        let masks = folder.path().join("zs.safetensors").to_string_lossy().into_owned();
        let prune = Prune { masks, ..Prune::default() };
        let mut outline = Outline::new(MODEL.clone());
        let cx = PlanContext {
            teacher: &MODEL,
            tokenizer: None,
            side_files: &[],
            text: None,
            texts: 0,
            tokens: 0,
            data: false,
        };
        let planned = prune.outline(&mut outline, &cx);
        let mut model = MODEL.clone();
        if prune.run(&mut model, &Context::new(&MODEL)).is_err() {
            return;
        }
        planned.expect("what is cut was planned");
        model.validate().expect("what is cut is whole");
        let encoder = Encoder::new(&model).expect("a model that runs");
        encoder.forward(&synthetic(&model.config, 3), None, &mut NoObserver).expect("an answer");
    }
);
