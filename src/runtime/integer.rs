//! Packed matrices as the kernels for integers multiply them.

use super::binary::RunElastic;
use super::encoder::Inputs;
use super::kernels::packed::{Bits, Packed, binarise, quantise};
use super::kernels::{Mat, MatMut, add_product, arena, product};
use crate::model::{Activations, Linear, LowRank, Weight};

/// A matrix that is multiplied as it is stored, without being expanded to f32.
#[derive(Debug)]
pub struct IntegerMatrix {
    bits: Bits,
    matrix: Matrix,
}

#[derive(Debug)]
enum Matrix {
    /// Sign planes or int8, and a low-rank residual beside them.
    One(Packed, Option<LowRank>),
    /// Two binary factors: `u` with the outer scales, `v` with the inner ones.
    Two {
        u: Packed,
        v: Packed,
        /// `[cols]`: what inputs are multiplied by.
        b: Vec<f32>,
    },
}

impl IntegerMatrix {
    /// `None` where the matrix is dense or has no weights, where several scales share a row, or where inputs stay as they are: those are
    /// expanded.
    pub fn new(linear: &Linear) -> Option<IntegerMatrix> {
        if linear.weight.params() == 0 {
            return None;
        }
        let bits = match (&linear.elastic, linear.activations) {
            (Some(_), _) => Bits::One,
            (None, Activations::Exact) => return None,
            (None, Activations::Int8) => Bits::Eight,
            (None, Activations::Int4) => Bits::Four,
        };
        let matrix = match &linear.weight {
            Weight::Dense(_) | Weight::Subspace(_) | Weight::Factored(_) => return None,
            Weight::Binary(b) if b.group < b.cols => return None,
            Weight::Binary(b) => {
                let planes = Packed::signs(&b.signs, &b.scales, b.planes, b.rows, b.cols);
                Matrix::One(planes, b.low_rank.clone())
            }
            Weight::Int8(i) => {
                Matrix::One(Packed::int8(&i.codes, &i.scales.values, i.rows, i.cols), None)
            }
            // Signs of inputs have one scale, and inner scales would come before it.
            Weight::Double(_) if linear.elastic.is_some() => return None,
            Weight::Double(d) => Matrix::Two {
                u: Packed::signs(&d.u, &d.a.values, 1, d.rows, d.rank),
                v: Packed::signs(&d.v, &d.m.values, 1, d.rank, d.cols),
                b: d.b.values.clone(),
            },
        };
        Some(IntegerMatrix { bits, matrix })
    }

    /// `x·Wᵀ + bias` of inputs that are rounded here; a residual sees them as they are.
    ///
    /// `elastic`: how they become signs, if they do.
    pub fn multiply(
        &self,
        x: &Inputs,
        elastic: Option<&RunElastic>,
        bias: Option<&[f32]>,
        mut out: MatMut,
    ) {
        let rows = out.rows;
        match &self.matrix {
            Matrix::One(planes, residual) => {
                let signs;
                let codes = match elastic {
                    Some(e) => {
                        let (shift, scale) = (Some(&e.shift[..]), Some(e.alpha()));
                        signs = binarise(x.x, rows, planes.cols(), shift, scale);
                        &signs
                    }
                    None => x.codes(self.bits),
                };
                planes.multiply(codes, bias, out.again());
                if let Some(low) = residual {
                    add_residual(low, x.x, planes.cols(), out);
                }
            }
            Matrix::Two { u, v, b } => {
                let mut scaled = arena::copy(x.x);
                for row in scaled.chunks_exact_mut(b.len()) {
                    row.iter_mut().zip(b).for_each(|(x, b)| *x *= b);
                }
                let codes = quantise(&scaled, rows, v.cols(), self.bits);
                arena::give(scaled);
                let mut inner = arena::room(rows * v.rows());
                v.multiply(&codes, None, MatMut::new(&mut inner, rows, v.rows()));
                // Between the factors at least 8 bits: these values are sums over all inputs.
                u.multiply(&quantise(&inner, rows, v.rows(), Bits::Eight), bias, out);
                arena::give(inner);
            }
        }
    }
}

/// `out += x·(U·V)ᵀ`
fn add_residual(low: &LowRank, x: &[f32], cols: usize, out: MatMut) {
    let (rows, width) = (out.rows, out.cols);
    let mut inner = arena::room(rows * low.rank);
    let v = Mat::new(&low.v, low.rank, cols);
    product(MatMut::new(&mut inner, rows, low.rank), Mat::new(x, rows, cols), v.t(), 1.0);
    let u = Mat::new(&low.u, width, low.rank);
    add_product(out, Mat::new(&inner, rows, low.rank), u.t(), 1.0);
    arena::give(inner);
}
