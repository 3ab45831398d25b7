//! report.md and the model card.

use super::tables::{FEWER, SMALLER, bytes, count, giga, metric_value, times};
use super::{Change, Emitted, Form, PassNote, Report, Training, span};

/// One line a changed matrix: shape and form before and after, and the error made.
pub fn changes(changes: &[Change]) -> String {
    let mut out = String::from("| matrix | before | after | error |\n|---|---|---|---|\n");
    for c in changes {
        let form = |f: &Form| match f.shape {
            [0, 0] => f.form.clone(),
            [rows, cols] => format!("{} {rows} x {cols}", f.form),
        };
        let error = c.error.map_or("-".into(), |e| format!("{e:.4}"));
        out += &format!("| {} | {} | {} | {error} |\n", c.tensor, form(&c.before), form(&c.after));
    }
    out
}

/// The whole report.
pub fn report(report: &Report) -> String {
    let mut out = format!("# {}, {}\n\n", report.base_model, done(report));
    out += &sizes(report);
    out += "\nBytes are those of the weight file; parameters are logical, those of the matrices that are \
            stood for; bits count all that is stored for the matrices of the encoder's layers. FLOPs of a \
            packed matrix are counted as those of a dense one, whatever they take as its kernel does them. \
            Latency is in measured.json. ";
    out += loading(report);
    out += "\n## Quality\n\n";
    out += &quality(report);
    out += "\n## Text\n\n";
    out += &match &report.calibration {
        None if report.recipe.is_null() => String::new(),
        None => "None: the passes had the weights and nothing else.\n".to_string(),
        Some(c) => format!(
            "{}: {} texts, {} tokens{}.\n",
            c.source,
            count(c.texts as u64),
            count(c.tokens as u64),
            if c.labels { ", with labels" } else { ", no labels" }
        ),
    };
    if let Some(d) = &report.data {
        out += &format!(
            "\nTrained on {}: {} texts, {} tokens{}.\n",
            d.source,
            count(d.texts as u64),
            count(d.tokens as u64),
            if d.labels { ", with labels" } else { ", no labels" }
        );
    }
    out += "\n## Layers\n\n";
    if report.before.hidden != report.after.hidden {
        out += &format!(
            "{} of {} hidden dimensions are left, in every layer.\n\n",
            report.after.hidden, report.before.hidden
        );
    }
    let drops = report.after.layers.iter().any(|l| l.tokens.is_some());
    if drops {
        out += "Tokens: of a text's tokens but the first, the share that goes on behind the layer.\n\n";
    }
    let (tokens, rule) = if drops { (" tokens |", "---|") } else { ("", "") };
    out += &format!(
        "| layer | heads | units |{tokens} parameters | left | form |\n|---|---|---|{rule}---|---|---|\n"
    );
    for (i, (b, a)) in report.before.layers.iter().zip(&report.after.layers).enumerate() {
        let pair = |before: Option<usize>, after: Option<usize>| {
            let text = |n: Option<usize>| n.map_or("gone".into(), |n| n.to_string());
            if before == after {
                text(after)
            } else {
                format!("{} of {}", text(after), text(before))
            }
        };
        out += &format!(
            "| {i} | {} | {} |{} {} | {} | {} |\n",
            pair(b.heads, a.heads),
            pair(b.ffn, a.ffn),
            a.tokens.map_or(String::new(), share),
            count(a.params as u64),
            bar(a.params, b.params),
            a.forms.join(", ")
        );
    }
    for pass in &report.passes {
        out += &pass_section(pass);
    }
    out += &report.plan.as_ref().map_or(String::new(), super::plan::section);
    out += &targets(&report.emitted, true);
    out
}

/// How the last section begins.
pub const TARGETS: &str = "\n## Targets\n\n";

/// The last section, of what is written for other software; nothing where there are none. `plan`: whether with what was
/// planned.
pub fn targets(emitted: &[Emitted], plan: bool) -> String {
    if emitted.is_empty() {
        return String::new();
    }
    let mut out = TARGETS.to_string();
    out += "`native`, this folder, is the one to keep: all others are made of it. `compress verify` compares \
            them.\n\n| target | weights | all files | for | loaded by |\n|---|---|---|---|---|\n";
    for e in emitted {
        let sizes = [bytes(e.weight_bytes), bytes(e.bytes)].join(" | ");
        out += &format!("| `{}` | {sizes} | {} | {} |\n", e.target, e.purpose, e.loads);
    }
    for e in emitted.iter().filter(|_| plan) {
        if let Some(planned) = e.planned_weight_bytes {
            let (planned, came) = (span(planned, count), count(e.weight_bytes));
            out += &format!("\n`{}`: {planned} bytes of weights planned, {came} came.\n", e.target);
        }
    }
    for e in emitted {
        for limit in &e.limits {
            out += &format!("\n`{}`: {limit}.\n", e.target);
        }
        for (file, sha256) in &e.code {
            out += &format!("\n`{file}` has the SHA-256 {sha256}.\n");
        }
    }
    out
}

/// A cell: a share as a picture, and in per cent.
fn share(share: f64) -> String {
    format!(" {} {:.1} % |", bar((1000.0 * share).round() as usize, 1000), 100.0 * share)
}

/// How much of a layer is left, in tenths, as a picture.
fn bar(left: usize, of: usize) -> String {
    let tenths = (10 * left).div_ceil(of.max(1)).min(10);
    "█".repeat(tenths) + &"·".repeat(10 - tenths)
}

/// What became of the model.
fn done(report: &Report) -> &'static str {
    let trained = report.passes.iter().any(|p| !p.training.is_empty());
    if report.recipe.is_null() && trained { "fine-tuned" } else { "compressed" }
}

/// Who loads the output, and what they get.
fn loading(report: &Report) -> &'static str {
    if report.loads_natively {
        return "Stock Transformers classes load it.\n";
    }
    if report.loads_without_schedule {
        return "Stock Transformers classes load it, but know nothing of its schedule: they run all tokens, \
                without the gain, and answer as it would without dropping any. `compress` drops them \
                (`compress eval`, `compress forward`).\n";
    }
    "Its layers have shapes or packed weights that stock Transformers classes do not load; `compress` reads \
     this model (`compress eval`, `compress forward`).\n"
}

fn sizes(report: &Report) -> String {
    let (b, a) = (&report.before, &report.after);
    let mut out = String::from("| | before | after | factor |\n|---|---|---|---|\n");
    let mut row = |name: &str, before: String, after: String, factor: String| {
        out += &format!("| {name} | {before} | {after} | {factor} |\n");
    };
    let smaller = times(b.file_bytes as f64, a.file_bytes as f64, SMALLER);
    row("weight file", bytes(b.file_bytes), bytes(a.file_bytes), smaller);
    let (before, after) = (b.cost.total.params as u64, a.cost.total.params as u64);
    row("parameters", count(before), count(after), times(before as f64, after as f64, FEWER));
    let bits = |s: &super::Summary| format!("{:.2}", s.bits_per_weight);
    let fewer = times(b.bits_per_weight, a.bits_per_weight, FEWER);
    row("bits per encoder weight", bits(b), bits(a), fewer);
    let flops = |s: &super::Summary| giga(s.compute.flops);
    let name = format!("FLOPs, {} x {} tokens", a.compute.batch, a.compute.tokens);
    let fewer = times(b.compute.flops as f64, a.compute.flops as f64, FEWER);
    row(&name, flops(b), flops(a), fewer);
    if let Some((name, [before, after])) = report.flops_on_data() {
        row(&name, giga(before), giga(after), times(before as f64, after as f64, FEWER));
    }
    out
}

fn quality(report: &Report) -> String {
    let Some(q) = &report.quality else {
        return "Not measured: no text. Run `compress eval` with data, or give --eval.\n".into();
    };
    let mut out = format!(
        "On {}: {} texts, {} tokens. 95 % intervals in parentheses.\n\n| metric | before | after |\n|---|---|---|\n",
        q.data,
        count(q.examples as u64),
        count(q.tokens as u64)
    );
    for (b, a) in q.before.iter().zip(&q.after) {
        out += &format!("| {} | {} | {} |\n", b.name, metric_value(b), metric_value(a));
    }
    for m in &q.fidelity {
        out += &format!("| {} with the original | - | {} |\n", m.name, metric_value(m));
    }
    out
}

fn pass_section(pass: &PassNote) -> String {
    let mut out = format!(
        "\n## Pass `{}`\n\nParameters {} to {}, stored bytes {} to {}.",
        pass.name,
        count(pass.params_before as u64),
        count(pass.params_after as u64),
        count(pass.bytes_before as u64),
        count(pass.bytes_after as u64),
    );
    if pass.changes.iter().any(|c| c.error.is_some()) {
        out += " The error is the relative squared error of the layer's output on the text, or of the weights \
                without one.";
    }
    for note in &pass.notes {
        out += &format!("\n\n{note}.");
    }
    if !pass.figures.is_empty() {
        let figures: Vec<String> =
            pass.figures.iter().map(|(name, value)| format!("`{name}` {value:.4}")).collect();
        out += &format!("\n\n{}.", figures.join(", "));
    }
    for t in &pass.training {
        out += "\n\n";
        out += training(t).trim_end();
    }
    out += "\n\n";
    if !pass.changes.is_empty() {
        out += &changes(&pass.changes);
    }
    out
}

/// What was trained on, and the loss on the way.
fn training(t: &Training) -> String {
    let number = |n: usize| count(n as u64);
    let mut out = format!(
        "Training ({}): {} numbers on {} texts of {}{}, {} steps of {} texts, {} tokens in all. {} texts were \
         held out to judge by",
        t.method,
        number(t.params),
        number(t.texts),
        t.data,
        if t.labels { ", with labels" } else { "" },
        number(t.steps),
        number(t.batch),
        count(t.tokens),
        number(t.held_out),
    );
    if let Some(step) = t.best_step {
        out += &format!("; the weights after step {} were kept", number(step));
    }
    out += ".\n\n| step | loss | held out |\n|---|---|---|\n";
    for point in &t.points {
        let parts: Vec<String> =
            point.losses.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        let loss = if parts.is_empty() { "-".into() } else { parts.join(" + ") };
        let judged = point.judged.map_or("-".into(), |j| format!("{j:.4}"));
        out += &format!("| {} | {loss} | {judged} |\n", number(point.step));
    }
    out
}

/// README.md of the output: a model card.
pub fn model_card(report: &Report, license: Option<&str>) -> String {
    let mut out = String::from("---\n");
    if let Some(license) = license {
        out += &format!("license: {license}\n");
    }
    // JSON strings are YAML strings: a folder's name cannot break out of the front matter.
    let name = serde_json::Value::String(report.base_model.clone());
    let what = done(report);
    out += &format!(
        "base_model: {name}\nbase_model_relation: {}\ntags:\n- {what}\n---\n\n# {}, {what}\n\n",
        // What hubs know; to them everything smaller is quantized.
        if report.recipe.is_null() { "finetune" } else { "quantized" },
        report.base_model
    );
    out += &format!("Made by `compress` {} from {}.\n\n", report.version, report.base_model);
    out += &sizes(report);
    out += "\n";
    out += &quality(report);
    out += "\n";
    out += loading(report);
    out += match report.recipe.is_null() {
        true => "\nDetails: report.md, report.json.\n",
        false => {
            "\nDetails: report.md, report.json; recipe.toml makes it again, and `compress reproduce` checks that it does.\n"
        }
    };
    out += &inputs(report);
    out += &targets(&report.emitted, false);
    out
}

/// What it was made from.
fn inputs(report: &Report) -> String {
    if report.inputs.is_empty() {
        return String::new();
    }
    let mut out = String::from("\n## Made from\n\n| file | SHA-256 |\n|---|---|\n");
    for input in &report.inputs {
        // A name must not end the cell.
        let name = input.name.replace('|', "\\|");
        let of = if input.of_model { format!(" of {}", report.base_model) } else { String::new() };
        out += &format!("| {name}{of} | {} |\n", input.sha256);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_pass_that_trained_twice_says_both() {
        let one = |method: &str, best_step| Training {
            method: method.into(),
            data: "train.tsv".into(),
            steps: 2,
            best_step,
            points: vec![crate::train::fit::Point {
                step: 2,
                losses: Vec::new(),
                judged: Some(0.5),
            }],
            ..Training::default()
        };
        let pass = PassNote {
            name: "prune".into(),
            params_before: 4,
            params_after: 2,
            bytes_before: 16,
            bytes_after: 8,
            flops_after: 4,
            changes: Vec::new(),
            training: vec![one("gates", None), one("distillation", Some(2))],
            notes: vec!["of one kind".into()],
            figures: BTreeMap::from([("block_sparsity".into(), 0.5)]),
        };
        insta::assert_snapshot!(pass_section(&pass).trim(), @r"
        ## Pass `prune`

        Parameters 4 to 2, stored bytes 16 to 8.

        of one kind.

        `block_sparsity` 0.5000.

        Training (gates): 0 numbers on 0 texts of train.tsv, 2 steps of 0 texts, 0 tokens in all. 0 texts were held out to judge by.

        | step | loss | held out |
        |---|---|---|
        | 2 | - | 0.5000 |

        Training (distillation): 0 numbers on 0 texts of train.tsv, 2 steps of 0 texts, 0 tokens in all. 0 texts were held out to judge by; the weights after step 2 were kept.

        | step | loss | held out |
        |---|---|---|
        | 2 | - | 0.5000 |
        ");
    }
}
