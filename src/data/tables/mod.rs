//! Files of examples: TSV as GLUE writes it, CSV, JSON lines and plain text.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::data::tables::columns::{has_header, pick};
use crate::data::tables::rows::{Row, csv_rows, tsv_rows};
use crate::error::{Error, Result};

mod annotations;
mod columns;
mod rows;

/// One row of a table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    pub text: String,
    /// The second text of a pair task (entailment, similarity, ranking).
    pub pair: Option<String>,
    /// As written in the file, trimmed: a class id, a class name or a score. What it means depends
    /// on the model: see [`crate::data::labels::targets`]. None when the cell is empty or absent.
    pub label: Option<String>,
    /// What the row says of parts of its texts.
    pub annotation: Option<Annotation>,
    /// Where the row starts in its file, counted from 1; 0 when there is no file.
    pub line: usize,
}

/// Labels of parts of an example.
#[derive(Debug, Clone, PartialEq)]
pub enum Annotation {
    /// The class of each word, a name or an id. `text` is the words with one space between them; no word
    /// has a space in it or is empty.
    Tags(Vec<String>),
    /// The answers to the question `text` that stand in the context `pair`; none if it has no answer.
    Spans(Vec<Span>),
}

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// In characters.
    pub start: usize,
    /// As it stands there, not empty.
    pub text: String,
}

/// Which columns to read: names from the header, or numbers counted from 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Columns {
    pub text: Option<String>,
    /// Looked for only when `text` is not given: to name one text is to ask for that one.
    pub pair: Option<String>,
    pub label: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `.tsv`: one example a line, cells between tabs, quotes are ordinary characters (GLUE).
    Tsv,
    /// `.csv`: RFC 4180; a quoted cell may hold commas, quotes (doubled) and line ends.
    Csv,
    /// `.jsonl`: one object a line; the only format with tags of words and answers to questions.
    Jsonl,
    /// `.txt`: one text a line, no labels.
    Txt,
}

/// A file of examples and how it was read.
#[derive(Debug, Clone)]
pub struct Table {
    /// In file order, at least one.
    pub examples: Vec<Example>,
    pub format: Format,
    /// The columns used: names, or numbers counted from 1 in a file without a header.
    pub columns: Columns,
}

impl Table {
    /// Whether every text stands in quotes that are part of it: in a .tsv they are ordinary characters.
    pub fn is_quoted(&self) -> bool {
        let quoted = |e: &Example| {
            let text = e.text.trim();
            text.len() > 1 && text.starts_with('"') && text.ends_with('"')
        };
        self.format == Format::Tsv && self.examples.iter().all(quoted)
    }
}

/// Beyond GLUE's largest file (MNLI with its parse trees, some 0.4 GB), and a table still fits memory.
const MAX_BYTES: u64 = 1 << 30;

/// The advice where columns cannot be told apart, in the words of the command line.
pub const NAME_COLUMNS: &str = "name them with --text-column, --pair-column and --label-column";

/// Reads the examples of `path`; its extension says the format.
///
/// A header is recognised by known column names, by the names in `columns`, or by standing above a
/// column of numbers. Without one, the layouts of CoLA (`source, label, star, sentence`), XNLI
/// (`premise, hypothesis, label`) and two columns of which exactly one looks like labels are known.
///
/// JSON lines may hold lists of words and tags (`tokens` and `ner_tags`, `tags`, `labels` or `pos_tags`)
/// and questions as SQuAD has them (`question`, `context`, `answers`, or `answer` and `answer_start`):
/// see [`Annotation`].
///
/// # Errors
/// [`Error::Read`]; [`Error::Unsupported`] for another extension; [`Error::Malformed`] when the
/// file is over 1 GiB, is not UTF-8, has no example, has a row with more or fewer cells than the
/// first, or when its columns cannot be told apart; [`Error::Mismatch`] for columns of a `.txt`.
pub fn read_examples(path: &Path, columns: &Columns) -> Result<Table> {
    let format = format_of(path)?;
    let text = read_text(path)?;
    let (examples, columns) = match format {
        Format::Tsv => from_rows(tsv_rows(&text), columns, path)?,
        Format::Csv => from_rows(csv_rows(&text, path)?, columns, path)?,
        Format::Jsonl => from_objects(&text, columns, path)?,
        Format::Txt => (from_lines(&text, columns)?, Columns::default()),
    };
    if examples.is_empty() {
        return Err(no_examples(path));
    }
    Ok(Table { examples, format, columns })
}

/// Refuses a file of examples that is not there, or of no known format, without reading it.
///
/// # Errors
/// [`Error::Read`]; [`Error::Unsupported`] for another extension.
pub fn check_examples(path: &Path) -> Result<()> {
    format_of(path)?;
    File::open(path).map(drop).map_err(|source| Error::Read { path: path.into(), source })
}

fn format_of(path: &Path) -> Result<Format> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "tsv" => Ok(Format::Tsv),
        "csv" => Ok(Format::Csv),
        "jsonl" => Ok(Format::Jsonl),
        "txt" => Ok(Format::Txt),
        _ => Err(Error::Unsupported {
            what: "the extension of the data file",
            found: path.display().to_string(),
            known: ".tsv, .csv, .jsonl, .txt".into(),
        }),
    }
}

fn read_text(path: &Path) -> Result<String> {
    let read_error = |source| Error::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(read_error)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::Malformed {
            path: path.into(),
            found: "more than 1 GiB".into(),
            expected: "at most 1 GiB of examples".into(),
            advice: "give a part of the file",
        });
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    // Line ends of old Macs, and of spreadsheets that still write them.
    if !bytes.contains(&b'\n') {
        bytes.iter_mut().filter(|b| **b == b'\r').for_each(|b| *b = b'\n');
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|&&b| b == b'\n').count();
        malformed(path, line, "bytes that are not UTF-8", "UTF-8 text", "save the file as UTF-8")
    })
}

fn from_lines(text: &str, columns: &Columns) -> Result<Vec<Example>> {
    if let Some(column) =
        [&columns.text, &columns.pair, &columns.label].into_iter().flatten().next()
    {
        return Err(Error::Mismatch {
            found: format!("column `{column}` was asked for"),
            expected: "a .txt file is one text a line and has no columns".into(),
            advice: "drop the option, or give a .tsv, .csv or .jsonl file",
        });
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    Ok(lines
        .map(|(i, line)| Example { text: line.into(), line: i + 1, ..Default::default() })
        .collect())
}

fn from_rows(rows: Vec<Row>, wanted: &Columns, path: &Path) -> Result<(Vec<Example>, Columns)> {
    let first = rows.first().ok_or_else(|| no_examples(path))?;
    let width = first.cells.len();
    if let Some(row) = rows.iter().find(|row| row.cells.len() != width) {
        return Err(malformed(
            path,
            row.line,
            &format!("{} columns", row.cells.len()),
            &format!("{width} as on line {}", first.line),
            "check the separators of that line",
        ));
    }

    if width == 1 && is_comma_separated(&rows) {
        return Err(Error::Malformed {
            path: path.into(),
            found: format!("one column, the first line being {}", quoted(&first.cells[0])),
            expected: "tabs between the cells of a .tsv: these look like commas".into(),
            advice: "name the file .csv, or write tabs",
        });
    }

    let header = has_header(&rows, wanted);
    let names: Vec<&str> =
        if header { first.cells.iter().map(|c| c.trim()).collect() } else { Vec::new() };
    let cells = || first.cells.iter().map(|c| quoted(c)).collect::<Vec<_>>().join(", ");
    let found = || match header {
        true => format!("columns {}", cells()),
        false => format!("{width} columns without a known header, the first row being {}", cells()),
    };
    let data = &rows[usize::from(header)..];
    let picked = pick(&names, width, data, wanted, path, &found)?;

    let columns = picked.describe(|c| match header {
        true => names[c].to_string(),
        false => (c + 1).to_string(),
    });
    let examples = data.iter().map(|row| Example {
        text: row.cells[picked.text].to_string(),
        pair: picked.pair.map(|c| row.cells[c].to_string()),
        label: picked.label.map(|c| row.cells[c].trim().to_string()).filter(|s| !s.is_empty()),
        line: row.line,
        ..Example::default()
    });
    Ok((examples.collect(), columns))
}

/// Whether what is one column looks like several with commas between: known names first, or as many commas in every row
/// and a number behind the last.
fn is_comma_separated(rows: &[Row]) -> bool {
    let cells = |row: &Row| -> Vec<String> {
        row.cells[0].split(',').map(|cell| cell.trim().trim_matches('"').to_string()).collect()
    };
    let first = cells(&rows[0]);
    let names = first.len() > 1 && first.iter().all(|name| columns::is_known(name));
    let numbers = |row: &Row| {
        let cells = cells(row);
        cells.len() == first.len() && columns::is_number(&cells[cells.len() - 1])
    };
    names || first.len() > 1 && rows.len() > 2 && rows[1..].iter().all(numbers)
}

fn from_objects(text: &str, wanted: &Columns, path: &Path) -> Result<(Vec<Example>, Columns)> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let mut objects = lines.map(|(i, json)| match serde_json::from_str::<Map<_, _>>(json) {
        Ok(object) => Ok((i + 1, object)),
        Err(e) => {
            let found = format!("`{}` ({e})", clip(json));
            let advice = "write one object a line, as in {\"text\": \"fine\", \"label\": 1}";
            Err(malformed(path, i + 1, &found, "a JSON object", advice))
        }
    });
    let first = objects.next().ok_or_else(|| no_examples(path))??;

    let names: Vec<String> = first.1.keys().cloned().collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let found = || {
        let keys = names.iter().map(|n| quoted(n)).collect::<Vec<_>>().join(", ");
        format!("keys {keys} on line {}", first.0)
    };
    let (picked, kind) = match annotations::pick(&first.1, &names, wanted) {
        Some((picked, kind)) => (picked, Some(kind)),
        // Width 0: the keys of an object have no numbers and no shape.
        None => (pick(&names, 0, &[], wanted, path, &found)?, None),
    };

    let examples = std::iter::once(Ok((first.0, first.1.clone()))).chain(objects).map(|object| {
        let (line, mut object) = object?;
        if let Some(kind) = kind {
            return annotations::read(object, &names, (&picked, kind), line, path);
        }
        let mut string = |c: usize| take_string(&mut object, names[c], line, path);
        let (text, pair) = (string(picked.text)?, picked.pair.map(&mut string).transpose()?);
        let label = match picked.label.and_then(|c| object.remove(names[c])) {
            None | Some(Value::Null) => None,
            Some(Value::String(s)) => Some(s.trim().to_string()).filter(|s| !s.is_empty()),
            Some(Value::Number(n)) => Some(n.to_string()),
            Some(Value::Bool(b)) => Some(u8::from(b).to_string()),
            Some(other) => {
                let found = format!("label `{}`", clip(&other.to_string()));
                return Err(malformed(path, line, &found, "a string or a number", NAME_COLUMNS));
            }
        };
        Ok(Example { text, pair, label, line, ..Example::default() })
    });
    Ok((examples.collect::<Result<_>>()?, picked.describe(|c| names[c].to_string())))
}

/// The string under `name`, out of `object`.
fn take_string(
    object: &mut Map<String, Value>,
    name: &str,
    line: usize,
    path: &Path,
) -> Result<String> {
    match object.remove(name) {
        Some(Value::String(s)) => Ok(s),
        value => {
            let found = match value {
                Some(value) => format!("{}: `{}`", quoted(name), clip(&value.to_string())),
                None => format!("no {}", quoted(name)),
            };
            Err(malformed(path, line, &found, "a string", NAME_COLUMNS))
        }
    }
}

fn malformed(path: &Path, line: usize, found: &str, expected: &str, advice: &'static str) -> Error {
    Error::Malformed {
        path: path.into(),
        found: format!("{found} on line {line}"),
        expected: expected.into(),
        advice,
    }
}

fn no_examples(path: &Path) -> Error {
    Error::Malformed {
        path: path.into(),
        found: "no examples".into(),
        expected: "at least one row".into(),
        advice: "check that the file was written completely",
    }
}

fn quoted(cell: &str) -> String {
    format!("`{}`", clip(cell.trim()))
}

/// At most 40 characters of `text`, so that a message stays one line.
fn clip(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests;
