//! What the tables become, before they are fitted.

use super::weights::Frequencies;
use super::{Assignment, Distance, Embed, Method, Positions, Rotate};
use crate::Result;
use crate::checkpoint::{Dtype, Tensor};
use crate::data::Words;
use crate::model::{
    Codes, Exact, Factored, Model, Outline, Rotation, Subspace, TableErrors, Weight,
};
use crate::pass::{Foresight, PlanContext, Text};

/// Seconds of one thread for each number of the table (docs/plan.md).
const CLUSTERED: f64 = 3e-6;
const FACTORED: f64 = 4e-8;
const ROUNDED: f64 = 1e-8;

impl Embed {
    pub(super) fn outline_tables(
        &self,
        outline: &mut Outline,
        cx: &PlanContext,
    ) -> Result<Foresight> {
        let config = &cx.teacher.config;
        let words = Words::read(None, None, None, cx.tokenizer, config, 0)?;
        let frequencies = Frequencies::new(Some(&words), config.vocab, config.pad_id);
        let special = frequencies.special.len();
        // Where counts are believed, all rows have one that some text uses.
        let used = frequencies.exact(usize::MAX).len() - special;
        let counted = cx.data || cx.text == Some(Text::Given);
        let least = if counted { 0 } else { used };
        outline.spread(|model| {
            model.embeddings.word.dense()?;
            if model.config.vocab == config.vocab {
                let exact = [least, used].map(|used| self.exact_rows(model, special, used));
                return self.between(model, special, exact);
            }
            // A vocabulary that was cut: how many rows it has is not known.
            if self.share > 0.0 {
                return self.within_share(model, special);
            }
            let most = model.config.vocab.saturating_sub(special);
            let exact = [0, most].map(|used| self.exact_rows(model, special, used));
            self.between(model, special, exact)
        })?;
        let numbers = cx.teacher.embeddings.word.params() as f64;
        let each = match self.method {
            Method::Subspace => CLUSTERED,
            Method::Paper | Method::Svd => FACTORED,
            Method::Int8 | Method::F16 => ROUNDED,
        };
        let (mut seconds, mut copies) =
            (each * numbers, 2.0 + 2.0 * numbers / cx.weights().max(1.0));
        if self.method == Method::Subspace
            && self.distance == Distance::Answers
            && cx.text.is_some()
        {
            // Forward and back.
            seconds += 3.0 * cx.watch();
            copies += 3.0;
        }
        let foresight = Foresight { seconds, copies, ..Foresight::default() };
        Ok(match outline.models().len() > 1 && counted {
            true => foresight.noting("the texts say which rows are stored as they are"),
            false => foresight,
        })
    }

    /// Rows that are stored as they are, of a table with `used` rows that have a count.
    fn exact_rows(&self, model: &Model, special: usize, used: usize) -> Result<usize> {
        let (rows, cols) = (model.embeddings.word.rows(), model.embeddings.word.cols());
        let hottest = match self.method {
            Method::Subspace => self.plan(rows, cols, special, &mut Vec::new())?.1,
            Method::Paper | Method::Svd => self.hottest(rows, 0),
            Method::Int8 | Method::F16 => 0,
        };
        Ok(special + hottest.min(used))
    }

    /// With the fewest and with the most rows that are stored as they are.
    fn between(
        &self,
        model: &Model,
        special: usize,
        exact: [Result<usize>; 2],
    ) -> Result<Vec<Model>> {
        let [least, most] = exact;
        let mut counts = vec![least?, most?];
        counts.dedup();
        counts.into_iter().map(|exact| self.with_tables(model, special, exact)).collect()
    }

    /// Of any number of rows up to those of `model`, for a share of them: with the least that a form can take, with all of
    /// the share, and with the most numbers to look up.
    fn within_share(&self, model: &Model, special: usize) -> Result<Vec<Model>> {
        let word = &model.embeddings.word;
        word.dense()?;
        let budget = (self.share * word.params() as f64 * 4.0) as usize;
        let least =
            Embed { share: 0.0, bytes: 2, rotation: Rotate::None, exact: 0, ..self.clone() };
        let smallest = least.with_tables(model, special, special)?;
        let more = budget.saturating_sub(smallest.embeddings.word.bytes());
        let more = more.div_ceil(2 * word.cols() + 4);
        let mut models = vec![smallest, least.with_tables(model, special, special + more)?];
        // Of a table as large as that it may be too small a share.
        let usual = self.exact_rows(model, special, 0);
        models.extend(usual.and_then(|exact| self.with_tables(model, special, exact)));
        let turns = self.method == Method::Subspace && self.rotation != Rotate::None;
        if turns {
            let full = Embed { rotation: Rotate::Full, ..least };
            models.push(full.with_tables(model, special, special)?);
        }
        Ok(models)
    }

    /// With `exact` rows that are stored as they are.
    fn with_tables(&self, model: &Model, special: usize, exact: usize) -> Result<Model> {
        let mut model = model.clone();
        let word = &model.embeddings.word;
        let (rows, cols) = (word.rows(), word.cols());
        word.dense()?;
        let exact = Exact::blank(exact);
        let mut after = match self.method {
            Method::Subspace => {
                let plan = self.plan(rows, cols, special, &mut Vec::new())?.0;
                let slices = plan.slices(cols);
                let books = if plan.shared { 1 } else { slices };
                Weight::Subspace(Box::new(Subspace {
                    width: plan.width,
                    rotation: plan.rotation.map(|block| Rotation::new(block, Vec::new())),
                    mean: Some(vec![0.0; cols]),
                    ..blank(word, slices, plan.words, (books, plan.width), exact)
                }))
            }
            Method::Paper => {
                let words = self.paper_words(rows, cols)?;
                let width = cols.div_ceil(self.slices);
                let table = blank(word, self.slices, words, (self.slices, width), exact);
                Weight::Subspace(Box::new(match self.assignment {
                    Assignment::Dispersed => Subspace { codes: Codes::Digits, ..table },
                    _ => table,
                }))
            }
            Method::Svd => {
                let rank = self.rank(rows, cols, exact.ids.len())?;
                Weight::Factored(Factored::blank(word.name().into(), (rows, cols), rank, exact))
            }
            Method::Int8 => word.to_int8()?,
            Method::F16 => word.to_f16()?,
        };
        let unknown = Some(TableErrors { uniform: 0.0, frequency: 0.0 });
        match &mut after {
            Weight::Subspace(table) => table.errors = unknown,
            Weight::Factored(table) => table.errors = unknown,
            _ => {}
        }
        model.embeddings.word = after;
        model.drop_tied_copy();
        if let (Positions::F16, Some(position)) = (self.positions, &mut model.embeddings.position) {
            *position = Weight::Dense(position.clone()).to_f16()?.dense()?.clone();
        }
        Ok(model)
    }
}

/// A table of codes without their values, where numbers keep to the range of f16.
fn blank(
    word: &Weight,
    slices: usize,
    words: usize,
    (books, width): (usize, usize),
    exact: Exact,
) -> Subspace {
    let (name, rows, cols) = (word.name().to_string(), word.rows(), word.cols());
    let dtype = if words <= 256 { Dtype::U8 } else { Dtype::U16 };
    let codes = Tensor::blank(format!("{name}.pq_codes"), dtype, &[rows, slices]);
    Subspace {
        name,
        rows,
        cols,
        slices,
        words,
        width,
        codes: Codes::Stored(codes),
        books: vec![0.0; books * words * width],
        books_dtype: Dtype::F16,
        rotation: None,
        mean: None,
        exact,
        errors: None,
    }
}
