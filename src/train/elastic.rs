//! The way back through binary activations (BiPFT notes, §1.2, §1.3 and §2.2).

use crate::runtime::kernels::{
    Mat, MatMut, add_columns, add_product, product, signs_gradient, steps_gradient,
};
use crate::runtime::{Dense, Estimates, Operands, RunAttention};

/// Of the binary activations of one layer, over a group of texts; empty where there are none.
#[derive(Debug, Clone, Default)]
pub struct BinaryGradient {
    /// Of the inputs of query, key, value, attention output, up and down.
    pub inputs: [ElasticGradient; 6],
    /// Of the scales of query, key, value and probabilities.
    pub scales: [ScaleGradient; 4],
    /// Weight `[rank, hidden]` and bias `[rank]` of `q_p`, `k_p`, `q_m`, `k_m` and `v_p`.
    pub estimators: Vec<[Vec<f32>; 2]>,
}

/// Of a scale, before it is divided by the root of the number of values that it scales: a scale of many would
/// otherwise outweigh all else (LSQ, Esser et al. 2020).
#[derive(Debug, Clone, Copy, Default)]
pub struct ScaleGradient {
    pub sum: f64,
    pub values: usize,
}

/// Of what makes signs of a layer's inputs.
#[derive(Debug, Clone, Default)]
pub struct ElasticGradient {
    /// `[in]`
    pub shift: Vec<f32>,
    pub scale: ScaleGradient,
}

impl ScaleGradient {
    fn add(&mut self, sum: f64, values: usize) {
        self.sum += sum;
        self.values += values;
    }

    /// Of all texts, from those of the groups.
    pub fn whole(parts: impl Iterator<Item = ScaleGradient>) -> f32 {
        let mut whole = ScaleGradient::default();
        parts.for_each(|part| whole.add(part.sum, part.values));
        (whole.sum / (whole.values.max(1) as f64).sqrt()) as f32
    }
}

impl ElasticGradient {
    /// `grad`, with respect to what `linear` multiplies, becomes the one with respect to its inputs `x`,
    /// `[rows, in]`.
    pub fn through(linear: &Dense, x: &[f32], grad: &mut [f32]) -> ElasticGradient {
        let Some(elastic) = linear.elastic.as_ref().filter(|_| linear.input > 0) else {
            return ElasticGradient::default();
        };
        let shifted = elastic.shifted(x);
        let sum = signs_gradient(&shifted, elastic.alpha(), grad);
        let mut shift = vec![0.0; linear.input];
        add_columns(grad, &mut shift);
        ElasticGradient { shift, scale: ScaleGradient { sum, values: shifted.len() } }
    }

    /// Adds the gradients of all groups to those of `linear`, where they are wanted.
    pub fn add<'a>(linear: &mut Dense, parts: impl Iterator<Item = &'a ElasticGradient> + Clone) {
        let Some(elastic) = linear.elastic.as_mut().filter(|e| !e.scale.is_empty()) else { return };
        let shift = elastic.shift.to_mut();
        for part in parts.clone() {
            shift.iter_mut().zip(&part.shift).for_each(|(s, p)| *s += p);
        }
        elastic.scale.to_mut()[0] += ScaleGradient::whole(parts.map(|part| part.scale));
    }
}

/// What comes back from the heads of one attention block to its operands.
pub struct OperandsGradient {
    /// With respect to the estimates `q_p`, `k_p`, `q_m` and `k_m`, `[tokens, rank]` each.
    estimates: Option<[Vec<f32>; 4]>,
    step: ScaleGradient,
}

impl OperandsGradient {
    pub fn new(operands: &Operands) -> OperandsGradient {
        let zeros = |e: &Estimates| [(); 4].map(|()| vec![0.0; e.q_p.len()]);
        let estimates = operands.estimates.as_ref().map(zeros);
        OperandsGradient { estimates, step: ScaleGradient::default() }
    }

    /// `grad`, with respect to the steps of probabilities `probs`, becomes the one with respect to these.
    pub fn step(&mut self, operands: &Operands, probs: &[f32], grad: &mut [f32]) {
        if let Some(scale) = operands.step {
            self.step.add(steps_gradient(probs, scale, grad), probs.len());
        }
    }

    /// Takes `grad`, `[len, len]`, with respect to what estimators add to the scores of the text at
    /// `from..from + len` before they are multiplied by `scale`.
    pub fn bracket(&mut self, e: &Estimates, grad: &[f32], from: usize, len: usize, scale: f32) {
        let Some([q_p, k_p, q_m, k_m]) = &mut self.estimates else { return };
        let grad = Mat::new(grad, len, len);
        let rows = from * e.rank..(from + len) * e.rank;
        let put = |sum: &mut Vec<f32>, grad: Mat, factor: &[f32]| {
            let out = MatMut::new(&mut sum[rows.clone()], len, e.rank);
            add_product(out, grad, e.part(factor, from, len), scale);
        };
        put(q_p, grad, &e.k);
        put(q_m, grad, &e.k_p);
        put(k_m, grad.t(), &e.q_p);
        put(k_p, grad.t(), &e.q_p);
        put(k_p, grad.t(), &e.q_m);
    }

    /// `grad`, `[tokens, 3 · heads · head_dim]`, with respect to the operands becomes the one with respect to `qkv`;
    /// what comes through the estimators is added to that of their input `x`, `of_input`.
    pub fn finish(
        self,
        attention: &RunAttention,
        (qkv, grad): (&[f32], &mut [f32]),
        (x, of_input): (&[f32], &mut [f32]),
        found: &mut BinaryGradient,
    ) {
        let Some(binary) = &attention.binary else { return };
        let width = attention.heads.len() * attention.head_dim;
        if width == 0 {
            return;
        }
        if let (Some(estimators), Some([q_p, k_p, q_m, k_m])) = (&binary.estimators, self.estimates)
        {
            let of_values = |row: &[f32]| row[2 * width..].iter().sum();
            let v_p: Vec<f32> = grad.chunks_exact(3 * width).map(of_values).collect();
            for (linear, out) in estimators.iter().zip([q_p, k_p, q_m, k_m, v_p]) {
                let tokens = out.len() / linear.out;
                let out = Mat::new(&out, tokens, linear.out);
                let mut both = [vec![0.0; linear.weight.len()], vec![0.0; linear.out]];
                let input = Mat::new(x, tokens, linear.input);
                product(MatMut::new(&mut both[0], linear.out, linear.input), out.t(), input, 1.0);
                add_columns(out.data, &mut both[1]);
                let of_input = MatMut::new(&mut *of_input, tokens, linear.input);
                add_product(of_input, out, linear.matrix(), 1.0);
                found.estimators.push(both);
            }
        }
        for (row, grad) in qkv.chunks_exact(3 * width).zip(grad.chunks_exact_mut(3 * width)) {
            let parts = row.chunks_exact(width).zip(grad.chunks_exact_mut(width));
            for (which, (x, grad)) in parts.enumerate() {
                let sum = signs_gradient(x, binary.alpha(which), grad);
                found.scales[which].add(sum, width);
            }
        }
        found.scales[3] = self.step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::gaussian;

    /// Scores are smooth in what the estimators say, whatever is made of them behind.
    #[test]
    fn estimates_have_the_gradients_of_their_differences() {
        let (tokens, rank, from, len, scale) = (7, 2, 2, 4, 0.7);
        let parts = [1, 2, 3, 4].map(|seed| gaussian(tokens * rank, seed));
        let estimates = |[q_p, k_p, q_m, k_m]: &[Vec<f32>; 4]| Estimates {
            rank,
            q_p: q_p.clone(),
            q_m: q_m.clone(),
            k: k_m.iter().zip(k_p).map(|(m, p)| m + p).collect(),
            k_p: k_p.clone(),
        };
        let direction = gaussian(len * len, 5);
        let loss = |parts: &[Vec<f32>; 4]| -> f64 {
            let bracket = estimates(parts).bracket(from, len, scale);
            bracket.iter().zip(&direction).map(|(b, d)| f64::from(b * d)).sum()
        };
        let e = estimates(&parts);
        let operands = Operands { qkv: (&[][..]).into(), step: None, estimates: Some(e) };
        let mut back = OperandsGradient::new(&operands);
        let e = operands.estimates.as_ref().expect("estimates");
        back.bracket(e, &direction, from, len, scale);
        let found = back.estimates.expect("of estimates");
        for which in 0..4 {
            for i in 0..tokens * rank {
                let at = |step: f32| {
                    let mut moved = parts.clone();
                    moved[which][i] += step;
                    loss(&moved)
                };
                let expected = (at(0.01) - at(-0.01)) / 0.02;
                let found = f64::from(found[which][i]);
                assert!((found - expected).abs() < 1e-3, "{which} {i}: {found} {expected}");
            }
        }
    }

    #[test]
    fn a_scale_of_many_groups_is_that_of_all_their_values() {
        let parts = [(3.0, 10), (-1.0, 6)].map(|(sum, values)| ScaleGradient { sum, values });
        assert_eq!(ScaleGradient::whole(parts.into_iter()), 2.0 / 4.0);
        assert_eq!(ScaleGradient::whole(std::iter::empty()), 0.0);
    }
}
