//! A matrix of signs around its mean with one scale, as what is trained.

use crate::model::Binary;
use crate::model::binary::centre;

/// BiPFT's weights: `m · sgn(w − e)` of latent weights `w`, with `m` and `e` the means of `|w|` and `w` in every step.
/// Gradients go straight through to `w`, as if `m` and `e` did not depend on it (BiPFT notes, §1.1).
#[derive(Debug, Clone)]
pub struct Centred {
    pub rows: usize,
    pub cols: usize,
    /// `[rows, cols]`
    pub latent: Vec<f32>,
}

impl Centred {
    /// Of a matrix that [`Binary::centred`] made, whose levels are the latent weights to begin with.
    pub fn of(binary: &Binary) -> Centred {
        Centred { rows: binary.rows, cols: binary.cols, latent: binary.to_dense() }
    }

    /// As it is stored.
    pub fn pack(&self, name: String) -> Binary {
        Binary::centred(name, (self.rows, self.cols), &self.latent)
    }

    pub fn write(&self, leaf: &mut [f32]) {
        let (scale, mean) = centre(&self.latent);
        let signs = self.latent.iter().map(|w| if w - mean >= 0.0 { scale } else { -scale });
        leaf.iter_mut().zip(signs).for_each(|(out, sign)| *out = sign);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::gaussian;

    #[test]
    fn the_matrix_follows_its_latent_weights_and_is_what_is_stored() {
        let (rows, cols) = (5, 40);
        let binary = Binary::centred("w".into(), (rows, cols), &gaussian(rows * cols, 1));
        let mut centred = Centred::of(&binary);
        let mut matrix = vec![0.0; rows * cols];
        centred.write(&mut matrix);
        assert_eq!(matrix, binary.to_dense());
        assert_eq!(centred.pack("w".into()).scales, binary.scales);
        // All weights twice as large, and one of them on the other side.
        centred.latent.iter_mut().for_each(|w| *w *= 2.0);
        centred.latent[7] *= -1.0;
        let before = matrix.clone();
        centred.write(&mut matrix);
        assert_eq!(matrix, centred.pack("w".into()).to_dense());
        for (i, (now, before)) in matrix.iter().zip(before).enumerate() {
            assert_eq!(*now, if i == 7 { -2.0 * before } else { 2.0 * before });
        }
    }
}
