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
    weights.multiply_with(level, x, MatMut::new(&mut out, x.tokens, weights.rows));
    out
}

/// `dequantise · denseᵀ` in f64, and the sum of the magnitudes of its terms.
fn reference(weights: &Packed, x: &Quantised) -> Vec<(f64, f64)> {
    let (cols, values, dense) = (x.cols, x.dequantise(), weights.dense(x.bits));
    let mut out = Vec::new();
    for t in 0..x.tokens {
        for r in 0..weights.rows {
            let terms =
                (0..cols).map(|c| f64::from(values[t * cols + c]) * f64::from(dense[r * cols + c]));
            out.push(terms.fold((0.0, 0.0), |(sum, size), y| (sum + y, size + y.abs())));
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
        prop_assert!((f64::from(y) - sum).abs() <= 1e-5 * size + 1e-30, "{i}: {y}, not {sum}");
    }
    Ok(())
}

const CASES: u32 = if cfg!(miri) { 3 } else { 256 };

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_instruction_set_gives_the_same_bits(
        tokens in 0..9usize, rows in 0..150usize, cols in 0..300usize,
        form in 0..FORMS, bits in 0..3usize, seed in 1..u64::MAX,
    ) {
        let (rows, cols) = if cfg!(miri) { (rows % 19, cols % 70) } else { (rows, cols) };
        let mut random = Random(seed);
        let weights = random.packed(form, rows, cols);
        let x = quantise(&random.floats(tokens * cols), tokens, cols, ALL_BITS[bits]);
        check(&weights, &x)?;
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
