//! f32 matrices laid out once for products with rows that come and go: what a linear layer does to one short text.
//!
//! General products put both sides in order every time, which for a few tokens takes longer than multiplying. Here the weights
//! lie as registers take them, and inputs are read where they are. Each sum is one chain of fused multiply-adds in the order of the
//! columns, so that AVX2 and AVX-512 give the same bits, however many rows there are. Tiles (`amx`), for which there have to be rows
//! enough, sum in another order, and come nearer to the true sums.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{Mat, MatMut};
use std::ops::Range;

/// Lanes of the widest register.
const LANES: usize = 16;
/// Rows of the matrix that lie side by side.
const STRIP: usize = 2 * LANES;
/// Bytes of inputs that all strips see before the next ones: half of a second-level cache. Strips are read again for each.
const CACHE: usize = 1 << 20;
/// Numbers between the weights that are multiplied and those that are fetched: 16 columns, 2 KB. Left alone, the processor stops
/// fetching at the end of each page.
const AHEAD: usize = 16 * STRIP;
/// Multiply-accumulates that a thread gets at least: some 30 µs, a few times what handing them over takes.
const SHARE: usize = 3 << 20;

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// A matrix, `[rows, cols]`: strips of 32 rows, in them columns, in them the rows; zeros behind the last row.
#[derive(Debug, Clone)]
pub struct Panels {
    rows: usize,
    cols: usize,
    lines: Vec<Line>,
    level: Level,
}

#[derive(Debug, Clone, Copy)]
enum Level {
    /// `Avx512`, and tiles where there are rows enough.
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(test)]
    Scalar,
}

/// What this machine has: nothing where there are no kernels for it.
fn detected() -> Option<Level> {
    #[cfg(target_arch = "x86_64")]
    {
        if super::Level::Amx.allowed() && tiles::detected() {
            return Some(Level::Amx);
        }
        if is_x86_feature_detected!("avx512f") {
            return Some(Level::Avx512);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Some(Level::Avx2);
        }
    }
    None
}

impl Panels {
    /// `None` where the machine has no kernels for it, or the matrix has no weights.
    pub fn new(weight: Mat) -> Option<Panels> {
        Panels::at(detected()?, weight)
    }

    fn at(level: Level, weight: Mat) -> Option<Panels> {
        let (rows, cols) = (weight.rows, weight.cols);
        if rows * cols == 0 || weight.transposed {
            return None;
        }
        let mut lines = vec![Line([0.0; LANES]); rows.div_ceil(STRIP) * cols * 2];
        for row in 0..rows {
            let (strip, half, lane) = (row / STRIP, row % STRIP / LANES, row % LANES);
            let values = &weight.data[row * weight.stride..][..cols];
            let strip = lines[strip * cols * 2 + half..].iter_mut().step_by(2);
            strip.zip(values).for_each(|(line, value)| line.0[lane] = *value);
        }
        Some(Panels { rows, cols, lines, level })
    }

    /// `out ← x·Wᵀ + bias`.
    ///
    /// `x`: `[n, cols]`, `bias`: `[rows]`, `out`: `[n, rows]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn multiply(&self, x: Mat, bias: Option<&[f32]>, out: MatMut) {
        #[cfg(test)]
        super::MACS.with(|m| m.set(m.get() + (out.rows * self.rows * self.cols) as u64));
        assert!(x.rows == out.rows && x.cols == self.cols && out.cols == self.rows, "shapes");
        assert!(!x.transposed && bias.is_none_or(|b| b.len() == self.rows), "shapes");
        if out.rows == 0 {
            return;
        }
        assert!(x.data.len() >= (x.rows - 1) * x.stride + x.cols, "inputs");
        assert!(out.data.len() >= (out.rows - 1) * out.stride + out.cols, "outputs");
        let to = To { data: out.data.as_mut_ptr(), stride: out.stride };
        let strips = 0..self.rows.div_ceil(STRIP);
        Product { panels: self, x, bias, to }.spread(strips);
    }
}

/// Where outputs go.
#[derive(Debug, Clone, Copy)]
struct To {
    data: *mut f32,
    stride: usize,
}

// SAFETY: threads that share it write rows of the matrix that no other has.
unsafe impl Sync for To {}

/// One call of [`Panels::multiply`], whose assertions hold.
struct Product<'a> {
    panels: &'a Panels,
    x: Mat<'a>,
    bias: Option<&'a [f32]>,
    to: To,
}

impl Product<'_> {
    /// Multiplies by `strips`, on several threads where that pays. Sums are the same on any number of them.
    fn spread(&self, strips: Range<usize>) {
        let work = self.x.rows * self.panels.cols * strips.len() * STRIP;
        if work >= 2 * SHARE && strips.len() > 1 && rayon::current_num_threads() > 1 {
            let middle = strips.start + strips.len() / 2;
            rayon::join(|| self.spread(strips.start..middle), || self.spread(middle..strips.end));
            return;
        }
        match self.panels.level {
            // SAFETY: the features were detected when the panels were made; AVX-512 comes with tiles.
            #[cfg(target_arch = "x86_64")]
            Level::Amx if self.x.rows >= amx::fewest(self.panels.cols) => unsafe {
                amx::multiply(self, strips)
            },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Amx => unsafe { avx512::multiply(self, strips) },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::multiply(self, strips) },
            #[cfg(test)]
            Level::Scalar => self.plain(strips),
        }
    }

    /// Blocks of at most `most` rows, all of about the same size, strips outside: `(first row, rows, strip)`.
    #[inline(always)]
    fn blocks(&self, strips: Range<usize>, most: usize, mut each: impl FnMut(usize, usize, usize)) {
        let group = (CACHE / (size_of::<f32>() * self.panels.cols)).max(most);
        for from in (0..self.x.rows).step_by(group) {
            let rows = group.min(self.x.rows - from);
            let blocks = rows.div_ceil(most);
            for strip in strips.clone() {
                for block in 0..blocks {
                    let (first, last) = (rows * block / blocks, rows * (block + 1) / blocks);
                    each(from + first, last - first, strip);
                }
            }
        }
    }

    /// Lanes of half `half` of `strip` that are rows of the matrix.
    #[inline(always)]
    fn lanes(&self, strip: usize, half: usize, width: usize) -> usize {
        self.panels.rows.saturating_sub(strip * STRIP + half * width).min(width)
    }

    /// What the kernels do, without instructions of theirs.
    #[cfg(test)]
    fn plain(&self, strips: Range<usize>) {
        let ends = strips.end * STRIP;
        for row in 0..self.x.rows {
            for to in strips.start * STRIP..ends.min(self.panels.rows) {
                let mut sum = self.bias.map_or(0.0, |b| b[to]);
                for column in 0..self.panels.cols {
                    let at = (to / STRIP * self.panels.cols + column) * 2 + to % STRIP / LANES;
                    let weight = self.panels.lines[at].0[to % LANES];
                    sum = self.x.data[row * self.x.stride + column].mul_add(weight, sum);
                }
                // SAFETY: row and column are inside the matrix that `Panels::multiply` checked.
                unsafe { *self.to.data.add(row * self.to.stride + to) = sum };
            }
        }
    }
}

/// Calls `$tile::<ROWS>` for the number of rows at hand.
#[cfg(target_arch = "x86_64")]
macro_rules! for_rows {
    ($rows:expr, $tile:ident $args:tt, $($n:literal)*) => {
        match $rows {
            $($n => $tile::<$n> $args,)*
            rows => unreachable!("a block of {rows} rows"),
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{AHEAD, Product, Range, STRIP};
    use std::arch::x86_64::*;

    /// 13 rows in two registers each, two of weights: 28 of 32.
    const ROWS: usize = 13;

    #[target_feature(enable = "avx512f")]
    pub fn multiply(product: &Product, strips: Range<usize>) {
        product.blocks(strips, ROWS, |first, rows, strip| {
            // SAFETY: `blocks` stays inside the matrices that `Panels::multiply` checked.
            unsafe { for_rows!(rows, tile(product, first, strip), 1 2 3 4 5 6 7 8 9 10 11 12 13) }
        });
    }

    /// # Safety
    /// Rows `first..first + R` are in the product, and `strip` is in the matrix.
    #[target_feature(enable = "avx512f")]
    unsafe fn tile<const R: usize>(product: &Product, first: usize, strip: usize) {
        let panels = product.panels;
        let masks = [0, 1].map(|half| ((1u32 << product.lanes(strip, half, 16)) - 1) as __mmask16);
        let row = strip * STRIP;
        // SAFETY: the caller's promise; masked lanes are not touched, whatever a pointer says about them.
        unsafe {
            let start = [0, 1].map(|half| match product.bias {
                Some(b) => {
                    _mm512_maskz_loadu_ps(masks[half], b.as_ptr().wrapping_add(row + half * 16))
                }
                None => _mm512_setzero_ps(),
            });
            let mut sums = [start; R];
            let x = product.x.data.as_ptr().add(first * product.x.stride);
            let mut weights = panels.lines.as_ptr().add(strip * panels.cols * 2).cast::<f32>();
            for column in 0..panels.cols {
                let (low, high) = (_mm512_load_ps(weights), _mm512_load_ps(weights.add(16)));
                _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(AHEAD + 16).cast());
                weights = weights.add(STRIP);
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*x.add(r * product.x.stride + column));
                    *sum = [_mm512_fmadd_ps(x, low, sum[0]), _mm512_fmadd_ps(x, high, sum[1])];
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                let out = product.to.data.wrapping_add((first + r) * product.to.stride + row);
                _mm512_mask_storeu_ps(out, masks[0], sum[0]);
                _mm512_mask_storeu_ps(out.wrapping_add(16), masks[1], sum[1]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{AHEAD, Product, Range, STRIP};
    use std::arch::x86_64::*;

    /// 6 rows in two registers each, two of weights and one of inputs: 15 of 16.
    const ROWS: usize = 6;

    #[target_feature(enable = "avx2,fma")]
    pub fn multiply(product: &Product, strips: Range<usize>) {
        product.blocks(strips, ROWS, |first, rows, strip| {
            // SAFETY: `blocks` stays inside the matrices that `Panels::multiply` checked.
            unsafe { for_rows!(rows, tile(product, first, strip), 1 2 3 4 5 6) }
        });
    }

    /// # Safety
    /// As `avx512::tile`.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile<const R: usize>(product: &Product, first: usize, strip: usize) {
        for half in 0..2 {
            let lanes = product.lanes(strip, half, 16);
            let row = strip * STRIP + half * 16;
            let masks = [mask(lanes.min(8)), mask(lanes.saturating_sub(8))];
            // SAFETY: the caller's promise; masked lanes are not touched, whatever a pointer says about them.
            unsafe {
                let start = [0, 1].map(|i| match product.bias {
                    Some(b) => _mm256_maskload_ps(b.as_ptr().wrapping_add(row + i * 8), masks[i]),
                    None => _mm256_setzero_ps(),
                });
                let mut sums = [start; R];
                let x = product.x.data.as_ptr().add(first * product.x.stride);
                let lines = product.panels.lines.as_ptr().add(strip * product.panels.cols * 2);
                let mut weights = lines.cast::<f32>().add(half * 16);
                for column in 0..product.panels.cols {
                    let (low, high) = (_mm256_load_ps(weights), _mm256_load_ps(weights.add(8)));
                    _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(AHEAD).cast());
                    weights = weights.wrapping_add(STRIP);
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let x = _mm256_set1_ps(*x.add(r * product.x.stride + column));
                        *sum = [_mm256_fmadd_ps(x, low, sum[0]), _mm256_fmadd_ps(x, high, sum[1])];
                    }
                }
                for (r, sum) in sums.iter().enumerate() {
                    let out = product.to.data.wrapping_add((first + r) * product.to.stride + row);
                    _mm256_maskstore_ps(out, masks[0], sum[0]);
                    _mm256_maskstore_ps(out.wrapping_add(8), masks[1], sum[1]);
                }
            }
        }
    }

    /// Of 8 lanes the first `lanes`.
    #[target_feature(enable = "avx2")]
    fn mask(lanes: usize) -> __m256i {
        let places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32), places)
    }
}
