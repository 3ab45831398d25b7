//! Text that passes watch, train on and are judged by, for every command that runs passes.

use super::{ColumnArgs, examples_file, max_tokens, needed, shell};
use clap::Args;
use compress::data::prepare::is_labelled;
use compress::data::tables::{Columns, Table, check_examples, read_examples};
use compress::data::tokenizer::Tokenizer;
use compress::data::{Calibration, Dataset, Source, Words};
use compress::eval::tasks::Prepared;
use compress::model::{Model, Task};
use compress::pass::Text;
use compress::pipeline::Texts;
use compress::{Error, Result};
use std::path::{Path, PathBuf};

/// Where the text comes from, and how much of it is read.
#[derive(Debug, Clone, Args)]
pub struct TextArgs {
    /// What the passes watch the model on: a text (.txt, .tsv, .csv, .jsonl), `builtin` text, `random`
    /// tokens, or `none` [default: the text of --data, else builtin]. Without a tokenizer, `builtin` means
    /// `random`
    #[arg(long, value_name = "FILE")]
    pub calib: Option<String>,

    /// The most texts to take of it; more are drawn by --seed
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub calib_texts: usize,

    /// Texts to train on (.tsv, .csv, .jsonl or .txt, by the name), with labels where there are any; passes that train use the text of --calib without
    /// it, and passes that only watch take theirs from here without --calib
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,

    /// The most texts to take of --data; more are drawn by --seed [default: all]
    #[arg(long, value_name = "N", requires = "data")]
    pub data_texts: Option<usize>,

    /// Examples to judge the output by, before and after: .tsv, .csv, .jsonl or .txt
    #[arg(long, value_name = "FILE")]
    pub eval: Option<PathBuf>,

    // They hold for the files of --calib, --data and --eval.
    #[command(flatten)]
    pub columns: ColumnArgs,

    /// Tokens of a text that are read [default: what a sentence-transformers model says, else what the
    /// tokenizer says but at most 128, or 384 for question answering]
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,

    /// All randomness derives from it
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Says, once, that the texts of a .tsv are read with the quotes around them.
pub fn mind_quotes(table: &Table, path: &Path) {
    static SAID: std::sync::Once = std::sync::Once::new();
    if table.is_quoted() {
        SAID.call_once(|| {
            eprintln!(
                "note: every text of {} stands in quotes, which in a .tsv are part of it; name the file .csv if commas \
                 separate its cells, else write it without them",
                path.display()
            );
        });
    }
}

impl TextArgs {
    /// What --calib names, or what it is without it.
    pub fn calib(&self) -> String {
        match (&self.calib, &self.data) {
            (Some(text), _) => text.clone(),
            (None, Some(data)) => data.to_string_lossy().into_owned(),
            (None, None) => "builtin".into(),
        }
    }

    /// All of it that an output depends on, as it would be written on the command line.
    pub fn arguments(&self) -> String {
        let mut arguments = format!(
            "--calib {} --calib-texts {} --seed {}",
            shell(&self.calib()),
            self.calib_texts,
            self.seed
        );
        if let Some(data) = &self.data {
            arguments += &format!(" --data {}", shell(&data.to_string_lossy()));
        }
        if let Some(texts) = self.data_texts {
            arguments += &format!(" --data-texts {texts}");
        }
        let columns = [
            ("text", &self.columns.text_column),
            ("pair", &self.columns.pair_column),
            ("label", &self.columns.label_column),
        ];
        for (role, column) in columns.iter().filter_map(|(r, c)| c.as_ref().map(|c| (r, c))) {
            arguments += &format!(" --{role}-column {}", shell(column));
        }
        if let Some(length) = self.max_length {
            arguments += &format!(" --max-length {length}");
        }
        arguments
    }

    /// The files that an output depends on.
    pub fn files(&self) -> Vec<PathBuf> {
        let calib = Some(PathBuf::from(self.calib())).filter(|p| p.is_file());
        [self.data.clone(), calib].into_iter().flatten().collect()
    }

    /// All of it, in the tokens of `tokenizer`; words are `counted` where a pass asks for it.
    pub fn read(
        &self,
        model: &Model,
        tokenizer: Option<&Tokenizer>,
        input: &Path,
        counted: bool,
    ) -> Result<Texts> {
        self.check_counts()?;
        let data = self.data(model, tokenizer, input)?;
        let calibration = self.calibration(model, tokenizer, input)?;
        let data = match (data, &calibration) {
            // Without --eval, the report judges by what calibration holds out; with it, the output must be the same.
            (Some(data), Some(text)) => Some(data.without_held_out(text)),
            (data, _) => data,
        };
        let eval = match &self.eval {
            None => None,
            Some(path) => {
                let tokenizer = needed(tokenizer, input)?;
                let tokens = max_tokens(model, Some(tokenizer), input, self.max_length)?;
                let table = read_examples(path, &self.columns.columns())?;
                mind_quotes(&table, path);
                // Heads that answer token by token can be judged by agreement alone.
                let task = model.config.task;
                let labelled = !matches!(task, Task::TokenClassification | Task::QuestionAnswering)
                    || table.examples.iter().any(|e| is_labelled(e, task));
                let prepared = Prepared::new(&table, model, tokenizer, tokens, labelled, path)?;
                Some((prepared, examples_file(path)?))
            }
        };
        let words = match counted {
            true => {
                let source = self.source(tokenizer.is_some());
                let tokens = max_tokens(model, tokenizer, input, self.max_length)?;
                let (text, data) = (calibration.as_ref(), data.as_ref());
                Some(Words::read(source.as_ref(), text, data, tokenizer, &model.config, tokens)?)
            }
            false => None,
        };
        Ok(Texts { calibration, data, words, eval })
    }

    /// What of it passes will have, without reading a text.
    ///
    /// # Errors
    /// What [`TextArgs::read`] refuses before it reads any, and files that are not there.
    pub fn foresee(
        &self,
        model: &Model,
        tokenizer: Option<&Tokenizer>,
        input: &Path,
    ) -> Result<Option<Text>> {
        self.check_counts()?;
        let source = self.source(tokenizer.is_some());
        let file = match &source {
            Some(Source::File { path, .. }) => Some(path),
            _ => None,
        };
        let files = [self.data.as_ref(), file, self.eval.as_ref()].into_iter().flatten();
        let mut read = source.is_some();
        for path in files {
            read = true;
            needed(tokenizer, input)?;
            check_examples(path)?;
        }
        if read {
            max_tokens(model, tokenizer, input, self.max_length)?;
        }
        Ok(source.map(|source| match source {
            Source::Random => Text::Random,
            Source::Builtin => Text::Builtin,
            Source::File { .. } => Text::Given,
        }))
    }

    fn check_counts(&self) -> Result<()> {
        let of_data = self.data_texts.filter(|_| self.data.is_some());
        let none = [("--data-texts", of_data, "leave --data out")];
        let calib = Some(self.calib_texts).filter(|_| self.calib() != "none");
        let none = none.into_iter().chain([("--calib-texts", calib, "--calib none")]);
        for (option, texts, otherwise) in none {
            if texts == Some(0) {
                return Err(Error::Usage {
                    found: format!("{option} is 0"),
                    advice: format!("give at least 1, or {otherwise}"),
                });
            }
        }
        Ok(())
    }

    fn calibration(
        &self,
        model: &Model,
        tokenizer: Option<&Tokenizer>,
        input: &Path,
    ) -> Result<Option<Calibration>> {
        let Some(source) = self.source(tokenizer.is_some()) else { return Ok(None) };
        if let Source::File { .. } = &source {
            needed(tokenizer, input)?;
        }
        let tokens = max_tokens(model, tokenizer, input, self.max_length)?;
        let config = &model.config;
        Calibration::read(&source, tokenizer, config, self.calib_texts, tokens, self.seed).map(Some)
    }

    /// What --calib names; `None`: nothing.
    pub fn source(&self, tokenizer: bool) -> Option<Source> {
        Some(match &self.calib()[..] {
            "none" => return None,
            "random" => Source::Random,
            "builtin" if tokenizer => Source::Builtin,
            // A checkpoint without a tokenizer can still be watched; the report says on what.
            "builtin" => Source::Random,
            path => {
                let columns = match Path::new(path).extension().is_some_and(|e| e == "txt") {
                    true => Columns::default(), // plain text beside a table for --eval
                    false => self.columns.columns(),
                };
                Source::File { path: path.into(), columns }
            }
        })
    }

    /// The texts of --data.
    fn data(
        &self,
        model: &Model,
        tokenizer: Option<&Tokenizer>,
        input: &Path,
    ) -> Result<Option<Dataset>> {
        let Some(path) = &self.data else { return Ok(None) };
        let tokenizer = needed(tokenizer, input)?;
        let tokens = max_tokens(model, Some(tokenizer), input, self.max_length)?;
        let limit = self.data_texts.unwrap_or(usize::MAX);
        let columns = self.columns.columns();
        Dataset::read(path, &columns, tokenizer, &model.config, limit, tokens, self.seed).map(Some)
    }
}
