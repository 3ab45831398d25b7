//! Any tokenizer.json, tokenizer_config.json or vocab.txt: an error or a tokenizer that the `vocab` pass can cut,
//! never a panic that gets out.
#![no_main]

use compress::data::tokenizer::{Tokenizer, sentence_max_length};
use compress::model::Model;
use compress::pass::{Context, Pass};
use compress::passes::vocab::{OneOrMore, Vocab};
use compress_fuzz::{folder, on_one_thread};
use libfuzzer_sys::fuzz_target;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "added_tokens.json",
    "sentence_bert_config.json",
];

const TEXTS: [&str; 4] = ["a b", "É good\u{301} film [MASK]", "好 <s>\0\u{2581}x", " "];

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/gradients");
    Model::open(Path::new(path)).expect("the fixture opens")
});

fuzz_target!(
    init: {
        on_one_thread();
        // The library panics, and the loader catches it: only what it does not catch is to end the run.
        std::panic::set_hook(Box::new(|_| {}));
    },
    |bytes: &[u8]| {
        let folder = folder(bytes, &FILES);
        let _ = sentence_max_length(folder.path());
        let Ok(Some(tokenizer)) = Tokenizer::load(folder.path()) else { return };
        for text in TEXTS {
            let _ = tokenizer.encode(text, None, 16);
            let _ = tokenizer.encode_placed(text, Some(TEXTS[0]), 5);
        }
        let _ = (tokenizer.max_length(), tokenizer.vocab_size(), tokenizer.unused_ids());

        let keep = folder.path().join("keep.txt");
        std::fs::write(&keep, TEXTS.join("\n")).expect("a file");
        let vocab = Vocab { keep: OneOrMore::One(keep), ..Vocab::default() };
        let beside = FILES[1..4].iter().map(|name| (folder.path().join(name), name.to_string()));
        let beside: Vec<(PathBuf, String)> = beside.filter(|(path, _)| path.exists()).collect();
        let cx = Context {
            tokenizer: Some(&tokenizer),
            side_files: &beside,
            ..Context::new(&MODEL)
        };
        let _ = vocab.run(&mut MODEL.clone(), &cx);
    }
);
