//! A constraint on sparsity, and the multipliers that enforce it (CoFi, Xia et al. 2022, §3.1, after
//! Wang et al. 2020).

/// `λ1·(s − t) + λ2·(s − t)²` for an expected sparsity `s` that is to be `t`: smallest in the gates, largest
/// in the multipliers.
#[derive(Debug, Clone, PartialEq)]
pub struct Lagrangian {
    /// λ1 and λ2, of any sign. A parameter of training, which is why it has no fixed length.
    pub lambdas: Vec<f32>,
}

impl Default for Lagrangian {
    fn default() -> Self {
        Lagrangian { lambdas: vec![0.0; 2] }
    }
}

impl Lagrangian {
    /// The penalty; below zero where λ1 rewards what is too dense.
    pub fn value(&self, s: f64, t: f64) -> f64 {
        let [linear, square] = self.pair();
        linear * (s - t) + square * (s - t).powi(2)
    }

    /// `∂ value / ∂ s`
    pub fn slope(&self, s: f64, t: f64) -> f64 {
        let [linear, square] = self.pair();
        linear + 2.0 * square * (s - t)
    }

    /// `∂ value / ∂ λ`. To climb, train with a negative rate. The second is never negative: λ2 only grows.
    pub fn lambda_gradients(&self, s: f64, t: f64) -> Vec<f32> {
        vec![(s - t) as f32, (s - t).powi(2) as f32]
    }

    fn pair(&self) -> [f64; 2] {
        [self.lambdas[0] as f64, self.lambdas[1] as f64]
    }
}

/// A target that moves along a line and then stays.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Warmup {
    /// CoFi has 0. The sparsity that the gates begin with is better: below it, λ1 first learns to open them.
    pub from: f64,
    pub to: f64,
    pub steps: u32,
}

impl Warmup {
    /// The target at `step`, from 0.
    pub fn target(&self, step: u32) -> f64 {
        if step >= self.steps {
            return self.to;
        }
        self.from + (self.to - self.from) * step as f64 / self.steps as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::optimizer::{Adam, Step};
    use super::*;

    #[test]
    fn a_penalty_by_hand() {
        let lagrangian = Lagrangian { lambdas: vec![-0.5, 0.2] };
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-7, "{found}");
        near(lagrangian.value(0.3, 0.5), 0.108);
        near(lagrangian.slope(0.3, 0.5), -0.58);
        let gradients = lagrangian.lambda_gradients(0.3, 0.5);
        near(gradients[0] as f64, -0.2);
        near(gradients[1] as f64, 0.04);
        // Ascent: λ1 falls, λ2 rises.
        let mut lambdas = lagrangian.lambdas;
        Adam::default().update(&mut lambdas, &gradients, &step(-0.01, 1));
        assert!(lambdas[0] < -0.5 && lambdas[1] > 0.2, "{lambdas:?}");
    }

    #[test]
    fn targets_climb_and_stay() {
        let warmup = Warmup { from: 0.1, to: 0.6, steps: 10 };
        let found = [0, 5, 10, 1000].map(|s| warmup.target(s));
        assert!(found.iter().zip([0.1, 0.35, 0.6, 0.6]).all(|(a, b)| (a - b).abs() < 1e-12));
        assert_eq!(Warmup { steps: 0, ..warmup }.target(0), 0.6);
    }

    fn step(rate: f32, count: u32) -> Step {
        Step { rate, decay: 0.0, scale: 1.0, count }
    }
}
