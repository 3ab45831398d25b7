//! A comparison as text.

use super::{Comparison, Variant};
use crate::eval::load::{Spread, Timing};
use crate::report::{bytes, count, plain_table};

/// One row a variant: size, compute, speed, quality, each beside the reference.
pub fn table(comparison: &Comparison) -> String {
    let variants = &comparison.variants;
    let Some(first) = variants.first() else { return String::new() };
    let mut header: Vec<String> =
        ["", "bytes", "smaller", "parameters", "bits"].map(Into::into).into();
    header.push(format!("GFLOPs at {}", first.flops.tokens));
    for timing in &first.timings {
        header.push(format!("ms a batch of {}", timed(timing)));
        header.push("faster".into());
    }
    if let Some(metric) = first.metric() {
        header.extend([format!("{} (95 %)", metric.name), "difference (95 %)".into()]);
    }
    let close: Vec<&str> = variants
        .iter()
        .map(|v| &v.closeness)
        .max_by_key(|c| c.len())
        .into_iter()
        .flatten()
        .map(|m| m.name)
        .collect();
    header.extend(close.iter().map(|name| name.to_string()));
    let row = |v: &Variant| {
        let mut row = vec![
            v.name.clone(),
            count(v.file_bytes),
            format!("{:.2}x", first.file_bytes as f64 / v.file_bytes.max(1) as f64),
            count(v.params as u64),
            format!("{:.2}", v.bits_per_weight),
            format!("{:.3}", v.flops.total as f64 / 1e9),
        ];
        for timing in &v.timings {
            row.push(spread(&timing.batch_ms));
            row.push(format!("{:.2}x", timing.speedup.median));
        }
        if first.metric().is_some() {
            row.push(v.metric().map_or("-".into(), crate::report::metric_value));
            row.push(v.difference.map_or(String::new(), |d| {
                let p = d.p.map_or(String::new(), |p| format!(", p = {p:.2}"));
                format!("{:+.4} ({:+.4} to {:+.4}{p})", d.value, d.interval[0], d.interval[1])
            }));
        }
        for name in &close {
            let metric = v.closeness.iter().find(|m| m.name == *name);
            row.push(metric.map_or(String::new(), |m| format!("{:.4}", m.value)));
        }
        row
    };
    // As many columns as this do not fit a terminal: a variant is a column, and what is said of it a row.
    let columns: Vec<Vec<String>> = variants.iter().map(row).collect();
    let rows: Vec<Vec<String>> = header
        .iter()
        .enumerate()
        .skip(1)
        .map(|(i, name)| {
            std::iter::once(name.clone()).chain(columns.iter().map(|c| c[i].clone())).collect()
        })
        .collect();
    let names: Vec<&str> =
        std::iter::once("").chain(variants.iter().map(|v| v.name.as_str())).collect();
    plain_table(&names, &rows)
}

/// What passes took away, variant by variant; empty where no report says.
pub fn removed(comparison: &Comparison) -> String {
    let rows: Vec<Vec<String>> = comparison
        .variants
        .iter()
        .flat_map(|v| {
            v.passes.iter().map(|p| {
                vec![
                    v.name.clone(),
                    p.pass.clone(),
                    format!("{} to {}", count(p.params_before), count(p.params_after)),
                    format!("{} to {}", bytes(p.bytes_before), bytes(p.bytes_after)),
                ]
            })
        })
        .collect();
    match rows.is_empty() {
        true => String::new(),
        false => plain_table(&["", "pass", "parameters", "bytes of tensors"], &rows),
    }
}

/// `1`, or `32 x 128 tokens` where all texts are alike.
pub(super) fn timed(timing: &Timing) -> String {
    timing.batch.to_string()
}

fn spread(s: &Spread) -> String {
    format!("{:.2} ({:.2} to {:.2})", s.median, s.low, s.high)
}
