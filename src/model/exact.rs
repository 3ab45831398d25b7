//! Rows of a table that are stored as they are, beside a form that is short for all the others.

use super::packed::{Parts, expect_shape, stored_f32};
use crate::checkpoint::{Dtype, Tensor};
use crate::{Error, Result};
use half::f16;

/// Rows by ascending id.
#[derive(Debug, Clone)]
pub struct Exact {
    pub ids: Vec<u32>,
    /// `[ids, cols]`, as `dtype` holds them.
    pub rows: Vec<f32>,
    pub dtype: Dtype,
}

impl Default for Exact {
    fn default() -> Self {
        Exact { ids: Vec::new(), rows: Vec::new(), dtype: Dtype::F16 }
    }
}

impl Exact {
    /// Rounds `rows`, `[ids, cols]`, to what is stored.
    ///
    /// # Panics
    /// If the ids do not ascend: a bug in the caller.
    pub fn new(ids: Vec<u32>, mut rows: Vec<f32>) -> Exact {
        assert!(ids.windows(2).all(|w| w[0] < w[1]), "ascending ids");
        let dtype = store(&mut rows);
        Exact { ids, rows, dtype }
    }

    /// So many of them, without what stands in them.
    pub fn blank(count: usize) -> Exact {
        Exact { ids: (0..count as u32).collect(), ..Exact::default() }
    }

    /// The row `id`, if it is one of these.
    pub fn get(&self, id: usize) -> Option<&[f32]> {
        let at = self.ids.binary_search(&u32::try_from(id).ok()?).ok()?;
        let cols = self.rows.len() / self.ids.len();
        Some(&self.rows[at * cols..(at + 1) * cols])
    }

    /// Numbers in them, `cols` a row.
    pub fn numbers(&self, cols: usize) -> usize {
        self.ids.len() * cols
    }

    /// Stored bytes, with rows of `cols` numbers.
    pub fn bytes(&self, cols: usize) -> usize {
        4 * self.ids.len() + self.dtype.bits() / 8 * self.numbers(cols)
    }

    /// The tensors it is stored as, with rows of `cols` numbers; none where there is no row.
    pub(super) fn tensors(&self, name: &str, cols: usize) -> Vec<Tensor> {
        if self.ids.is_empty() {
            return Vec::new();
        }
        let count = self.ids.len();
        vec![
            Tensor::from_u32(format!("{name}.exact_ids"), &[count], &self.ids),
            stored_f32(format!("{name}.exact_rows"), &[count, cols], &self.rows, self.dtype),
        ]
    }

    /// Takes them out of the parts of a table of `shape`, if it has any.
    ///
    /// # Errors
    /// When one part is missing, shapes do not fit, ids do not ascend or are outside the table, or a number is not finite.
    pub(super) fn take(parts: &mut Parts, [rows, cols]: [usize; 2]) -> Result<Exact> {
        let Some(ids) = parts.optional("exact_ids") else {
            return match parts.optional("exact_rows") {
                Some(_) => Err(parts.missing("exact_ids")),
                None => Ok(Exact::default()),
            };
        };
        expect_shape(&ids, &[ids.numel()])?;
        let list = match ids.is_blank() {
            true => Exact::blank(ids.numel()).ids,
            false => ids.to_u32()?.into_owned(),
        };
        let unsorted = list.windows(2).find(|w| w[0] >= w[1]).map(|w| w[1]);
        if let Some(id) = unsorted.or(list.last().copied().filter(|&id| id as usize >= rows)) {
            return Err(Error::Mismatch {
                found: format!("tensor `{}` holds the id {id}", ids.name),
                expected: format!("ids ascend and stay below the {rows} rows of the table"),
                advice: "pack the model again, or fetch the checkpoint again",
            });
        }
        let tensor = parts.required("exact_rows")?;
        let (rows, dtype) = numbers(&tensor, &[list.len(), cols])?;
        Ok(Exact { ids: list, rows, dtype })
    }
}

/// Rounds `values` to how they are stored: in F16, or in F32 where the largest of them is outside the range in which
/// f16 has its full precision.
pub(super) fn store(values: &mut [f32]) -> Dtype {
    let most = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    if most != 0.0 && !(1e-2..=65504.0).contains(&most) {
        return Dtype::F32;
    }
    values.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
    Dtype::F16
}

/// The values of a tensor of this shape, and its dtype. They are few: of one without data, as many zeros.
///
/// # Errors
/// When it has another shape, is of no floating type, or holds NaN or infinity.
pub(super) fn numbers(tensor: &Tensor, shape: &[usize]) -> Result<(Vec<f32>, Dtype)> {
    expect_shape(tensor, shape)?;
    tensor.check_finite()?;
    let values = match tensor.is_blank() {
        true => vec![0.0; tensor.numel()],
        false => tensor.to_f32()?.into_owned(),
    };
    Ok((values, tensor.dtype))
}
