//! Any bytes as a file of examples, of every format and for every kind of head: an error or texts, never a panic.
#![no_main]

use compress::data::tables::{Columns, read_examples};
use compress::data::tokenizer::Tokenizer;
use compress::data::{Calibration, Source};
use compress::eval::tasks::Prepared;
use compress::model::{Model, Task};
use compress_fuzz::on_one_thread;
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::LazyLock;

const TASKS: [Task; 4] = [
    Task::SequenceClassification,
    Task::TokenClassification,
    Task::QuestionAnswering,
    Task::Embedding,
];

/// A model for each of [`TASKS`], and the tokenizer of all.
static MODELS: LazyLock<([Model; 4], Tokenizer)> = LazyLock::new(|| {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/reviews/model"));
    let model = Model::open(path).expect("the fixture opens");
    let tokenizer = Tokenizer::load(path).expect("its tokenizer opens").expect("there is one");
    let of = |task| {
        let mut model = model.clone();
        model.config.task = task;
        model
    };
    (TASKS.map(of), tokenizer)
});

fuzz_target!(
    init: on_one_thread(),
    |bytes: &[u8]| {
        let (models, tokenizer) = &*MODELS;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let asked =
            Columns { text: Some("2".into()), pair: Some("text".into()), label: Some("1".into()) };
        for extension in ["tsv", "csv", "jsonl", "txt"] {
            let path = folder.path().join("data").with_extension(extension);
            std::fs::write(&path, bytes).expect("a file");
            let _ = read_examples(&path, &asked);
            let columns = Columns::default();
            let Ok(table) = read_examples(&path, &columns) else { continue };
            for model in models {
                let _ = Prepared::new(&table, model, tokenizer, 16, true, &path);
            }
            let source = Source::File { path, columns };
            let _ = Calibration::read(&source, Some(tokenizer), &models[0].config, 8, 16, 0);
        }
    }
);
