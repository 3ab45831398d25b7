//! The plain twin of every kernel: the other ones must give the same bits.

use super::{BLOCK, Bits, Form, Pass, Product, Sum, WORD};

pub(super) fn multiply(product: &mut Product) {
    let (weights, x) = (product.weights, product.x);
    let padded = weights.padded();
    let mut row = vec![0i8; padded];
    for pass in weights.passes(x.bits) {
        for r in 0..weights.rows {
            match (&weights.form, pass, x.bits) {
                (Form::Signs(signs), Pass::Plane(k), Bits::One) => {
                    let per_row = padded / WORD;
                    let lines = &signs.plane(k, padded)[r / BLOCK * per_row..][..per_row];
                    for t in 0..x.tokens {
                        let words = &x.words[t * per_row..][..per_row];
                        let differ = |(line, x): (&super::Words, &u32)| {
                            (line.0[r % BLOCK] ^ x).count_ones() as i32
                        };
                        let sum = lines.iter().zip(words).map(differ).sum();
                        product.finish(pass, Sum::Differing, t, r, &[sum]);
                    }
                }
                (_, _, Bits::One) => {
                    weights.row(pass, r, &mut row);
                    for t in 0..x.tokens {
                        let words = &x.words[t * padded / WORD..];
                        let positive = |c: usize| (words[c / WORD] >> (c % WORD) & 1) as i32;
                        let sum = (0..weights.cols).map(|c| positive(c) * i32::from(row[c])).sum();
                        product.finish(pass, Sum::Positive, t, r, &[sum]);
                    }
                }
                (_, _, Bits::Four | Bits::Eight) => {
                    weights.row(pass, r, &mut row);
                    for t in 0..x.tokens {
                        let codes = &x.codes[t * padded..][..padded];
                        let term = |(&x, &w): (&u8, &i8)| i32::from(x) * i32::from(w);
                        let sum = codes.iter().zip(&row).map(term).sum();
                        product.finish(pass, Sum::Products, t, r, &[sum]);
                    }
                }
            }
        }
    }
}
