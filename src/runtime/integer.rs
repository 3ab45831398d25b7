//! Packed matrices as the kernels for integers multiply them.

use super::binary::RunElastic;
use super::encoder::Inputs;
use super::kernels::packed::{Bits, Packed, binarise};
use super::kernels::{Mat, MatMut, add_product, product};
use crate::model::{Activations, Binary, Linear, LowRank, Weight};

/// A matrix that is multiplied as it is stored, without being expanded to f32.
#[derive(Debug)]
pub struct IntegerMatrix {
    bits: Bits,
    planes: Packed,
    residual: Option<LowRank>,
}

impl IntegerMatrix {
    /// `None` where the matrix is dense, where several scales share a row, or where inputs stay as they are: those are
    /// expanded.
    pub fn new(linear: &Linear) -> Option<IntegerMatrix> {
        let bits = match (&linear.elastic, linear.activations) {
            (Some(_), _) => Bits::One,
            (None, Activations::Exact) => return None,
            (None, Activations::Int8) => Bits::Eight,
            (None, Activations::Int4) => Bits::Four,
        };
        match &linear.weight {
            Weight::Binary(b) if b.group >= b.cols => {
                Some(IntegerMatrix { bits, planes: planes(b), residual: b.low_rank.clone() })
            }
            _ => None,
        }
    }

    /// `x·Wᵀ` of inputs that are rounded here; the residual sees them as they are.
    ///
    /// `elastic`: how they become signs, if they do.
    pub fn multiply(&self, x: &Inputs, elastic: Option<&RunElastic>, out: MatMut) {
        let rows = out.rows;
        let signs;
        let codes = match elastic {
            Some(e) => {
                signs = binarise(x.x, rows, self.planes.cols(), Some(&e.shift), Some(e.alpha()));
                &signs
            }
            None => x.codes(self.bits),
        };
        self.planes.multiply(codes, MatMut { data: &mut *out.data, ..out });
        if let Some(low) = &self.residual {
            let mut inner = vec![0.0; rows * low.rank];
            let values = Mat::new(x.x, rows, self.planes.cols());
            let v = Mat::new(&low.v, low.rank, self.planes.cols());
            product(MatMut::new(&mut inner, rows, low.rank), values, v.t(), 1.0);
            let u = Mat::new(&low.u, self.planes.rows(), low.rank);
            add_product(out, Mat::new(&inner, rows, low.rank), u.t(), 1.0);
        }
    }
}

fn planes(b: &Binary) -> Packed {
    Packed::signs(&b.signs, &b.scales, b.planes, b.rows, b.cols)
}
