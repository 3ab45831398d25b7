//! The note's method: rotation, weighted k-means in every slice, exact rows (subspace notes, §3.3 and §6).

use super::metric::roots;
use super::rotation::{balanced, covariance, mean};
use super::rows::Rows;
use crate::Result;
use crate::checkpoint::{Dtype, Tensor};
use crate::model::{Codes, Exact, Rotation, Subspace};
use crate::pass::Progress;
use crate::runtime::kernels::{Mat, MatMut, product};
use crate::runtime::lookup::rotate;
use crate::train::kmeans::{Nearest, Settings, Sums, cluster};
use crate::train::sweep;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Rows that one task rotates and assigns.
const BLOCK: usize = 2048;
/// Training rows for each codeword, at most.
const ROWS_PER_WORD: usize = 256;
/// Rounds of k-means: from 8 to 30, errors fall by 2 % (subspace notes, §6).
const ROUNDS: usize = 25;

/// What a table becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Dimensions of a slice.
    pub width: usize,
    /// Codewords of a book, at most 65,536.
    pub words: usize,
    /// One book for all slices.
    pub shared: bool,
    /// Columns that are rotated together; `None`: none are.
    pub rotation: Option<usize>,
}

impl Plan {
    pub fn slices(&self, cols: usize) -> usize {
        cols.div_ceil(self.width)
    }

    /// Stored bytes of a table of `rows` x `cols` with so many exact rows (subspace notes, §5).
    pub fn bytes(&self, rows: usize, cols: usize, exact: usize) -> usize {
        let slices = self.slices(cols);
        let code = if self.words > 256 { 2 } else { 1 };
        let books = if self.shared { 1 } else { slices };
        let rotation = self.rotation.map_or(0, |block| 2 * cols * block);
        code * rows * slices
            + 2 * books * self.words * self.width
            + rotation
            + 4 * cols
            + exact * (2 * cols + 4)
    }
}

/// The rows of `exact`, read from the table.
///
/// # Errors
/// If the tensor is of no floating type.
pub fn exact_rows(tensor: &Tensor, exact: &[u32]) -> Result<Exact> {
    let ids: Vec<usize> = exact.iter().map(|&id| id as usize).collect();
    let rows = Rows::of(tensor, &ids).read(0..ids.len())?;
    Ok(Exact::new(exact.to_vec(), rows))
}

/// Fits a table by the plan. `weights` are the rows', and 0 for those in `exact`.
///
/// # Errors
/// If the tensor is of no floating type, or the run was interrupted.
pub fn fit(
    (tensor, name): (&Tensor, &str),
    weights: &[f32],
    exact: &[u32],
    (plan, metric): (&Plan, Option<&[f64]>),
    seed: u64,
    progress: &dyn Progress,
) -> Result<Subspace> {
    let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
    let slices = plan.slices(cols);
    progress.start("embed", slices + 2);
    let seed = mixed(seed ^ hash(name));
    let (chosen, chosen_weights) = training_rows(weights, ROWS_PER_WORD * plan.words, seed);
    let training = Rows::of(tensor, &chosen);
    let mean = mean(&training, &chosen_weights)?;
    let (there, rotation) = match plan.rotation {
        None => (None, None),
        Some(block) => {
            let covariance = covariance(&training, &chosen_weights, Some(&mean))?;
            let [there, back] = turned(&covariance, metric, cols, block, plan.width);
            (Some(there), Some(Rotation::new(block, back)))
        }
    };
    progress.step()?;
    let turn = Turn { mean: &mean, there: there.as_deref(), plan, cols };
    let parts = turn.sliced(&training)?;
    let mut books: Vec<Vec<f32>> = Vec::with_capacity(slices);
    if plan.shared {
        let all: Vec<f32> = parts.concat();
        let repeated = chosen_weights.repeat(slices);
        let settings = Settings { words: plan.words, rounds: ROUNDS, seed };
        books.push(cluster(&all, plan.width, &repeated, &settings, progress)?.centres);
    } else {
        let one = |m: usize| {
            let seed = mixed(seed ^ m as u64);
            let settings = Settings { words: plan.words, rounds: ROUNDS, seed };
            Ok(cluster(&parts[m], plan.width, &chosen_weights, &settings, progress)?.centres)
        };
        sweep(slices, one, |_, centres| {
            books.push(centres);
            progress.step()
        })?;
    }
    drop(parts);
    let codes = turn.assign(&Rows::all(tensor), weights, &mut books, progress)?;
    progress.step()?;
    let table = Subspace {
        name: name.into(),
        rows,
        cols,
        slices,
        words: plan.words,
        width: plan.width,
        codes: codes_tensor(name, [rows, slices], plan.words, &codes),
        books: books.concat(),
        books_dtype: Dtype::F16,
        rotation,
        mean: Some(mean),
        exact: exact_rows(tensor, exact)?,
        errors: None,
    };
    Ok(table.rounded())
}

/// Codes as they are stored, in bytes where they fit.
pub fn codes_tensor(name: &str, shape: [usize; 2], words: usize, codes: &[u16]) -> Codes {
    let name = format!("{name}.pq_codes");
    Codes::Stored(if words <= 256 {
        let bytes: Vec<u8> = codes.iter().map(|&code| code as u8).collect();
        Tensor::from_u8(name, &shape, &bytes)
    } else {
        Tensor::from_u16(name, &shape, codes)
    })
}

/// Blocks `A` and `B` along the diagonal, for `y = x·A` and `x = y·Bᵀ`: in `y` plain distances are those of the metric `S`, and
/// slices are alike. With R the balanced rotation of `S^½·C·S^½`, C the covariance, `A = S^½·R` and `B = S^-½·R`.
fn turned(
    covariance: &[f64],
    metric: Option<&[f64]>,
    cols: usize,
    block: usize,
    width: usize,
) -> [Vec<f32>; 2] {
    let Some(metric) = metric else {
        let rotation = balanced(covariance, cols, block, width);
        return [rotation.clone(), rotation];
    };
    let roots = roots(metric, cols, block);
    let size = block * block;
    let mut stretched = vec![0.0f64; cols * cols];
    let mut from = vec![0.0f32; size];
    for (b, root) in roots[0].chunks_exact(size).enumerate() {
        let at = |r: usize| (b * block + r) * cols + b * block;
        let lines = from.chunks_exact_mut(block).enumerate();
        lines.for_each(|(r, line)| {
            let covariances = &covariance[at(r)..at(r) + block];
            line.iter_mut().zip(covariances).for_each(|(x, &c)| *x = c as f32);
        });
        let root = Mat::new(root, block, block);
        let (mut half, mut whole) = (vec![0.0; size], vec![0.0; size]);
        product(MatMut::new(&mut half, block, block), root, Mat::new(&from, block, block), 1.0);
        product(MatMut::new(&mut whole, block, block), Mat::new(&half, block, block), root, 1.0);
        for (r, line) in whole.chunks_exact(block).enumerate() {
            let out = &mut stretched[at(r)..at(r) + block];
            out.iter_mut().zip(line).for_each(|(o, &x)| *o = f64::from(x));
        }
    }
    let rotation = balanced(&stretched, cols, block, width);
    roots.map(|roots| {
        let mut out = vec![0.0; cols * block];
        let blocks = roots.chunks_exact(size).zip(rotation.chunks_exact(size));
        for (out, (root, rotation)) in out.chunks_exact_mut(size).zip(blocks) {
            let [root, rotation] = [root, rotation].map(|x| Mat::new(x, block, block));
            product(MatMut::new(out, block, block), root, rotation, 1.0);
        }
        out
    })
}

/// From rows to slices of rotated rows.
struct Turn<'a> {
    mean: &'a [f32],
    /// Blocks along the diagonal of what rows are multiplied by.
    there: Option<&'a [f32]>,
    plan: &'a Plan,
    cols: usize,
}

impl Turn<'_> {
    /// `[rows, cols]` of block `index`, centred and rotated.
    fn block(&self, rows: &Rows, index: usize) -> Result<Vec<f32>> {
        let mut x = rows.read(rows.span(index, BLOCK))?;
        for x in x.chunks_exact_mut(self.cols) {
            x.iter_mut().zip(self.mean).for_each(|(x, m)| *x -= m);
        }
        let Some(there) = self.there else { return Ok(x) };
        let mut y = vec![0.0; x.len()];
        rotate(&x, self.cols, there.len() / self.cols, there, false, &mut y);
        Ok(y)
    }

    /// Slice `m` of rows, `[rows, width]`, with zeros behind a short one.
    fn slice(&self, y: &[f32], m: usize) -> Vec<f32> {
        let width = self.plan.width;
        let from = m * width;
        let len = width.min(self.cols - from);
        let mut out = vec![0.0; y.len() / self.cols * width];
        for (out, y) in out.chunks_exact_mut(width).zip(y.chunks_exact(self.cols)) {
            out[..len].copy_from_slice(&y[from..from + len]);
        }
        out
    }

    /// Every slice of all rows, `[slices][rows, width]`.
    fn sliced(&self, rows: &Rows) -> Result<Vec<Vec<f32>>> {
        let slices = self.plan.slices(self.cols);
        let room = rows.count() * self.plan.width;
        let mut parts: Vec<Vec<f32>> = (0..slices).map(|_| Vec::with_capacity(room)).collect();
        let block = |i| self.block(rows, i);
        sweep(rows.count().div_ceil(BLOCK), block, |_, y| {
            for (m, part) in parts.iter_mut().enumerate() {
                part.extend(self.slice(&y, m));
            }
            Ok(())
        })?;
        Ok(parts)
    }

    /// The codes of all rows, `[rows, slices]`; `books` become the weighted means of the rows that use them.
    fn assign(
        &self,
        rows: &Rows,
        weights: &[f32],
        books: &mut [Vec<f32>],
        progress: &dyn Progress,
    ) -> Result<Vec<u16>> {
        let (slices, width) = (self.plan.slices(self.cols), self.plan.width);
        let nearest: Vec<Nearest> = books.iter().map(|book| Nearest::new(book, width)).collect();
        let empty = || vec![Sums::new(self.plan.words, width); books.len()];
        let mut codes = Vec::with_capacity(rows.count() * slices);
        let mut total = empty();
        let block = |i: usize| {
            let y = self.block(rows, i)?;
            let weights = &weights[rows.span(i, BLOCK)];
            let mut codes = vec![0u16; weights.len() * slices];
            let mut found = vec![0u16; weights.len()];
            let mut sums = empty();
            for m in 0..slices {
                let x = self.slice(&y, m);
                let book = if books.len() == 1 { 0 } else { m };
                nearest[book].assign(&x, &mut found);
                for (row, (&code, x)) in found.iter().zip(x.chunks_exact(width)).enumerate() {
                    codes[row * slices + m] = code;
                    sums[book].add(code as usize, weights[row], x);
                }
            }
            Ok((codes, sums))
        };
        sweep(rows.count().div_ceil(BLOCK), block, |_, (part, sums)| {
            codes.extend(part);
            total.iter_mut().zip(&sums).for_each(|(total, sums)| total.merge(sums));
            progress.go_on()
        })?;
        books.iter_mut().zip(&total).for_each(|(book, sums)| sums.means(book));
        Ok(codes)
    }
}

/// At most `limit` rows of those with any weight, ascending, and what each stands for: priority sampling, which leaves every
/// weighted sum as it is in expectation (Duffield, Lund & Thorup 2007).
fn training_rows(weights: &[f32], limit: usize, seed: u64) -> (Vec<usize>, Vec<f32>) {
    let rows: Vec<usize> = (0..weights.len()).filter(|&row| weights[row] > 0.0).collect();
    if rows.len() <= limit {
        let weights = rows.iter().map(|&row| weights[row]).collect();
        return (rows, weights);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = || ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let mut keyed: Vec<(f64, usize)> =
        rows.into_iter().map(|row| (weights[row] as f64 / uniform(), row)).collect();
    keyed.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let threshold = keyed[limit].0 as f32;
    let mut rows: Vec<usize> = keyed[..limit].iter().map(|(_, row)| *row).collect();
    rows.sort_unstable();
    let weights = rows.iter().map(|&row| weights[row].max(threshold)).collect();
    (rows, weights)
}

/// SplitMix64 (Steele et al. 2014).
pub fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a, 64 bits.
pub fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3))
}
