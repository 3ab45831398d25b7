//! Figures as inline SVG: no script, nothing fetched, text that a screen reader reads.

use super::front;
use crate::report::counted;
use std::fmt::Write;

/// A variant in a scatter plot.
#[derive(Debug, Clone)]
pub struct Point {
    pub name: String,
    /// Less is better; drawn on a logarithmic axis, so above 0.
    pub cost: f64,
    /// More is better.
    pub value: f64,
    /// 95 % of `value`.
    pub interval: Option<[f64; 2]>,
    /// `cost` in words.
    pub label: String,
    /// Known less well than the others: drawn small, without a number, and no part of the front.
    pub faint: bool,
    /// Beaten by another in more than this figure shows: drawn hollow.
    pub hollow: bool,
}

/// Cost against value, with the Pareto front.
#[derive(Debug)]
pub struct Scatter<'a> {
    pub id: &'a str,
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    pub points: Vec<Point>,
    /// Whether what no other beats in cost and value is joined; else the points that are not hollow are best.
    pub front: bool,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 340.0;
/// Around the plot: left, right, top, bottom.
const MARGIN: [f64; 4] = [58.0, 18.0, 14.0, 46.0];

impl Scatter<'_> {
    pub fn svg(&self) -> String {
        let xs = Axis::log(self.points.iter().map(|p| p.cost), MARGIN[0], WIDTH - MARGIN[1]);
        let values = self.points.iter().flat_map(|p| {
            let [low, high] = p.interval.unwrap_or([p.value; 2]);
            [p.value, low, high]
        });
        let ys = Axis::linear(values, HEIGHT - MARGIN[3], MARGIN[2]);
        let mut out = String::new();
        let points: Vec<(f64, f64)> = self.points.iter().map(|p| (p.cost, p.value)).collect();
        let whole: Vec<usize> = (0..points.len()).filter(|&i| !self.points[i].faint).collect();
        let best: Vec<usize> = match self.front {
            true => {
                let best = front(&whole.iter().map(|&i| points[i]).collect::<Vec<_>>());
                best.into_iter().map(|i| whole[i]).collect()
            }
            false => whole.into_iter().filter(|&i| !self.points[i].hollow).collect(),
        };
        let names: Vec<String> = best.iter().map(|&i| self.points[i].name.clone()).collect();
        let unbeaten = if self.front { "not beaten in both" } else { "beaten by none" };
        let description = format!(
            "{}; {unbeaten}: {}.",
            counted(self.points.len() as u64, "variant"),
            names.join(", ")
        );
        open(&mut out, self.id, self.title, &description, WIDTH, HEIGHT);
        for tick in &xs.ticks {
            let x = xs.place(*tick);
            let _ = write!(
                out,
                r#"<line class="grid" x1="{x:.1}" x2="{x:.1}" y1="{:.1}" y2="{:.1}"/><text class="tick" x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                MARGIN[2],
                HEIGHT - MARGIN[3],
                HEIGHT - MARGIN[3] + 16.0,
                xs.said(*tick),
            );
        }
        for tick in &ys.ticks {
            let y = ys.place(*tick);
            let _ = write!(
                out,
                r#"<line class="grid" x1="{:.1}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                MARGIN[0],
                WIDTH - MARGIN[1],
                MARGIN[0] - 6.0,
                y + 4.0,
                ys.said(*tick),
            );
        }
        let _ = write!(
            out,
            r#"<text class="axis" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text><text class="axis" transform="translate(14 {:.1}) rotate(-90)" text-anchor="middle">{}</text>"#,
            (MARGIN[0] + WIDTH - MARGIN[1]) / 2.0,
            HEIGHT - 8.0,
            escape(self.x),
            (MARGIN[2] + HEIGHT - MARGIN[3]) / 2.0,
            escape(self.y),
        );
        let place = |i: usize| (xs.place(points[i].0), ys.place(points[i].1));
        let line: Vec<String> =
            best.iter().map(|&i| place(i)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        if self.front {
            let _ = write!(out, r#"<polyline class="front" points="{}"/>"#, line.join(" "));
        }
        for (i, point) in self.points.iter().enumerate() {
            let (x, y) = place(i);
            if let Some([low, high]) = point.interval {
                let (low, high) = (ys.place(low), ys.place(high));
                let _ = write!(
                    out,
                    r#"<line class="bar c{}" x1="{x:.1}" x2="{x:.1}" y1="{low:.1}" y2="{high:.1}"/>"#,
                    i % COLOURS
                );
            }
            let _ = write!(
                out,
                r#"<circle class="point c{}{}" cx="{x:.1}" cy="{y:.1}" r="{}" data-variant="{}" data-cost="{}" data-value="{}"><title>{}: {}, {} {:.4}</title></circle>"#,
                i % COLOURS,
                if point.hollow { " hollow" } else { "" },
                if point.faint { 3 } else { 6 },
                escape(&point.name),
                point.cost,
                point.value,
                escape(&point.name),
                escape(&point.label),
                escape(self.y),
                point.value,
            );
        }
        self.name(&mut out, &(0..points.len()).map(place).collect::<Vec<_>>());
        out += "</svg>";
        out
    }

    /// Numbers beside the points, as in the legend; moved where they would stand on each other.
    fn name(&self, out: &mut String, places: &[(f64, f64)]) {
        let mut taken: Vec<(f64, f64)> = places.to_vec();
        for (i, &(x, y)) in places.iter().enumerate().filter(|(i, _)| !self.points[*i].faint) {
            let free = |&(dx, dy): &(f64, f64)| {
                let (lx, ly) = (x + dx, y + dy);
                let inside = lx > MARGIN[0] + 6.0
                    && lx < WIDTH - 6.0
                    && ly > MARGIN[2]
                    && ly < HEIGHT - MARGIN[3];
                let clear =
                    |&(tx, ty): &(f64, f64)| (tx - lx).abs() > 12.0 || (ty - ly).abs() > 11.0;
                inside && taken.iter().all(clear)
            };
            let beside = [
                (13.0, 0.0),
                (-13.0, 0.0),
                (10.0, -12.0),
                (10.0, 13.0),
                (-10.0, -12.0),
                (-10.0, 13.0),
                (22.0, 0.0),
                (-22.0, 0.0),
            ];
            let (dx, dy) = beside.into_iter().find(free).unwrap_or((13.0, 0.0));
            taken.push((x + dx, y + dy));
            let _ = write!(
                out,
                r#"<text class="name" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                x + dx,
                y + dy + 4.0,
                i + 1
            );
        }
    }
}

/// Shares of a whole as one bar a variant, all on one scale.
#[derive(Debug)]
pub struct Bars<'a> {
    pub id: &'a str,
    pub title: &'a str,
    /// Of each bar: its name, its parts, and the whole in words.
    pub rows: Vec<(String, Vec<f64>, String)>,
    /// What the parts are.
    pub parts: &'a [&'a str],
}

impl Bars<'_> {
    pub fn svg(&self) -> String {
        const ROW: f64 = 34.0;
        let largest =
            self.rows.iter().map(|r| r.1.iter().sum::<f64>()).fold(0.0, f64::max).max(1e-300);
        let height = 10.0 + ROW * self.rows.len() as f64;
        let mut out = String::new();
        let said: Vec<String> =
            self.rows.iter().map(|(name, _, whole)| format!("{name}: {whole}")).collect();
        open(&mut out, self.id, self.title, &(said.join("; ") + "."), WIDTH, height);
        for (i, (name, parts, whole)) in self.rows.iter().enumerate() {
            let y = 4.0 + ROW * i as f64;
            let _ = write!(
                out,
                r#"<text class="row" x="0" y="{:.1}">{}</text><text class="row" x="{WIDTH}" y="{:.1}" text-anchor="end">{}</text>"#,
                y + 11.0,
                escape(name),
                y + 11.0,
                escape(whole)
            );
            let mut x = 0.0;
            for (part, (value, what)) in parts.iter().zip(self.parts).enumerate() {
                let width = WIDTH * value / largest;
                let _ = write!(
                    out,
                    r#"<rect class="part p{part}" x="{x:.2}" y="{:.1}" width="{width:.2}" height="12"><title>{}, {}: {:.1} % of it</title></rect>"#,
                    y + 16.0,
                    escape(name),
                    escape(what),
                    100.0 * value / parts.iter().sum::<f64>().max(1e-300)
                );
                x += width;
            }
        }
        out += "</svg>";
        out
    }
}

/// A row of small bars, one a layer, each a share of the largest value.
pub fn spark(values: &[f64], largest: f64, class: &str, said: &str) -> String {
    const STEP: f64 = 12.0;
    const TALL: f64 = 22.0;
    let width = STEP * values.len().max(1) as f64;
    let mut out = format!(
        r#"<svg class="spark" viewBox="0 0 {width} {TALL}" width="{width}" height="{TALL}" role="img" aria-label="{}">"#,
        escape(said)
    );
    for (l, value) in values.iter().enumerate() {
        let share = (value / largest.max(1e-300)).clamp(0.0, 1.0);
        let height = (TALL - 2.0) * share;
        let x = STEP * l as f64 + 1.0;
        let _ = write!(
            out,
            r#"<rect class="ground" x="{x}" y="1" width="{}" height="{}"/><rect class="{class}" x="{x}" y="{:.1}" width="{}" height="{height:.1}"><title>layer {l}: {}</title></rect>"#,
            STEP - 3.0,
            TALL - 2.0,
            TALL - 1.0 - height,
            STEP - 3.0,
            short(*value),
        );
    }
    out + "</svg>"
}

/// Colours that the page's style knows; more variants begin again.
pub const COLOURS: usize = 8;

fn open(out: &mut String, id: &str, title: &str, description: &str, width: f64, height: f64) {
    let _ = write!(
        out,
        r#"<svg id="{id}" viewBox="0 0 {width} {height:.0}" role="img" aria-labelledby="{id}-title {id}-text"><title id="{id}-title">{}</title><desc id="{id}-text">{}</desc>"#,
        escape(title),
        escape(description)
    );
}

/// Numbers to places.
struct Axis {
    log: bool,
    from: f64,
    to: f64,
    start: f64,
    end: f64,
    ticks: Vec<f64>,
    /// Digits behind the point, by which neighbouring ticks differ; `None`: as many as each needs.
    digits: Option<usize>,
}

impl Axis {
    fn linear(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Axis {
        let (low, high) = range(values);
        // Qualities are told to four digits: closer ones would have ticks that nobody reads.
        let pad = ((high - low) * 0.06).max(1e-3 * high.abs()).max(5e-4);
        let (from, to) = (low - pad, high + pad);
        // 1, 2 or 5 times a power of ten, at most six of them.
        let rough = (to - from) / 6.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough);
        let step = step.unwrap_or(10.0 * power);
        let first = (from / step).ceil() as i64;
        let last = (to / step).floor() as i64;
        let ticks = (first..=last).map(|i| i as f64 * step).collect();
        let digits = Some((-step.log10().floor()).max(0.0) as usize);
        Axis { log: false, from, to, start, end, ticks, digits }
    }

    fn log(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Axis {
        let (low, high) = range(values.map(|v| v.max(1e-12)));
        let (from, to) = (low / 1.25, high * 1.25);
        let powers = from.log10().floor() as i32..=to.log10().ceil() as i32;
        let marks = powers.flat_map(|p| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(p)));
        let ticks = marks.filter(|t| (from..=to).contains(t)).collect();
        Axis { log: true, from: from.ln(), to: to.ln(), start, end, ticks, digits: None }
    }

    /// What stands beside `tick`.
    fn said(&self, tick: f64) -> String {
        match self.digits {
            Some(digits) => trimmed(format!("{tick:.digits$}")),
            None => short(tick),
        }
    }

    fn place(&self, value: f64) -> f64 {
        let at = if self.log { value.max(1e-12).ln() } else { value };
        self.start + (self.end - self.start) * (at - self.from) / (self.to - self.from)
    }
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// At most four digits.
pub fn short(value: f64) -> String {
    let digits = match value.abs() {
        0.0..0.01 => 4,
        0.01..1.0 => 3,
        1.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    trimmed(format!("{value:.digits$}"))
}

/// Without zeros behind the point, and without a minus before nothing.
fn trimmed(text: String) -> String {
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    };
    if text == "-0" { "0".into() } else { text }
}

/// As text or an attribute of HTML: names are those of files, which may hold anything.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_place_their_ends_and_have_round_ticks() {
        let axis = Axis::linear([0.8, 0.9].into_iter(), 300.0, 10.0);
        assert!(axis.place(0.8) < 300.0 && axis.place(0.9) > 10.0);
        let said = |axis: &Axis| axis.ticks.iter().map(|t| axis.said(*t)).collect::<Vec<_>>();
        assert_eq!(said(&axis), ["0.8", "0.82", "0.84", "0.86", "0.88", "0.9"]);
        let axis = Axis::log([1.0, 90.0].into_iter(), 0.0, 100.0);
        assert_eq!(said(&axis), ["1", "2", "5", "10", "20", "50", "100"]);
        // Ten times as much is as far, wherever it starts.
        let step = |a: f64, b: f64| axis.place(b) - axis.place(a);
        assert!((step(1.0, 10.0) - step(5.0, 50.0)).abs() < 1e-9);
    }

    #[test]
    fn ticks_of_nearly_equal_points_differ() {
        for values in [[-0.0401, -0.0399], [0.9541, 0.9542], [1e-7, 3e-7], [-10.0, 1500.0]] {
            let axis = Axis::linear(values.into_iter(), 0.0, 100.0);
            let mut said: Vec<String> = axis.ticks.iter().map(|t| axis.said(*t)).collect();
            let ticks = said.len();
            said.dedup();
            assert!(ticks > 1 && said.len() == ticks, "{said:?}");
        }
        let around_zero = Axis::linear([-0.02, 0.02].into_iter(), 0.0, 100.0);
        assert!(around_zero.ticks.iter().any(|t| around_zero.said(*t) == "0"));
    }

    #[test]
    fn one_point_or_equal_points_have_an_axis() {
        for values in [vec![0.0], vec![3.0, 3.0], vec![f64::NAN]] {
            let axis = Axis::linear(values.iter().copied(), 0.0, 100.0);
            assert!(axis.ticks.iter().all(|t| axis.place(*t).is_finite()), "{values:?}");
            assert!(!axis.ticks.is_empty(), "{values:?}");
        }
    }

    #[test]
    fn names_of_files_stay_text() {
        assert_eq!(escape("a<script>\"&'\u{7}"), "a&lt;script&gt;&quot;&amp;&#39;\u{fffd}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 0.00123, 0.5, 2.5, 33.33, 1234.5].map(short),
            ["0", "0.0012", "0.5", "2.5", "33.3", "1234"]
        );
    }
}
