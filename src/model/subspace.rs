//! A table whose rows are put together from codewords (subspace notes, §1 and §3.3).

use super::exact::{Exact, numbers, store};
use super::packed::{Parts, expect_shape, stored_f32};
use crate::checkpoint::{Checkpoint, Dtype, Tensor};
use crate::{Error, Result};
use rayon::prelude::*;

/// `row i = concat_m book_m[code_{i,m}] · Rᵀ + mean`, but for the rows that are stored as they are.
#[derive(Debug, Clone)]
pub struct Subspace {
    /// Tensor prefix in the checkpoint: codebooks are at `{name}.pq_codebooks`.
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    /// Slices of a row; one code each.
    pub slices: usize,
    /// Codewords of a book.
    pub words: usize,
    /// Dimensions of a slice; the last one may have fewer, and its codewords zeros behind them.
    pub width: usize,
    pub codes: Codes,
    /// `[books, words, width]`: one book a slice, or one for all.
    pub books: Vec<f32>,
    pub books_dtype: Dtype,
    pub rotation: Option<Rotation>,
    /// `[cols]`
    pub mean: Option<Vec<f32>>,
    pub exact: Exact,
    /// What it lost, where that is known.
    pub errors: Option<TableErrors>,
}

/// Which codeword stands in each slice of each row.
#[derive(Debug, Clone)]
pub enum Codes {
    /// U8 or U16, `[rows, slices]`: the codes of a row lie together.
    Stored(Tensor),
    /// The digits of the row's number to the base `words`, the lowest first (subspace notes, §1.2): nothing is stored.
    Digits,
}

/// A matrix, or several along the diagonal: orthogonal, or the inverse of a stretching times one that is.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Rows and columns of each of them.
    pub block: usize,
    /// `[cols / block, block, block]`: `x = y·Rᵀ` of codewords y side by side.
    pub values: Vec<f32>,
    pub dtype: Dtype,
}

/// Relative squared errors of a table: `Σ w‖e − ê‖² / Σ w‖e‖²`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TableErrors {
    /// All rows alike.
    pub uniform: f64,
    /// Rows by their counts in the text that was there.
    pub frequency: f64,
}

impl Rotation {
    /// Rounds the values to what is stored.
    pub fn new(block: usize, mut values: Vec<f32>) -> Rotation {
        let dtype = store(&mut values);
        Rotation { block, values, dtype }
    }
}

impl Subspace {
    /// With codewords as they are stored.
    pub fn rounded(mut self) -> Subspace {
        self.books_dtype = store(&mut self.books);
        self
    }

    /// The code of `row` in `slice`.
    pub fn code(&self, row: usize, slice: usize) -> usize {
        match &self.codes {
            Codes::Stored(tensor) => {
                let (bytes, at) = (tensor.bytes(), row * self.slices + slice);
                match tensor.dtype {
                    Dtype::U8 => bytes[at] as usize,
                    _ => u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]) as usize,
                }
            }
            Codes::Digits => digit(row, self.words, slice),
        }
    }

    /// Books that there are: one a slice, or one for all.
    pub fn book_count(&self) -> usize {
        self.books.len() / (self.words * self.width).max(1)
    }

    /// Where the codeword of `row` in `slice` lies in `books`, as long as the slice is.
    pub fn place(&self, row: usize, slice: usize) -> std::ops::Range<usize> {
        let book = if self.book_count() == 1 { 0 } else { slice };
        let at = (book * self.words + self.code(row, slice)) * self.width;
        at..at + self.width.min(self.cols - slice * self.width)
    }

    /// The codewords of `row` side by side, before they are rotated back: `[cols]`.
    pub fn gather(&self, row: usize, out: &mut [f32]) {
        for (slice, out) in out.chunks_mut(self.width).enumerate() {
            out.copy_from_slice(&self.books[self.place(row, slice)]);
        }
    }

    /// Adds row `row` of the table it stands for to `out`, `[cols]`.
    pub fn add_row(&self, row: usize, out: &mut [f32]) {
        if let Some(exact) = self.exact.get(row) {
            out.iter_mut().zip(exact).for_each(|(o, x)| *o += x);
            return;
        }
        let mut y = vec![0.0; self.cols];
        self.gather(row, &mut y);
        match &self.rotation {
            None => out.iter_mut().zip(&y).for_each(|(o, y)| *o += y),
            Some(Rotation { block, values, .. }) => {
                let blocks = y.chunks_exact(*block).zip(out.chunks_exact_mut(*block));
                for ((y, out), r) in blocks.zip(values.chunks_exact(block * block)) {
                    for (o, line) in out.iter_mut().zip(r.chunks_exact(*block)) {
                        *o += dot(line, y);
                    }
                }
            }
        }
        if let Some(mean) = &self.mean {
            out.iter_mut().zip(mean).for_each(|(o, m)| *o += m);
        }
    }

    /// The table it stands for, `[rows, cols]`.
    pub fn to_dense(&self) -> Vec<f32> {
        dense(self.rows, self.cols, |row, out| self.add_row(row, out))
    }

    /// Numbers that are stored as such: codewords, rotation, mean and exact rows. Of the paper's own form these are its
    /// parameters (subspace notes, §1.6).
    pub fn stored_params(&self) -> usize {
        let padding = self.slices * self.width - self.cols;
        let padding = if self.book_count() == 1 { 0 } else { padding * self.words };
        let mean = self.mean.as_ref().map_or(0, Vec::len);
        self.books.len() - padding + self.macs() + mean + self.exact.numbers(self.cols)
    }

    /// Stored bytes.
    pub fn bytes(&self) -> usize {
        let width = |dtype: Dtype| dtype.bits() / 8;
        let rotation = self.rotation.as_ref();
        self.code_bytes()
            + width(self.books_dtype) * self.books.len()
            + rotation.map_or(0, |r| width(r.dtype) * self.macs())
            + self.mean.as_ref().map_or(0, |m| 4 * m.len())
            + self.exact.bytes(self.cols)
    }

    /// Stored bytes of the codes alone.
    pub fn code_bytes(&self) -> usize {
        match &self.codes {
            Codes::Stored(tensor) => tensor.byte_len(),
            Codes::Digits => 0,
        }
    }

    /// Bytes in memory while it is looked up in: codes as they are stored, everything else in f32.
    pub fn memory_bytes(&self) -> usize {
        let mean = self.mean.as_ref().map_or(0, Vec::len);
        let numbers = self.books.len() + self.macs() + mean + self.exact.numbers(self.cols);
        self.code_bytes() + 4 * (numbers + self.exact.ids.len())
    }

    /// Multiply-accumulates of a row that is looked up: one for each number of the rotation.
    pub fn macs(&self) -> usize {
        self.rotation.as_ref().map_or(0, |r| self.cols * r.block)
    }

    /// The tensors it is stored as (docs/format.md).
    pub fn tensors(&self) -> Vec<Tensor> {
        let at = |part: &str| format!("{}.{part}", self.name);
        let mut tensors = Vec::new();
        if let Codes::Stored(codes) = &self.codes {
            tensors.push(codes.clone().renamed(at("pq_codes")));
        }
        let shape = [self.book_count(), self.words, self.width];
        tensors.push(Tensor::from_f32(at("pq_codebooks"), &shape, &self.books, self.books_dtype));
        if let Some(Rotation { block, values, dtype }) = &self.rotation {
            let shape = [self.cols / block, *block, *block];
            let shape = if shape[0] == 1 { &shape[1..] } else { &shape };
            tensors.push(stored_f32(at("pq_rotation"), shape, values, *dtype));
        }
        if let Some(mean) = &self.mean {
            tensors.push(Tensor::from_f32(at("pq_mean"), &[self.cols], mean, Dtype::F32));
        }
        tensors.extend(self.exact.tensors(&self.name, self.cols));
        tensors
    }

    /// Reads the tensors at `name`, if the checkpoint has such a table there, and takes them out of it. Codes may be missing
    /// only where they are `digits` of the ids.
    ///
    /// # Errors
    /// When parts are missing or do not fit `shape` or each other, a code has no codeword, or a number is not finite.
    pub fn take(
        checkpoint: &mut Checkpoint,
        name: &str,
        shape: [usize; 2],
        errors: Option<TableErrors>,
        digits: bool,
    ) -> Result<Option<Subspace>> {
        let [rows, cols] = shape;
        let Some(books) = checkpoint.take(&format!("{name}.pq_codebooks")) else {
            return match checkpoint.get(&format!("{name}.pq_codes")) {
                Some(codes) => {
                    let first = codes.clone();
                    let parts = Parts::new(checkpoint, name, &first);
                    Err(parts.missing("pq_codebooks"))
                }
                None => Ok(None),
            };
        };
        let mut parts = Parts::new(checkpoint, name, &books);
        let codes = parts.optional("pq_codes");
        if codes.is_none() && !digits {
            return Err(parts.missing("pq_codes"));
        }
        let [count, words, width] = *books.shape else {
            let found = books.shape.clone();
            return Err(unfit(&books, found, vec![1, 256, cols]));
        };
        let slices = match &codes {
            Some(codes) => codes.shape.get(1).copied().unwrap_or(0),
            None => count,
        };
        let full = cols.div_ceil(width.max(1));
        if slices != full || ![1, slices].contains(&count) || !(1..=1 << 16).contains(&words) {
            let expected = vec![full, words.clamp(1, 1 << 16), width];
            return Err(unfit(&books, books.shape.clone(), expected));
        }
        let (values, books_dtype) = numbers(&books, &[count, words, width])?;
        let codes = match codes {
            Some(codes) => {
                expect_shape(&codes, &[rows, slices])?;
                Codes::Stored(checked(codes, words)?)
            }
            None if tuples(words, slices) < rows as u128 => {
                return Err(Error::Mismatch {
                    found: format!(
                        "tensor `{}` tells {} rows apart",
                        books.name,
                        tuples(words, slices)
                    ),
                    expected: format!("the table has {rows}, and no `pq_codes` says more of them"),
                    advice: "pack the model again, or fetch the checkpoint again",
                });
            }
            None => Codes::Digits,
        };
        let rotation = match parts.optional("pq_rotation") {
            None => None,
            Some(tensor) => {
                let block = tensor.shape.last().copied().unwrap_or(0);
                let blocks = cols.checked_div(block).unwrap_or(0);
                let shape = [blocks, block, block];
                let flat = tensor.shape.len() == 2;
                if block * blocks != cols {
                    return Err(unfit(&tensor, tensor.shape.clone(), vec![cols, cols]));
                }
                let square = [cols, cols];
                let (values, dtype) = numbers(&tensor, if flat { &square } else { &shape })?;
                Some(Rotation { block, values, dtype })
            }
        };
        let mean = match parts.optional("pq_mean") {
            None => None,
            Some(tensor) if tensor.dtype != Dtype::F32 => {
                let found = tensor.dtype.to_string();
                return Err(Error::Dtype { name: tensor.name, found, expected: "F32" });
            }
            Some(tensor) => Some(numbers(&tensor, &[cols])?.0),
        };
        let exact = Exact::take(&mut parts, shape)?;
        let name = name.to_string();
        let books = values;
        Ok(Some(Subspace {
            name,
            rows,
            cols,
            slices,
            words,
            width,
            codes,
            books,
            books_dtype,
            rotation,
            mean,
            exact,
            errors,
        }))
    }
}

/// Digit `place` of `row` to the base `words`.
pub fn digit(row: usize, words: usize, place: usize) -> usize {
    (0..place).fold(row, |row, _| row / words.max(1)) % words.max(1)
}

/// Rows that `slices` codes below `words` tell apart, or the largest number there is.
pub fn tuples(words: usize, slices: usize) -> u128 {
    (0..slices).fold(1u128, |n, _| n.saturating_mul(words as u128))
}

/// A table, row by row, on all threads.
pub(super) fn dense(
    rows: usize,
    cols: usize,
    add_row: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut table = vec![0.0; rows * cols];
    table.par_chunks_exact_mut(cols.max(1)).enumerate().for_each(|(row, out)| add_row(row, out));
    table
}

/// Codes that all have a codeword.
fn checked(codes: Tensor, words: usize) -> Result<Tensor> {
    let most = match codes.dtype {
        Dtype::U8 => codes.bytes().iter().copied().max().map(usize::from),
        Dtype::U16 => codes.to_u16()?.iter().copied().max().map(usize::from),
        other => {
            let (name, found) = (codes.name, other.to_string());
            return Err(Error::Dtype { name, found, expected: "U8 or U16" });
        }
    };
    match most.filter(|&most| most >= words) {
        Some(code) => Err(Error::Mismatch {
            found: format!("tensor `{}` holds the code {code}", codes.name),
            expected: format!("codes below the {words} codewords of a book"),
            advice: "pack the model again, or fetch the checkpoint again",
        }),
        None => Ok(codes),
    }
}

fn unfit(tensor: &Tensor, found: Vec<usize>, expected: Vec<usize>) -> Error {
    super::packed::wrong_shape(tensor, Some(found), &expected)
}

/// With lanes of its own, so that the loop is vectorised.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (a_parts, b_parts) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = a_parts.remainder().iter().zip(b_parts.remainder());
    let rest: f32 = rest.map(|(a, b)| a * b).sum();
    for (a, b) in a_parts.zip(b_parts) {
        for i in 0..8 {
            lanes[i] += a[i] * b[i];
        }
    }
    lanes.iter().sum::<f32>() + rest
}
