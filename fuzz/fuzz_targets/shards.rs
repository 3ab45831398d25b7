//! Any index beside two shards, and any modules.json: an error or a checkpoint, never a panic.
#![no_main]

use compress::checkpoint::Checkpoint;
use compress_fuzz::folder;
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 4] =
    ["model.safetensors.index.json", "a.safetensors", "b.safetensors", "modules.json"];

fuzz_target!(|bytes: &[u8]| {
    let folder = folder(bytes, &FILES);
    if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
        for tensor in checkpoint.iter() {
            let _ = tensor.check_finite();
            let _ = tensor.to_f32();
        }
    }
});
