//! Linear layers, tables and norms: what an encoder is built from, and the forms they are stored in.

use super::elastic::Elastic;
use super::subspace::TableErrors;
use super::{Binary, DoubleBinary, Factored, Int8, Subspace};
use crate::checkpoint::{Checkpoint, Dtype, Spill, Tensor};
use crate::{Error, Result};
use half::f16;
use std::borrow::Cow;

/// `y = W·x + b` with `W` as `[out, in]`.
#[derive(Debug, Clone)]
pub struct Linear {
    pub weight: Weight,
    /// `[out]`
    pub bias: Option<Tensor>,
    pub activations: Activations,
    /// Signs in the place of the inputs, of a layer whose weights are signs; such inputs are rounded no further.
    pub elastic: Option<Box<Elastic>>,
}

/// What a layer makes of its inputs before it multiplies them: numbers of a few bits, with a scale and a zero
/// point of each token's own (BiPFT notes, §7.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activations {
    /// Nothing: they stay f32.
    #[default]
    Exact,
    Int8,
    Int4,
}

impl Activations {
    /// Bits of an input, `None` for exact ones.
    pub fn bits(self) -> Option<u32> {
        match self {
            Activations::Exact => None,
            Activations::Int8 => Some(8),
            Activations::Int4 => Some(4),
        }
    }

    /// The way back from [`Activations::bits`].
    pub fn of_bits(bits: Option<u64>) -> Option<Activations> {
        match bits {
            None => Some(Activations::Exact),
            Some(8) => Some(Activations::Int8),
            Some(4) => Some(Activations::Int4),
            Some(_) => None,
        }
    }
}

/// The forms in which a matrix is stored, of linear layers and of embedding tables alike.
///
/// Closed on purpose: adding a form makes the compiler list every place that must handle it.
#[derive(Debug, Clone)]
pub enum Weight {
    /// F32, F16 or BF16, `[rows, cols]`.
    Dense(Tensor),
    Binary(Binary),
    Double(DoubleBinary),
    Int8(Int8),
    /// Of tables alone.
    Subspace(Box<Subspace>),
    /// Of tables alone.
    Factored(Factored),
}

/// The scale and shift of a LayerNorm, `[hidden]` each.
#[derive(Debug, Clone)]
pub struct Norm {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    pub kind: NormKind,
}

/// What a norm is, and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// A LayerNorm, of a block behind what it adds to.
    Behind,
    /// A LayerNorm of a block's inputs.
    First,
    /// Behind, and no mean and variance (MobileBERT): `x · weight + bias`.
    Scale,
}

impl Linear {
    /// A layer as it is before anything was packed.
    pub fn dense(weight: Tensor, bias: Option<Tensor>) -> Linear {
        Linear {
            weight: Weight::Dense(weight),
            bias,
            activations: Activations::Exact,
            elastic: None,
        }
    }

    /// A table, as reports compare it.
    pub fn table(weight: &Weight) -> Linear {
        Linear {
            weight: weight.clone(),
            bias: None,
            activations: Activations::Exact,
            elastic: None,
        }
    }

    /// The tensors this layer is stored as.
    pub fn tensors(&self) -> Vec<Tensor> {
        let mut tensors = self.weight.tensors();
        tensors.extend(self.bias.clone());
        tensors.extend(self.elastic.iter().flat_map(|e| e.tensors()));
        tensors
    }

    /// Weights and biases it stands for.
    pub fn params(&self) -> usize {
        let elastic = self.elastic.as_ref().map_or(0, |e| e.shift.numel() + 1);
        self.weight.params() + self.bias.as_ref().map_or(0, Tensor::numel) + elastic
    }

    /// The layer with only the outputs at `keep`, in that order.
    ///
    /// # Errors
    /// If the weight is not dense.
    pub fn select_outputs(&self, keep: &[usize]) -> Result<Linear> {
        let weight = Weight::Dense(select_rows(self.weight.dense()?, keep)?);
        let bias = self.bias.as_ref().map(|b| select_rows(b, keep)).transpose()?;
        Ok(Linear { weight, bias, ..self.clone() })
    }

    /// The layer with only the inputs at `keep`, in that order.
    ///
    /// # Errors
    /// If the weight is not dense.
    pub fn select_inputs(&self, keep: &[usize]) -> Result<Linear> {
        let weight = Weight::Dense(select_cols(self.weight.dense()?, keep)?);
        Ok(Linear { weight, ..self.clone() })
    }
}

impl Weight {
    /// Reads the packed matrix at `name`, if the checkpoint has one there, and takes its tensors out of it. `group`
    /// is what config.json says of sign planes; `None` for one scale a row.
    ///
    /// # Errors
    /// When parts are missing or do not fit `shape` or each other.
    pub fn take_packed(
        checkpoint: &mut Checkpoint,
        name: &str,
        shape: [usize; 2],
        group: Option<usize>,
    ) -> Result<Option<Weight>> {
        if let Some(binary) = Binary::take(checkpoint, name, shape, group)? {
            return Ok(Some(Weight::Binary(binary)));
        }
        if let Some(double) = DoubleBinary::take(checkpoint, name, shape)? {
            return Ok(Some(Weight::Double(double)));
        }
        Ok(Int8::take(checkpoint, name, shape)?.map(Weight::Int8))
    }

    /// As [`Weight::take_packed`], of the forms that only tables have. `errors` and `digits` are what config.json says
    /// of them.
    ///
    /// # Errors
    /// When parts are missing or do not fit `shape` or each other.
    pub fn take_table(
        checkpoint: &mut Checkpoint,
        name: &str,
        shape: [usize; 2],
        errors: Option<TableErrors>,
        digits: bool,
    ) -> Result<Option<Weight>> {
        if let Some(subspace) = Subspace::take(checkpoint, name, shape, errors, digits)? {
            return Ok(Some(Weight::Subspace(Box::new(subspace))));
        }
        Ok(Factored::take(checkpoint, name, shape, errors)?.map(Weight::Factored))
    }

    /// What the names of its tensors begin with, to be changed.
    pub fn prefix_mut(&mut self) -> &mut String {
        match self {
            Weight::Dense(tensor) => &mut tensor.name,
            Weight::Binary(binary) => &mut binary.name,
            Weight::Double(double) => &mut double.name,
            Weight::Int8(int8) => &mut int8.name,
            Weight::Subspace(subspace) => &mut subspace.name,
            Weight::Factored(factored) => &mut factored.name,
        }
    }

    /// Tensor prefix in the checkpoint, without `.weight`.
    pub fn name(&self) -> &str {
        match self {
            Weight::Dense(tensor) => tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name),
            Weight::Binary(binary) => &binary.name,
            Weight::Double(double) => &double.name,
            Weight::Int8(int8) => &int8.name,
            Weight::Subspace(subspace) => &subspace.name,
            Weight::Factored(factored) => &factored.name,
        }
    }

    pub fn rows(&self) -> usize {
        match self {
            Weight::Dense(tensor) => tensor.shape[0],
            Weight::Binary(binary) => binary.rows,
            Weight::Double(double) => double.rows,
            Weight::Int8(int8) => int8.rows,
            Weight::Subspace(subspace) => subspace.rows,
            Weight::Factored(factored) => factored.rows,
        }
    }

    pub fn cols(&self) -> usize {
        match self {
            Weight::Dense(tensor) => tensor.shape[1],
            Weight::Binary(binary) => binary.cols,
            Weight::Double(double) => double.cols,
            Weight::Int8(int8) => int8.cols,
            Weight::Subspace(subspace) => subspace.cols,
            Weight::Factored(factored) => factored.cols,
        }
    }

    /// The matrix in f32, `[rows, cols]`; borrowed from the mapped file when that is what it holds.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        match self {
            Weight::Dense(tensor) => tensor.to_f32(),
            Weight::Binary(binary) => Ok(Cow::Owned(binary.to_dense())),
            Weight::Double(double) => Ok(Cow::Owned(double.to_dense())),
            Weight::Int8(int8) => Ok(Cow::Owned(int8.to_dense())),
            Weight::Subspace(subspace) => Ok(Cow::Owned(subspace.to_dense())),
            Weight::Factored(factored) => Ok(Cow::Owned(factored.to_dense())),
        }
    }

    /// Logical parameters: those of the matrix it stands for.
    pub fn params(&self) -> usize {
        self.rows() * self.cols()
    }

    /// Multiply-accumulates of one input: those of both factors where there are two, else those of the matrix.
    pub fn macs(&self) -> usize {
        match self {
            Weight::Double(double) => double.rank * (double.rows + double.cols),
            Weight::Dense(_)
            | Weight::Binary(_)
            | Weight::Int8(_)
            | Weight::Subspace(_)
            | Weight::Factored(_) => self.params(),
        }
    }

    pub fn tensors(&self) -> Vec<Tensor> {
        match self {
            Weight::Dense(tensor) => vec![tensor.clone()],
            Weight::Binary(binary) => binary.tensors(),
            Weight::Double(double) => double.tensors(),
            Weight::Int8(int8) => int8.tensors(),
            Weight::Subspace(subspace) => subspace.tensors(),
            Weight::Factored(factored) => factored.tensors(),
        }
    }

    /// Moves what is large of it to a file.
    ///
    /// # Errors
    /// As [`Spill::put`].
    pub fn spill(&mut self, spill: &Spill) -> Result<()> {
        match self {
            Weight::Dense(tensor) => spill.put(tensor),
            Weight::Binary(binary) => binary.signs.spill(spill),
            Weight::Double(double) => {
                double.u.spill(spill)?;
                double.v.spill(spill)
            }
            Weight::Int8(int8) => int8.codes.spill(spill),
            Weight::Subspace(_) | Weight::Factored(_) => Ok(()),
        }
    }

    /// Stored bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Weight::Dense(tensor) => tensor.byte_len(),
            Weight::Binary(binary) => binary.bytes(),
            Weight::Double(double) => double.bytes(),
            Weight::Int8(int8) => int8.bytes(),
            Weight::Subspace(subspace) => subspace.bytes(),
            Weight::Factored(factored) => factored.bytes(),
        }
    }

    /// Numbers that are stored as such, where a table has a form of its own: what trains, and what its paper counts as
    /// parameters. Of every other form those of the matrix.
    pub fn stored_params(&self) -> usize {
        match self {
            Weight::Subspace(subspace) => subspace.stored_params(),
            Weight::Factored(factored) => factored.stored_params(),
            _ => self.params(),
        }
    }

    /// Multiply-accumulates of looking up one row of a table.
    pub fn lookup_macs(&self) -> usize {
        match self {
            Weight::Subspace(subspace) => subspace.macs(),
            Weight::Factored(factored) => factored.macs(),
            Weight::Double(_) | Weight::Dense(_) | Weight::Binary(_) | Weight::Int8(_) => 0,
        }
    }

    /// What a table lost in its form, where that is known.
    pub fn table_errors(&self) -> Option<TableErrors> {
        match self {
            Weight::Subspace(subspace) => subspace.errors,
            Weight::Factored(factored) => factored.errors,
            _ => None,
        }
    }

    /// In the words of reports: `f32`, `binary(planes=2, rank=16)`.
    pub fn form(&self) -> String {
        match self {
            Weight::Dense(tensor) => tensor.dtype.to_string().to_lowercase(),
            Weight::Binary(b) => {
                let mut form = format!("binary(planes={}", b.planes);
                if b.group < b.cols {
                    form += &format!(", group={}", b.group);
                }
                if let Some(low) = &b.low_rank {
                    form += &format!(", rank={}", low.rank);
                }
                form + ")"
            }
            Weight::Double(double) => format!("double(rank={})", double.rank),
            Weight::Int8(_) => "int8".into(),
            Weight::Subspace(s) => {
                let exact = s.exact.ids.len();
                format!("subspace(slices={}, words={}, exact={exact})", s.slices, s.words)
            }
            Weight::Factored(f) => {
                format!("factored(rank={}, exact={})", f.rank, f.exact.ids.len())
            }
        }
    }

    /// The dense matrix in 8-bit integers with a scale a row.
    ///
    /// # Errors
    /// If it is packed.
    pub fn to_int8(&self) -> Result<Weight> {
        let shape = (self.rows(), self.cols());
        if self.dense()?.is_blank() {
            return Ok(Weight::Int8(Int8::blank(self.name().to_string(), shape)));
        }
        Ok(Weight::Int8(Int8::new(self.name().to_string(), shape, &self.dense()?.to_f32()?)))
    }

    /// The dense matrix in half precision.
    ///
    /// # Errors
    /// If it is packed, or a number is beyond f16.
    pub fn to_f16(&self) -> Result<Weight> {
        let tensor = self.dense()?;
        if tensor.is_blank() {
            let (name, shape) = (tensor.name.clone(), &tensor.shape);
            return Ok(Weight::Dense(Tensor::blank(name, Dtype::F16, shape)));
        }
        let w = tensor.to_f32()?;
        let most = f16::MAX.to_f32();
        if let Some(x) = w.iter().find(|x| x.abs() > most) {
            return Err(Error::Mismatch {
                found: format!("`{}` holds {x}", tensor.name),
                expected: format!("f16 ends at {most}"),
                advice: "choose int8 for it, or none",
            });
        }
        Ok(Weight::Dense(Tensor::from_f32(tensor.name.clone(), &tensor.shape, &w, Dtype::F16)))
    }

    /// Bytes in memory while rows of a table are looked up.
    pub fn memory_bytes(&self) -> usize {
        match self {
            Weight::Subspace(subspace) => subspace.memory_bytes(),
            Weight::Factored(factored) => factored.memory_bytes(),
            Weight::Dense(_) | Weight::Binary(_) | Weight::Double(_) | Weight::Int8(_) => {
                self.bytes()
            }
        }
    }

    /// The dense tensor.
    ///
    /// # Errors
    /// If the matrix is packed: passes that cut rows or columns come before those that pack.
    pub fn dense(&self) -> Result<&Tensor> {
        match self {
            Weight::Dense(tensor) => Ok(tensor),
            Weight::Binary(binary) => Err(Error::Mismatch {
                found: format!("`{}` is packed in {} sign planes", binary.name, binary.planes),
                expected: "only dense weights can be cut or packed".into(),
                advice: "start from the checkpoint as it was before binarization",
            }),
            Weight::Double(_) | Weight::Int8(_) => Err(Error::Mismatch {
                found: format!("`{}` is packed as {}", self.name(), self.form()),
                expected: "only dense weights can be cut or packed".into(),
                advice: "start from the checkpoint as it was before it was packed",
            }),
            Weight::Subspace(_) | Weight::Factored(_) => Err(Error::Mismatch {
                found: format!("the table `{}` is already stored as {}", self.name(), self.form()),
                expected: "only a dense table can be cut or packed".into(),
                advice: "behind `embed`, leave the embeddings alone: `quantize(embeddings=none)`, \
                         `binarize(embeddings=0)`",
            }),
        }
    }
}

impl Norm {
    pub fn tensors(&self) -> Vec<Tensor> {
        std::iter::once(self.weight.clone()).chain(self.bias.clone()).collect()
    }

    pub fn params(&self) -> usize {
        self.weight.numel() + self.bias.as_ref().map_or(0, Tensor::numel)
    }
}

/// The rows at `keep` of `[rows, …]`, byte for byte.
fn select_rows(tensor: &Tensor, keep: &[usize]) -> Result<Tensor> {
    let width: usize = tensor.shape[1..].iter().product();
    let values = tensor.to_f32()?;
    let data: Vec<f32> =
        keep.iter().flat_map(|&r| &values[r * width..(r + 1) * width]).copied().collect();
    let mut shape = tensor.shape.clone();
    shape[0] = keep.len();
    Ok(Tensor::from_f32(tensor.name.clone(), &shape, &data, tensor.dtype))
}

/// The columns at `keep` of `[rows, cols]`, byte for byte.
fn select_cols(tensor: &Tensor, keep: &[usize]) -> Result<Tensor> {
    let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
    let values = tensor.to_f32()?;
    let data: Vec<f32> = (0..rows)
        .flat_map(|r| keep.iter().map(move |&c| r * cols + c))
        .map(|i| values[i])
        .collect();
    Ok(Tensor::from_f32(tensor.name.clone(), &[rows, keep.len()], &data, tensor.dtype))
}
