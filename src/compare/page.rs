//! A comparison as one HTML file: no script runs in it and nothing is fetched.

use super::plot::{Bars, COLOURS, Point, Scatter, escape, short, spark};
use super::searched::searches;
use super::tables::chance;
use super::{Comparison, Variant};
use crate::eval::load::Timing;
use crate::eval::paired::Difference;
use crate::report::{FASTER, FEWER, SMALLER, bytes, count, counted, signed, times};
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");

/// The whole page.
pub fn page(comparison: &Comparison) -> String {
    let variants = &comparison.variants;
    let title = match variants.first() {
        Some(first) => {
            format!("{} and {}", first.name, counted(variants.len() as u64 - 1, "variant"))
        }
        None => "no variants".into(),
    };
    let judged = match &comparison.data {
        Some(data) => {
            format!("Judged by {} ({}). ", data.name, counted(data.examples as u64, "example"))
        }
        None => String::new(),
    };
    let mut body = format!(
        "<h1>{}</h1>\n<p>{}Timed on {}, {}, {}; medians of runs in turn, the quarters around them in small print. compress {}.</p>\n",
        escape(&title),
        escape(&judged),
        escape(&comparison.timed_on),
        counted(comparison.threads as u64, "thread"),
        escape(&comparison.cpu_features.join(" ")),
        comparison.version,
    );
    body += &summary(variants);
    body += &scatters(variants);
    body += &shares(variants);
    body += &layers(variants);
    body += &passes(variants);
    body += &searches(&comparison.searches);
    let data = serde_json::to_string(comparison).expect("a comparison is plain data");
    // Nothing in a script element ends it but `</`: names of files may hold that.
    let data = data.replace('<', "\\u003c");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         <script type=\"application/json\" id=\"comparison\">{data}</script>\n</body>\n</html>\n",
        escape(&title),
    )
}

fn key(i: usize) -> String {
    format!("<span class=\"key k{}\">{}</span>", i % COLOURS, i + 1)
}

/// What decides first: quality, bytes, time; then the rest.
fn summary(variants: &[Variant]) -> String {
    let Some(first) = variants.first() else { return String::new() };
    let close = variants.iter().find_map(|v| v.closeness.first());
    let mut names = vec!["variant".to_string()];
    if let Some(metric) = first.metric() {
        names.extend([metric.name.to_string(), "difference".into()]);
    }
    names.extend(close.map(|metric| metric.name.to_string()));
    names.push("bytes".into());
    names.extend(first.timings.iter().map(|t| format!("ms, {}", load(t))));
    names.extend(["bits a weight", "parameters"].map(Into::into));
    names.push(format!("GFLOPs at {}", first.flops.tokens));
    let head: String =
        names.iter().map(|name| format!("<th scope=\"col\">{}</th>", escape(name))).collect();

    let mut rows = String::new();
    for (i, v) in variants.iter().enumerate() {
        let mut cells = Vec::new();
        if first.metric().is_some() {
            let value = v.metric().map_or("-".into(), |m| match m.interval {
                Some([low, high]) => {
                    format!("{:.4}{}", m.value, small(&format!("{low:.4} to {high:.4}")))
                }
                None => format!("{:.4}", m.value),
            });
            cells.extend([value, v.difference.as_ref().map_or(String::new(), difference)]);
        }
        if close.is_some() {
            cells.push(v.closeness.first().map_or(String::new(), |m| format!("{:.4}", m.value)));
        }
        let beside = |then: f64, now: f64, words| match then == now {
            true => String::new(),
            false => small(&times(then, now, words)),
        };
        let smaller = beside(first.file_bytes as f64, v.file_bytes as f64, SMALLER);
        cells.push(bytes(v.file_bytes) + &smaller);
        for t in &v.timings {
            let spread = small(&format!("{:.2} to {:.2}", t.batch_ms.low, t.batch_ms.high));
            let faster = match i {
                0 => String::new(),
                _ => small(&times(t.speedup.median, 1.0, FASTER)),
            };
            cells.push(format!("{:.2}{spread}{faster}", t.batch_ms.median));
        }
        cells.push(format!("{:.2}", v.bits_per_weight));
        cells.push(count(v.params as u64) + &beside(first.params as f64, v.params as f64, FEWER));
        let fewer = beside(first.flops.total as f64, v.flops.total as f64, FEWER);
        cells.push(format!("{:.3}{fewer}", v.flops.total as f64 / 1e9));
        let made = if v.baseline { small("made here, for comparison") } else { String::new() };
        let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
        let _ = writeln!(
            rows,
            "<tr><th scope=\"row\">{}{}{made}</th>{cells}</tr>",
            key(i),
            escape(&v.name)
        );
    }
    format!(
        "<div class=\"wide\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
    )
}

/// In colour where the interval leaves 0 out.
fn difference(d: &Difference) -> String {
    let class = match d.interval {
        [_, high] if high < 0.0 => "bad",
        [low, _] if low > 0.0 => "good",
        _ => "same",
    };
    let interval = small(&format!("{:+.4} to {:+.4}", d.interval[0], d.interval[1]));
    let p = d.p.map_or(String::new(), |p| small(&chance(p)));
    format!("<span class=\"{class}\">{}</span>{interval}{p}", signed(d.value))
}

fn small(text: &str) -> String {
    format!("<small>{text}</small>")
}

fn load(timing: &Timing) -> String {
    format!("batch of {}", timing.batch)
}

/// Quality against size, and against the time of each load.
fn scatters(variants: &[Variant]) -> String {
    let Some(metric) = variants.first().and_then(Variant::metric) else { return String::new() };
    let points = |cost: &dyn Fn(&Variant) -> Option<(f64, String)>| -> Vec<Point> {
        let one = |v: &Variant| {
            let (metric, (cost, label)) = (v.metric()?, cost(v)?);
            let Variant { name, .. } = v.clone();
            Some(Point {
                name,
                cost,
                value: metric.value,
                interval: metric.interval,
                label,
                faint: false,
                hollow: false,
            })
        };
        variants.iter().filter_map(one).collect()
    };
    let mut figures = vec![Scatter {
        id: "size",
        title: "Quality and size",
        x: "weight file, MiB (logarithmic)",
        y: metric.name,
        points: points(&|v| Some((v.file_bytes as f64 / 1_048_576.0, bytes(v.file_bytes)))),
        front: true,
    }];
    let titles: Vec<(String, String, String)> = variants[0]
        .timings
        .iter()
        .map(|t| {
            let load = load(t);
            (
                format!("time-{}", t.batch),
                format!("Quality and time, {load}"),
                format!("ms a {load} (logarithmic)"),
            )
        })
        .collect();
    for (l, (id, title, x)) in titles.iter().enumerate() {
        let cost = |v: &Variant| {
            let ms = v.timings.get(l)?.batch_ms.median;
            Some((ms, format!("{ms:.2} ms")))
        };
        figures.push(Scatter { id, title, x, y: metric.name, points: points(&cost), front: true });
    }
    let figure = |f: &Scatter| {
        format!("<figure><figcaption>{}</figcaption>{}</figure>\n", escape(f.title), f.svg())
    };
    let figures: String = figures.iter().map(figure).collect();
    format!(
        "<h2>What is paid for what</h2>\n<p>Numbers are those of the table. Up and to the left is better; the dashed line joins what no other variant beats in both; bars are 95 % intervals.</p>\n<div class=\"figures\">{figures}</div>\n"
    )
}

/// Where bytes and FLOPs are.
fn shares(variants: &[Variant]) -> String {
    const PARTS: [&str; 4] = ["embeddings", "attention", "feed-forward", "head and rest"];
    const SPENT: [&str; 4] =
        ["attention's layers", "attention's products", "feed-forward", "embeddings and head"];
    let name = |i: usize, v: &Variant| format!("{} {}", i + 1, v.name);
    let stored = variants.iter().enumerate().map(|(i, v)| {
        let c = &v.parts;
        let parts =
            [c.embeddings.bytes, c.attention.bytes, c.ffn.bytes, c.head.bytes + c.unused.bytes];
        (name(i, v), parts.map(|b| b as f64).to_vec(), bytes(c.total.bytes as u64))
    });
    let spent = variants.iter().enumerate().map(|(i, v)| {
        let f = &v.flops;
        let parts = [f.attention, f.products, f.ffn, f.around];
        (
            name(i, v),
            parts.map(|x| x as f64).to_vec(),
            format!("{:.3} GFLOPs", f.total as f64 / 1e9),
        )
    });
    let legend = |parts: &[&str]| -> String {
        let one = |(i, part): (usize, &&str)| {
            let swatch = format!("<span class=\"swatch p{i}\"></span>");
            format!("<span class=\"part-name\">{swatch}{}</span>", escape(part))
        };
        parts.iter().enumerate().map(one).collect::<Vec<_>>().join(" ")
    };
    let bytes =
        Bars { id: "bytes", title: "Where the bytes are", rows: stored.collect(), parts: &PARTS };
    let flops =
        Bars { id: "flops", title: "Where the FLOPs are", rows: spent.collect(), parts: &SPENT };
    let figure = |bars: &Bars| {
        format!(
            "<figure><figcaption>{}</figcaption><p>{}</p>{}</figure>\n",
            escape(bars.title),
            legend(bars.parts),
            bars.svg()
        )
    };
    let table: String = variants
        .iter()
        .enumerate()
        .map(|(i, v)| {
            let t = &v.embedding;
            format!(
                "<tr><th scope=\"row\">{}{}</th><td>{}</td><td>{}</td><td>{}</td><td>{:.1}</td></tr>\n",
                key(i),
                escape(&v.name),
                count(t.rows as u64),
                escape(&t.form),
                crate::report::bytes(t.bytes as u64),
                t.bytes as f64 / t.rows.max(1) as f64,
            )
        })
        .collect();
    format!(
        "<h2>Where it is</h2>\n<div class=\"figures\">{}{}</div>\n<h2>Word embeddings</h2>\n<div class=\"wide\"><table><thead><tr><th scope=\"col\">variant</th><th scope=\"col\">rows</th><th scope=\"col\">form</th><th scope=\"col\">bytes</th><th scope=\"col\">bytes a token</th></tr></thead>\n<tbody>{table}</tbody></table></div>\n",
        figure(&bytes),
        figure(&flops),
    )
}

/// What is left, layer by layer.
fn layers(variants: &[Variant]) -> String {
    let most = |value: &dyn Fn(&super::Layer) -> f64| {
        variants.iter().flat_map(|v| &v.layers).map(value).fold(0.0, f64::max)
    };
    type Value = fn(&super::Layer) -> f64;
    let columns: [(&str, &str, Value); 4] = [
        ("heads", "p0", |l| l.note.heads.unwrap_or(0) as f64),
        ("units", "p1", |l| l.note.ffn.unwrap_or(0) as f64),
        ("bits a weight", "p2", |l| l.bits_per_weight),
        ("tokens", "p3", |l| l.note.tokens.unwrap_or(1.0)),
    ];
    let mut rows = String::new();
    for (i, v) in variants.iter().enumerate() {
        let _ = write!(rows, "<tr><th scope=\"row\">{}{}</th>", key(i), escape(&v.name));
        for (name, class, value) in &columns {
            let values: Vec<f64> = v.layers.iter().map(value).collect();
            let list: Vec<String> = values.iter().map(|x| short(*x)).collect();
            let said = format!("{name} by layer: {}", list.join(", "));
            let few = match &values[..] {
                [first, rest @ ..] if rest.iter().all(|x| x == first) => short(*first),
                _ => format!(
                    "{} to {}",
                    short(values.iter().copied().fold(f64::INFINITY, f64::min)),
                    short(values.iter().copied().fold(0.0, f64::max))
                ),
            };
            let _ = write!(
                rows,
                "<td>{}<small>{few}</small></td>",
                spark(&values, most(value), class, &said)
            );
        }
        rows += "</tr>\n";
    }
    let head: String = columns.iter().map(|c| format!("<th scope=\"col\">{}</th>", c.0)).collect();
    format!(
        "<h2>What is left, layer by layer</h2>\n<p>One bar a layer, the first on the left, as a share of the most that any variant has. Tokens: those that a text of average length still has behind the layer.</p>\n<div class=\"wide\"><table class=\"layers\"><thead><tr><th scope=\"col\">variant</th>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
    )
}

fn passes(variants: &[Variant]) -> String {
    let mut rows = String::new();
    for (i, v) in variants.iter().enumerate() {
        for p in &v.passes {
            let _ = writeln!(
                rows,
                "<tr><th scope=\"row\">{}{}</th><td>{}</td><td>{} to {}</td><td>{} to {}</td></tr>",
                key(i),
                escape(&v.name),
                escape(&p.pass),
                count(p.params_before),
                count(p.params_after),
                bytes(p.bytes_before),
                bytes(p.bytes_after),
            );
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<h2>What each pass took away</h2>\n<div class=\"wide\"><table><thead><tr><th scope=\"col\">variant</th><th scope=\"col\">pass</th><th scope=\"col\">parameters</th><th scope=\"col\">bytes of tensors</th></tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
    )
}
