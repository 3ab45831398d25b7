//! What a search tried, beside the variants: figures for the page, a table for the terminal.

use super::plot::{Point, Scatter, escape};
use crate::report::{bytes, count, counted, plain_table, signed};
use serde::Serialize;
use std::fmt::Write;

/// A search.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Searched {
    /// Name of its log.
    pub name: String,
    /// Name of the model that it compressed.
    pub model: String,
    /// What variants were judged by.
    pub judged_by: String,
    /// What of.
    pub metric: String,
    /// What the distance of answers is: `mean_kl_nats`, `1 - mean_cosine` or `relative_l2`.
    pub divergence: String,
    /// Each recipe as far as it came, those made and judged with all of the text first, the smallest first.
    pub tried: Vec<Tried>,
}

/// A recipe that was tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tried {
    /// As `--passes` takes it.
    pub passes: String,
    /// Of the calibration text, and held out.
    pub texts: usize,
    pub judged: usize,
    /// Whether that was all of it.
    pub whole: bool,
    pub bytes: u64,
    /// How many times as fast as the original.
    pub speed: f64,
    /// Whether that was timed, or counted in FLOPs.
    pub measured: bool,
    /// What the metric fell by.
    pub drop: f64,
    /// How far its answers are from the original's.
    pub divergence: f64,
    /// Whether no other beats it in bytes, speed and divergence.
    pub front: bool,
}

impl Searched {
    fn change(&self) -> String {
        format!("change of {}", self.metric)
    }

    /// Those that were judged with all of the text.
    fn whole(&self) -> impl Iterator<Item = &Tried> {
        self.tried.iter().filter(|t| t.whole)
    }
}

/// A row for each recipe on the front of `searched`.
pub fn searched_table(searched: &Searched) -> String {
    let row = |t: &Tried| {
        vec![
            t.passes.clone(),
            count(t.bytes),
            format!("{:.2}", t.speed),
            signed(-t.drop),
            format!("{:.4}", t.divergence),
        ]
    };
    let rows: Vec<Vec<String>> = searched.whole().filter(|t| t.front).map(row).collect();
    format!(
        "{}, {} tried, judged by {}:\n{}",
        searched.name,
        counted(searched.tried.len() as u64, "recipe"),
        searched.judged_by,
        plain_table(
            &["", "bytes", "times as fast", &searched.change(), &searched.divergence],
            &rows
        )
    )
}

/// Figures and a table of each search.
pub(super) fn searches(all: &[Searched]) -> String {
    all.iter().enumerate().map(|(i, searched)| section(i, searched)).collect()
}

fn section(index: usize, searched: &Searched) -> String {
    let y = searched.change();
    let points = |cost: &dyn Fn(&Tried) -> Option<(f64, String)>| -> Vec<Point> {
        let one = |t: &Tried| {
            let (cost, label) = cost(t)?;
            let (name, value, faint) = (t.passes.clone(), -t.drop, !t.whole);
            let hollow = t.whole && !t.front;
            Some(Point { name, cost, value, interval: None, label, faint, hollow })
        };
        searched.tried.iter().filter_map(one).collect()
    };
    let size = Scatter {
        id: &format!("search-{index}-size"),
        title: "Quality and size of what was tried",
        x: "weight file, MiB (logarithmic)",
        y: &y,
        points: points(&|t| Some((t.bytes as f64 / 1_048_576.0, bytes(t.bytes)))),
        front: false,
    };
    let time = Scatter {
        id: &format!("search-{index}-time"),
        title: "Quality and time of what was timed",
        x: "time, of the original's (logarithmic)",
        y: &y,
        points: points(&|t| {
            t.measured.then(|| (1.0 / t.speed, format!("{:.2} times as fast", t.speed)))
        }),
        front: false,
    };
    let figure = |f: &Scatter| {
        format!("<figure><figcaption>{}</figcaption>{}</figure>\n", escape(f.title), f.svg())
    };
    let mut rows = String::new();
    for (i, t) in searched.whole().enumerate() {
        let _ = writeln!(
            rows,
            "<tr><th scope=\"row\">{} {}</th><td>{}</td><td>{:.2}</td><td>{}</td><td>{:.4}</td><td>{}</td></tr>",
            i + 1,
            escape(&t.passes),
            bytes(t.bytes),
            t.speed,
            signed(-t.drop),
            t.divergence,
            if t.front { "yes" } else { "" },
        );
    }
    format!(
        "<h2>What a search tried: {}</h2>\n<p>{} for {}, judged by {}. Those with a number were made and judged with all \
         of the text, the small ones with less. Up and to the left is better. Filled ones no other beats in bytes, speed \
         and divergence, that of the answers from the original's; hollow ones are beaten.</p>\n<div class=\"figures\">{}{}</div>\n\
         <div class=\"wide\"><table><thead><tr><th scope=\"col\">recipe</th><th scope=\"col\">bytes</th><th scope=\"col\">times as fast</th>\
         <th scope=\"col\">{}</th><th scope=\"col\">{}</th><th scope=\"col\">beaten by none</th></tr></thead>\n<tbody>{rows}</tbody></table></div>\n",
        escape(&searched.name),
        counted(searched.tried.len() as u64, "recipe"),
        escape(&searched.model),
        escape(&searched.judged_by),
        figure(&size),
        figure(&time),
        escape(&y),
        escape(&searched.divergence),
    )
}
