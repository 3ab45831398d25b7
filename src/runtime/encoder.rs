//! A model made ready to run: weights as f32, borrowed from the mapped file where they can be, or packed as the kernels
//! for integers take them.

use super::binary::{RunBinary, RunElastic};
use super::integer::IntegerMatrix;
use super::kernels::{self, Mat, MatMut, Panels, arena, arena::Held, packed::Quantised};
use super::lookup;
use super::positions::RunPositions;
use crate::Result;
use crate::model::{
    Activation, Activations, Attention, Bottleneck, Config, FeedForward, Head, Layer, Linear,
    Model, Norm, NormKind, PoolMode, TokenSchedule, Weight,
};
use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::Arc;

/// See the module. A clone shares what is borrowed from the mapped file.
#[derive(Debug, Clone)]
pub struct Encoder<'m> {
    pub model: &'m Model,
    /// `[vocab, embedding]` in training; `None`: rows are read from the model one by one.
    pub word: Option<Cow<'m, [f32]>>,
    pub position: Option<Cow<'m, [f32]>>,
    pub token_type: Option<Cow<'m, [f32]>>,
    /// Row 0 of ERNIE's task types.
    pub task_type: Option<Cow<'m, [f32]>>,
    pub norm: RunNorm<'m>,
    pub project: Option<Dense<'m>>,
    /// `[32, heads]`
    pub relative_bias: Option<Cow<'m, [f32]>>,
    /// DeBERTa: `[2 · span, hidden]`, normalised.
    pub distances: Option<Vec<f32>>,
    /// ModernBERT: behind the last layer.
    pub final_norm: Option<RunNorm<'m>>,
    /// Empty where each is made ready when it is its turn ([`Encoder::one_by_one`]).
    pub layers: Vec<RunLayer<'m>>,
    pub one_by_one: bool,
    /// Which tokens layers drop: the model's schedule, or one that is tried.
    pub tokens: Option<TokenSchedule>,
    pub head: RunHead<'m>,
}

/// `y = x·Wᵀ + b` in f32, of inputs that may be rounded first.
#[derive(Debug, Clone)]
pub struct Dense<'m> {
    /// `[out, in]`; empty where `integers` or `panels` stand for it.
    pub weight: Cow<'m, [f32]>,
    pub integers: Option<Arc<IntegerMatrix>>,
    pub panels: Option<Arc<Panels>>,
    /// `[out]`
    pub bias: Option<Cow<'m, [f32]>>,
    pub out: usize,
    pub input: usize,
    pub activations: Activations,
    pub elastic: Option<RunElastic<'m>>,
}

#[derive(Debug, Clone)]
pub struct RunNorm<'m> {
    pub weight: Cow<'m, [f32]>,
    pub bias: Cow<'m, [f32]>,
    pub eps: f32,
    /// `None`: it is an identity.
    pub kind: Option<NormKind>,
}

/// A layer ready to run.
#[derive(Debug, Clone)]
pub struct RunLayer<'m> {
    pub attention: Option<RunAttention<'m>>,
    pub ffn: Option<RunFeedForward<'m>>,
    pub bottleneck: Option<Box<RunBottleneck<'m>>>,
}

/// See [`Bottleneck`].
#[derive(Debug, Clone)]
pub struct RunBottleneck<'m> {
    pub input: Dense<'m>,
    pub input_norm: RunNorm<'m>,
    pub shared: Option<(Dense<'m>, RunNorm<'m>)>,
    pub more: Vec<RunFeedForward<'m>>,
    pub output: Dense<'m>,
    pub output_norm: RunNorm<'m>,
}

#[derive(Debug, Clone)]
pub struct RunAttention<'m> {
    pub query: Dense<'m>,
    pub key: Dense<'m>,
    pub value: Dense<'m>,
    pub output: Dense<'m>,
    pub norm: RunNorm<'m>,
    pub heads: Cow<'m, [usize]>,
    pub head_dim: usize,
    pub binary: Option<RunBinary<'m>>,
    pub positions: RunPositions<'m>,
}

#[derive(Debug, Clone)]
pub struct RunFeedForward<'m> {
    pub up: Dense<'m>,
    /// What the units are multiplied by.
    pub gate: Option<Dense<'m>>,
    pub down: Dense<'m>,
    pub norm: RunNorm<'m>,
    pub activation: Activation,
}

/// A head ready to run; see [`Head`].
#[derive(Debug, Clone)]
pub enum RunHead<'m> {
    SequenceClassification {
        dense: Dense<'m>,
        norm: Option<RunNorm<'m>>,
        activation: Activation,
        last: Option<RunNorm<'m>>,
        mean: bool,
        out: Dense<'m>,
    },
    PerToken(Dense<'m>),
    MaskedLm {
        dense: Dense<'m>,
        activation: Activation,
        norm: RunNorm<'m>,
        /// `None`: the word table, [`Encoder::word`].
        decoder: Option<Cow<'m, [f32]>>,
        bias: Cow<'m, [f32]>,
    },
    Embedding {
        pool: PoolMode,
        normalize: bool,
    },
    Bare {
        pooler: Option<Dense<'m>>,
        norm: Option<RunNorm<'m>>,
    },
}

/// The rows that linear layers multiply, `[rows, in]`, and what is made of them once for all layers that share them.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub x: &'a [f32],
    pub rows: usize,
    rounded: OnceCell<Vec<f32>>,
    codes: OnceCell<Quantised>,
}

impl<'a> Inputs<'a> {
    pub fn new(x: &'a [f32], rows: usize) -> Inputs<'a> {
        Inputs { x, rows, rounded: OnceCell::new(), codes: OnceCell::new() }
    }

    /// As integers of the kernels. All layers that share the rows round them in the same way.
    pub fn codes(&self, bits: kernels::packed::Bits) -> &Quantised {
        let width = self.x.len().checked_div(self.rows).unwrap_or(0);
        self.codes.get_or_init(|| kernels::packed::quantise(self.x, self.rows, width, bits))
    }
}

impl Drop for Inputs<'_> {
    fn drop(&mut self) {
        arena::give(self.rounded.take().unwrap_or_default());
    }
}

impl<'m> Dense<'m> {
    /// With the matrix as f32, whatever it is stored as.
    pub fn new(linear: &'m Linear) -> Result<Dense<'m>> {
        Ok(Dense {
            weight: linear.weight.to_f32()?,
            integers: None,
            panels: None,
            bias: linear.bias.as_ref().map(|b| b.to_f32()).transpose()?,
            out: linear.weight.rows(),
            input: linear.weight.cols(),
            activations: linear.activations,
            elastic: linear.elastic.as_deref().map(RunElastic::new).transpose()?,
        })
    }

    /// With the matrix as kernels take it: those for integers where it is stored so and the layer rounds its inputs, else those
    /// for f32, where the machine has any.
    pub fn packed(linear: &'m Linear) -> Result<Dense<'m>> {
        let Some(matrix) = IntegerMatrix::new(linear) else {
            return Ok(Dense::new(linear)?.laid_out());
        };
        Ok(Dense {
            weight: Cow::Borrowed(&[]),
            integers: Some(Arc::new(matrix)),
            panels: None,
            bias: linear.bias.as_ref().map(|b| b.to_f32()).transpose()?,
            out: linear.weight.rows(),
            input: linear.weight.cols(),
            activations: linear.activations,
            elastic: linear.elastic.as_deref().map(RunElastic::new).transpose()?,
        })
    }

    /// With the matrix in panels, where the machine has kernels for them. No gradient goes back through it.
    pub fn laid_out(self) -> Dense<'m> {
        match Panels::new(self.matrix()) {
            Some(panels) => {
                Dense { weight: Cow::Borrowed(&[]), panels: Some(Arc::new(panels)), ..self }
            }
            None => self,
        }
    }

    /// As [`RunLayer::leaves_mut`].
    pub fn leaves_mut(&mut self) -> impl Iterator<Item = &mut Cow<'m, [f32]>> {
        let elastic = self.elastic.iter_mut().flat_map(RunElastic::leaves_mut);
        std::iter::once(&mut self.weight).chain(&mut self.bias).chain(elastic)
    }

    /// `[out, in]`
    pub fn matrix(&self) -> Mat<'_> {
        Mat::new(&self.weight, self.out, self.input)
    }

    /// `x`: `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        self.forward_rows(x, x.len().checked_div(self.input).unwrap_or(0))
    }

    /// What it multiplies, of `x`, `[rows, in]`: signs, or numbers of a few bits, or as they are.
    pub fn inputs<'x>(&self, x: &'x [f32]) -> Cow<'x, [f32]> {
        match (&self.elastic, self.activations) {
            (Some(elastic), _) => Cow::Owned(elastic.signs(x)),
            (None, Activations::Exact) => Cow::Borrowed(x),
            (None, rounds) => Cow::Owned(kernels::rounded(x, self.input, rounds)),
        }
    }

    /// `x·Wᵀ + b`.
    pub fn multiply(&self, x: &Inputs, mut out: MatMut) {
        let bias = self.bias.as_deref().filter(|b| !b.is_empty());
        if let Some(matrix) = &self.integers {
            return matrix.multiply(x, self.elastic.as_ref(), bias, out);
        }
        let signs;
        let values = match (&self.elastic, self.activations) {
            (Some(elastic), _) => {
                signs = elastic.signs(x.x);
                &signs
            }
            (None, Activations::Exact) => x.x,
            (None, rounds) => x.rounded.get_or_init(|| kernels::rounded(x.x, self.input, rounds)),
        };
        let values = Mat::new(values, x.rows, self.input);
        if let Some(panels) = &self.panels {
            return panels.multiply(values, bias, out);
        }
        kernels::product(out.again(), values, self.matrix().t(), 1.0);
        if let Some(bias) = bias {
            out.rows_mut().for_each(|row| kernels::add_bias(row, bias));
        }
    }

    /// `forward(x) + residual`: what the LayerNorm behind a block sees. The layer may have no inputs
    /// left.
    pub fn add(&self, x: &[f32], residual: &[f32]) -> Vec<f32> {
        let mut y = self.forward_rows(x, residual.len() / self.out);
        y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
        y
    }

    /// As `forward` for `rows` rows, where the layer may have no inputs left to count them by.
    pub fn forward_rows(&self, x: &[f32], rows: usize) -> Vec<f32> {
        // What no input writes is zero.
        let room = if self.input == 0 { arena::zeros } else { arena::room };
        let mut y = room(rows * self.out);
        self.multiply(&Inputs::new(x, rows), MatMut::new(&mut y, rows, self.out));
        y
    }
}

impl<'m> RunNorm<'m> {
    pub fn new(norm: &'m Norm, eps: f32) -> Result<RunNorm<'m>> {
        let weight = norm.weight.to_f32()?;
        let bias = match &norm.bias {
            Some(bias) => bias.to_f32()?,
            None => Cow::Owned(vec![0.0; weight.len()]),
        };
        Ok(RunNorm { weight, bias, eps, kind: Some(norm.kind) })
    }

    /// What is not there.
    fn identity() -> RunNorm<'m> {
        RunNorm { weight: Cow::Borrowed(&[]), bias: Cow::Borrowed(&[]), eps: 0.0, kind: None }
    }

    /// What a block multiplies, of the residual stream `x`: it itself, but where the norm comes first.
    pub fn input<'x>(&self, x: &'x [f32]) -> Held<'x> {
        if self.kind != Some(NormKind::First) {
            return Held::Borrowed(x);
        }
        let mut input = arena::copy(x);
        self.apply(&mut input);
        Held::Room(input)
    }

    fn leaves_mut(&mut self) -> [&mut Cow<'m, [f32]>; 2] {
        [&mut self.weight, &mut self.bias]
    }

    /// Whether it is of what a block adds to, once it is added.
    pub fn follows(&self) -> bool {
        matches!(self.kind, Some(NormKind::Behind | NormKind::Scale))
    }

    /// Adds `residual` to `x`, what a block makes, and normalises the rows where the norm stands behind it, in place.
    pub fn apply_sum(&self, x: &mut [f32], residual: &[f32]) {
        match self.kind {
            Some(NormKind::Behind) => {
                kernels::add_norm(x, residual, &self.weight, &self.bias, self.eps);
            }
            Some(NormKind::First | NormKind::Scale) | None => {
                x.iter_mut().zip(residual).for_each(|(x, r)| *x += r);
                if self.follows() {
                    self.apply(x);
                }
            }
        }
    }

    /// Normalises the rows of `x` in place.
    pub fn apply(&self, x: &mut [f32]) {
        match self.kind {
            Some(NormKind::Behind | NormKind::First) => {
                kernels::layer_norm(x, &self.weight, &self.bias, self.eps);
            }
            Some(NormKind::Scale) => {
                for row in x.chunks_exact_mut(self.weight.len()) {
                    let scales = self.weight.iter().zip(self.bias.iter());
                    row.iter_mut().zip(scales).for_each(|(x, (w, b))| *x = *x * w + b);
                }
            }
            None => {}
        }
    }
}

impl<'m> RunAttention<'m> {
    /// With every matrix as f32.
    pub fn new(attention: &'m Attention, eps: f32) -> Result<RunAttention<'m>> {
        RunAttention::with(attention, eps, Dense::new)
    }

    fn with(attention: &'m Attention, eps: f32, dense: Ready<'m>) -> Result<RunAttention<'m>> {
        Ok(RunAttention {
            query: dense(&attention.query)?,
            key: dense(&attention.key)?,
            value: dense(&attention.value)?,
            output: dense(&attention.output)?,
            norm: match &attention.norm {
                Some(norm) => RunNorm::new(norm, eps)?,
                None => RunNorm::identity(),
            },
            heads: Cow::Borrowed(&attention.heads),
            head_dim: attention.head_dim,
            binary: attention.binary.as_ref().map(RunBinary::new).transpose()?,
            positions: RunPositions::with(attention, dense)?,
        })
    }
}

impl<'m> RunFeedForward<'m> {
    /// With every matrix as f32.
    pub fn new(ffn: &'m FeedForward, activation: Activation, eps: f32) -> Result<Self> {
        RunFeedForward::with(ffn, activation, eps, Dense::new)
    }

    fn with(
        ffn: &'m FeedForward,
        activation: Activation,
        eps: f32,
        dense: Ready<'m>,
    ) -> Result<Self> {
        Ok(RunFeedForward {
            up: dense(&ffn.up)?,
            gate: ffn.gate.as_ref().map(dense).transpose()?,
            down: dense(&ffn.down)?,
            norm: RunNorm::new(&ffn.norm, eps)?,
            activation,
        })
    }
}

impl<'m> RunLayer<'m> {
    /// With every matrix as f32, of a model with this config.
    pub fn new(layer: &'m Layer, config: &Config) -> Result<RunLayer<'m>> {
        RunLayer::with(layer, config.activation, config.eps, Dense::new)
    }

    fn with(
        layer: &'m Layer,
        activation: Activation,
        eps: f32,
        dense: Ready<'m>,
    ) -> Result<RunLayer<'m>> {
        let attention = layer.attention.as_ref();
        let attention = attention.map(|a| RunAttention::with(a, eps, dense)).transpose()?;
        let ffn = layer.ffn.as_ref();
        let ffn = ffn.map(|f| RunFeedForward::with(f, activation, eps, dense)).transpose()?;
        let bottleneck = match &layer.bottleneck {
            Some(n) => Some(Box::new(RunBottleneck::with(n, activation, eps, dense)?)),
            None => None,
        };
        Ok(RunLayer { attention, ffn, bottleneck })
    }
}

impl<'m> RunBottleneck<'m> {
    fn with(
        neck: &'m Bottleneck,
        activation: Activation,
        eps: f32,
        dense: Ready<'m>,
    ) -> Result<Self> {
        let more = neck.more.iter().map(|f| RunFeedForward::with(f, activation, eps, dense));
        Ok(RunBottleneck {
            input: dense(&neck.input)?,
            input_norm: RunNorm::new(&neck.input_norm, eps)?,
            shared: match &neck.shared {
                Some((linear, norm)) => Some((dense(linear)?, RunNorm::new(norm, eps)?)),
                None => None,
            },
            more: more.collect::<Result<_>>()?,
            output: dense(&neck.output)?,
            output_norm: RunNorm::new(&neck.output_norm, eps)?,
        })
    }
}

impl<'m> RunLayer<'m> {
    /// Every weight, in the order of [`Model::places_mut`].
    pub fn leaves_mut(&mut self) -> Vec<&mut Cow<'m, [f32]>> {
        let mut leaves: Vec<&mut Cow<'m, [f32]>> = Vec::new();
        leaves.extend(self.attention.iter_mut().flat_map(RunAttention::leaves_mut));
        leaves.extend(self.ffn.iter_mut().flat_map(RunFeedForward::leaves_mut));
        leaves
    }
}

impl<'m> RunAttention<'m> {
    /// As [`RunLayer::leaves_mut`].
    pub fn leaves_mut(&mut self) -> Vec<&mut Cow<'m, [f32]>> {
        let linears = [&mut self.query, &mut self.key, &mut self.value, &mut self.output];
        let binary = self.binary.iter_mut().flat_map(RunBinary::leaves_mut);
        let linears = linears.into_iter().flat_map(Dense::leaves_mut);
        linears.chain(self.norm.leaves_mut()).chain(binary).collect()
    }
}

impl<'m> RunFeedForward<'m> {
    /// As [`RunLayer::leaves_mut`].
    pub fn leaves_mut(&mut self) -> Vec<&mut Cow<'m, [f32]>> {
        let linears = [&mut self.up, &mut self.down];
        linears.into_iter().flat_map(Dense::leaves_mut).chain(self.norm.leaves_mut()).collect()
    }
}

/// Makes a linear layer ready: [`Dense::new`] or [`Dense::packed`].
type Ready<'m> = fn(&'m Linear) -> Result<Dense<'m>>;

impl<'m> Encoder<'m> {
    /// Makes `model` ready: packed and half-precision weights are expanded to f32 once. What gradients go back
    /// through, and what [`Encoder::packed`] is compared with.
    pub fn new(model: &'m Model) -> Result<Encoder<'m>> {
        Encoder::ready(model, Dense::new)
    }

    /// Makes `model` ready to answer: packed matrices whose layers round their inputs stay packed, and are multiplied in
    /// integers. No gradient goes back through these.
    pub fn packed(model: &'m Model) -> Result<Encoder<'m>> {
        Encoder::ready(model, Dense::packed)
    }

    /// As [`Encoder::packed`] where that takes no more than 2 GiB, else [`Encoder::one_by_one`].
    pub fn within_memory(model: &'m Model) -> Result<Encoder<'m>> {
        if fits_memory(model) { Encoder::packed(model) } else { Encoder::one_by_one(model) }
    }

    /// As [`Encoder::packed`], of layers that are made ready each time that they are run, and forgotten: the same
    /// answers, of a model that is larger than memory. For forward passes that nobody watches.
    pub fn one_by_one(model: &'m Model) -> Result<Encoder<'m>> {
        let encoder = Encoder::with(model, Vec::new(), run_head(model, Dense::packed)?)?;
        Ok(Encoder { one_by_one: true, ..encoder })
    }

    /// Layer `l`, ready to run.
    ///
    /// # Panics
    /// If there is no such layer.
    pub(super) fn run_layer(&self, l: usize) -> Cow<'_, RunLayer<'m>> {
        if !self.one_by_one {
            return Cow::Borrowed(&self.layers[l]);
        }
        let (model, config) = (self.model, &self.model.config);
        let layer = RunLayer::with(&model.layers[l], config.activation, config.eps, Dense::packed);
        // What was read into memory of a mapped file.
        model.layers[l].release();
        Cow::Owned(layer.expect("weights have types that are numbers: readers refuse others"))
    }

    fn ready(model: &'m Model, dense: Ready<'m>) -> Result<Encoder<'m>> {
        let (activation, eps) = (model.config.activation, model.config.eps);
        let layers = model
            .layers
            .iter()
            .map(|l| RunLayer::with(l, activation, eps, dense))
            .collect::<Result<_>>()?;
        Encoder::with(model, layers, run_head(model, dense)?)
    }

    /// How many layers are run, one after the other.
    pub(super) fn steps(&self) -> usize {
        match &self.model.config.shared {
            Some(stack) => stack.len(),
            None if self.one_by_one => self.model.layers.len(),
            None => self.layers.len(),
        }
    }

    /// The layer that is run in this step: as in [`Model::stack`].
    pub(super) fn layer_of(&self, step: usize) -> usize {
        self.model.config.shared.as_ref().map_or(step, |stack| stack[step])
    }

    /// Whether tokens see each other in layer `l`.
    pub(super) fn attends(&self, l: usize) -> bool {
        match self.one_by_one {
            true => self.model.layers[l].attention.is_some(),
            false => self.layers[l].attention.is_some(),
        }
    }

    /// An encoder of nothing at all, to stand where another was taken from.
    pub fn hollow(model: &'m Model) -> Encoder<'m> {
        Encoder {
            model,
            word: None,
            position: None,
            token_type: None,
            task_type: None,
            norm: RunNorm::identity(),
            project: None,
            relative_bias: None,
            distances: None,
            final_norm: None,
            layers: Vec::new(),
            one_by_one: false,
            tokens: None,
            head: RunHead::Bare { pooler: None, norm: None },
        }
    }

    /// As `new` with neither layers nor head, for callers that go layer by layer: embeddings, and what
    /// attention needs.
    pub fn shell(model: &'m Model) -> Result<Encoder<'m>> {
        Encoder::with(model, Vec::new(), RunHead::Bare { pooler: None, norm: None })
    }

    /// As `new`, with every weight owned, the word table included: ready to be trained.
    ///
    /// # Errors
    /// If a stored tensor is of no floating type.
    pub fn trainable(model: &'m Model) -> Result<Encoder<'m>> {
        let mut encoder = Encoder::new(model)?;
        encoder.word = Some(lookup::dense(&model.embeddings.word)?);
        if let (RunHead::MaskedLm { decoder, .. }, true) = (&mut encoder.head, model.config.tied) {
            *decoder = None;
        }
        for leaf in encoder.leaves_mut() {
            leaf.to_mut();
        }
        Ok(encoder)
    }

    /// Every weight, in the order of [`Model::places_mut`].
    pub fn leaves_mut(&mut self) -> Vec<&mut Cow<'m, [f32]>> {
        let mut leaves: Vec<&mut Cow<'m, [f32]>> = Vec::new();
        leaves.extend(&mut self.word);
        leaves.extend(&mut self.position);
        leaves.extend(&mut self.token_type);
        leaves.extend(&mut self.task_type);
        leaves.extend(self.norm.leaves_mut());
        leaves.extend(self.project.iter_mut().flat_map(Dense::leaves_mut));
        leaves.extend(&mut self.relative_bias);
        for layer in &mut self.layers {
            leaves.extend(layer.leaves_mut());
        }
        match &mut self.head {
            RunHead::SequenceClassification { dense, norm, out, .. } => {
                leaves.extend(dense.leaves_mut());
                leaves.extend(norm.iter_mut().flat_map(RunNorm::leaves_mut));
                leaves.extend(out.leaves_mut());
            }
            RunHead::PerToken(out) => leaves.extend(out.leaves_mut()),
            RunHead::MaskedLm { dense, norm, decoder, bias, .. } => {
                leaves.extend(dense.leaves_mut());
                leaves.extend(norm.leaves_mut());
                leaves.extend(decoder);
                leaves.push(bias);
            }
            RunHead::Embedding { .. } => {}
            RunHead::Bare { pooler, norm } => {
                leaves.extend(pooler.iter_mut().flat_map(Dense::leaves_mut));
                leaves.extend(norm.iter_mut().flat_map(RunNorm::leaves_mut));
            }
        }
        leaves
    }

    fn with(model: &'m Model, layers: Vec<RunLayer<'m>>, head: RunHead<'m>) -> Result<Encoder<'m>> {
        let (e, eps) = (&model.embeddings, model.config.eps);
        let hidden = model.config.embedding;
        let task_type = match &e.task_type {
            Some(table) => Some(Cow::Owned(table.to_f32()?[..hidden].to_vec())),
            None => None,
        };
        Ok(Encoder {
            model,
            word: None,
            position: e.position.as_ref().map(|t| t.to_f32()).transpose()?,
            token_type: e.token_type.as_ref().map(|t| t.to_f32()).transpose()?,
            task_type,
            norm: RunNorm::new(&e.norm, eps)?,
            project: e.project.as_ref().map(Dense::new).transpose()?,
            relative_bias: model.relative_bias.as_ref().map(|t| t.to_f32()).transpose()?,
            distances: match &model.distances {
                Some((table, norm)) => {
                    let mut table = table.to_f32()?.into_owned();
                    if let Some(norm) = norm {
                        RunNorm::new(norm, eps)?.apply(&mut table);
                    }
                    Some(table)
                }
                None => None,
            },
            final_norm: model.final_norm.as_ref().map(|n| RunNorm::new(n, eps)).transpose()?,
            layers,
            one_by_one: false,
            tokens: model.tokens.clone(),
            head,
        })
    }
}

/// Bytes that a model's layers may take when they are all made ready to run.
const RESIDENT: usize = 2 << 30;

/// Whether all of a model's layers may be ready to run at once.
pub(super) fn fits_memory(model: &Model) -> bool {
    let linears = model.layers.iter().flat_map(|layer| layer.linears());
    let bytes = linears.map(|(_, linear)| match &linear.weight {
        Weight::Dense(_) => 4 * linear.weight.params(),
        packed if linear.activations == Activations::Exact => 4 * packed.params(),
        packed => packed.bytes(),
    });
    bytes.sum::<usize>() <= RESIDENT
}

fn run_head<'m>(model: &'m Model, ready: Ready<'m>) -> Result<RunHead<'m>> {
    let eps = model.config.eps;
    Ok(match &model.head {
        Head::SequenceClassification { dense, norm, activation, last, mean, out } => {
            RunHead::SequenceClassification {
                dense: ready(dense)?,
                norm: norm.as_ref().map(|n| RunNorm::new(n, eps)).transpose()?,
                activation: *activation,
                last: last.as_deref().map(|n| RunNorm::new(n, eps)).transpose()?,
                mean: *mean,
                out: ready(out)?,
            }
        }
        Head::TokenClassification { out } | Head::QuestionAnswering { out } => {
            RunHead::PerToken(ready(out)?)
        }
        Head::MaskedLm { dense, activation, norm, decoder, bias } => RunHead::MaskedLm {
            dense: ready(dense)?,
            activation: *activation,
            norm: RunNorm::new(norm, eps)?,
            decoder: Some(match decoder {
                Some(table) => table.to_f32()?,
                None => lookup::dense(&model.embeddings.word)?,
            }),
            bias: bias.to_f32()?,
        },
        Head::Embedding { pool, normalize } => {
            RunHead::Embedding { pool: *pool, normalize: *normalize }
        }
        Head::Bare { pooler, norm } => RunHead::Bare {
            pooler: pooler.as_ref().map(ready).transpose()?,
            norm: norm.as_ref().map(|n| RunNorm::new(n, eps)).transpose()?,
        },
    })
}

/// Adds row `row` of an embedding table to `out`, without expanding the table.
pub(super) fn add_table_row(table: &Weight, row: usize, out: &mut [f32]) -> Result<()> {
    match table {
        Weight::Dense(tensor) => tensor.row_f32(row, |values| {
            out.iter_mut().zip(values).for_each(|(o, v)| *o += v);
        }),
        Weight::Binary(binary) => {
            binary.add_row(row, out);
            Ok(())
        }
        Weight::Double(double) => {
            double.add_row(row, out);
            Ok(())
        }
        Weight::Int8(int8) => {
            int8.add_row(row, out);
            Ok(())
        }
        Weight::Subspace(subspace) => {
            subspace.add_row(row, out);
            Ok(())
        }
        Weight::Factored(factored) => {
            factored.add_row(row, out);
            Ok(())
        }
    }
}
