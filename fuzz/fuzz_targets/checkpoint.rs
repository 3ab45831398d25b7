//! Any bytes as a safetensors file: an error or a checkpoint, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, bytes).expect("a file");
    if let Ok(checkpoint) = compress::checkpoint::Checkpoint::open(&path) {
        for tensor in checkpoint.iter() {
            let _ = tensor.check_finite();
            let _ = tensor.to_f32();
        }
    }
});
