//! A comparison as text.

use super::{Comparison, Variant};
use crate::report::{bytes, count, plain_table, signed};

/// A column for each variant: quality, size, speed, compute.
pub fn table(comparison: &Comparison) -> String {
    let variants = &comparison.variants;
    let Some(first) = variants.first() else { return String::new() };
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, cell: &dyn Fn(&Variant) -> Option<String>| {
        let cells = variants.iter().map(|v| cell(v).unwrap_or_default());
        rows.push(std::iter::once(name.to_string()).chain(cells).collect());
    };
    if let Some(metric) = first.metric() {
        row(metric.name, &|v| v.metric().map(|m| format!("{:.4}", m.value)));
        row("  95 %", &|v| {
            v.metric()?.interval.map(|[low, high]| format!("{low:.3} to {high:.3}"))
        });
        row("  difference", &|v| v.difference.map(|d| signed(d.value)));
        row("    95 %", &|v| {
            v.difference.map(|d| format!("{:+.3} to {:+.3}", d.interval[0], d.interval[1]))
        });
        if variants.iter().any(|v| v.difference.is_some_and(|d| d.p.is_some())) {
            row("    by chance", &|v| v.difference?.p.map(chance));
        }
    }
    let most = variants.iter().map(|v| &v.closeness).max_by_key(|c| c.len());
    for name in most.into_iter().flatten().map(|m| m.name) {
        row(name, &|v| {
            v.closeness.iter().find(|m| m.name == name).map(|m| format!("{:.4}", m.value))
        });
    }
    row("bytes", &|v| Some(count(v.file_bytes)));
    row("  times smaller", &|v| {
        Some(format!("{:.2}", first.file_bytes as f64 / v.file_bytes.max(1) as f64))
    });
    for (l, timing) in first.timings.iter().enumerate() {
        row(&format!("ms, batch of {}", timing.batch), &|v| {
            v.timings.get(l).map(|t| format!("{:.2}", t.batch_ms.median))
        });
        row("  quarters", &|v| {
            v.timings.get(l).map(|t| format!("{:.2} to {:.2}", t.batch_ms.low, t.batch_ms.high))
        });
        row("  times as fast", &|v| v.timings.get(l).map(|t| format!("{:.2}", t.speedup.median)));
    }
    row("bits per encoder weight", &|v| Some(format!("{:.2}", v.bits_per_weight)));
    row("parameters", &|v| Some(count(v.params as u64)));
    row(&format!("GFLOPs, 1 x {} tokens", first.flops.tokens), &|v| {
        Some(format!("{:.3}", v.flops.total as f64 / 1e9))
    });
    let names: Vec<&str> =
        std::iter::once("").chain(variants.iter().map(|v| v.name.as_str())).collect();
    plain_table(&names, &rows)
}

/// `p = 0.03`
pub(super) fn chance(p: f64) -> String {
    if p < 0.001 { "p < 0.001".into() } else { format!("p = {p:.3}") }
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
