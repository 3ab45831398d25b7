//! Elastic binarization: signs with a learned scale, and the way straight through them (BiT, Liu et al. 2022; BiPFT
//! notes, §1.2 and §1.3).

/// `scale · sgn(x)`, in place; `sgn(0) = +1`.
pub fn signs(x: &mut [f32], scale: f32) {
    x.iter_mut().for_each(|x| *x = if *x >= 0.0 { scale } else { -scale });
}

/// Back through [`signs`], whose inputs were `x`: `grad` passes where `|x| <= scale`, and is 0 elsewhere. Returns
/// the scale's own gradient, `Σ grad · sgn(x)`, before it is divided by the root of the number of inputs.
pub fn signs_gradient(x: &[f32], scale: f32, grad: &mut [f32]) -> f64 {
    let mut sum = 0.0;
    for (x, grad) in x.iter().zip(grad) {
        sum += f64::from(if *x >= 0.0 { *grad } else { -*grad });
        if x.abs() > scale {
            *grad = 0.0;
        }
    }
    sum
}

/// 0, or `scale` where `x` is more than half of it, in place: `x / scale` rounded, ties to even.
pub fn steps(x: &mut [f32], scale: f32) {
    x.iter_mut().for_each(|x| *x = scale * (*x / scale).round_ties_even().clamp(0.0, 1.0));
}

/// Back through [`steps`], as [`signs_gradient`]: `grad` passes where `0 <= x <= scale`; of the scale it is
/// `Σ grad · (q − x / scale)` there, with `q` the step, and `Σ grad` above.
pub fn steps_gradient(x: &[f32], scale: f32, grad: &mut [f32]) -> f64 {
    let mut sum = 0.0;
    for (x, grad) in x.iter().zip(grad) {
        let q = x / scale;
        if q > 1.0 {
            sum += f64::from(*grad);
            *grad = 0.0;
        } else if q < 0.0 {
            *grad = 0.0;
        } else {
            sum += f64::from((q.round_ties_even() - q) * *grad);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of the notes, §9, test 4.
    #[test]
    fn signs_and_steps_go_back_by_the_rule() {
        let x = [0.5, -2.0, 1.0];
        let (mut y, mut grad) = (x, [1.0; 3]);
        signs(&mut y, 1.0);
        let by_scale = signs_gradient(&x, 1.0, &mut grad);
        assert_eq!((y, grad), ([1.0, -1.0, 1.0], [1.0, 0.0, 1.0]));
        assert!((by_scale / 3f64.sqrt() - 0.577).abs() < 1e-3, "{by_scale}");

        let a = [0.2, 0.6, 1.5];
        let (mut y, mut grad) = (a, [1.0; 3]);
        steps(&mut y, 1.0);
        let by_scale = steps_gradient(&a, 1.0, &mut grad);
        assert_eq!((y, grad), ([0.0, 1.0, 1.0], [1.0, 1.0, 0.0]));
        assert!((by_scale / 3f64.sqrt() - 0.693).abs() < 1e-3, "{by_scale}");
    }

    #[test]
    fn zero_is_positive_and_half_a_step_is_none() {
        let mut x = [0.0, -0.0, -1e-30];
        signs(&mut x, 2.0);
        assert_eq!(x, [2.0, 2.0, -2.0]);
        let mut p = [0.5, 0.500_001, 0.0, 9.0];
        steps(&mut p, 1.0);
        assert_eq!(p, [0.0, 1.0, 0.0, 1.0]);
        let mut grad = [3.0];
        assert_eq!((steps_gradient(&[-0.1], 1.0, &mut grad), grad), (0.0, [0.0]));
    }
}
