//! Numeric kernels on plain slices.
//!
//! Element-wise kernels are written once, without branches and with explicit accumulator lanes, so
//! that the compiler vectorises them; `dispatch!` compiles each for AVX2 as well and picks at run
//! time. `reference` holds the plain twins that the tests compare with.

mod activation;
pub mod arena;
mod dropout;
mod elastic;
mod level;
mod matmul;
mod norm;
// Elsewhere some of what they share is AVX's alone.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub mod packed;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod panels;
#[cfg(test)]
mod reference;
mod rounding;
#[cfg(target_arch = "x86_64")]
mod tiles;

pub use activation::{activate, activation_gradient, softmax, softmax_backward};
pub use dropout::dropout;
pub use elastic::{signs, signs_gradient, steps, steps_gradient};
pub use level::{Level, limit, limit_by_environment};
#[cfg(test)]
pub use matmul::MACS;
pub use matmul::{Mat, MatMut, add_product, product};
pub use norm::{add_bias, add_columns, add_norm, layer_norm, layer_norm_backward};
pub use panels::Panels;
pub use rounding::rounded;

/// Defines `pub fn name(args)` that runs `body` compiled for the best instruction set at hand.
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) {
                    $body($($arg),*)
                }
                use $crate::runtime::kernels::Level;
                if Level::Avx512.allowed()
                    && std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the features that `avx512` needs were just detected; with them come AVX2
                    // and FMA.
                    return unsafe { avx512($($arg),*) };
                }
                if Level::Avx2.allowed()
                    && std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                {
                    // SAFETY: the two features that `avx2` needs were just detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use dispatch;

/// Lanes of explicit accumulators: two AVX2 registers.
const LANES: usize = 16;

/// Σ f(x, y) in a fixed order, whatever the instruction set.
#[inline(always)]
fn reduce(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let tail: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(&x, &y)| f(x, y)).sum();
    for (x, y) in xs.zip(ys) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    lanes.iter().sum::<f32>() + tail
}
