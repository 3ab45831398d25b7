use super::*;
use proptest::prelude::*;

const FORMS: usize = 5;
const ALL_BITS: [Bits; 3] = [Bits::One, Bits::Four, Bits::Eight];

/// Numbers that look random: xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In [-1, 1).
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    /// As many planes as `form` says, or int8 for 0.
    fn packed(&mut self, form: usize, rows: usize, cols: usize) -> Packed {
        let scales = self.floats(form.max(1) * rows);
        if form == 0 {
            let codes: Vec<i8> = (0..rows * cols).map(|_| (self.next() >> 20) as i8 / 2).collect();
            return Packed::int8(&codes, &scales, rows, cols);
        }
        let signs: Vec<u32> =
            (0..form * rows * cols.div_ceil(32)).map(|_| (self.next() >> 20) as u32).collect();
        Packed::signs(&signs, &scales, form, rows, cols)
    }
}

fn multiply(level: Level, weights: &Packed, x: &Quantised) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.tokens * weights.rows];
    weights.multiply_with(level, x, None, MatMut::new(&mut out, x.tokens, weights.rows));
    out
}

/// `dequantise · denseᵀ` in f64, and how large it could be: planes may cancel in the dense matrix, but
/// each is rounded for itself.
fn reference(weights: &Packed, x: &Quantised) -> Vec<(f64, f64)> {
    let (cols, values, dense) = (x.cols, x.dequantise(), weights.dense(x.bits));
    let greatest = |r: usize| {
        let passes = weights.passes(x.bits).map(|pass| {
            let integer = if pass == Pass::Whole { f64::from(MAX_WEIGHT) } else { 1.0 };
            integer * f64::from(weights.scales(pass)[r].abs())
        });
        passes.sum::<f64>()
    };
    let mut out = Vec::new();
    for t in 0..x.tokens {
        let values = &values[t * cols..][..cols];
        let size: f64 = values.iter().map(|&x| f64::from(x.abs())).sum();
        for r in 0..weights.rows {
            let terms = values.iter().zip(&dense[r * cols..]);
            let sum = terms.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            out.push((sum, size * greatest(r)));
        }
    }
    out
}

/// All instruction sets give one result, and it is the product of what the codes stand for.
fn check(weights: &Packed, x: &Quantised) -> Result<(), TestCaseError> {
    let scalar = multiply(Level::Scalar, weights, x);
    for level in Level::available() {
        let fast = multiply(level, weights, x);
        let differs = fast.iter().zip(&scalar).position(|(a, b)| a.to_bits() != b.to_bits());
        prop_assert!(differs.is_none(), "{level:?} differs at {differs:?}");
    }
    for (i, (&y, (sum, size))) in scalar.iter().zip(reference(weights, x)).enumerate() {
        prop_assert!((f64::from(y) - sum).abs() <= 1e-6 * size + 1e-30, "{i}: {y}, not {sum}");
    }
    Ok(())
}

const CASES: u32 = if cfg!(miri) { 3 } else { 256 };

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_instruction_set_gives_the_same_bits(
        tokens in 0..50usize, rows in 0..150usize, cols in 0..300usize,
        form in 0..FORMS, bits in 0..3usize, seed in 1..u64::MAX,
    ) {
        let (tokens, rows, cols) =
            if cfg!(miri) { (tokens % 9, rows % 19, cols % 70) } else { (tokens, rows, cols) };
        let mut random = Random(seed);
        let weights = random.packed(form, rows, cols);
        let x = quantise(&random.floats(tokens * cols), tokens, cols, ALL_BITS[bits]);
        check(&weights, &x)?;
    }

    #[test]
    fn every_instruction_set_makes_the_same_codes(
        tokens in 0..4usize, cols in 0..300usize, eight: bool, seed in 1..u64::MAX, size in -40..38i32,
    ) {
        let mut random = Random(seed);
        let mut x = random.floats(tokens * cols);
        x.iter_mut().for_each(|x| *x = (*x + 0.3) * 10f32.powi(size));
        let bits = if eight { Bits::Eight } else { Bits::Four };
        let scalar = quantise::quantise_with(Level::Scalar, &x, tokens, cols, bits);
        for level in Level::available() {
            let fast = quantise::quantise_with(level, &x, tokens, cols, bits);
            prop_assert_eq!(&fast, &scalar, "{:?}", level);
        }
    }

    #[test]
    fn every_instruction_set_takes_the_same_signs(
        tokens in 0..4usize, cols in 0..300usize, shifted: bool, seed in 1..u64::MAX,
    ) {
        let mut random = Random(seed);
        let (x, shift) = (random.floats(tokens * cols), random.floats(cols));
        let shift = shifted.then_some(&shift[..]);
        let scalar = quantise::binarise_with(Level::Scalar, &x, tokens, cols, shift, None);
        for level in Level::available() {
            let fast = quantise::binarise_with(level, &x, tokens, cols, shift, None);
            prop_assert_eq!(&fast, &scalar, "{:?}", level);
        }
    }

    #[test]
    fn codes_are_within_half_a_step(cols in 1..200usize, eight: bool, seed in 1..u64::MAX) {
        let x = Random(seed).floats(cols);
        let x8 = quantise(&x, 1, cols, if eight { Bits::Eight } else { Bits::Four });
        for (x, y) in x.iter().zip(x8.dequantise()) {
            // Both ends may be off by half a step, for the zero point is a whole number.
            prop_assert!((x - y).abs() <= x8.scales[0] * 1.001, "{x} became {y}");
        }
    }
}

/// Codes 0..70 of which 3 stands for zero, times 0.5.
fn ramp() -> Quantised {
    let x: Vec<f32> = (0..70).map(|i| (i as f32 - 3.0) * 0.5).collect();
    let mut ramp = quantise(&x, 1, 70, Bits::Eight);
    ramp.codes = (0..128).map(|i| if i < 70 { i } else { 0 }).collect();
    (ramp.scales, ramp.zeros, ramp.totals) = (vec![0.5], vec![3], vec![69 * 35]);
    ramp
}

#[test]
fn alternating_signs_over_a_ramp() {
    // Σ ±u = -35 and as many + as -, so the zero point adds nothing.
    let even = 0x5555_5555;
    let weights = Packed::signs(&[even, even, even & 63], &[1.0], 1, 1, 70);
    for level in Level::available() {
        assert_eq!(multiply(level, &weights, &ramp()), [-17.5], "{level:?}");
    }
}

#[test]
fn bits_past_the_last_column_do_not_count() {
    let even = 0x5555_5555;
    let weights = Packed::signs(&[even, even, even], &[1.0], 1, 1, 70);
    assert_eq!(multiply(Level::best(), &weights, &ramp()), [-17.5]);
}

#[test]
fn signs_with_themselves_and_their_complement() {
    for n in [1, 31, 32, 33, 64, 70, 512, 1025] {
        let x = Random(7).floats(n);
        let signs = binarise(&x, 1, n, None, Some(1.0));
        let same = &signs.words[..n.div_ceil(32)];
        let both: Vec<u32> = same.iter().copied().chain(same.iter().map(|word| !word)).collect();
        let weights = Packed::signs(&both, &[1.0, 1.0], 1, 2, n);
        for level in Level::available() {
            assert_eq!(multiply(level, &weights, &signs), [n as f32, -(n as f32)], "{level:?} {n}");
        }
    }
}

#[test]
fn shifted_signs_count_zero_as_positive() {
    let x = binarise(&[0.5, -2.0, 1.0, -1.0], 2, 2, Some(&[-0.5, 1.0]), None);
    assert_eq!(x.dequantise(), [0.5, -0.5, 0.25, 0.25]);
    let x = binarise(&[0.5, -2.0, 1.0, -1.0], 2, 2, Some(&[-0.5, 1.0]), Some(3.0));
    assert_eq!(x.dequantise(), [3.0, -3.0, 3.0, 3.0]);
}

#[test]
fn the_greatest_sums_fit() {
    for cols in if cfg!(miri) { vec![130] } else { vec![130, 4096, 12288, 65536] } {
        let mut x = quantise(&vec![1.0; 5 * cols], 5, cols, Bits::Eight);
        // All but the padding.
        assert_eq!(x.codes.iter().filter(|&&code| code == 255).count(), 5 * cols);
        for zero in [0, 255] {
            x.zeros.fill(zero);
            for code in [64, -64] {
                let weights = Packed::int8(&vec![code; cols], &[1.0], 1, cols);
                check(&weights, &x).expect("int8");
            }
            let ones = vec![u32::MAX; 4 * cols.div_ceil(32)];
            for (planes, sign) in [(1, 1.0), (1, -1.0), (2, 1.0), (4, -1.0)] {
                let signs = &ones[..planes * cols.div_ceil(32)];
                let weights = Packed::signs(signs, &vec![sign; planes], planes, 1, cols);
                check(&weights, &x).expect("signs");
                let four = quantise(&vec![1.0; 5 * cols], 5, cols, Bits::Four);
                check(&weights, &four).expect("four bits");
                // Few tokens go another way on AVX2.
                let two = quantise(&vec![1.0; 2 * cols], 2, cols, Bits::Eight);
                check(&weights, &two).expect("two tokens");
                // All of them differ.
                let below = quantise(&vec![-1.0; 5 * cols], 5, cols, Bits::One);
                check(&weights, &below).expect("signs with signs");
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "millions of products")]
fn more_tokens_than_the_cache_holds_are_multiplied_in_parts() {
    let (tokens, rows, cols) = (75, 70, 33_000);
    let mut random = Random(11);
    let x = random.floats(tokens * cols);
    for (form, bits) in [(0, Bits::Eight), (1, Bits::Eight), (2, Bits::Four), (1, Bits::One)] {
        let weights = random.packed(form, rows, cols);
        check(&weights, &quantise(&x, tokens, cols, bits)).expect("parts");
    }
}

#[test]
fn zeros_give_zeros() {
    for bits in ALL_BITS {
        let x = quantise(&[0.0; 2 * 70], 2, 70, bits);
        for form in 0..FORMS {
            let weights = Random(3).packed(form, 5, 70);
            assert!(multiply(Level::best(), &weights, &x).iter().all(|&y| y == 0.0), "{form}");
        }
    }
}

#[test]
fn a_row_of_zero_scales_gives_zeros() {
    let weights = Packed::signs(&[5, 6], &[0.0, 0.0], 2, 1, 3);
    let x = quantise(&[1.0, -2.0, 3.0], 1, 3, Bits::Eight);
    assert_eq!(multiply(Level::best(), &weights, &x), [0.0]);
}

#[test]
fn numbers_that_are_not_finite_do_no_harm() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE] {
        for bits in ALL_BITS {
            let mut x = Random(5).floats(100);
            (x[0], x[99]) = (bad, -bad);
            let weights = Random(9).packed(2, 3, 100);
            let x = quantise(&x, 1, 100, bits);
            Level::available().for_each(|level| drop(multiply(level, &weights, &x)));
        }
    }
}

#[test]
fn gaps_between_rows_of_the_product_stay() {
    let weights = Random(1).packed(1, 20, 33);
    let x = quantise(&Random(2).floats(3 * 33), 3, 33, Bits::Eight);
    let expected = multiply(Level::Scalar, &weights, &x);
    for level in Level::available() {
        let mut out = vec![7.0; 3 * 25];
        let target = MatMut::new(&mut out, 3, 25).columns(2, 20);
        weights.multiply_with(level, &x, None, target);
        for (t, row) in out.chunks(25).enumerate() {
            assert_eq!((&row[..2], &row[22..]), (&[7.0; 2][..], &[7.0; 3][..]));
            assert_eq!(row[2..22], expected[t * 20..][..20]);
        }
    }
}

#[test]
fn a_bias_is_added_once_to_what_all_levels_sum() {
    let mut random = Random(3);
    for form in 0..FORMS {
        for bits in ALL_BITS {
            for (tokens, rows) in [(1, 37), (70, 80)] {
                let (weights, bias) = (random.packed(form, rows, 65), random.floats(rows));
                let x = quantise(&random.floats(tokens * 65), tokens, 65, bits);
                let plain = multiply(Level::Scalar, &weights, &x);
                let with = |level| {
                    let mut out = vec![f32::NAN; tokens * rows];
                    let to = MatMut::new(&mut out, tokens, rows);
                    weights.multiply_with(level, &x, Some(&bias), to);
                    out
                };
                let first = with(Level::Scalar);
                for (i, (y, plain)) in first.iter().zip(&plain).enumerate() {
                    let expected = plain + bias[i % rows];
                    assert!((y - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{y} {expected}");
                }
                Level::available().for_each(|level| assert_eq!(with(level), first, "{level:?}"));
            }
        }
    }
}

#[test]
fn the_rounding_of_levels_is_far_below_the_error_of_planes() {
    // Scales of Gaussian weights in two planes: greatest level 2, unit 1/32.
    let weights = Packed::signs(&[0b0011, 0b0101], &[1.5, 0.5], 2, 1, 4);
    assert_eq!(weights.dense(Bits::Eight), [2.0, 1.0, -1.0, -2.0]);
    let weights = Packed::signs(&[0b0011, 0b0101], &[0.9957, 0.4787], 2, 1, 4);
    for (a, b) in weights.dense(Bits::Eight).iter().zip(weights.dense(Bits::Four)) {
        assert!((a - b).abs() <= (0.9957 + 0.4787) / 128.0, "{a} {b}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "packs millions of bits")]
fn signs_take_a_bit_each() {
    let weights = Random(1).packed(1, 768, 768);
    assert_eq!(weights.bytes(), 768 * 768 / 8 + 768 * 8);
    let weights = Random(1).packed(2, 768, 768);
    assert_eq!(weights.bytes(), 2 * (768 * 768 / 8 + 768 * 8) + 768 * (16 + 8));
}

#[test]
#[should_panic(expected = "int8 weights are within ±64")]
fn refuses_weights_that_could_overflow() {
    Packed::int8(&[65], &[1.0], 1, 1);
}
