//! Cutting a model, physically: heads and units out of a layer, and all that masks close.

use super::*;
use crate::checkpoint::Tensor;

/// Multipliers in a forward pass, the reference that a cut model is checked against (CoFi notes, §1): 1
/// keeps, exactly 0 removes, what lies between scales.
#[derive(Debug, Clone, PartialEq)]
pub struct Masks {
    /// By layer: one number a head that is left, on what it makes of the values.
    pub heads: Vec<Vec<f32>>,
    /// By layer: one number a unit that is left, behind its activation.
    pub units: Vec<Vec<f32>>,
    /// By layer, on what the attention block adds to the residual stream, its bias included. Exactly 0
    /// leaves the block out, with its LayerNorm: the function jumps there.
    pub attention: Vec<f32>,
    /// By layer, of the feed-forward block.
    pub ffn: Vec<f32>,
    /// `[hidden]`, on the residual stream everywhere. LayerNorms see what is not exactly 0 alone.
    pub hidden: Vec<f32>,
}

impl Masks {
    /// All ones: changes nothing.
    pub fn ones(model: &Model) -> Masks {
        let heads = |l: &Layer| vec![1.0; l.attention.as_ref().map_or(0, |a| a.heads.len())];
        let units = |l: &Layer| vec![1.0; l.ffn.as_ref().map_or(0, FeedForward::units)];
        Masks {
            heads: model.layers.iter().map(heads).collect(),
            units: model.layers.iter().map(units).collect(),
            attention: vec![1.0; model.layers.len()],
            ffn: vec![1.0; model.layers.len()],
            hidden: vec![1.0; model.config.hidden],
        }
    }
}

impl Attention {
    /// With only the heads at `keep` (positions among those left, ascending). The rows of query, key
    /// and value and the columns of the output go together.
    ///
    /// # Errors
    /// If a weight is packed.
    pub fn select_heads(&self, keep: &[usize]) -> Result<Attention> {
        let dims = self.dims(keep);
        Ok(Attention {
            query: self.query.select_outputs(&dims)?,
            key: self.key.select_outputs(&dims)?,
            value: self.value.select_outputs(&dims)?,
            output: self.output.select_inputs(&dims)?,
            heads: keep.iter().map(|&h| self.heads[h]).collect(),
            ..self.clone()
        })
    }

    /// The context dimensions of the heads at `keep`.
    pub fn dims(&self, keep: &[usize]) -> Vec<usize> {
        let d = self.head_dim;
        keep.iter().flat_map(|&h| h * d..(h + 1) * d).collect()
    }
}

impl FeedForward {
    /// With only the units at `keep`, ascending. Rows of `up` and columns of `down` go together: a
    /// unit dropped from one and not the other would silently misalign the rest.
    ///
    /// # Errors
    /// If a weight is packed.
    pub fn select_units(&self, keep: &[usize]) -> Result<FeedForward> {
        Ok(FeedForward {
            up: self.up.select_outputs(keep)?,
            gate: self.gate.as_ref().map(|gate| gate.select_outputs(keep)).transpose()?,
            down: self.down.select_inputs(keep)?,
            ..self.clone()
        })
    }
}

/// What a mask leaves of a dimension.
struct Left<'a> {
    keep: Vec<usize>,
    /// One number an entry of the mask; `None` where those that are kept are 1.
    scale: Option<&'a [f32]>,
    /// Whether the mask changes anything.
    whole: bool,
}

impl<'a> Left<'a> {
    /// Drops what is exactly 0 and scales by the rest.
    fn of(mask: &'a [f32]) -> Left<'a> {
        let keep: Vec<usize> = (0..mask.len()).filter(|&i| mask[i] != 0.0).collect();
        let scales = keep.iter().any(|&i| mask[i] != 1.0);
        Left { whole: !scales && keep.len() == mask.len(), keep, scale: scales.then_some(mask) }
    }

    /// As it is, `n` of it.
    fn all(n: usize) -> Left<'static> {
        Left { keep: (0..n).collect(), scale: None, whole: true }
    }

    /// The same entries, unscaled.
    fn unscaled(&self) -> Left<'static> {
        let whole = self.whole || self.scale.is_some_and(|s| s.len() == self.keep.len());
        Left { keep: self.keep.clone(), scale: None, whole }
    }

    fn factor(&self, i: usize) -> f32 {
        self.scale.map_or(1.0, |s| s[i])
    }
}

/// `tensor`, `[rows, cols]`, with what is left of both; byte for byte where nothing changes.
fn cut_matrix(tensor: &Tensor, rows: &Left, cols: &Left) -> Result<Tensor> {
    if rows.whole && cols.whole {
        return Ok(tensor.clone());
    }
    let shape = [rows.keep.len(), cols.keep.len()];
    if tensor.is_blank() {
        return Ok(Tensor::blank(tensor.name.clone(), tensor.dtype, &shape));
    }
    let (values, width) = (tensor.to_f32()?, tensor.shape[1]);
    let mut data = Vec::with_capacity(rows.keep.len() * cols.keep.len());
    for &r in &rows.keep {
        let (row, factor) = (&values[r * width..(r + 1) * width], rows.factor(r));
        data.extend(cols.keep.iter().map(|&c| row[c] * factor * cols.factor(c)));
    }
    Ok(Tensor::from_f32(tensor.name.clone(), &shape, &data, tensor.dtype))
}

/// As [`cut_matrix`], for a tensor of one dimension.
fn cut_vector(tensor: &Tensor, left: &Left) -> Result<Tensor> {
    if left.whole {
        return Ok(tensor.clone());
    }
    if tensor.is_blank() {
        let shape = [left.keep.len()];
        return Ok(Tensor::blank(tensor.name.clone(), tensor.dtype, &shape));
    }
    let values = tensor.to_f32()?;
    let data: Vec<f32> = left.keep.iter().map(|&i| values[i] * left.factor(i)).collect();
    Ok(Tensor::from_f32(tensor.name.clone(), &[data.len()], &data, tensor.dtype))
}

impl Linear {
    fn cut(&self, outputs: &Left, inputs: &Left) -> Result<Linear> {
        if outputs.whole && inputs.whole {
            return Ok(self.clone()); // packed or not
        }
        let weight = Weight::Dense(cut_matrix(self.weight.dense()?, outputs, inputs)?);
        let bias = self.bias.as_ref().map(|b| cut_vector(b, outputs)).transpose()?;
        Ok(Linear { weight, bias, ..self.clone() })
    }
}

impl Norm {
    fn cut(&self, left: &Left) -> Result<Norm> {
        let bias = self.bias.as_ref().map(|bias| cut_vector(bias, left)).transpose()?;
        Ok(Norm { weight: cut_vector(&self.weight, left)?, bias, kind: self.kind })
    }
}

impl Model {
    /// The small model that says what this one says under `masks` (CoFi notes, §5.1 and §5.3): what is 0 is
    /// gone, what lies between is folded into the weights. The mask of hidden dimensions goes into the
    /// LayerNorms, which carry it to every consumer and along the residual stream; folded into the consumers
    /// it would be lost on the residual stream.
    ///
    /// # Errors
    /// If a matrix that changes is packed; if hidden dimensions are closed of a model that gives hidden states
    /// out, or all of them are.
    pub fn sliced(&self, masks: &Masks) -> Result<Model> {
        let hidden = Left::of(&masks.hidden);
        let states = matches!(self.head, Head::Embedding { .. } | Head::Bare { .. });
        if hidden.keep.is_empty() || (states && hidden.keep.len() < self.config.hidden) {
            return Err(Error::Mismatch {
                found: format!(
                    "masks leave {} of {} hidden dimensions of a model for {}",
                    hidden.keep.len(),
                    self.config.hidden,
                    self.config.task.name()
                ),
                expected: match states {
                    true => "its hidden states are its answers, and their width stays".into(),
                    false => "a model has at least one".into(),
                },
                advice: "leave `hidden_z` out of the masks",
            });
        }
        let inputs = hidden.unscaled();
        let mut model = self.clone();
        for (l, layer) in model.layers.iter_mut().enumerate() {
            let scaled =
                |block: f32| -> Vec<f32> { masks.hidden.iter().map(|h| h * block).collect() };
            layer.attention = match layer.attention.take().filter(|_| masks.attention[l] != 0.0) {
                Some(a) => {
                    let (heads, block) = (&masks.heads[l], scaled(masks.attention[l]));
                    let keep: Vec<usize> = (0..heads.len()).filter(|&h| heads[h] != 0.0).collect();
                    let spread: Vec<f32> =
                        heads.iter().flat_map(|&z| std::iter::repeat_n(z, a.head_dim)).collect();
                    let values = Left::of(&spread);
                    let plain = values.unscaled();
                    Some(Attention {
                        query: a.query.cut(&plain, &inputs)?,
                        key: a.key.cut(&plain, &inputs)?,
                        value: a.value.cut(&values, &inputs)?,
                        output: a.output.cut(&Left::of(&block), &plain)?,
                        norm: a.norm.as_ref().map(|norm| norm.cut(&hidden)).transpose()?,
                        heads: keep.iter().map(|&h| a.heads[h]).collect(),
                        ..a
                    })
                }
                None => None,
            };
            layer.ffn = match layer.ffn.take().filter(|_| masks.ffn[l] != 0.0) {
                Some(f) => {
                    let (units, block) = (Left::of(&masks.units[l]), scaled(masks.ffn[l]));
                    Some(FeedForward {
                        up: f.up.cut(&units.unscaled(), &inputs)?,
                        down: f.down.cut(&Left::of(&block), &units)?,
                        norm: f.norm.cut(&hidden)?,
                        ..f
                    })
                }
                None => None,
            };
        }
        if hidden.whole {
            return Ok(model);
        }
        let all = |tensor: &Tensor| Left::all(tensor.shape[0]);
        let table = |tensor: &Tensor| cut_matrix(tensor, &all(tensor), &hidden);
        let e = &mut model.embeddings;
        match &mut e.project {
            Some(project) => {
                let width = Left::all(self.config.embedding);
                *project = project.cut(&hidden, &width)?;
            }
            None => {
                e.word = Weight::Dense(table(e.word.dense()?)?);
                e.position = e.position.as_ref().map(table).transpose()?;
                e.token_type = e.token_type.as_ref().map(table).transpose()?;
                e.task_type = e.task_type.as_ref().map(table).transpose()?;
                e.norm = e.norm.cut(&hidden)?;
                model.config.embedding = hidden.keep.len();
            }
        }
        let reads = |linear: &Linear| linear.cut(&Left::all(linear.weight.rows()), &inputs);
        model.head = match &self.head {
            Head::SequenceClassification { dense, norm, activation, last, mean, out } => {
                Head::SequenceClassification {
                    dense: reads(dense)?,
                    norm: norm.clone(),
                    activation: *activation,
                    last: last.clone(),
                    mean: *mean,
                    out: out.clone(),
                }
            }
            Head::TokenClassification { out } => Head::TokenClassification { out: reads(out)? },
            Head::QuestionAnswering { out } => Head::QuestionAnswering { out: reads(out)? },
            Head::Bare { pooler, norm } => {
                Head::Bare { pooler: pooler.as_ref().map(reads).transpose()?, norm: norm.clone() }
            }
            Head::Embedding { .. } => self.head.clone(),
            // The table that words are told by is the one they are read from: its mask stands there.
            Head::MaskedLm { dense, activation, norm, decoder, bias } => {
                let narrow = self.embeddings.project.is_some();
                let width = if narrow { Left::all(dense.weight.rows()) } else { hidden.unscaled() };
                Head::MaskedLm {
                    dense: dense.cut(&width, &inputs)?,
                    activation: *activation,
                    norm: norm.cut(&width)?,
                    decoder: match decoder {
                        Some(decoder) if !narrow => Some(table(decoder)?),
                        other => other.clone(),
                    },
                    bias: bias.clone(),
                }
            }
        };
        // Copies of the word table and unused poolers have the width of before.
        model.unused.retain(|t| t.name.ends_with("position_ids"));
        model.config.hidden = hidden.keep.len();
        Ok(model)
    }
}
