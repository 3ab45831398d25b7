//! Which column is what.

use std::collections::HashSet;
use std::path::Path;

use crate::data::tables::rows::Row;
use crate::data::tables::{Columns, NAME_COLUMNS};
use crate::error::{Error, Result};

/// Names that belong together, first match wins; lower case.
pub(super) const PAIRS: [(&str, &str); 10] = [
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("query", "document"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("#1 string", "#2 string"), // MRPC
];
const TEXTS: [&str; 7] =
    ["sentence", "text", "sentence1", "question", "query", "premise", "content"];
/// `gold_label` before `label`: MNLI has the annotators' `label1` … `label5` beside it.
pub(super) const LABELS: [&str; 8] =
    ["gold_label", "label", "labels", "is_duplicate", "score", "quality", "class", "target"];

/// Indices of columns.
pub struct Picked {
    pub text: usize,
    pub pair: Option<usize>,
    pub label: Option<usize>,
}

impl Picked {
    pub fn describe(&self, name: impl Fn(usize) -> String) -> Columns {
        Columns {
            text: Some(name(self.text)),
            pair: self.pair.map(&name),
            label: self.label.map(&name),
        }
    }
}

/// Whether the first of `rows` holds names; all rows have as many cells.
pub fn has_header(rows: &[Row], wanted: &Columns) -> bool {
    let (first, below) = (&rows[0].cells, &rows[1..]);
    let asked = [&wanted.text, &wanted.pair, &wanted.label];
    first.iter().enumerate().any(|(c, cell)| {
        let name = cell.trim();
        let is_asked =
            asked.into_iter().flatten().any(|a| !is_number(a) && a.eq_ignore_ascii_case(name));
        // A class may be called `question`; a name that comes again below is one of those.
        let is_name = is_known(name) && below.iter().all(|row| row.cells[c] != *cell);
        // Three rows: fewer might be texts that happen to be numbers.
        let is_above_numbers =
            !is_number(name) && below.len() >= 3 && below.iter().all(|r| is_number(&r.cells[c]));
        is_asked || is_name || is_above_numbers
    })
}

pub(super) fn is_known(name: &str) -> bool {
    let pairs = PAIRS.into_iter().flat_map(|(text, pair)| [text, pair]);
    pairs.chain(TEXTS).chain(LABELS).any(|known| known.eq_ignore_ascii_case(name))
}

/// Chooses columns: those asked for, then by name, then by shape.
///
/// - `names`: `[width]`, or empty when the file has no header
/// - `data`: the rows without the header, each of `width` cells
/// - `found`: says what columns there are, for messages
///
/// # Errors
/// [`Error::Malformed`] for a column that is not there, or if they cannot be told apart; [`Error::Mismatch`] for one that
/// is asked for twice.
pub fn pick(
    names: &[&str],
    width: usize,
    data: &[Row],
    wanted: &Columns,
    path: &Path,
    found: &dyn Fn() -> String,
) -> Result<Picked> {
    let picked = choose(names, width, data, wanted, path, found)?;
    let roles = [
        ("the text", Some(picked.text)),
        ("the second text", picked.pair),
        ("the label", picked.label),
    ];
    for (i, (one, column)) in roles.iter().enumerate() {
        let Some(column) = column else { continue };
        if let Some((other, _)) = roles[..i].iter().find(|(_, c)| c == &Some(*column)) {
            let name = names.get(*column).map_or((column + 1).to_string(), |n| n.to_string());
            return Err(Error::Mismatch {
                found: format!("{}: column `{name}` is {other} and {one}", path.display()),
                expected: "each has a column of its own".into(),
                advice: NAME_COLUMNS,
            });
        }
    }
    Ok(picked)
}

fn choose(
    names: &[&str],
    width: usize,
    data: &[Row],
    wanted: &Columns,
    path: &Path,
    found: &dyn Fn() -> String,
) -> Result<Picked> {
    let named = |name: &str| names.iter().position(|n| n.eq_ignore_ascii_case(name));
    let given = |column: &Option<String>| {
        let Some(column) = column else { return Ok(None) };
        let number = || column.parse().ok().filter(|n| (1..=width).contains(n)).map(|n| n - 1);
        match named(column).or_else(number) {
            Some(c) => Ok(Some(c)),
            None => Err(Error::Malformed {
                path: path.into(),
                found: found(),
                expected: format!("a column `{column}`"),
                advice: "name one of the columns or give its number, counted from 1",
            }),
        }
    };
    let (text, pair) = (given(&wanted.text)?, given(&wanted.pair)?);
    let label = given(&wanted.label)?.or_else(|| LABELS.into_iter().find_map(named));

    if let Some(text) = text {
        return Ok(Picked { text, pair, label });
    }
    if let Some((text, second)) = PAIRS.into_iter().find_map(|(a, b)| Some((named(a)?, named(b)?)))
    {
        return Ok(Picked { text, pair: pair.or(Some(second)), label });
    }
    if let Some(text) = TEXTS.into_iter().find_map(named) {
        return Ok(Picked { text, pair, label });
    }
    let by_shape = match (width, pair, label) {
        (1, None, None) => Some(Picked { text: 0, pair, label }),
        (2, None, Some(l)) => Some(Picked { text: 1 - l, pair, label }),
        (_, None, None) if names.is_empty() => pick_by_shape(width, data),
        _ => None,
    };
    by_shape.ok_or_else(|| Error::Malformed {
        path: path.into(),
        found: found(),
        expected: "columns that can be told apart, as by a header with `sentence` and `label`"
            .into(),
        advice: NAME_COLUMNS,
    })
}

fn pick_by_shape(width: usize, data: &[Row]) -> Option<Picked> {
    let column = |c: usize| data.iter().map(move |row| row.cells[c].trim());
    let looks_like_labels = |c: usize| {
        let values: HashSet<&str> = column(c).collect();
        let scores = values.iter().all(|v| is_number(v)) && values.iter().any(|v| v.contains('.'));
        let classes = values.iter().all(|v| is_word(v))
            && values.len() <= 50
            // Seen at least twice on average: else they might be ids, or texts of one word.
            && (values.len() * 2 <= data.len() || values.iter().all(|v| ["0", "1"].contains(v)));
        scores || classes
    };
    // Of plain ASCII words only: ids.
    let looks_like_text = |c: usize| {
        !looks_like_labels(c)
            && !column(c).all(|v| v.is_ascii() && !v.contains(char::is_whitespace))
    };
    match width {
        2 => match (looks_like_labels(0), looks_like_labels(1)) {
            (false, true) => Some(Picked { text: 0, pair: None, label: Some(1) }),
            (true, false) => Some(Picked { text: 1, pair: None, label: Some(0) }),
            _ => None,
        },
        3 if looks_like_text(0) && looks_like_text(1) && looks_like_labels(2) => {
            Some(Picked { text: 0, pair: Some(1), label: Some(2) })
        }
        // CoLA: source, acceptable or not, the author's star, sentence.
        4 if column(1).all(|v| ["0", "1"].contains(&v))
            && column(2).all(|v| v.trim_matches('*').is_empty()) =>
        {
            Some(Picked { text: 3, pair: None, label: Some(1) })
        }
        _ => None,
    }
}

pub(super) fn is_number(cell: &str) -> bool {
    cell.trim().parse::<f64>().is_ok_and(f64::is_finite)
}

/// 32 bytes: the longest class name of GLUE, `not_entailment`, has 14.
fn is_word(cell: &str) -> bool {
    !cell.is_empty() && cell.len() <= 32 && !cell.contains(char::is_whitespace)
}
