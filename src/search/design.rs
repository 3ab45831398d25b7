//! Which points of a space are tried: spread over it, and around others.

use super::{Space, Steps, passes_of};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::collections::HashSet;

/// A stream of points that depends on the seed and on what was asked before.
pub(super) struct Design<'a> {
    pub(super) space: &'a Space,
    /// Points of one hypercube.
    strata: usize,
    rng: ChaCha8Rng,
}

/// Hypercubes that may bring nothing new before a space counts as used up.
const BARREN: usize = 8;

impl<'a> Design<'a> {
    pub(super) fn new(space: &'a Space, strata: usize, seed: u64) -> Design<'a> {
        Design { space, strata: strata.max(1), rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// At most `n` points with recipes that are `wanted` and not in `tried`, each value of an axis about as often as any
    /// other: a Latin hypercube (McKay et al. 1979), and more of them where its points come to others.
    pub(super) fn spread(
        &mut self,
        n: usize,
        tried: &HashSet<String>,
        wanted: &dyn Fn(&Steps) -> bool,
    ) -> Vec<Vec<usize>> {
        let lens = self.space.lens();
        let (mut points, mut taken, mut barren) = (Vec::new(), tried.clone(), 0);
        while points.len() < n && barren < BARREN {
            let before = points.len();
            let axes: Vec<Vec<usize>> =
                lens.iter().map(|&len| latin(len, self.strata, &mut self.rng)).collect();
            for i in 0..self.strata {
                let point: Vec<usize> = axes.iter().map(|axis| axis[i]).collect();
                let steps = self.space.steps(&point);
                if points.len() < n && wanted(&steps) && taken.insert(passes_of(&steps)) {
                    points.push(point);
                }
            }
            barren = if points.len() == before { barren + 1 } else { 0 };
        }
        points
    }

    /// At most `n` neighbours with recipes that are `wanted` and not in `tried`, in random order those of the first of
    /// `parents`, then those of the next.
    pub(super) fn near(
        &mut self,
        parents: &[&[usize]],
        n: usize,
        tried: &HashSet<String>,
        wanted: &dyn Fn(&Steps) -> bool,
    ) -> Vec<Vec<usize>> {
        let (mut points, mut taken) = (Vec::new(), tried.clone());
        for parent in parents {
            let mut near = self.space.neighbours(parent);
            shuffle(&mut near, &mut self.rng);
            for point in near {
                let steps = self.space.steps(&point);
                if points.len() < n && wanted(&steps) && taken.insert(passes_of(&steps)) {
                    points.push(point);
                }
            }
        }
        points
    }
}

/// `n` values below `len`, as even as can be, in random order.
fn latin(len: usize, n: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    // Where `n` is no multiple of `len`, chance says which values come once more.
    let start = below(len, rng);
    let step = |i: usize| if n < len { i * len / n } else { i };
    let mut values: Vec<usize> = (0..n).map(|i| (start + step(i)) % len).collect();
    shuffle(&mut values, rng);
    values
}

fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(i + 1, rng));
    }
}

fn below(n: usize, rng: &mut ChaCha8Rng) -> usize {
    (rng.next_u64() % n as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "version = 1\n[[step]]\npass = \"prune\"\noptional = true\n\
        sparsity = { choose = [0.1, 0.2, 0.3, 0.4] }\n[[step]]\npass = \"binarize\"\nplanes = { choose = [1, 2, 3] }";

    #[test]
    fn values_come_about_as_often() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for (len, n) in [(4, 8), (3, 10), (5, 3), (1, 4)] {
            let values = latin(len, n, &mut rng);
            assert_eq!(values.len(), n);
            let often = |v: usize| values.iter().filter(|x| **x == v).count();
            let counts: Vec<usize> = (0..len).map(often).collect();
            let (least, most) = (counts.iter().min(), counts.iter().max());
            assert!(most.unwrap() - least.unwrap() <= 1, "{len} values, {n} times: {counts:?}");
        }
    }

    #[test]
    fn points_are_new_recipes_until_there_are_no_more() {
        let space = Space::parse(TEXT).expect("a space");
        let mut design = Design::new(&space, 6, 1);
        let mut tried = HashSet::new();
        let mut sizes = Vec::new();
        for _ in 0..5 {
            let points = design.spread(6, &tried, &|_| true);
            sizes.push(points.len());
            for point in points {
                assert!(tried.insert(passes_of(&space.steps(&point))), "twice");
            }
        }
        // Four sparsities or none, three numbers of planes.
        assert_eq!((tried.len(), sizes[0], sizes[4]), (15, 6, 0), "{sizes:?}");
    }

    #[test]
    fn the_seed_says_which() {
        let space = Space::parse(TEXT).expect("a space");
        let of = |seed| Design::new(&space, 6, seed).spread(6, &HashSet::new(), &|_| true);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn only_what_is_wanted_is_drawn() {
        let space = Space::parse(TEXT).expect("a space");
        let mut design = Design::new(&space, 6, 1);
        let uncut = |steps: &Steps| !passes_of(steps).contains("prune");
        let points = design.spread(6, &HashSet::new(), &uncut);
        assert_eq!(points.len(), 3);
        assert!(points.iter().all(|p| uncut(&space.steps(p))), "{points:?}");
        let near = design.near(&[&[1, 0, 0]], 9, &HashSet::new(), &uncut);
        assert!(!near.is_empty() && near.iter().all(|p| uncut(&space.steps(p))), "{near:?}");
    }

    #[test]
    fn neighbours_of_the_first_parent_come_first() {
        let space = Space::parse(TEXT).expect("a space");
        let mut design = Design::new(&space, 6, 1);
        let (first, second) = ([1, 0, 0], [1, 3, 2]);
        let points = design.near(&[&first, &second], 4, &HashSet::new(), &|_| true);
        let far = |a: &[usize], b: &[usize]| a.iter().zip(b).filter(|(x, y)| x != y).count();
        let from: Vec<usize> = points.iter().map(|p| far(p, &first)).collect();
        assert_eq!(from.len(), 4);
        assert!(from[..3].iter().all(|d| *d == 1) && from[3] > 1, "{points:?}");
    }
}
