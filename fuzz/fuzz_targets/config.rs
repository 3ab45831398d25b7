//! Any config.json beside tensors that fit it or not: an error or a model that answers, never a panic.
#![no_main]

use compress::eval::latency::{max_tokens, synthetic};
use compress::model::Model;
use compress::report::Summary;
use compress::runtime::{Encoder, NoObserver};
use compress_fuzz::{folder, on_one_thread};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

const FILES: [&str; 4] =
    ["config.json", "model.safetensors", "modules.json", "1_Pooling/config.json"];

fuzz_target!(
    init: on_one_thread(),
    |bytes: &[u8]| {
        let folder = folder(bytes, &FILES);
        let outline = Model::outline(folder.path());
        let Ok(model) = Model::open(folder.path()) else { return };
        outline.expect("what opens has an outline");
        let _ = Summary::of(&model, 0);
        let _ = (model.config_json(&Value::Null), model.config.label_names());
        let tokens = max_tokens(&model.config, model.family).min(3);
        let text = synthetic(&model.config, tokens);
        for encoder in [Encoder::new(&model), Encoder::packed(&model)].into_iter().flatten() {
            let _ = encoder.forward(&text, None, &mut NoObserver);
        }
    }
);
