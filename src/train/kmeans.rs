//! Weighted k-means (subspace notes, §6): plain Lloyd, the same on any number of threads.

use crate::Result;
use crate::progress::Progress;
use crate::runtime::kernels::dispatch;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;
use std::collections::HashSet;

/// Rows that one task assigns.
const BLOCK: usize = 4096;
/// Centres that are compared at once, and rows that share what is read of them.
const LANES: usize = 16;
const ROWS: usize = 4;
/// A round that lowers the objective by less than this share of it is the last.
const GAIN: f64 = 1e-4;
/// Rows from which k-means++ chooses.
const CHOICE: usize = 16_384;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Centres, from 1 to 65,536.
    pub words: usize,
    /// Rounds of Lloyd at most.
    pub rounds: usize,
    pub seed: u64,
}

/// Centres, and the nearest one of every row.
#[derive(Debug, Clone)]
pub struct Clusters {
    /// `[words, width]`; where there are fewer distinct rows than words, some centres stand twice.
    pub centres: Vec<f32>,
    /// `[rows]`
    pub codes: Vec<u16>,
    /// `Σ w‖x − c‖²` before the first round and after each.
    pub objective: Vec<f64>,
}

/// Centres as the kernel reads them: 16 side by side.
#[derive(Debug, Clone)]
pub struct Nearest {
    width: usize,
    words: usize,
    /// `[groups, width, 16]`: −2c.
    lanes: Vec<f32>,
    /// `[groups, 16]`: ‖c‖², infinite where there is no centre.
    norms: Vec<f32>,
}

impl Nearest {
    /// Of `centres`, `[words, width]`.
    pub fn new(centres: &[f32], width: usize) -> Nearest {
        let words = centres.len() / width;
        let groups = words.div_ceil(LANES);
        let mut lanes = vec![0.0; groups * width * LANES];
        let mut norms = vec![f32::INFINITY; groups * LANES];
        for (k, centre) in centres.chunks_exact(width).enumerate() {
            for (j, c) in centre.iter().enumerate() {
                lanes[(k / LANES * width + j) * LANES + k % LANES] = -2.0 * c;
            }
            norms[k] = centre.iter().map(|c| c * c).sum();
        }
        Nearest { width, words, lanes, norms }
    }

    /// The nearest centre of every row of `x`, `[rows, width]`; of equally near ones the first.
    ///
    /// # Panics
    /// If `codes` has another number of rows.
    pub fn assign(&self, x: &[f32], codes: &mut [u16]) {
        assert_eq!(x.len(), codes.len() * self.width, "a code for every row");
        nearest(x, self.width, &self.lanes, &self.norms, codes);
        // Ties with a lane behind the last centre cannot be: its distance is infinite.
        debug_assert!(codes.iter().all(|&code| (code as usize) < self.words.max(1)));
    }
}

#[inline(always)]
fn nearest_body(x: &[f32], width: usize, lanes: &[f32], norms: &[f32], codes: &mut [u16]) {
    let mut rows = vec![0.0f32; ROWS * width];
    for (x, codes) in x.chunks(ROWS * width).zip(codes.chunks_mut(ROWS)) {
        rows[..x.len()].copy_from_slice(x);
        let mut best = [[f32::INFINITY; LANES]; ROWS];
        let mut at = [[0u32; LANES]; ROWS];
        let groups = norms.chunks_exact(LANES).zip(lanes.chunks_exact(LANES * width));
        for (group, (norms, lanes)) in groups.enumerate() {
            let norms: &[f32; LANES] = norms.try_into().expect("a whole group");
            let mut sums = [*norms; ROWS];
            for (j, centres) in lanes.chunks_exact(LANES).enumerate() {
                let centres: &[f32; LANES] = centres.try_into().expect("a whole group");
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = rows[r * width + j];
                    for l in 0..LANES {
                        sum[l] += x * centres[l];
                    }
                }
            }
            for ((sum, best), at) in sums.iter().zip(&mut best).zip(&mut at) {
                for l in 0..LANES {
                    // Bits by a mask: of a choice between numbers the compiler makes a branch, ten times slower.
                    let nearer = u32::from(sum[l] < best[l]).wrapping_neg();
                    at[l] = (at[l] & !nearer) | (group as u32 & nearer);
                    best[l] =
                        f32::from_bits((best[l].to_bits() & !nearer) | (sum[l].to_bits() & nearer));
                }
            }
        }
        for (r, code) in codes.iter_mut().enumerate() {
            let mut found = (f32::INFINITY, u32::MAX);
            for l in 0..LANES {
                let word = at[r][l] * LANES as u32 + l as u32;
                let nearer = best[r][l] < found.0 || best[r][l] == found.0 && word < found.1;
                found = if nearer { (best[r][l], word) } else { found };
            }
            *code = found.1 as u16;
        }
    }
}

dispatch! {
    /// See [`Nearest::assign`]: `argmin_k ‖c_k‖² − 2x·c_k`, without a buffer of distances.
    fn nearest(x: &[f32], width: usize, lanes: &[f32], norms: &[f32], codes: &mut [u16])
        = nearest_body
}

/// Sums over the rows of each cluster.
#[derive(Debug, Clone)]
pub struct Sums {
    /// `[words, width]`: Σ w·x
    pub sums: Vec<f64>,
    /// `[words]`: Σ w
    pub mass: Vec<f64>,
}

impl Sums {
    pub fn new(words: usize, width: usize) -> Sums {
        Sums { sums: vec![0.0; words * width], mass: vec![0.0; words] }
    }

    /// Adds a row.
    pub fn add(&mut self, code: usize, weight: f32, x: &[f32]) {
        let weight = weight as f64;
        self.mass[code] += weight;
        let sums = &mut self.sums[code * x.len()..(code + 1) * x.len()];
        sums.iter_mut().zip(x).for_each(|(s, &x)| *s += weight * x as f64);
    }

    /// Adds what another task summed.
    pub fn merge(&mut self, other: &Sums) {
        self.sums.iter_mut().zip(&other.sums).for_each(|(s, o)| *s += o);
        self.mass.iter_mut().zip(&other.mass).for_each(|(s, o)| *s += o);
    }

    /// Writes the means of the clusters that have any weight to `centres`, `[words, width]`.
    pub fn means(&self, centres: &mut [f32]) {
        let width = centres.len() / self.mass.len();
        let lines = centres.chunks_exact_mut(width).zip(self.sums.chunks_exact(width));
        for ((centre, sums), &mass) in lines.zip(&self.mass).filter(|(_, mass)| **mass > 0.0) {
            centre.iter_mut().zip(sums).for_each(|(c, s)| *c = (s / mass) as f32);
        }
    }
}

/// `x` is `[rows, width]`, `weights` `[rows]`. Rows of weight 0 get a code and move nothing.
///
/// # Errors
/// As [`Progress::go_on`], which is asked before each round.
///
/// # Panics
/// If there is no row, or no room for a code: bugs in the caller.
pub fn cluster(
    x: &[f32],
    width: usize,
    weights: &[f32],
    settings: &Settings,
    progress: &dyn Progress,
) -> Result<Clusters> {
    let rows = weights.len();
    assert!(rows > 0 && x.len() == rows * width, "{rows} rows of {width}");
    assert!((1..=1 << 16).contains(&settings.words), "{} words", settings.words);
    let mut centres = start(x, width, weights, settings);
    let mut codes = vec![0u16; rows];
    let mut costs = vec![0.0f32; rows];
    let mut objective = vec![assign(x, width, weights, &centres, &mut codes, &mut costs)];
    for _ in 0..settings.rounds {
        progress.go_on()?;
        let mut sums = sums_of(x, width, weights, &codes, settings.words);
        reseed(x, width, weights, &mut codes, &mut costs, &mut sums, &mut centres);
        sums.means(&mut centres);
        let before = objective[objective.len() - 1];
        let after = assign(x, width, weights, &centres, &mut codes, &mut costs);
        objective.push(after);
        if before - after <= GAIN * before {
            break;
        }
    }
    Ok(Clusters { centres, codes, objective })
}

/// Nearest centres and weighted squared distances; returns their sum.
fn assign(
    x: &[f32],
    width: usize,
    weights: &[f32],
    centres: &[f32],
    codes: &mut [u16],
    costs: &mut [f32],
) -> f64 {
    let nearest = Nearest::new(centres, width);
    let rows = x.par_chunks(BLOCK * width).zip(weights.par_chunks(BLOCK));
    let out = codes.par_chunks_mut(BLOCK).zip(costs.par_chunks_mut(BLOCK));
    let block = |x: &[f32], weights: &[f32], codes: &mut [u16], costs: &mut [f32]| {
        nearest.assign(x, codes);
        let mut sum = 0.0;
        for (((x, &w), &code), cost) in
            x.chunks_exact(width).zip(weights).zip(codes.iter()).zip(costs)
        {
            let centre = &centres[code as usize * width..(code as usize + 1) * width];
            let distance: f32 = x.iter().zip(centre).map(|(x, c)| (x - c) * (x - c)).sum();
            *cost = w * distance;
            sum += *cost as f64;
        }
        sum
    };
    let all = rows.zip(out);
    let parts: Vec<f64> =
        all.map(|((x, weights), (codes, costs))| block(x, weights, codes, costs)).collect();
    parts.iter().sum()
}

/// Block after block, so that no sum depends on threads.
fn sums_of(x: &[f32], width: usize, weights: &[f32], codes: &[u16], words: usize) -> Sums {
    let blocks = x.par_chunks(BLOCK * width).zip(weights.par_chunks(BLOCK));
    let block = |((x, weights), codes): ((&[f32], &[f32]), &[u16])| {
        let mut sums = Sums::new(words, width);
        for ((x, &w), &code) in x.chunks_exact(width).zip(weights).zip(codes) {
            sums.add(code as usize, w, x);
        }
        sums
    };
    let parts: Vec<Sums> = blocks.zip(codes.par_chunks(BLOCK)).map(block).collect();
    let mut total = Sums::new(words, width);
    parts.iter().for_each(|part| total.merge(part));
    total
}

/// Every empty cluster gets the row that costs most in the cluster that costs most, as long as any costs something.
fn reseed(
    x: &[f32],
    width: usize,
    weights: &[f32],
    codes: &mut [u16],
    costs: &mut [f32],
    sums: &mut Sums,
    centres: &mut [f32],
) {
    let empty: Vec<usize> = (0..sums.mass.len()).filter(|&k| sums.mass[k] <= 0.0).collect();
    if empty.is_empty() {
        return;
    }
    let mut by_cluster = vec![0.0f64; sums.mass.len()];
    for (&code, &cost) in codes.iter().zip(costs.iter()) {
        by_cluster[code as usize] += cost as f64;
    }
    for k in empty {
        let most =
            (0..by_cluster.len()).fold(0, |m, i| if by_cluster[i] > by_cluster[m] { i } else { m });
        let of_it = (0..codes.len()).filter(|&row| codes[row] as usize == most);
        let row = of_it.fold(None, |found: Option<usize>, row| match found {
            Some(f) if costs[f] >= costs[row] => Some(f),
            _ => Some(row),
        });
        let Some(row) = row.filter(|&row| costs[row] > 0.0) else { return };
        let point = &x[row * width..(row + 1) * width];
        sums.add(most, -weights[row], point);
        sums.add(k, weights[row], point);
        centres[k * width..(k + 1) * width].copy_from_slice(point);
        by_cluster[most] -= costs[row] as f64;
        (codes[row], costs[row]) = (k as u16, 0.0);
    }
}

/// Distinct rows, drawn by weight; by k-means++ where there are few rows for a centre, or few dimensions to tell them
/// apart (subspace notes, §6).
fn start(x: &[f32], width: usize, weights: &[f32], settings: &Settings) -> Vec<f32> {
    let words = settings.words;
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let careful = words >= weights.len() / 20 || width <= 2;
    let wanted = if careful { CHOICE } else { weights.len() };
    let order = draw(weights, wanted, &mut rng);
    let mut centres = if careful {
        plus_plus(x, width, weights, &order, words, &mut rng)
    } else {
        let mut seen = HashSet::new();
        let mut centres = Vec::with_capacity(words * width);
        for row in order {
            let point = &x[row * width..(row + 1) * width];
            if seen.insert(point.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()) {
                centres.extend_from_slice(point);
            }
            if centres.len() == words * width {
                break;
            }
        }
        centres
    };
    if centres.is_empty() {
        centres.extend_from_slice(&x[..width]);
    }
    // Fewer distinct rows than words: the first stands for the rest.
    let first = centres[..width].to_vec();
    while centres.len() < words * width {
        centres.extend_from_slice(&first);
    }
    centres
}

/// At most `wanted` rows without replacement, each drawn in proportion to its weight (Efraimidis & Spirakis 2006), the
/// first drawn first. Rows of weight 0 never.
pub fn draw(weights: &[f32], wanted: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut keyed: Vec<(f64, usize)> = Vec::with_capacity(weights.len());
    for (row, &w) in weights.iter().enumerate() {
        let key = uniform(rng).ln();
        if w > 0.0 {
            keyed.push((key / w as f64, row));
        }
    }
    keyed.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    keyed.truncate(wanted);
    keyed.into_iter().map(|(_, row)| row).collect()
}

/// k-means++ (Arthur & Vassilvitskii 2007) over the rows `choice`: each next centre in proportion to `w·D²`.
fn plus_plus(
    x: &[f32],
    width: usize,
    weights: &[f32],
    choice: &[usize],
    words: usize,
    rng: &mut ChaCha8Rng,
) -> Vec<f32> {
    let Some(&first) = choice.first() else { return Vec::new() };
    let point = |row: usize| &x[row * width..(row + 1) * width];
    let mut centres = point(first).to_vec();
    let mut distances = vec![f32::INFINITY; choice.len()];
    while centres.len() < words * width {
        let last = &centres[centres.len() - width..];
        let mut total = 0.0f64;
        for (d, &row) in distances.iter_mut().zip(choice) {
            let new: f32 = point(row).iter().zip(last).map(|(x, c)| (x - c) * (x - c)).sum();
            *d = d.min(new);
            total += (*d * weights[row]) as f64;
        }
        if total <= 0.0 {
            break;
        }
        let mut left = uniform(rng) * total;
        let mut next = None;
        for (d, &row) in distances.iter().zip(choice).filter(|(d, _)| **d > 0.0) {
            next = Some(row);
            left -= (*d * weights[row]) as f64;
            if left <= 0.0 {
                break;
            }
        }
        let Some(next) = next else { break };
        let point = point(next).to_vec();
        centres.extend(point);
    }
    centres
}

/// In (0, 1).
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::model::testing::gaussian;
    use crate::progress::Quiet;

    fn clustered(x: &[f32], width: usize, weights: &[f32], settings: &Settings) -> Clusters {
        cluster(x, width, weights, settings, &Quiet).expect("nobody stops it")
    }

    #[test]
    fn it_stops_between_rounds() {
        struct Stop;
        impl Progress for Stop {
            fn start(&self, _: &str, _: usize) {}
            fn step(&self) -> Result<()> {
                Ok(())
            }
            fn go_on(&self) -> Result<()> {
                Err(Error::Interrupted)
            }
        }
        let stopped = cluster(&[0.0, 1.0, 10.0], 1, &[1.0; 3], &settings(2), &Stop);
        assert!(matches!(stopped, Err(Error::Interrupted)));
    }

    fn settings(words: usize) -> Settings {
        Settings { words, rounds: 25, seed: 1 }
    }

    fn relative(x: &[f32], width: usize, words: usize) -> (f64, Clusters) {
        let weights = vec![1.0; x.len() / width];
        let found = clustered(x, width, &weights, &Settings { rounds: 100, ..settings(words) });
        let power: f64 = x.iter().map(|x| (*x as f64).powi(2)).sum();
        (found.objective[found.objective.len() - 1] / power, found)
    }

    /// Subspace notes, §8, test 3.
    #[test]
    fn weights_pull_the_centres() {
        let found = clustered(&[0.0, 1.0, 10.0], 1, &[1.0, 3.0, 1.0], &settings(2));
        let mut centres = found.centres.clone();
        centres.sort_by(f32::total_cmp);
        assert_eq!(centres, [0.75, 10.0]);
        assert!((found.objective[found.objective.len() - 1] - 0.75).abs() < 1e-6);
        for words in [3, 4, 40] {
            let found = clustered(&[0.0, 1.0, 10.0, 1.0], 1, &[1.0; 4], &settings(words));
            assert_eq!(found.objective[found.objective.len() - 1], 0.0, "{words} words");
            assert!(found.centres.iter().all(|c| c.is_finite()));
        }
    }

    /// Subspace notes, §8, test 4: what Lloyd-Max and k-means leave of a Gaussian.
    #[test]
    fn gaussians_lose_what_the_rate_says() {
        let x = gaussian(16_384 * 2, 2);
        let line = &x[..16_384];
        let (found, clusters) = relative(line, 1, 2);
        assert!((found - 0.363).abs() < 0.01, "{found}");
        assert!(
            clusters.centres.iter().all(|c| (c.abs() - 0.798).abs() < 0.03),
            "{:?}",
            clusters.centres
        );
        let (found, clusters) = relative(line, 1, 4);
        assert!((found - 0.1175).abs() < 0.005, "{found}");
        let mut centres = clusters.centres;
        centres.sort_by(f32::total_cmp);
        for (centre, expected) in centres.iter().zip([-1.510, -0.453, 0.453, 1.510]) {
            assert!((centre - expected).abs() < 0.06, "{centres:?}");
        }
        let (found, _) = relative(&x, 2, 16);
        assert!((found - 0.109).abs() < 0.004, "{found}");
    }

    /// As above, with a whole book of codewords.
    #[test]
    fn gaussians_of_more_dimensions_lose_what_the_rate_says() {
        let x = gaussian(16_384 * 8, 3);
        let (found, _) = relative(&x[..16_384 * 4], 4, 256);
        assert!((found - 0.089).abs() < 0.003, "{found}");
        let (found, _) = relative(&x, 8, 256);
        assert!((found - 0.297).abs() < 0.006, "{found}");
    }

    #[test]
    fn no_round_is_worse_and_threads_change_nothing() {
        let (x, width) = (gaussian(9_000 * 3, 4), 3);
        let weights: Vec<f32> = (0..9_000).map(|i| (i % 7) as f32).collect();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads").install(|| clustered(&x, width, &weights, &settings(200)))
        };
        let (one, three) = (run(1), run(3));
        assert_eq!(one.centres, three.centres);
        assert_eq!(one.codes, three.codes);
        for pair in one.objective.windows(2) {
            assert!(pair[1] <= pair[0] * (1.0 + 1e-6), "{:?}", one.objective);
        }
    }

    #[test]
    fn the_kernel_finds_what_a_plain_search_finds() {
        for (width, words, rows) in [(1, 1, 3), (3, 5, 9), (4, 256, 37), (7, 300, 6), (130, 33, 10)]
        {
            let (x, centres) = (gaussian(rows * width, 5), gaussian(words * width, 6));
            let mut codes = vec![9; rows];
            Nearest::new(&centres, width).assign(&x, &mut codes);
            for (x, &code) in x.chunks_exact(width).zip(&codes) {
                let distance = |k: usize| -> f64 {
                    let centre = &centres[k * width..(k + 1) * width];
                    x.iter().zip(centre).map(|(x, c)| ((x - c) as f64).powi(2)).sum()
                };
                let least = (0..words).map(distance).fold(f64::INFINITY, f64::min);
                assert!(distance(code as usize) <= least + 1e-4, "{width} x {words}");
            }
        }
        // Of equal centres the first.
        let mut codes = [9; 2];
        Nearest::new(&[1.0, 0.0, 0.0, 1.0], 1).assign(&[0.1, 2.0], &mut codes);
        assert_eq!(codes, [1, 0]);
    }

    #[test]
    fn clumps_get_no_more_than_one_centre() {
        let mut x = gaussian(500 * 2, 7);
        x.extend(std::iter::repeat_n(0.25, 2 * 3_000));
        let weights = vec![1.0; 3_500];
        let found = clustered(&x, 2, &weights, &settings(64));
        let mut centres: Vec<_> =
            found.centres.chunks(2).map(|c| [c[0].to_bits(), c[1].to_bits()]).collect();
        centres.sort_unstable();
        centres.dedup();
        assert_eq!(centres.len(), 64);
    }
}
