//! Masks as a file: the tensors that CoFi's code keeps in `zs.pt`, as safetensors (CoFi notes, §1.1 and §5.6).

use crate::checkpoint::{Checkpoint, Dtype, Tensor};
use crate::model::Model;
use crate::model::slice::Masks;
use crate::{Error, Result};
use std::path::Path;

/// Names of the tensors, and what they multiply.
const HEADS: &str = "head_z";
const ATTENTION: &str = "head_layer_z";
const UNITS: &str = "intermediate_z";
const FFN: &str = "mlp_z";
const HIDDEN: &str = "hidden_z";

/// Reads masks for `model`. Axes of length 1 are of no meaning; a tensor that is missing is all ones.
///
/// Heads are numbered as in the model before any was cut; units as they lie in the model now, and a row may be
/// longer than its layer.
///
/// # Errors
/// What [`Checkpoint::open`] refuses; tensors of other names or shapes, and values outside [0, 1].
pub fn read(path: &Path, model: &Model) -> Result<Masks> {
    let mut file = Checkpoint::open(path)?;
    let malformed = |found: String, expected: String| Error::Malformed {
        path: path.to_path_buf(),
        found,
        expected,
        advice: "convert CoFi's `zs.pt` tensor by tensor, names and values as they are",
    };
    let known = [HEADS, ATTENTION, UNITS, FFN, HIDDEN];
    if let Some(name) = file.names().find(|n| !known.contains(n)) {
        return Err(malformed(format!("a tensor `{name}`"), known.join(", ")));
    }
    let (layers, width) = (model.layers.len(), model.config.hidden);
    let units = |l: usize| model.layers[l].ffn.as_ref().map_or(0, |f| f.units());
    let widest = (0..layers).map(units).max().unwrap_or(0);
    let mut take = |name: &str, rows: usize, cols: usize| -> Result<Option<Vec<f32>>> {
        let Some(tensor) = file.take(name) else { return Ok(None) };
        let shape: Vec<usize> = tensor.shape.iter().copied().filter(|&n| n != 1).collect();
        let expected: Vec<usize> = [rows, cols].into_iter().filter(|&n| n != 1).collect();
        if shape != expected {
            let found = format!("`{name}` of shape {:?}", tensor.shape);
            let fits = format!("{rows} x {cols} numbers, for the model that is to be cut");
            return Err(malformed(found, fits));
        }
        let values = tensor.to_f32()?.into_owned();
        match values.iter().find(|z| !(0.0..=1.0).contains(*z)) {
            Some(z) => Err(malformed(format!("{z} in `{name}`"), "numbers in [0, 1]".into())),
            None => Ok(Some(values)),
        }
    };
    let mut masks = Masks::ones(model);
    let heads = model.config.heads;
    if let Some(found) = take(HEADS, layers, heads)? {
        for (l, row) in masks.heads.iter_mut().enumerate() {
            let Some(attention) = &model.layers[l].attention else { continue };
            let at = attention.heads.iter().map(|&h| found[l * heads + h]);
            row.iter_mut().zip(at).for_each(|(m, z)| *m = z);
        }
    }
    if let Some(found) = take(UNITS, layers, widest)? {
        for (row, found) in masks.units.iter_mut().zip(found.chunks_exact(widest.max(1))) {
            row.iter_mut().zip(found).for_each(|(m, z)| *m = *z);
        }
    }
    if let Some(found) = take(ATTENTION, layers, 1)? {
        masks.attention = found;
    }
    if let Some(found) = take(FFN, layers, 1)? {
        masks.ffn = found;
    }
    if let Some(found) = take(HIDDEN, width, 1)? {
        masks.hidden = found;
    }
    Ok(masks)
}

/// `masks` of `model`, as [`read`] takes them: with the shapes of CoFi's file. What the model does not have
/// is 0.
pub fn tensors(masks: &Masks, model: &Model) -> Vec<Tensor> {
    let (layers, heads) = (model.layers.len(), model.config.heads);
    let widest = masks.units.iter().map(Vec::len).max().unwrap_or(0);
    let mut of_heads = vec![0.0; layers * heads];
    let mut of_units = vec![0.0; layers * widest];
    for (l, layer) in model.layers.iter().enumerate() {
        for (&head, z) in layer.attention.iter().flat_map(|a| &a.heads).zip(&masks.heads[l]) {
            of_heads[l * heads + head] = *z;
        }
        let units = &masks.units[l];
        of_units[l * widest..l * widest + units.len()].copy_from_slice(units);
    }
    let tensor = |name: &str, shape: &[usize], values: &[f32]| {
        Tensor::from_f32(name, shape, values, Dtype::F32)
    };
    vec![
        tensor(HEADS, &[layers, 1, heads, 1, 1], &of_heads),
        tensor(ATTENTION, &[layers], &masks.attention),
        tensor(UNITS, &[layers, 1, 1, widest], &of_units),
        tensor(FFN, &[layers], &masks.ffn),
        tensor(HIDDEN, &[masks.hidden.len()], &masks.hidden),
    ]
}
