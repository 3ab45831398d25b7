//! Zero-padded matrices of one size in every layer, which stock Transformers classes load.
//!
//! A head without output columns and a unit without a column behind it add exact zeros, whatever stands in their rows
//! (Michel et al. 2019 mask heads in the same way). What cannot be padded is refused: a LayerNorm divides by the
//! whole width, and one that is gone cannot be undone.

use super::unread;
use crate::Result;
use crate::checkpoint::{Dtype, Tensor};
use crate::model::{Activations, FeedForward, Layer, Linear, Model, Weight};
use serde_json::{Value, json};

/// What packed matrices are expanded to.
const EXPANDED: Dtype = Dtype::F32;

/// What of `model` a padded checkpoint cannot say.
pub fn refusal(model: &Model) -> Option<String> {
    if let Some(found) = unread(model) {
        return Some(found);
    }
    if model.tokens.is_some() {
        return Some("layers drop tokens".into());
    }
    let (hidden, pooled) = (model.config.hidden, model.config.pooled);
    if hidden < pooled {
        return Some(format!("{hidden} of {pooled} hidden dimensions are left"));
    }
    let gone = |l: &Layer| l.attention.is_none() || l.ffn.is_none();
    if let Some(layer) = model.compacted().layers.iter().position(gone) {
        return Some(format!("layer {layer} has lost a block with its LayerNorm"));
    }
    let four = |l: &&Linear| l.activations == Activations::Int4;
    model.linears().into_iter().find(four).map(|l| {
        let name = l.weight.name();
        format!("the inputs of `{name}` are rounded to 4 bits")
    })
}

/// `model` with dense matrices, all heads and one feed-forward width, and its config.json.
///
/// # Errors
/// If a tensor is of no floating type.
pub fn padded(model: &Model) -> Result<(Model, Value)> {
    padded_with(model, dense)
}

/// The tensors of [`padded`], matrices without their data ([`Tensor::blank`]): `model` may have none.
///
/// # Errors
/// As [`padded`].
pub fn outlined(model: &Model) -> Result<Vec<Tensor>> {
    let blank = |weight: &Weight, name: String| match weight {
        Weight::Dense(tensor) => Ok(tensor.blanked()),
        packed => Ok(Tensor::blank(name, EXPANDED, &[packed.rows(), packed.cols()])),
    };
    Ok(padded_with(model, blank)?.0.tensors())
}

/// As [`padded`]; `dense` makes the tensor of a matrix, under this name.
fn padded_with(
    model: &Model,
    dense: impl Fn(&Weight, String) -> Result<Tensor>,
) -> Result<(Model, Value)> {
    let mut model = model.compacted();
    let is_packed = |w: &Weight| !matches!(w, Weight::Dense(_));
    let packed =
        model.linears().iter().any(|l| is_packed(&l.weight)) || is_packed(&model.embeddings.word);
    let widths = model.layers.iter().flat_map(|l| &l.ffn).map(FeedForward::units);
    let ffn = widths.max().unwrap_or(0).max(1);
    let (heads, dim) = (model.config.heads, model.config.head_dim);
    // The layer with its rows and columns at these places, zeros elsewhere, and exact inputs.
    let spread = |linear: &Linear, rows: Places, cols: Places| -> Result<Linear> {
        let name = format!("{}.weight", linear.weight.name());
        let weight = placed(&dense(&linear.weight, name)?, [rows, cols]);
        let bias = linear.bias.as_ref().map(|bias| placed(bias, [rows, None]));
        Ok(Linear::dense(weight, bias))
    };
    for layer in &mut model.layers {
        if let Some(a) = &mut layer.attention {
            let rows: Vec<usize> = a.heads.iter().flat_map(|h| h * dim..(h + 1) * dim).collect();
            for linear in [&mut a.query, &mut a.key, &mut a.value] {
                *linear = spread(linear, Some((&rows, heads * dim)), None)?;
            }
            a.output = spread(&a.output, None, Some((&rows, heads * dim)))?;
            a.heads = (0..heads).collect();
        }
        if let Some(f) = &mut layer.ffn {
            let units: Vec<usize> = (0..f.units()).collect();
            f.up = spread(&f.up, Some((&units, ffn)), None)?;
            f.down = spread(&f.down, None, Some((&units, ffn)))?;
        }
    }
    // Of families that are not cut, and of what a bottleneck has besides.
    for linear in model.layers.iter_mut().flat_map(Layer::linears_mut) {
        *linear = spread(linear, None, None)?;
    }
    for linear in model.embeddings.project.iter_mut().chain(model.head.linears_mut()) {
        *linear = spread(linear, None, None)?;
    }
    let name = format!("{}.weight", model.embeddings.word.name());
    model.embeddings.word = Weight::Dense(dense(&model.embeddings.word, name)?);

    let keys = &model.family.keys;
    let mut config = model.config.raw.clone();
    config.as_object_mut().expect("config.json is an object").shift_remove("compress");
    if model.config.shared.is_none() {
        config[keys.layers] = json!(model.layers.len());
    }
    config[keys.ffn] = json!(ffn);
    if packed {
        // Loaders cast to what config.json says, or to the type of the first tensor: what was expanded is f32.
        config.as_object_mut().expect("config.json is an object").shift_remove("dtype");
        config["torch_dtype"] = json!("float32");
    }
    model.config.ffn = ffn;
    model.config.raw = config.clone();
    Ok((model, config))
}

/// Which of how many.
type Places<'a> = Option<(&'a [usize], usize)>;

/// A packed matrix as the f32 that it stands for; a dense one as it is stored.
fn dense(weight: &Weight, name: String) -> Result<Tensor> {
    Ok(match weight {
        Weight::Dense(tensor) => tensor.clone(),
        packed => {
            let shape = [packed.rows(), packed.cols()];
            Tensor::from_f32(name, &shape, &packed.to_f32()?, EXPANDED)
        }
    })
}

/// The entries of `tensor`, `[rows, cols]` or `[rows]`, at other places of a larger one.
fn placed(tensor: &Tensor, [rows, cols]: [Places; 2]) -> Tensor {
    if rows.is_none() && cols.is_none() {
        return tensor.clone();
    }
    let of = |dim: usize, places: Places| match places {
        Some((places, total)) => (places.to_vec(), total),
        None => ((0..dim).collect(), dim),
    };
    let (rows, row_count) = of(tensor.shape[0], rows);
    let (cols, col_count) = of(tensor.shape.get(1).copied().unwrap_or(1), cols);
    let shape = if tensor.shape.len() == 1 { vec![row_count] } else { vec![row_count, col_count] };
    if tensor.is_blank() {
        return Tensor::blank(tensor.name.clone(), tensor.dtype, &shape);
    }
    let size = tensor.dtype.bits() / 8;
    let mut bytes = vec![0; row_count * col_count * size];
    let mut entries = tensor.bytes().chunks_exact(size);
    for row in &rows {
        for (col, entry) in cols.iter().zip(&mut entries) {
            let at = (row * col_count + col) * size;
            bytes[at..at + size].copy_from_slice(entry);
        }
    }
    Tensor::new(tensor.name.clone(), tensor.dtype, &shape, &bytes)
}
