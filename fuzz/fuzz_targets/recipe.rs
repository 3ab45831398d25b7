//! Any text as a recipe: an error or steps, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = compress::recipe::Recipe::parse(text, &[]);
    let _ = compress::recipe::Recipe::from_toml(text, &[]);
});
