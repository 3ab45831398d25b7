//! The kernels, at the widths that encoders have. `cargo bench --bench kernels`

use compress::model::Activation;
use compress::runtime::kernels::packed::{Bits, Packed, quantise};
use compress::runtime::kernels::{Mat, MatMut, activate, layer_norm, product, softmax};
use divan::Bencher;

fn main() {
    divan::main();
}

/// Tokens of a batch.
const TOKENS: usize = 512;

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 250.0).collect()
}

#[divan::bench(args = [(384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072)])]
fn linear(bencher: Bencher, (input, out): (usize, usize)) {
    let (x, w) = (numbers(TOKENS * input), numbers(out * input));
    let mut y = vec![0.0; TOKENS * out];
    bencher.counter(divan::counter::ItemsCount::new(2 * TOKENS * input * out)).bench_local(|| {
        let (x, w) = (Mat::new(&x, TOKENS, input), Mat::new(&w, out, input).t());
        product(MatMut::new(&mut y, TOKENS, out), x, w, 1.0);
    });
}

/// Widths as of [`linear`], with the making of integers counted.
fn packed(bencher: Bencher, (input, out): (usize, usize), weights: &Packed, bits: Bits) {
    let x = numbers(TOKENS * input);
    let mut y = vec![0.0; TOKENS * out];
    bencher.counter(divan::counter::ItemsCount::new(2 * TOKENS * input * out)).bench_local(|| {
        let x = quantise(&x, TOKENS, input, bits);
        weights.multiply(&x, None, MatMut::new(&mut y, TOKENS, out));
    });
}

fn signs(planes: usize, (input, out): (usize, usize)) -> Packed {
    let words = planes * out * input.div_ceil(32);
    let signs: Vec<u32> = (0..words as u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    Packed::signs(&signs, &vec![0.5; planes * out], planes, out, input)
}

#[divan::bench(args = [(384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072)])]
fn linear_int8(bencher: Bencher, (input, out): (usize, usize)) {
    let codes: Vec<i8> = (0..input * out).map(|i| ((i * 7919 % 129) as i32 - 64) as i8).collect();
    let weights = Packed::int8(&codes, &vec![0.5; out], out, input);
    packed(bencher, (input, out), &weights, Bits::Eight);
}

#[divan::bench(args = [(384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072)])]
fn linear_w1a8(bencher: Bencher, shape: (usize, usize)) {
    packed(bencher, shape, &signs(1, shape), Bits::Eight);
}

#[divan::bench(args = [(384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072)])]
fn linear_w2a8(bencher: Bencher, shape: (usize, usize)) {
    packed(bencher, shape, &signs(2, shape), Bits::Eight);
}

#[divan::bench(args = [(384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072)])]
fn linear_w1a4(bencher: Bencher, shape: (usize, usize)) {
    packed(bencher, shape, &signs(1, shape), Bits::Four);
}

#[divan::bench(args = [(384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072)])]
fn linear_w1a1(bencher: Bencher, shape: (usize, usize)) {
    packed(bencher, shape, &signs(1, shape), Bits::One);
}

#[divan::bench(args = [1536, 3072])]
fn gelu(bencher: Bencher, width: usize) {
    let x = numbers(TOKENS * width);
    bencher.with_inputs(|| x.clone()).bench_local_refs(|x| activate(Activation::Gelu, x));
}

#[divan::bench(args = [384, 768])]
fn norm(bencher: Bencher, width: usize) {
    let (x, weight, bias) = (numbers(TOKENS * width), numbers(width), numbers(width));
    bencher.with_inputs(|| x.clone()).bench_local_refs(|x| layer_norm(x, &weight, &bias, 1e-12));
}

#[divan::bench(args = [32, 128, 512])]
fn softmax_rows(bencher: Bencher, tokens: usize) {
    let x = numbers(tokens * tokens);
    bencher
        .with_inputs(|| x.clone())
        .bench_local_refs(|x| x.chunks_exact_mut(tokens).for_each(softmax));
}
