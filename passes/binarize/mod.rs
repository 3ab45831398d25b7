#![doc = include_str!("README.md")]

mod calibrated;
mod double;
mod elastic;
mod fit;
mod mixed;
mod outline;
mod products;
mod refine;
mod residual;
mod rungs;
mod stepwise;
#[cfg(test)]
mod tests;
mod weights;

use crate::emit::Target;
use crate::model::{Activations, Binary, Int8, Linear, LowRank, Model, Outline, Weight};
use crate::pass::{Context, Entry, Foresight, Pass, PlanContext, Work};
use crate::report::{Change, parse_bytes};
use crate::train::sweep;
use crate::{Error, Result};
use fit::Codes;
use mixed::Planned;
use residual::Metric;
use rungs::Rung;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

pub const ENTRY: Entry = Entry::new::<Binarize>(
    "binarize",
    "store matrices as sign planes or two binary factors, plus a low-rank residual",
    include_str!("README.md"),
    &["prune", "vocab", "binarize"],
);

/// Options of the pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Binarize {
    /// What the layers' matrices become: sign planes, or two binary factors at any number of bits a weight.
    pub form: Form,
    /// Sign planes, 1 to 4, with `form=planes`: about one bit a weight each.
    pub planes: usize,
    /// Bits a weight, 0.5 to 4, with `form=double`; 0 for 1.5.
    pub rate: f64,
    /// In their place: bits a weight that the layers' matrices may take on average, everything stored counted; each gets a
    /// form of its own. 0 for none.
    pub bits: f64,
    /// In their place: bytes that the weight file may take, also as `12MB`; 0 for any.
    pub size: Size,
    /// Rank of the residual beside sign planes; 0 for none.
    pub rank: usize,
    /// How the residual is stored.
    pub factors: Factors,
    /// Weights of a row that share a scale; 0 for the whole row.
    pub group: usize,
    /// Rounds of fitting signs and residual in turn, when there is a residual.
    pub rounds: usize,
    /// Added to the diagonal of the inputs' second moments, relative to its mean.
    pub damp: f64,
    /// With text: how much of what layers before it lost a matrix is to make up for, 0 to 1.
    pub aim: f64,
    /// Sign planes of the word embeddings, 0 to 4; 0 leaves them as they are.
    pub embeddings: usize,
    /// Sign planes of the head's linear layers, 0 to 4; 0 leaves them as they are.
    pub head: usize,
    /// Bits to which a packed layer rounds its inputs: 8, 4, or 32 for not at all; 1 makes them BiPFT's signs, to be trained.
    pub activations: u32,
    /// Rank of the estimators of attention's residuals, where activations are signs; 0 for none.
    pub estimators: usize,
}

/// See [`Binarize::form`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    Planes,
    Double,
}

/// See [`Binarize::factors`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Factors {
    F16,
    Int8,
}

/// A number of bytes; in recipes also as `12MB`, `1.5GB`, `800kB`, `12MiB`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Size, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(f64),
            Text(String),
        }
        let bytes = match Written::deserialize(from)? {
            Written::Number(n) if (0.0..1e15).contains(&n) => Ok(n as u64),
            Written::Number(n) => Err(format!("`{n}` is no number of bytes")),
            Written::Text(text) => parse_bytes(&text),
        };
        bytes.map(Size).map_err(serde::de::Error::custom)
    }
}

/// Bits a weight of two binary factors, where none are given: the most accurate rung below two planes (BiPFT notes,
/// §5.11).
const RATE: f64 = 1.5;

impl Default for Binarize {
    fn default() -> Self {
        Binarize {
            form: Form::Planes,
            planes: 2,
            rate: 0.0,
            bits: 0.0,
            size: Size(0),
            rank: 0,
            factors: Factors::F16,
            group: 0,
            rounds: 3,
            damp: 0.05,
            aim: 0.5,
            embeddings: 0,
            head: 0,
            activations: 8,
            estimators: 1,
        }
    }
}

impl Pass for Binarize {
    fn refuses(&self, target: Target, _data: bool) -> Option<&'static str> {
        match (self.activations, target) {
            (1, Target::Dense | Target::Hf | Target::Onnx) => Some("inputs of layers are signs"),
            (4, Target::Dense) => Some("inputs of layers are rounded to 4 bits"),
            _ => None,
        }
    }

    fn needs_plain_layers(&self) -> Option<&'static str> {
        (self.activations == 1).then_some("makes signs of inputs, which nothing trains there")
    }

    fn ignores(&self) -> Option<(&'static str, &'static str)> {
        let beside = [
            ("bits", self.bits > 0.0),
            ("size", self.size.0 > 0),
            ("form=double", self.form == Form::Double),
        ];
        beside.into_iter().find(|(_, given)| *given).map(|(other, _)| ("planes", other))
    }

    fn check(&self) -> Result<()> {
        let fail = |option, found: String, expected: &str| {
            Err(Error::Option { pass: "binarize", option, found, expected: expected.into() })
        };
        if !(1..=4).contains(&self.planes) {
            return fail("planes", self.planes.to_string(), "1, 2, 3 or 4");
        }
        for (option, planes) in [("embeddings", self.embeddings), ("head", self.head)] {
            if planes > 4 {
                return fail(
                    option,
                    planes.to_string(),
                    "0 to leave it as it is, or 1 to 4 planes",
                );
            }
        }
        match self.form {
            Form::Planes if self.rate != 0.0 => {
                return fail("rate", self.rate.to_string(), "0 beside `form=planes`");
            }
            Form::Double if self.rate != 0.0 && !(0.5..=4.0).contains(&self.rate) => {
                return fail("rate", self.rate.to_string(), "0 for 1.5, or a number from 0.5 to 4");
            }
            Form::Double if self.rank > 0 => {
                return fail("rank", self.rank.to_string(), "0 beside `form=double`");
            }
            Form::Double if self.group > 0 => {
                return fail("group", self.group.to_string(), "0 beside `form=double`");
            }
            _ => {}
        }
        if self.bits != 0.0 && !(0.5..=8.5).contains(&self.bits) {
            return fail(
                "bits",
                self.bits.to_string(),
                "0 for no budget, or a number from 0.5 to 8.5",
            );
        }
        if self.is_mixed() {
            // What they would choose is chosen for each matrix.
            let only = [
                ("size", self.bits > 0.0 && self.size.0 > 0, self.size.0.to_string(), "0"),
                ("form", self.form != Form::Planes, "double".into(), "planes, its default,"),
                ("planes", self.planes != 2, self.planes.to_string(), "2, its default,"),
                ("rank", self.rank != 0, self.rank.to_string(), "0"),
                ("activations", self.activations == 1, "1".into(), "8, 4 or 32"),
            ];
            let budget = if self.bits > 0.0 { "bits" } else { "size" };
            for (option, wrong, found, expected) in only {
                if wrong {
                    return fail(option, found, &format!("{expected} beside `{budget}`"));
                }
            }
        }
        if self.rank > 4096 {
            return fail("rank", self.rank.to_string(), "a number from 0 to 4096");
        }
        if self.factors == Factors::Int8 && self.rank == 0 {
            return fail("factors", "int8".into(), "f16 where there is no residual (`rank=0`)");
        }
        if !(1..=100).contains(&self.rounds) {
            return fail("rounds", self.rounds.to_string(), "a number from 1 to 100");
        }
        if self.group != 0 && self.group < 8 {
            return fail("group", self.group.to_string(), "0 for the whole row, or at least 8");
        }
        if !(1e-4..=10.0).contains(&self.damp) {
            // Below, the ridge is lost in the rounding of f32 moments.
            return fail("damp", self.damp.to_string(), "a number from 0.0001 to 10");
        }
        if !(0.0..=1.0).contains(&self.aim) {
            return fail("aim", self.aim.to_string(), "a number from 0 to 1");
        }
        if ![32, 8, 4, 1].contains(&self.activations) {
            return fail("activations", self.activations.to_string(), "32, 8, 4 or 1");
        }
        if self.estimators > 256 {
            return fail("estimators", self.estimators.to_string(), "a number from 0 to 256");
        }
        if self.activations == 1 {
            // One scale a matrix, and nothing beside it: there is no choice of these.
            if self.form != Form::Planes {
                return fail("form", "double, with activations=1".into(), "planes");
            }
            let only =
                [("planes", self.planes, 1), ("rank", self.rank, 0), ("group", self.group, 0)];
            for (option, found, only) in only {
                if found != only {
                    let found = format!("{found}, with activations=1");
                    return fail(option, found, &only.to_string());
                }
            }
        }
        Ok(())
    }

    fn outline(&self, outline: &mut Outline, cx: &PlanContext) -> Result<Foresight> {
        self.check()?;
        if self.activations == 1 && cx.text.is_none() {
            return Err(elastic::no_text());
        }
        outline.each(|model| self.outline_around(model))?;
        if self.is_mixed() {
            self.outline_mixed(outline)?;
            let note = "each matrix gets the form that the budget is best spent on";
            return Ok(self.foresight(cx).noting(note));
        }
        match (self.activations, outline.uneven) {
            (1, _) => outline.each(|model| self.outline_signs(model))?,
            (_, true) => self.outline_open(outline)?,
            _ => outline.each(|model| self.outline_layers(model, |weight| self.uniform(weight)))?,
        }
        Ok(self.foresight(cx))
    }

    fn run(&self, model: &mut Model, cx: &Context) -> Result<Work> {
        self.check()?;
        let layers = model.layers.len();
        let plain = model.family.feature.is_none();
        let mixed = self.is_mixed() && cx.calibration.is_some() && plain;
        cx.progress.start("binarize", if mixed { 2 * layers + 1 } else { layers + 1 });
        let before = model.clone();
        // First, so that layers make up for what the table lost, and a budget knows what is left.
        let mut tables = Vec::new();
        if self.embeddings > 0 {
            tables.push(self.pack_embeddings(model)?);
        }
        if self.head > 0 {
            for linear in model.head.linears_mut() {
                tables.push(self.pack(linear, Planned::free(self.plain(self.head)), None)?);
            }
        }
        cx.progress.step()?;
        let plan: Vec<Planned> = match self.is_mixed() {
            true => self.plan(model, cx)?,
            false => {
                let linears = model.layers.iter().flat_map(|l| l.linears());
                linears.map(|(_, l)| Planned::free(self.uniform(&l.weight))).collect()
            }
        };
        let mut changes = Vec::new();
        match cx.calibration {
            _ if self.activations == 1 => self.to_signs(model, cx, &mut changes)?,
            Some(text) if plain => {
                self.with_text(&before, model, text, &plan, cx, &mut changes)?;
            }
            Some(text) => self.by_steps(model, text, &plan, cx, &mut changes)?,
            None => {
                let mut plan = plan.iter();
                for layer in &mut model.layers {
                    for linear in layer.linears_mut() {
                        let rung = plan.next().expect("a form for every matrix");
                        changes.push(self.pack(linear, *rung, None)?);
                    }
                    cx.finished(layer)?;
                    cx.progress.step()?;
                }
            }
        }
        let figures = figures(&changes);
        changes.extend(tables);
        let mut work = Work { figures, ..Work::from(changes) };
        if let (Some(feature), Some(_)) = (model.family.feature, cx.calibration) {
            let choice = if self.is_mixed() { ", forms chosen by weights alone" } else { "" };
            work.notes.push(format!(
                "`{}` has {feature}: tokens count alike, `aim` is 0{choice}",
                model.family.model_type
            ));
        }
        if self.activations == 1 {
            work.notes.push(
                "layers multiply signs of their inputs: until `distill`, or fine-tuning, has trained \
                 them, answers are worth little"
                    .into(),
            );
        }
        Ok(work)
    }
}

impl Binarize {
    /// Planes without a residual, for tables and heads.
    fn plain(&self, planes: usize) -> Rung {
        Rung::Planes { planes, rank: 0 }
    }

    /// What every matrix becomes where there is no budget.
    fn uniform(&self, weight: &Weight) -> Rung {
        match self.form {
            Form::Planes => Rung::Planes { planes: self.planes, rank: self.rank },
            Form::Double => {
                let rate = if self.rate == 0.0 { RATE } else { self.rate };
                Rung::Double { rank: double::rank(rate, weight.rows(), weight.cols()) }
            }
        }
    }

    /// What a packed layer makes of its inputs.
    fn rounding(&self) -> Activations {
        match self.activations {
            8 => Activations::Int8,
            4 => Activations::Int4,
            _ => Activations::Exact,
        }
    }

    /// Packs one layer; its metric comes from what it multiplies, and what it aims at is added to its weights.
    fn pack(
        &self,
        linear: &mut Linear,
        planned: Planned,
        seen: Option<(&Metric, &[f32])>,
    ) -> Result<Change> {
        let before = linear.clone();
        let mut w = linear.weight.dense()?.to_f32()?;
        let metric = seen.map(|(metric, _)| metric);
        if let Some((_, aim)) = seen.filter(|(_, aim)| !aim.is_empty()) {
            w.to_mut().iter_mut().zip(aim).for_each(|(w, aim)| *w += aim);
        }
        let (packed, error) = self.fit_within(&linear.weight, &w, planned, metric)?;
        before.weight.dense()?.release();
        linear.weight = packed;
        linear.activations = self.rounding();
        Ok(Change::new(&before, linear, Some(error)))
    }

    fn pack_embeddings(&self, model: &mut Model) -> Result<Change> {
        let before = Linear::table(&model.embeddings.word);
        let w = before.weight.dense()?.to_f32()?;
        let (packed, error) = self.fit(&before.weight, &w, self.plain(self.embeddings), None)?;
        before.weight.dense()?.release(); // all of a large table was read
        model.embeddings.word = packed;
        model.drop_tied_copy();
        Ok(Change::new(&before, &Linear::table(&model.embeddings.word), Some(error)))
    }

    /// The form of `rung` for the values `w`, in the place of `weight`, and the relative error that it makes.
    fn fit(
        &self,
        weight: &Weight,
        w: &[f32],
        rung: Rung,
        metric: Option<&Metric>,
    ) -> Result<(Weight, f64)> {
        let (name, shape) = (weight.name(), (weight.rows(), weight.cols()));
        let packed = match rung {
            Rung::Planes { planes, rank } => {
                let (binary, error) = self.planes(name, w, shape, (planes, rank), metric);
                return Ok((Weight::Binary(binary), error));
            }
            Rung::Double { rank } => {
                Weight::Double(double::fit(name.into(), w, shape, rank, metric))
            }
            Rung::Int8 => Weight::Int8(Int8::new(name.into(), shape, w)),
        };
        let error = self.error(&packed, w, metric)?;
        Ok((packed, error))
    }

    /// The relative squared error of `packed` in the place of `w`.
    fn error(&self, packed: &Weight, w: &[f32], metric: Option<&Metric>) -> Result<f64> {
        let (shape, dense) = ((packed.rows(), packed.cols()), packed.to_f32()?);
        let add_row = |row: usize, out: &mut [f32]| {
            let values = &dense[row * shape.1..];
            out.iter_mut().zip(values).for_each(|(o, v)| *o += v);
        };
        Ok(residual::relative_error(w, shape, add_row, metric))
    }

    /// `W ≈ planes + U·V`: signs and residual are fitted in turn, and the best round counts.
    fn planes(
        &self,
        name: &str,
        w: &[f32],
        (rows, cols): (usize, usize),
        (planes, rank): (usize, usize),
        metric: Option<&Metric>,
    ) -> (Binary, f64) {
        let rank = rank.min(rows).min(cols);
        let group = self.group(cols);
        let rounds = if rank == 0 { 1 } else { self.rounds };
        let mut low_rank = None;
        let mut best: Option<(Binary, f64)> = None;
        for _ in 0..rounds {
            let rest = residual::minus(w, low_rank.as_ref(), cols);
            let codes = Codes::fit(&rest, (rows, cols), planes, group);
            let codes = match metric {
                Some(metric) => codes
                    .reach_far_out(&rest)
                    .compensate(&rest, &metric.factor, &metric.order)
                    .descend(&rest, &metric.h, &metric.order),
                None => codes,
            };
            if rank > 0 {
                let planes = codes.pack(name.into(), None);
                let add_row = |row: usize, out: &mut [f32]| planes.add_row(row, out);
                let missing = residual::difference(w, cols, 0..rows, add_row);
                let found = residual::low_rank(&missing, (rows, cols), rank, metric);
                low_rank = Some(match self.factors {
                    Factors::F16 => found,
                    Factors::Int8 => LowRank::int8(rank, found.u, found.v),
                });
            }
            let binary = codes.pack(name.into(), low_rank.clone());
            let add_row = |row: usize, out: &mut [f32]| binary.add_row(row, out);
            let error = residual::relative_error(w, (rows, cols), add_row, metric);
            if best.as_ref().is_none_or(|(_, least)| error < *least) {
                best = Some((binary, error));
            }
        }
        best.expect("there is at least one round")
    }
}

/// What the layers' matrices take, and how many got which form.
fn figures(changes: &[Change]) -> BTreeMap<&'static str, f64> {
    let weights: usize = changes.iter().map(|c| c.after.shape.iter().product::<usize>()).sum();
    let bytes: usize = changes.iter().map(|c| c.after.bytes).sum();
    let mut figures = BTreeMap::from([
        ("layer_bits_per_weight", 8.0 * bytes as f64 / weights.max(1) as f64),
        ("layer_bytes", bytes as f64),
    ]);
    for change in changes {
        let form = match change.after.form.as_str() {
            "int8" => "matrices_int8",
            f if f.starts_with("double") => "matrices_two_factors",
            f if f.starts_with("binary(planes=1") => "matrices_1_plane",
            f if f.starts_with("binary(planes=2") => "matrices_2_planes",
            f if f.starts_with("binary(planes=3") => "matrices_3_planes",
            _ => "matrices_4_planes",
        };
        *figures.entry(form).or_default() += 1.0;
    }
    figures
}

fn all<T: Send>(n: usize, compute: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let mut items = Vec::with_capacity(n);
    sweep(n, compute, |_, item| {
        items.push(item);
        Ok(())
    })?;
    Ok(items)
}
