//! Rows of a dense table, a block at a time.

use crate::Result;
use crate::checkpoint::Tensor;
use std::ops::Range;

/// Some rows of a table, in f32 as they are read.
#[derive(Debug)]
pub struct Rows<'a> {
    tensor: &'a Tensor,
    /// `None`: all of them.
    chosen: Option<&'a [usize]>,
    pub cols: usize,
}

impl<'a> Rows<'a> {
    pub fn all(tensor: &'a Tensor) -> Rows<'a> {
        Rows { tensor, chosen: None, cols: tensor.shape[1] }
    }

    /// The rows at `chosen`, in that order.
    pub fn of(tensor: &'a Tensor, chosen: &'a [usize]) -> Rows<'a> {
        Rows { tensor, chosen: Some(chosen), cols: tensor.shape[1] }
    }

    pub fn count(&self) -> usize {
        self.chosen.map_or(self.tensor.shape[0], <[usize]>::len)
    }

    /// The rows of block `index`.
    pub fn span(&self, index: usize, block: usize) -> Range<usize> {
        index * block..((index + 1) * block).min(self.count())
    }

    /// `[span, cols]`
    ///
    /// # Errors
    /// If the tensor is of no floating type.
    pub fn read(&self, span: Range<usize>) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(span.len() * self.cols);
        for i in span {
            let row = self.chosen.map_or(i, |chosen| chosen[i]);
            self.tensor.row_f32(row, |row| values.extend_from_slice(row))?;
        }
        Ok(values)
    }
}
