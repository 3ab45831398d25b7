use super::*;
use crate::runtime::kernels::product;
use proptest::prelude::*;

fn levels() -> Vec<Level> {
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
    let mut levels = vec![Level::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        levels.extend(is_x86_feature_detected!("avx512f").then_some(Level::Avx512));
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        levels.extend(avx2.then_some(Level::Avx2));
    }
    levels
}

/// Those, and tiles.
fn all_levels() -> Vec<Level> {
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
    let mut levels = levels();
    #[cfg(target_arch = "x86_64")]
    levels.extend(tiles::detected().then_some(Level::Amx));
    levels
}

/// Numbers of both signs, the same every time.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mix = |i: u32| (i ^ seed).wrapping_mul(2_654_435_761) >> 8;
    (0..count as u32).map(|i| mix(i) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// What stands between and behind the outputs.
const UNTOUCHED: f32 = 77.0;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn all_levels_give_the_same_bits_and_what_a_plain_product_gives(
        n in 1usize..30, rows in 1usize..80, cols in 1usize..70, gap in 0usize..3, biased: bool,
    ) {
        let (weight, x) = (numbers(rows * cols, 1), numbers(n * (cols + gap), 2));
        let bias = numbers(rows, 3);
        let x = Mat { stride: cols + gap, ..Mat::new(&x, n, cols) };
        let run = |level| {
            let panels = Panels::at(level, Mat::new(&weight, rows, cols)).expect("weights");
            let mut out = vec![UNTOUCHED; n * (rows + gap)];
            let to = MatMut { stride: rows + gap, ..MatMut::new(&mut out, n, rows) };
            panels.multiply(x, biased.then_some(&bias[..]), to);
            out
        };
        let mut expected = vec![UNTOUCHED; n * (rows + gap)];
        let to = MatMut { stride: rows + gap, ..MatMut::new(&mut expected, n, rows) };
        product(to, x, Mat::new(&weight, rows, cols).t(), 1.0);
        let first = run(Level::Scalar);
        for (i, (y, e)) in first.iter().zip(&expected).enumerate() {
            let (column, e) = (i % (rows + gap), *e);
            let e = if column < rows && biased { e + bias[column] } else { e };
            prop_assert!((y - e).abs() <= 1e-5 * (1.0 + e.abs()), "{y} {e}");
        }
        for level in levels() {
            prop_assert_eq!(&run(level), &first, "{:?}", level);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Of three parts of eight bits each, six products of nine.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn tiles_come_as_near_to_true_sums_as_f32_does(
        more in 0usize..500, rows in 1usize..80, cols in 1usize..900, gap in 0usize..3, biased: bool,
    ) {
        if !tiles::detected() {
            return Ok(());
        }
        let n = amx::fewest(cols) + more;
        let (weight, x) = (numbers(rows * cols, 1), numbers(n * (cols + gap), 2));
        let bias = numbers(rows, 3);
        let x = Mat { stride: cols + gap, ..Mat::new(&x, n, cols) };
        let run = |level| {
            let panels = Panels::at(level, Mat::new(&weight, rows, cols)).expect("weights");
            let mut out = vec![UNTOUCHED; n * (rows + gap)];
            let to = MatMut { stride: rows + gap, ..MatMut::new(&mut out, n, rows) };
            panels.multiply(x, biased.then_some(&bias[..]), to);
            out
        };
        let mut errors = [0.0, 0.0];
        for (i, (y, chain)) in run(Level::Amx).into_iter().zip(run(Level::Scalar)).enumerate() {
            let (at, column) = (i / (rows + gap), i % (rows + gap));
            if column >= rows {
                prop_assert_eq!(y, UNTOUCHED);
                continue;
            }
            let pairs = x.data[at * x.stride..].iter().zip(&weight[column * cols..][..cols]);
            let products = || pairs.clone().map(|(x, w)| f64::from(*x) * f64::from(*w));
            let bias = if biased { f64::from(bias[column]) } else { 0.0 };
            let sum = products().sum::<f64>() + bias;
            let power = products().map(f64::abs).sum::<f64>() + bias.abs();
            let error = (f64::from(y) - sum).abs();
            prop_assert!(error <= power / f64::from(1 << 21), "{at} {column}: {y}, not {sum}");
            errors[0] += error;
            errors[1] += (f64::from(chain) - sum).abs();
        }
        prop_assert!(cols < 64 || errors[0] <= errors[1], "{errors:?}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn tiles_keep_all_bits_of_a_number() {
    if !tiles::detected() {
        return;
    }
    // 24 bits of fraction, times one.
    let x: Vec<f32> = (0..128).map(|i| f32::from_bits(0x3f80_0001 + i * 0x1_2345)).collect();
    let panels = Panels::at(Level::Amx, Mat::new(&[1.0], 1, 1)).expect("weights");
    let mut out = vec![0.0; x.len()];
    panels.multiply(Mat::new(&x, 128, 1), None, MatMut::new(&mut out, 128, 1));
    assert_eq!(out, x);
    let panels = Panels::at(Level::Amx, Mat::new(&x, 128, 1)).expect("weights");
    let mut out = vec![0.0; 128 * 128];
    panels.multiply(Mat::new(&[-1.0; 128], 128, 1), None, MatMut::new(&mut out, 128, 128));
    assert!(out.chunks(128).all(|row| row.iter().zip(&x).all(|(y, x)| *y == -x)));
}

#[test]
fn more_inputs_than_the_cache_holds_are_all_multiplied() {
    let (n, rows, cols) = (CACHE / 4 / 2048 + 20, 3, 2048);
    let (weight, x) = (vec![0.5; rows * cols], vec![1.0; n * cols]);
    for level in all_levels() {
        let panels = Panels::at(level, Mat::new(&weight, rows, cols)).expect("weights");
        let mut out = vec![0.0; n * rows];
        panels.multiply(Mat::new(&x, n, cols), None, MatMut::new(&mut out, n, rows));
        assert!(out.iter().all(|&y| y == 1024.0), "{level:?}");
    }
}

#[test]
fn threads_share_the_rows_of_a_matrix() {
    let (n, rows, cols) = (40, 500, 700); // twelve shares
    let (weight, x) = (numbers(rows * cols, 1), numbers(n * cols, 2));
    for level in all_levels() {
        let panels = Panels::at(level, Mat::new(&weight, rows, cols)).expect("weights");
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let mut out = vec![UNTOUCHED; n * rows];
            let to = MatMut::new(&mut out, n, rows);
            pool.expect("a pool").install(|| panels.multiply(Mat::new(&x, n, cols), None, to));
            out
        };
        assert_eq!(run(3), run(1), "{level:?}");
    }
}

#[test]
fn a_product_like_the_one_before_asks_for_no_memory() {
    let (n, rows, cols) = (130, 40, 300);
    let (weight, x) = (numbers(rows * cols, 1), numbers(n * cols, 2));
    for level in all_levels() {
        let panels = Panels::at(level, Mat::new(&weight, rows, cols)).expect("weights");
        let mut out = vec![0.0; n * rows];
        let mut run =
            || panels.multiply(Mat::new(&x, n, cols), None, MatMut::new(&mut out, n, rows));
        run();
        assert_eq!(crate::allocations::of(run), 0, "{level:?}");
    }
}

#[test]
fn nothing_is_made_of_no_weights() {
    assert!(Panels::at(Level::Scalar, Mat::new(&[], 0, 4)).is_none());
    assert!(Panels::at(Level::Scalar, Mat::new(&[], 4, 0)).is_none());
}
