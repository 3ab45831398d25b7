//! The kernels, at the widths that encoders have. `cargo bench --bench kernels`

use compress::model::Activation;
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
