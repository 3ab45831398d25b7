//! Packed matrices as the kernels for integers multiply them.

use super::encoder::Inputs;
use super::kernels::packed::{Bits, Packed};
use super::kernels::{Mat, MatMut, add_product, product};
use crate::model::{Activations, Binary, LowRank, Weight};

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
    pub fn new(weight: &Weight, activations: Activations) -> Option<IntegerMatrix> {
        let bits = match activations {
            Activations::Exact => return None,
            Activations::Int8 => Bits::Eight,
            Activations::Int4 => Bits::Four,
        };
        match weight {
            Weight::Binary(b) if b.group >= b.cols => {
                Some(IntegerMatrix { bits, planes: planes(b), residual: b.low_rank.clone() })
            }
            _ => None,
        }
    }

    /// `x·Wᵀ` of inputs that are rounded here; the residual sees them as they are.
    pub fn multiply(&self, x: &Inputs, out: MatMut) {
        let rows = out.rows;
        self.planes.multiply(x.codes(self.bits), MatMut { data: &mut *out.data, ..out });
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
