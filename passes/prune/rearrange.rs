//! Which of a layer's heads or units go, once their number is known.

use crate::train::moments::Moments;

/// Texts whose gradients are kept for this; with 12 layers of 3,072 units they take 0.3 GB.
pub const ROWS: usize = 2048;

/// What stays of a layer's heads or units when those that go are chosen together: as many as `kept`, but
/// gradients that cancel may go in pairs (Kwon et al. 2022, §4.3).
///
/// The set `P` of what goes is to make `‖Σ_{i∈P} g_i‖²` small, over columns `g_i` of `gradients`,
/// `[texts, n]`. It starts as the complement of `kept`, the `n − |kept|` lowest of `scores`, `[n]`. All
/// others, the lowest first, are added once, and each time what leaves the smallest norm is taken out again,
/// maybe the same: it never ends above where it started.
pub fn rearrange(gradients: &[f32], scores: &[f64], kept: &[usize]) -> Vec<usize> {
    let n = scores.len();
    if kept.len() == n {
        return kept.to_vec();
    }
    let mut moments = Moments::new(n, 0);
    moments.add(gradients, &[]);
    let products = moments.xx; // g_i · g_j
    let mut gone = vec![true; n];
    kept.iter().for_each(|&i| gone[i] = false);
    // s · g_i, where s is the sum over P: with it, what is left when i is taken out is a sum of three numbers.
    let mut along = vec![0.0f64; n];
    let add = |along: &mut [f64], i: usize, sign: f64| {
        let row = &products[i * n..(i + 1) * n];
        along.iter_mut().zip(row).for_each(|(a, &p)| *a += sign * p as f64);
    };
    (0..n).filter(|&i| gone[i]).for_each(|i| add(&mut along, i, 1.0));
    let mut order = kept.to_vec();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a)));
    for i in order {
        gone[i] = true;
        add(&mut along, i, 1.0);
        // ‖s‖² − ‖s − g‖²
        let gain = |g: usize| 2.0 * along[g] - products[g * n + g] as f64;
        let better = |best, g| if gain(g) > gain(best) { g } else { best };
        let back = (0..n).filter(|&g| gone[g]).fold(i, better);
        gone[back] = false;
        add(&mut along, back, -1.0);
    }
    (0..n).filter(|&i| !gone[i]).collect()
}
