//! TSV and CSV to cells.

use std::borrow::Cow;
use std::path::Path;

use crate::data::tables::malformed;
use crate::error::Result;

/// One line of a table; in CSV it may go on over line ends inside quotes.
pub struct Row<'a> {
    /// Where it starts, counted from 1.
    pub line: usize,
    pub cells: Vec<Cow<'a, str>>,
}

/// The rows of a TSV file; empty lines are left out.
pub fn tsv_rows(text: &str) -> Vec<Row<'_>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty());
    lines.map(|(i, s)| Row { line: i + 1, cells: s.split('\t').map(Cow::from).collect() }).collect()
}

/// The rows of a CSV file; empty lines are left out.
///
/// # Errors
/// [`crate::error::Error::Malformed`] for a quote that never closes, or closes amid a cell.
pub fn csv_rows<'a>(text: &'a str, path: &Path) -> Result<Vec<Row<'a>>> {
    let mut rows = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while !rest.is_empty() {
        let mut row = Row { line, cells: Vec::new() };
        loop {
            let (cell, after) = match rest.strip_prefix('"') {
                Some(quoted) => quoted_cell(quoted).ok_or_else(|| {
                    malformed(path, line, "a quote that never closes", "its end", "close the quote")
                })?,
                None => plain_cell(rest),
            };
            line += cell.matches('\n').count();
            row.cells.push(cell);
            rest = after;
            if let Some(next) = rest.strip_prefix(',') {
                rest = next;
                continue;
            }
            if let Some(next) = rest.strip_prefix('\n').or_else(|| rest.strip_prefix("\r\n")) {
                rest = next;
                line += 1;
                break;
            }
            if rest.is_empty() {
                break;
            }
            return Err(malformed(
                path,
                line,
                "text after a closing quote",
                "a comma or the end of the line",
                "double the quotes inside a quoted cell",
            ));
        }
        if row.cells != [""] {
            rows.push(row);
        }
    }
    Ok(rows)
}

/// The cell before the next comma or line end, and the rest from there.
fn plain_cell(rest: &str) -> (Cow<'_, str>, &str) {
    let end = rest.find([',', '\n']).unwrap_or(rest.len());
    let (cell, after) = rest.split_at(end);
    let at_line_end = !after.starts_with(',');
    let cell = cell.strip_suffix('\r').filter(|_| at_line_end).unwrap_or(cell);
    (cell.into(), after)
}

/// The cell before the closing quote, and the rest behind it; `quoted` starts after the opening one.
fn quoted_cell(quoted: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut end = quoted.find('"')?;
    while quoted[end + 1..].starts_with('"') {
        end += 2;
        end += quoted[end..].find('"')?;
    }
    let cell = &quoted[..end];
    let cell = if cell.contains('"') { cell.replace("\"\"", "\"").into() } else { cell.into() };
    Some((cell, &quoted[end + 1..]))
}
