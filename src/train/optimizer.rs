//! AdamW.

use crate::runtime::kernels::dispatch;
use rayon::prelude::*;

/// Decay rates of the running means, and what keeps the quotient finite (Kingma & Ba 2015).
const BETAS: [f32; 2] = [0.9, 0.999];
const EPS: f32 = 1e-8;

/// Running means of a parameter's gradient and of its square; empty before the first step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Adam {
    pub mean: Vec<f32>,
    pub square: Vec<f32>,
}

/// One step of one parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Negative for ascent.
    pub rate: f32,
    /// Decoupled weight decay (Loshchilov & Hutter 2019): values shrink by `rate · decay`.
    pub decay: f32,
    /// Factor on the gradient: clipping, and the mean over accumulated batches.
    pub scale: f32,
    /// Steps so far, this one included.
    pub count: u32,
}

/// Elements that one task takes.
const CHUNK: usize = 1 << 16;

#[inline(always)]
fn update_body(
    values: &mut [f32],
    grads: &[f32],
    mean: &mut [f32],
    square: &mut [f32],
    step: &Step,
) {
    let correction = |beta: f32| 1.0 - beta.powi(step.count as i32);
    let rate = step.rate / correction(BETAS[0]);
    let root = 1.0 / correction(BETAS[1]).sqrt();
    let shrink = 1.0 - step.rate.abs() * step.decay;
    let states = mean.iter_mut().zip(square.iter_mut());
    for ((x, g), (m, v)) in values.iter_mut().zip(grads).zip(states) {
        let g = g * step.scale;
        *m += (1.0 - BETAS[0]) * (g - *m);
        *v = BETAS[1] * *v + (1.0 - BETAS[1]) * g * g;
        *x = *x * shrink - rate * *m / (v.sqrt() * root + EPS);
    }
}

dispatch! {
    /// One step over part of a parameter; see [`Adam::update`].
    pub fn update(
        values: &mut [f32],
        grads: &[f32],
        mean: &mut [f32],
        square: &mut [f32],
        step: &Step,
    ) = update_body
}

impl Adam {
    /// Moves `values` against their gradients `grads`, all threads at it.
    pub fn update(&mut self, values: &mut [f32], grads: &[f32], step: &Step) {
        self.mean.resize(values.len(), 0.0);
        self.square.resize(values.len(), 0.0);
        values
            .par_chunks_mut(CHUNK)
            .zip(grads.par_chunks(CHUNK))
            .zip(self.mean.par_chunks_mut(CHUNK).zip(self.square.par_chunks_mut(CHUNK)))
            .for_each(|((x, g), (m, v))| update(x, g, m, v, step));
    }
}

#[inline(always)]
fn squares_body(x: &[f32], sum: &mut f64) {
    let mut lanes = [0.0f64; 8];
    let chunks = x.chunks_exact(8);
    let tail: f64 = chunks.remainder().iter().map(|&x| x as f64 * x as f64).sum();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += x as f64 * x as f64;
        }
    }
    *sum = lanes.iter().sum::<f64>() + tail;
}

dispatch! {
    /// `sum ← Σ x²`.
    fn squares(x: &[f32], sum: &mut f64) = squares_body
}

/// Σ x², in an order that does not depend on the number of threads.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let part = |x: &[f32]| {
        let mut sum = 0.0;
        squares(x, &mut sum);
        sum
    };
    let parts: Vec<f64> = x.par_chunks(CHUNK).map(part).collect();
    parts.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: the first step moves by the rate against the sign, whatever the size of the gradient.
    #[test]
    fn the_first_steps_are_those_of_the_paper() {
        let mut adam = Adam::default();
        let mut x = vec![1.0, -2.0, 3.0];
        let step = Step { rate: 0.1, decay: 0.0, scale: 1.0, count: 1 };
        adam.update(&mut x, &[0.5, -4.0, 0.0], &step);
        for (x, e) in x.iter().zip([0.9, -1.9, 3.0]) {
            assert!((x - e).abs() < 1e-6, "{x} {e}");
        }
        // m = .9·.05 + .1·1 = .145, v = .999·.00025 + .001·1; both divided by 1 − β².
        adam.update(&mut x, &[1.0, 0.0, 0.0], &Step { count: 2, ..step });
        let expected = 0.9 - 0.1 * (0.145 / 0.19) / ((0.00124975f64 / 0.001999).sqrt() + 1e-8);
        assert!((x[0] as f64 - expected).abs() < 1e-6, "{} {expected}", x[0]);
    }

    #[test]
    fn decay_is_decoupled_and_ascent_climbs() {
        let mut x = vec![2.0];
        let step = Step { rate: 0.1, decay: 0.5, scale: 1.0, count: 1 };
        Adam::default().update(&mut x, &[0.0], &step);
        assert!((x[0] - 1.9).abs() < 1e-6, "{}", x[0]);
        let mut x = vec![2.0];
        let step = Step { rate: -0.1, decay: 0.0, scale: 1.0, count: 1 };
        Adam::default().update(&mut x, &[3.0], &step);
        assert!((x[0] - 2.1).abs() < 1e-6, "{}", x[0]);
    }

    #[test]
    fn the_sum_of_squares_has_no_length_to_trip_over() {
        let x: Vec<f32> = (0..CHUNK + 13).map(|i| (i % 7) as f32 - 3.0).collect();
        let expected: f64 = x.iter().map(|x| (*x as f64).powi(2)).sum();
        assert_eq!(sum_of_squares(&x), expected);
    }
}
