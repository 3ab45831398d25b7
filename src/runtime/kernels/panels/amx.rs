//! f32 products by tiles of bf16: 16 rows by 16 rows of the matrix by 32 columns an instruction.
//!
//! An f32 has 24 bits of fraction, and a bf16 eight, so that every f32 is the sum of three bf16: `x = x₁ + x₂ + x₃`, exactly
//! (but below 2⁻¹⁰³, where tiles take the last parts for zero, and numbers below 2⁻¹²⁶ whole). Where a number is infinite, or a sum
//! becomes it, the answer is NaN. Of the nine products of the parts of two numbers the six greatest are
//! summed, in f32; what is left out is at most 2⁻²¹ of the whole, and 2⁻²³ of it in the mean: as much as f32 rounds. (Henry,
//! Tang, Heinecke: Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations, ARITH 2019.)
//! The unit makes six products in a third of the time that AVX-512 takes for one; with splitting and reading, two thirds are measured.

use super::{LANES, Product, STRIP};
use crate::runtime::kernels::arena;
use crate::runtime::kernels::tiles::{ROW, ROWS, Tiles};
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Columns of a tile.
const COLUMNS: usize = ROW / 2;
/// bf16 that an f32 is the sum of.
const PARTS: usize = 3;
/// Columns that all strips are multiplied by before the next ones: parts of them of `GROUP` rows and of a strip stay in the second-level
/// cache.
const SLAB: usize = 12 * COLUMNS;
/// Rows that parts of a strip are made for. Making them takes as long as 13 rows, and reading what they are made of as 60.
const GROUP: usize = 256;

/// Rows from which on tiles are faster than AVX-512, by columns of the matrix: parts of it have to be made for them, and narrow
/// ones are small enough to lie in a cache, where AVX-512 waits for nothing.
pub(super) fn fewest(cols: usize) -> usize {
    if cols < 256 { 128 } else { 40 }
}

/// A row of a tile.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line([u16; COLUMNS]);

arena::kept!(Line);

impl Line {
    const ZERO: Line = Line([0; COLUMNS]);
}

/// What is multiplied at the moment.
#[derive(Debug)]
struct Work {
    /// Of rows, block by block: `[columns / 32, rows, 3]` lines.
    x: Vec<Line>,
    /// Of a strip: `[columns / 32, halves, 3, 16]` lines of pairs of columns.
    weights: Vec<Line>,
}

/// Lines of a strip, for 32 columns.
const STEP: usize = 2 * PARTS * ROWS;

/// Fetches 16 lines of rows, and as many of weights, of the next step, from line `$from` on. Left alone, tiles wait for the second-level
/// cache.
macro_rules! next {
    ($from:literal) => {
        concat!(
            ".set .Lnext, ",
            $from,
            "\n.rept 16\n",
            "prefetcht0 [{x0} + {step} + 64 * .Lnext]\nprefetcht0 [{w} + 6144 + 64 * .Lnext]\n",
            ".set .Lnext, .Lnext + 1\n.endr"
        )
    };
}

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn multiply(product: &Product, strips: Range<usize>) {
    let (rows, cols) = (product.x.rows, product.panels.cols);
    let steps = cols.min(SLAB).div_ceil(COLUMNS);
    let mut work = Work {
        x: arena::room(steps * rows.min(GROUP) * PARTS),
        weights: arena::room(steps * STEP),
    };
    let mut tiles = Tiles::default();
    let groups = rows.div_ceil(GROUP);
    for group in 0..groups {
        let group = rows * group / groups..rows * (group + 1) / groups;
        for from in (0..cols).step_by(SLAB) {
            let columns = from..cols.min(from + SLAB);
            work.split_rows(product, group.clone(), columns.clone());
            for strip in strips.clone() {
                work.split_strip(product, strip, columns.clone());
                let ahead = ((strip + 1) * cols + columns.start) * 2;
                let ahead = product.panels.lines.as_ptr().wrapping_add(ahead);
                work.strip(&mut tiles, product, group.clone(), strip, ahead, from > 0);
            }
        }
    }
    drop(tiles);
    arena::give_all([work.x, work.weights]);
}

impl Work {
    /// Parts of `columns` of some rows.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn split_rows(&mut self, product: &Product, rows: Range<usize>, columns: Range<usize>) {
        let steps = columns.len().div_ceil(COLUMNS);
        self.x.resize(steps * rows.len() * PARTS, Line::ZERO);
        let blocks = Blocks::of(rows.len());
        let places = (0..blocks.count).flat_map(|b| blocks.rows(b).map(move |i| (b, i)));
        for (block, i) in places {
            let (row, block) = (rows.start + i, blocks.rows(block));
            let values = &product.x.data[row * product.x.stride..][columns.clone()];
            for (step, values) in values.chunks(COLUMNS).enumerate() {
                let left = values.len();
                let low = ((1u64 << left.min(LANES)) - 1) as __mmask16;
                let high = ((1u64 << left.saturating_sub(LANES)) - 1) as __mmask16;
                let at = values.as_ptr();
                // SAFETY: as many values are read as are left.
                let (low, high) = unsafe {
                    (
                        _mm512_maskz_loadu_ps(low, at),
                        _mm512_maskz_loadu_ps(high, at.wrapping_add(LANES)),
                    )
                };
                let (low, high) = (split(low), split(high));
                let at = block.start * steps + step * block.len() + i - block.start;
                let to = &mut self.x[at * PARTS..][..PARTS];
                for part in 0..PARTS {
                    let words = to[part].0.as_mut_ptr();
                    // SAFETY: two halves of a line of 64 bytes.
                    unsafe {
                        _mm256_store_si256(words.cast(), words_of(low[part]));
                        _mm256_store_si256(words.add(LANES).cast(), words_of(high[part]));
                    }
                }
            }
        }
    }

    /// Parts of `columns` of a strip.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn split_strip(&mut self, product: &Product, strip: usize, columns: Range<usize>) {
        let panels = product.panels;
        self.weights.resize(columns.len().div_ceil(COLUMNS) * STEP, Line::ZERO);
        let lines = &panels.lines[strip * panels.cols * 2..][2 * columns.start..2 * columns.end];
        let (whole, rest) = lines.as_chunks::<{ 2 * COLUMNS }>();
        let (to, _) = self.weights.as_chunks_mut::<STEP>();
        for (lines, to) in whole.iter().zip(to.iter_mut()) {
            split_tiles(lines, to);
        }
        if !rest.is_empty() {
            let mut lines = [super::Line([0.0; LANES]); 2 * COLUMNS];
            lines[..rest.len()].copy_from_slice(rest);
            split_tiles(&lines, &mut to[whole.len()]);
        }
    }

    /// Products of a group of rows with the strip at hand, added to the bias, or `again` to what they were after other columns.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn strip(
        &mut self,
        tiles: &mut Tiles,
        product: &Product,
        group: Range<usize>,
        strip: usize,
        ahead: *const super::Line,
        again: bool,
    ) {
        let to = product.to;
        let masks = [0, 1].map(|h| ((1u32 << product.lanes(strip, h, LANES)) - 1) as __mmask16);
        let whole = masks == [!0; 2];
        let mut bias = Sums([[0.0; STRIP]; 1]);
        // Of a strip that is not whole; zeros would cost 3 % of a pass.
        let mut sums = MaybeUninit::<Sums<{ 2 * ROWS }>>::uninit();
        // SAFETY: lanes are rows of the matrix, and so places of a bias and of outputs, which `Panels::multiply` checked;
        // masked ones are not touched, whatever a pointer says about them.
        unsafe {
            if let Some(b) = product.bias {
                let b = b.as_ptr().wrapping_add(strip * STRIP);
                copy(masks, b, bias.0[0].as_mut_ptr(), [!0; 2]);
            }
        }
        let blocks = Blocks::of(group.len());
        for block in 0..blocks.count {
            let rows = blocks.rows(block);
            let (len, first) = (rows.len(), group.start + rows.start);
            let out = |row: usize| to.data.wrapping_add((first + row) * to.stride + strip * STRIP);
            let stride = size_of::<f32>() * to.stride;
            let mine = (sums.as_mut_ptr().cast::<f32>(), size_of::<[f32; STRIP]>());
            let start = match (again, whole) {
                (false, _) => (bias.0.as_ptr().cast::<f32>(), 0),
                (true, true) => (out(0).cast_const(), stride),
                (true, false) => {
                    for row in 0..len {
                        // SAFETY: as above; of sums there are as many.
                        unsafe { copy(masks, out(row), mine.0.add(row * STRIP), [!0; 2]) }
                    }
                    (mine.0.cast_const(), mine.1)
                }
            };
            let end = if whole { (out(0), stride) } else { mine };
            // SAFETY: as many rows of `STRIP` values are there to be read and written as the block has.
            unsafe { self.block(tiles, &blocks, block, ahead, start, end) };
            if !whole {
                for row in 0..len {
                    // SAFETY: as above.
                    unsafe { copy([!0; 2], mine.0.add(row * STRIP), out(row), masks) }
                }
            }
        }
    }

    /// Products of a block of rows with the strip at hand. `start` and `end`: where sums come from and go to, and the bytes from
    /// one row to the next. By the way fetches its share of what lies at `ahead`, the next strip.
    ///
    /// # Safety
    /// As many rows of `STRIP` values can be read and written as the block has.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn block(
        &mut self,
        tiles: &mut Tiles,
        blocks: &Blocks,
        block: usize,
        ahead: *const super::Line,
        start: (*const f32, usize),
        end: (*mut f32, usize),
    ) {
        let (steps, rows) = (self.weights.len() / STEP, blocks.rows(block));
        let [first, second] = [rows.len().div_ceil(2), rows.len() / 2];
        assert!(second > 0 && first <= ROWS && steps > 0, "{rows:?}, {steps} steps");
        assert!(self.x.len() >= rows.end * steps * PARTS, "rows of parts");
        let (f, s, full) = (first as u8, second as u8, ROWS as u8);
        tiles.configure([f, f, s, s, f, s, full, full]);
        let share = |i: usize| 2 * COLUMNS * i / blocks.count;
        let x = self.x[rows.start * steps * PARTS..].as_ptr();
        let ends = Ends {
            first: end.0,
            second: end.0.wrapping_byte_add(first * end.1),
            stride: end.1,
            fetched: share(block + 1) - share(block),
        };
        // SAFETY: of `steps` steps, each as many times 3 lines after the one before as there are rows, `first` and then `second`
        // times 3 lines of rows are read, which are there, as asserted, and of weights 96 lines each. That `start` and `end` can be
        // read and written is the caller's promise; what is fetched may lie anywhere. Sizes of tiles are as configured: 0
        // and 1 are sums of the first rows, 2 and 3 of the second ones, 4 and 5 hold rows, 6 and 7 weights.
        unsafe {
            asm!(
                "tileloadd tmm0, [{s0} + {s}]",
                "tileloadd tmm1, [{s0} + {s} + 64]",
                "tileloadd tmm2, [{s1} + {s}]",
                "tileloadd tmm3, [{s1} + {s} + 64]",
                "mov {s1}, [{ends} + 24]",
                "2:",
                "tileloadd tmm4, [{x0} + {row}]",
                "tileloadd tmm6, [{w} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w} + {line} + 3072]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{x1} + {row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                next!(0),
                "tileloadd tmm6, [{w} + {line} + 2048]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{w} + {line} + 5120]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                next!(16),
                "tileloadd tmm6, [{w} + {line} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{w} + {line} + 4096]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                next!(32),
                "tileloadd tmm4, [{x0} + {row} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{x1} + {row} + 64]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                next!(48),
                "tileloadd tmm6, [{w} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{w} + {line} + 3072]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                next!(64),
                "tileloadd tmm4, [{x0} + {row} + 128]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{x1} + {row} + 128]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                next!(80),
                // Of the next strip.
                "mov {s0}, {s1}", "test {s0}, {s0}", "jz 4f",
                "3:", "prefetcht1 [{ahead}]", "add {ahead}, 64", "dec {s0}", "jnz 3b",
                "4:",
                "add {x0}, {step}", "add {x1}, {step}", "add {w}, 6144",
                "dec {steps}",
                "jnz 2b",
                "mov {s0}, [{ends}]", "mov {s1}, [{ends} + 8]", "mov {s}, [{ends} + 16]",
                "tilestored [{s0} + {s}], tmm0",
                "tilestored [{s0} + {s} + 64], tmm1",
                "tilestored [{s1} + {s}], tmm2",
                "tilestored [{s1} + {s} + 64], tmm3",
                x0 = inout(reg) x => _,
                x1 = inout(reg) x.add(first * PARTS) => _,
                w = inout(reg) self.weights.as_ptr() => _,
                ahead = inout(reg) ahead.wrapping_add(share(block) * steps) => _,
                s0 = inout(reg) start.0 => _,
                s1 = inout(reg) start.0.wrapping_byte_add(first * start.1) => _,
                s = inout(reg) start.1 => _,
                steps = inout(reg) steps => _,
                step = in(reg) rows.len() * PARTS * size_of::<Line>(),
                row = in(reg) PARTS * size_of::<Line>(),
                line = in(reg) size_of::<Line>(),
                ends = in(reg) &ends,
                options(nostack),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            );
        }
    }
}

/// What a block needs once its steps are done, and how many lines it fetches in each.
#[repr(C)]
struct Ends {
    first: *mut f32,
    second: *mut f32,
    stride: usize,
    fetched: usize,
}

/// Sums of some rows and a strip.
#[repr(C, align(64))]
struct Sums<const ROWS: usize>([[f32; STRIP]; ROWS]);

/// Copies those of the 32 values at `from` that `read` tells, and zeros for the others, to `to` where `write` tells.
///
/// # Safety
/// Those values can be read and written.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn copy(read: [__mmask16; 2], from: *const f32, to: *mut f32, write: [__mmask16; 2]) {
    for half in 0..2 {
        let (from, to) = (from.wrapping_add(half * LANES), to.wrapping_add(half * LANES));
        // SAFETY: the caller's promise.
        unsafe { _mm512_mask_storeu_ps(to, write[half], _mm512_maskz_loadu_ps(read[half], from)) }
    }
}

/// Rows that tiles take at once.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    rows: usize,
    count: usize,
}

impl Blocks {
    fn of(rows: usize) -> Blocks {
        Blocks { rows, count: rows.div_ceil(2 * ROWS) }
    }

    fn rows(self, block: usize) -> Range<usize> {
        self.rows * block / self.count..self.rows * (block + 1) / self.count
    }
}

/// What the instructions above count with.
const _: () = assert!(size_of::<Line>() == 64 && STEP * size_of::<Line>() == 6144);
const _: () = assert!(size_of::<Ends>() == 32 && PARTS * ROWS * ROW == 3072);

/// Parts of 32 columns of a strip, of which `lines` are two halves each.
#[target_feature(enable = "avx512f,avx512bw")]
fn split_tiles(lines: &[super::Line; 2 * COLUMNS], to: &mut [Line; STEP]) {
    for half in 0..2 {
        for pair in 0..ROWS {
            let [even, odd] = [4 * pair + half, 4 * pair + 2 + half];
            // SAFETY: lines of 64 bytes.
            let (even, odd) = unsafe {
                (_mm512_load_ps(lines[even].0.as_ptr()), _mm512_load_ps(lines[odd].0.as_ptr()))
            };
            let (even, odd) = (split(even), split(odd));
            for part in 0..PARTS {
                let words = _mm512_or_si512(odd[part], _mm512_srli_epi32::<16>(even[part]));
                let to = &mut to[(half * PARTS + part) * ROWS + pair];
                // SAFETY: a line of 64 bytes.
                unsafe { _mm512_store_si512(to.0.as_mut_ptr().cast(), words) }
            }
        }
    }
}

/// The three bf16 that numbers are the sums of, each in the upper half of a lane.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn split(x: __m512) -> [__m512i; PARTS] {
    let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
    let first = _mm512_and_si512(_mm512_castps_si512(x), upper);
    let left = _mm512_sub_ps(x, _mm512_castsi512_ps(first));
    let second = _mm512_and_si512(_mm512_castps_si512(left), upper);
    let third = _mm512_sub_ps(left, _mm512_castsi512_ps(second));
    [first, second, _mm512_castps_si512(third)]
}

/// The upper halves of lanes, in their order.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn words_of(lanes: __m512i) -> __m256i {
    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(lanes))
}
