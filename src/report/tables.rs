//! Tables and numbers as people read them.

use super::{Measured, Report};
use crate::eval::tasks::Metric;
use comfy_table::{CellAlignment, Table, presets};

/// `1.25 MiB`
pub fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        _ => format!("{:.2} MiB", n as f64 / 1_048_576.0),
    }
}

/// `22,713,986`
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1,024 texts`, `1 text`.
pub fn counted(n: u64, one: &str) -> String {
    format!("{} {one}{}", count(n), if n == 1 { "" } else { "s" })
}

/// `+0.0125`; nothing is `+0.0000`, wherever it came from.
pub fn signed(change: f64) -> String {
    let text = format!("{change:+.4}");
    if text == "-0.0000" { "+0.0000".into() } else { text }
}

/// `1.25x fewer`, or `1.25x more` where `after` is above `before`.
///
/// - `words`: what less of it is, and what more
pub fn times(before: f64, after: f64, words: [&str; 2]) -> String {
    let factor = before / after;
    match factor {
        _ if !(factor > 0.0 && factor.is_finite()) => "-".into(),
        // What is the same but for its last digits is not called more.
        0.995.. => format!("{factor:.2}x {}", words[0]),
        _ => format!("{:.2}x {}", 1.0 / factor, words[1]),
    }
}

/// Of bytes, for [`times`].
pub const SMALLER: [&str; 2] = ["smaller", "larger"];
/// Of what is counted, for [`times`].
pub const FEWER: [&str; 2] = ["fewer", "more"];
/// Of times, for [`times`].
pub const FASTER: [&str; 2] = ["faster", "slower"];

/// `1.250 G`, of FLOPs.
pub fn giga(n: u64) -> String {
    format!("{:.3} G", n as f64 / 1e9)
}

/// `0.8876 (0.8650 to 0.9069)`
pub fn metric_value(metric: &Metric) -> String {
    match metric.interval {
        Some([low, high]) => format!("{:.4} ({low:.4} to {high:.4})", metric.value),
        None => format!("{:.4}", metric.value),
    }
}

/// A table without frames; columns after the first are aligned to the right.
pub fn plain_table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if i > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_string() + "\n").collect()
}

/// Size, compute and quality before and after, as printed at the end of a run.
pub fn before_after(report: &Report, measured: &Measured) -> String {
    let (b, a) = (&report.before, &report.after);
    let mut rows = Vec::new();
    let mut row = |name: &str, before: String, after: String, change: String| {
        rows.push(vec![name.to_string(), before, after, change]);
    };
    let smaller = times(b.file_bytes as f64, a.file_bytes as f64, SMALLER);
    row("weight file", bytes(b.file_bytes), bytes(a.file_bytes), smaller);
    let part = |p: &crate::model::cost::Cost| (p.attention.bytes + p.ffn.bytes) as u64;
    let smaller = times(part(&b.cost) as f64, part(&a.cost) as f64, SMALLER);
    row("  encoder layers", bytes(part(&b.cost)), bytes(part(&a.cost)), smaller);
    let (before, after) = (b.cost.embeddings.bytes as u64, a.cost.embeddings.bytes as u64);
    row("  embeddings", bytes(before), bytes(after), times(before as f64, after as f64, SMALLER));
    let (before, after) = (b.cost.total.params as u64, a.cost.total.params as u64);
    row("parameters", count(before), count(after), times(before as f64, after as f64, FEWER));
    let bits = |s: &super::Summary| format!("{:.2}", s.bits_per_weight);
    row("bits per encoder weight", bits(b), bits(a), String::new());
    let flops = |s: &super::Summary| giga(s.compute.flops);
    let name = format!("FLOPs, 1 x {} tokens", a.compute.tokens);
    let fewer = times(b.compute.flops as f64, a.compute.flops as f64, FEWER);
    row(&name, flops(b), flops(a), fewer);
    if let Some((name, [before, after])) = report.flops_on_data() {
        let fewer = times(before as f64, after as f64, FEWER);
        row(&name, giga(before), giga(after), fewer);
    }
    if let Some([before, after]) = &measured.latency {
        let name = format!("latency, 1 x {} tokens, 1 thread", after.tokens);
        let ms = |l: &crate::eval::latency::Latency| format!("{:.2} ms", l.median_ms);
        let faster = times(before.median_ms, after.median_ms, FASTER);
        row(&name, ms(before), ms(after), faster);
    }
    if let Some(quality) = &report.quality {
        for (before, after) in quality.before.iter().zip(&quality.after) {
            let name = format!("{} on {}", before.name, quality.data);
            let value = |m: &Metric| format!("{:.4}", m.value);
            row(&name, value(before), value(after), signed(after.value - before.value));
        }
        for metric in &quality.fidelity {
            let name = format!("{} with the original, {}", metric.name, quality.data);
            row(&name, String::new(), format!("{:.4}", metric.value), String::new());
        }
    }
    plain_table(&["", "before", "after", ""], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grew_is_not_called_smaller() {
        assert_eq!(times(3.0, 2.0, SMALLER), "1.50x smaller");
        assert_eq!(times(0.39, 0.45, FASTER), "1.15x slower");
        assert_eq!(times(100.0, 106.0, FEWER), "1.06x more");
        assert_eq!([times(1000.0, 1001.0, FEWER), times(1.0, 0.0, FEWER)], ["1.00x fewer", "-"]);
    }

    #[test]
    fn one_is_no_plural_and_zero_has_no_minus() {
        assert_eq!([1, 2, 0].map(|n| counted(n, "recipe")), ["1 recipe", "2 recipes", "0 recipes"]);
        let changes = [-0.0, -0.00001, -0.04, 0.5].map(signed);
        assert_eq!(changes, ["+0.0000", "+0.0000", "-0.0400", "+0.5000"]);
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(count(22_713_986), "22,713,986");
        assert_eq!(
            (count(999), bytes(512), bytes(1_572_864)),
            ("999".into(), "512 B".into(), "1.50 MiB".into())
        );
    }
}
