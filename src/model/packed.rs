//! What the packed forms of a matrix share: scales, codes, and parts that are looked for by name.

use crate::checkpoint::{Checkpoint, Dtype, Spill, Tensor};
use crate::{Error, Result};
use bytemuck::Pod;
use half::f16;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

/// Scales as they are stored: in F16, or in F32 when one is outside f16's normal range. The values are those that
/// the dtype represents exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    pub values: Vec<f32>,
    pub dtype: Dtype,
}

/// Below this, f16 has fewer than its 11 significant bits (its smallest normal number).
const F16_NORMAL: f32 = 6.1e-5;

impl Scales {
    /// Rounds what is stored in f16.
    pub fn new(mut values: Vec<f32>) -> Scales {
        let outside = |s: &f32| *s != 0.0 && !(F16_NORMAL..=65504.0).contains(&s.abs());
        if values.iter().any(outside) {
            return Scales { values, dtype: Dtype::F32 };
        }
        values.iter_mut().for_each(|s| *s = f16::from_f32(*s).to_f32());
        Scales { values, dtype: Dtype::F16 }
    }

    /// Stored bytes.
    pub fn bytes(&self) -> usize {
        self.dtype.bits() / 8 * self.values.len()
    }

    pub(super) fn tensor(&self, name: String, shape: &[usize]) -> Tensor {
        Tensor::from_f32(name, shape, &self.values, self.dtype)
    }
}

/// The bulk of a packed matrix, as it is stored: in memory, or a view into a file. A clone costs nothing.
#[derive(Clone)]
pub struct Stored<T> {
    /// Boxed: forms of a matrix are members of large types.
    tensor: Box<Tensor>,
    of: PhantomData<T>,
}

impl<T: Pod> Stored<T> {
    /// # Panics
    /// If `values` does not fill `shape`: a bug in the caller.
    pub fn new(dtype: Dtype, shape: &[usize], values: &[T]) -> Stored<T> {
        Stored::of(Tensor::new("", dtype, shape, bytemuck::cast_slice(values)))
    }

    /// Its shape alone ([`Tensor::blank`]): no values.
    pub fn blank(dtype: Dtype, shape: &[usize]) -> Stored<T> {
        Stored::of(Tensor::blank("", dtype, shape))
    }

    /// # Errors
    /// [`Error::Dtype`] if the tensor is not `expected`.
    pub(super) fn read(tensor: &Tensor, expected: Dtype) -> Result<Stored<T>> {
        if tensor.dtype != expected {
            let found = tensor.dtype.to_string();
            return Err(Error::Dtype {
                name: tensor.name.clone(),
                found,
                expected: expected.name(),
            });
        }
        // Files by other writers may start their data at any byte.
        if !tensor.is_blank() && bytemuck::try_cast_slice::<u8, T>(tensor.bytes()).is_err() {
            let copy = Tensor::new("", tensor.dtype, &tensor.shape, tensor.bytes());
            return Ok(Stored::of(copy));
        }
        Ok(Stored::of(tensor.clone()))
    }

    fn of(tensor: Tensor) -> Stored<T> {
        Stored { tensor: Box::new(tensor), of: PhantomData }
    }

    pub(super) fn tensor(&self, name: String) -> Tensor {
        Tensor::clone(&self.tensor).renamed(name)
    }

    /// # Errors
    /// As [`Spill::put`].
    pub(super) fn spill(&mut self, spill: &Spill) -> Result<()> {
        spill.put(&mut self.tensor)
    }
}

impl<T: Pod> Deref for Stored<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self.tensor.bytes() {
            [] => &[], // wherever that is
            bytes => bytemuck::cast_slice(bytes),
        }
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Stored<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Pod + PartialEq> PartialEq for Stored<T> {
    fn eq(&self, other: &Stored<T>) -> bool {
        **self == **other
    }
}

/// `values` as they are stored. Of a form without data ([`Tensor::blank`]) there are none.
pub(super) fn stored<T: Pod>(name: String, dtype: Dtype, shape: &[usize], values: &[T]) -> Tensor {
    match values.is_empty() {
        true => Tensor::blank(name, dtype, shape),
        false => Tensor::new(name, dtype, shape, bytemuck::cast_slice(values)),
    }
}

/// As [`stored`], rounded to a floating type.
pub(super) fn stored_f32(name: String, shape: &[usize], values: &[f32], dtype: Dtype) -> Tensor {
    match values.is_empty() {
        true => Tensor::blank(name, dtype, shape),
        false => Tensor::from_f32(name, shape, values, dtype),
    }
}

/// The multiple of `step` next to `x`, at most `most` steps from 0.
pub(super) fn code(x: f32, step: f32, most: f32) -> i8 {
    if step > 0.0 { (x / step).round_ties_even().clamp(-most, most) as i8 } else { 0 }
}

/// The tensors of one packed matrix, taken out of a checkpoint one by one.
pub(super) struct Parts<'a> {
    checkpoint: &'a mut Checkpoint,
    name: &'a str,
    /// The tensor that says that the matrix is there, for messages.
    first: &'a str,
}

impl<'a> Parts<'a> {
    pub fn new(checkpoint: &'a mut Checkpoint, name: &'a str, first: &'a Tensor) -> Parts<'a> {
        Parts { checkpoint, name, first: &first.name }
    }

    pub fn optional(&mut self, part: &str) -> Option<Tensor> {
        self.checkpoint.take(&format!("{}.{part}", self.name))
    }

    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn required(&mut self, part: &str) -> Result<Tensor> {
        self.optional(part).ok_or_else(|| self.missing(part))
    }

    pub fn missing(&self, part: &str) -> Error {
        let expected = format!("the packed matrix `{}`", self.first);
        Error::MissingTensor { name: format!("{}.{part}", self.name), expected }
    }

    /// Scales of this shape.
    ///
    /// # Errors
    /// When they are missing, or of another shape, or no finite numbers.
    pub fn scales(&mut self, part: &str, shape: &[usize]) -> Result<Scales> {
        let tensor = self.required(part)?;
        expect_shape(&tensor, shape)?;
        tensor.check_finite()?;
        let values = match tensor.is_blank() {
            true => vec![0.0; tensor.numel()],
            false => tensor.to_f32()?.into_owned(),
        };
        Ok(Scales { values, dtype: tensor.dtype })
    }

    /// Checks `weight_shape`, which says `[rows, cols]` of the matrix stood for.
    ///
    /// # Errors
    /// When it is missing or says something else than `shape`.
    pub fn stated(&mut self, shape: [usize; 2]) -> Result<()> {
        let stated = self.required("weight_shape")?;
        if stated.is_blank() || *stated.to_i64()? == shape.map(|d| d as i64) {
            return Ok(());
        }
        let found = stated.to_i64()?.iter().map(|&d| d.max(0) as usize).collect();
        Err(wrong_shape(&stated, Some(found), &shape))
    }
}

pub(super) fn expect_shape(tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.shape == expected { Ok(()) } else { Err(wrong_shape(tensor, None, expected)) }
}

pub(super) fn wrong_shape(tensor: &Tensor, found: Option<Vec<usize>>, expected: &[usize]) -> Error {
    Error::Shape {
        name: tensor.name.clone(),
        found: found.unwrap_or_else(|| tensor.shape.clone()),
        expected: expected.to_vec(),
        key: "the `compress` entry and the sizes".into(),
    }
}
