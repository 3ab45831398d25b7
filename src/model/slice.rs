//! Cutting heads and units out of a layer, physically.

use super::*;

/// Multipliers of heads and feed-forward units in a forward pass, the reference that a cut model is
/// checked against (CoFi, §1): 1 keeps, 0 removes, what lies between scales.
#[derive(Debug, Clone, PartialEq)]
pub struct Masks {
    /// By layer: one number a head that is left.
    pub heads: Vec<Vec<f32>>,
    /// By layer: one number a unit that is left.
    pub units: Vec<Vec<f32>>,
}

impl Masks {
    /// All ones: changes nothing.
    pub fn ones(model: &Model) -> Masks {
        let heads = |l: &Layer| vec![1.0; l.attention.as_ref().map_or(0, |a| a.heads.len())];
        let units = |l: &Layer| vec![1.0; l.ffn.as_ref().map_or(0, FeedForward::units)];
        Masks {
            heads: model.layers.iter().map(heads).collect(),
            units: model.layers.iter().map(units).collect(),
        }
    }
}

impl Attention {
    /// With only the heads at `keep` (positions among those left, ascending). The rows of query, key
    /// and value and the columns of the output go together.
    ///
    /// # Errors
    /// If a weight is packed.
    pub fn select_heads(&self, keep: &[usize]) -> Result<Attention> {
        let dims = self.dims(keep);
        Ok(Attention {
            query: self.query.select_outputs(&dims)?,
            key: self.key.select_outputs(&dims)?,
            value: self.value.select_outputs(&dims)?,
            output: self.output.select_inputs(&dims)?,
            norm: self.norm.clone(),
            heads: keep.iter().map(|&h| self.heads[h]).collect(),
            head_dim: self.head_dim,
        })
    }

    /// The context dimensions of the heads at `keep`.
    pub fn dims(&self, keep: &[usize]) -> Vec<usize> {
        let d = self.head_dim;
        keep.iter().flat_map(|&h| h * d..(h + 1) * d).collect()
    }
}

impl FeedForward {
    /// With only the units at `keep`, ascending. Rows of `up` and columns of `down` go together: a
    /// unit dropped from one and not the other would silently misalign the rest.
    ///
    /// # Errors
    /// If a weight is packed.
    pub fn select_units(&self, keep: &[usize]) -> Result<FeedForward> {
        Ok(FeedForward {
            up: self.up.select_outputs(keep)?,
            down: self.down.select_inputs(keep)?,
            norm: self.norm.clone(),
        })
    }
}
