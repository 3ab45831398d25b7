//! A search on disk: one JSON object a line, the first says what was searched, each other is a variant at a rung.

use super::{Entry, Found, Rung, SpeedBy, Targets};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Version of the log.
pub const SCHEMA: u32 = 1;

/// What was searched. A search that goes on writes it again: targets and trials may be others then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`SCHEMA`].
    pub search: u32,
    pub version: String,
    /// Name of the model.
    pub model: String,
    /// SHA-256 of all files that were read, by name.
    pub inputs: BTreeMap<String, String>,
    /// What else a variant depends on, as it would be written on the command line.
    pub arguments: String,
    /// As TOML.
    pub space: String,
    pub rungs: Vec<Rung>,
    /// Whether variants were timed at every rung, or at the last alone.
    pub timed: bool,
    /// What they were judged by.
    pub judged_by: String,
    /// Bytes of the original's weight files.
    pub bytes: u64,
    pub targets: Targets,
    pub trials: usize,
}

impl Header {
    /// Refuses to go on with `log`, whose variants depend on other things than those of this search.
    fn check(&self, log: &Header, path: &Path) -> Result<()> {
        let show = |header: &Header| {
            let rungs: Vec<String> =
                header.rungs.iter().map(|r| format!("{}/{}", r.texts, r.judged)).collect();
            let mut rows = vec![
                ("schema".to_string(), header.search.to_string()),
                ("version".into(), header.version.clone()),
                ("arguments".into(), header.arguments.clone()),
                ("rungs".into(), rungs.join(", ")),
                ("space".into(), header.space.clone()),
            ];
            rows.extend(header.inputs.iter().map(|(k, v)| (k.clone(), v.clone())));
            rows
        };
        let (theirs, ours) = (show(log), show(self));
        let Some(((name, theirs), (_, ours))) = theirs.iter().zip(&ours).find(|(a, b)| a != b)
        else {
            return match theirs.len() == ours.len() {
                true => Ok(()),
                false => Err(other(path, "inputs", "other files", "these")),
            };
        };
        match &name[..] {
            "space" => Err(other(path, name, "another one", "this one")),
            _ => Err(other(path, name, theirs, ours)),
        }
    }
}

fn other(path: &Path, name: &str, theirs: &str, ours: &str) -> Error {
    Error::Mismatch {
        found: format!("{}: its {name}: {theirs}", path.display()),
        expected: format!("this search has: {ours}"),
        advice: "search with the same model, texts, space, seed and version, or leave --resume out and give another --log",
    }
}

/// A log that is being written.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Starts a log; one that is there is replaced.
    ///
    /// # Errors
    /// [`Error::Write`]; [`Error::Usage`] while another search writes it.
    pub fn create(path: &Path, header: &Header) -> Result<Log> {
        let mut log = Log::open(path)?;
        log.cut(0)?;
        log.append(header)?;
        Ok(log)
    }

    /// Goes on with the log at `path`, and returns what it says; one that is not there is started. A last line that was
    /// cut off is removed. Where `header` has every rung timed, variants that were not are left out: they are made again.
    ///
    /// # Errors
    /// Those of [`Log::create`] and [`read()`]; [`Error::Mismatch`] if its variants depend on something that `header` has
    /// otherwise.
    pub fn resume(path: &Path, header: &Header) -> Result<(Log, Vec<Entry>)> {
        let mut log = Log::open(path)?;
        let text = text(path)?;
        if text.is_empty() {
            log.cut(0)?;
            log.append(header)?;
            return Ok((log, Vec::new()));
        }
        let (last, mut entries) = parse(path, &text)?;
        header.check(&last, path)?;
        // All but times is the same however often is timed, and who asks for no speed does not look at one.
        let timed = |found: &Found| found.speed_by == SpeedBy::Measured;
        entries.retain(|e| !header.timed || e.found.as_ref().is_none_or(timed));
        log.cut(text.len() as u64)?;
        if last != *header {
            log.append(header)?;
        }
        Ok((log, entries))
    }

    fn open(path: &Path) -> Result<Log> {
        let failed = |source| Error::Write { path: path.to_owned(), source };
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = open.map_err(failed)?;
        // Where a file system cannot lock, nobody is kept out.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::Usage {
                found: format!("{} is being written by another search", path.display()),
                advice: "wait for it, or give another --log".into(),
            });
        }
        Ok(Log { path: path.to_owned(), file })
    }

    fn cut(&mut self, bytes: u64) -> Result<()> {
        let cut = self.file.set_len(bytes).and_then(|()| self.file.seek(SeekFrom::Start(bytes)));
        cut.map(drop).map_err(|source| Error::Write { path: self.path.clone(), source })
    }

    /// Adds a line, in one piece.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(line).expect("lines of a log are plain data") + "\n";
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.flush());
        written.map_err(|source| Error::Write { path: self.path.clone(), source })
    }
}

/// The last header of a log, and all its variants; a last line that was cut off does not count.
///
/// # Errors
/// [`Error::Read`]; [`Error::Malformed`] for what is no log of a search.
pub fn read(path: &Path) -> Result<(Header, Vec<Entry>)> {
    parse(path, &text(path)?)
}

/// All lines that are whole.
fn text(path: &Path) -> Result<String> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let mut bytes = std::fs::read(path).map_err(read)?;
    bytes.truncate(bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1));
    String::from_utf8(bytes).map_err(|_| malformed(path, "text that is not UTF-8".into()))
}

fn parse(path: &Path, text: &str) -> Result<(Header, Vec<Entry>)> {
    let (mut header, mut entries) = (None, Vec::new());
    for (i, line) in text.lines().enumerate() {
        let broken = |e: serde_json::Error| malformed(path, format!("line {}: {e}", i + 1));
        if i == 0 || line.starts_with("{\"search\":") {
            header = Some(serde_json::from_str::<Header>(line).map_err(broken)?);
            continue;
        }
        let entry: Entry = serde_json::from_str(line).map_err(broken)?;
        if entry.found.is_some() == entry.refused.is_some() {
            let found = format!("line {} with neither numbers nor the reason for none", i + 1);
            return Err(malformed(path, found));
        }
        entries.push(entry);
    }
    match header {
        Some(header) => Ok((header, entries)),
        None => Err(malformed(path, "no line".into())),
    }
}

fn malformed(path: &Path, found: String) -> Error {
    Error::Malformed {
        path: path.to_owned(),
        found,
        expected: "the log of a search: a line that says what was searched, and one a variant"
            .into(),
        advice: "give the file that `compress search` wrote, as it wrote it",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::found;
    use super::*;

    fn header() -> Header {
        Header {
            search: SCHEMA,
            version: "1".into(),
            model: "m".into(),
            inputs: BTreeMap::from([("model.safetensors".to_string(), "ab".to_string())]),
            arguments: "--seed 0".into(),
            space: "version = 1\n".into(),
            rungs: vec![Rung { texts: 8, data: 0, judged: 4 }],
            timed: false,
            judged_by: "held out".into(),
            bytes: 100,
            targets: Targets::default(),
            trials: 4,
        }
    }

    fn entry(passes: &str) -> Entry {
        Entry {
            rung: 0,
            passes: passes.into(),
            recipe: "version = 1\n".into(),
            refused: None,
            found: Some(found(1234, 1.0 / 3.0, 0.1)),
            miss: Some(0.1),
            feasible: false,
            seconds: 0.25,
        }
    }

    #[test]
    fn what_is_written_is_read_again_to_the_last_digit() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log.jsonl");
        let refused = Entry { found: None, refused: Some("no".into()), miss: None, ..entry("b") };
        let entries = [entry("a"), refused];
        let mut log = Log::create(&path, &header()).expect("a log");
        entries.iter().for_each(|e| log.append(e).expect("written"));
        drop(log);
        assert_eq!(read(&path).expect("a log"), (header(), entries.to_vec()));
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_the_log_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log.jsonl");
        let mut log = Log::create(&path, &header()).expect("a log");
        log.append(&entry("a")).expect("written");
        log.append(&entry("b")).expect("written");
        drop(log);
        let text = std::fs::read(&path).expect("a log");
        std::fs::write(&path, &text[..text.len() - 9]).expect("cut");
        let (mut log, known) = Log::resume(&path, &header()).expect("it goes on");
        assert_eq!(known, [entry("a")]);
        log.append(&entry("c")).expect("written");
        drop(log);
        assert_eq!(read(&path).expect("a log").1, [entry("a"), entry("c")]);
        // Cut in the first line, it starts anew.
        std::fs::write(&path, &text[..20]).expect("cut");
        assert_eq!(Log::resume(&path, &header()).expect("started").1, []);
    }

    #[test]
    fn a_log_of_something_else_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log.jsonl");
        drop(Log::create(&path, &header()).expect("a log"));
        let error = |header: &Header| {
            let error = Log::resume(&path, header).expect_err("another search").to_string();
            error.replace(&path.display().to_string(), "log.jsonl")
        };
        let mut other = Header { arguments: "--seed 1".into(), ..header() };
        insta::assert_snapshot!(error(&other), @"log.jsonl: its arguments: --seed 0, but this search has: --seed 1; search with the same model, texts, space, seed and version, or leave --resume out and give another --log");
        other = header();
        other.inputs.insert("model.safetensors".into(), "cd".into());
        assert!(error(&other).contains("its model.safetensors: ab, but this search has: cd"));
        other = Header { space: String::new(), ..header() };
        assert!(error(&other).contains("its space: another one"));
        // Other targets and more trials are a search that goes on.
        let targets = Targets { size: Some(1), ..Targets::default() };
        let other = Header { targets, trials: 9, ..header() };
        drop(Log::resume(&path, &other).expect("it goes on"));
        assert_eq!(read(&path).expect("a log").0, other);
    }

    #[test]
    fn a_speed_that_is_asked_for_later_leaves_what_was_timed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log.jsonl");
        let mut log = Log::create(&path, &header()).expect("a log");
        let by = |passes: &str, speed_by| {
            let found = entry(passes).found.map(|found| Found { speed_by, ..found });
            Entry { found, ..entry(passes) }
        };
        let refused = Entry { found: None, refused: Some("no".into()), miss: None, ..entry("c") };
        let all = [by("a", SpeedBy::Flops), by("b", SpeedBy::Measured), refused];
        all.iter().for_each(|e| log.append(e).expect("written"));
        drop(log);
        let timed = Header { timed: true, ..header() };
        assert_eq!(Log::resume(&path, &timed).expect("it goes on").1, all[1..]);
        assert_eq!(Log::resume(&path, &header()).expect("it goes on").1, all);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log.jsonl");
        for text in ["", "{}\n", "a film\n", "{\"search\":1}\n"] {
            std::fs::write(&path, text).expect("written");
            let error = read(&path).expect_err("no log").to_string();
            assert!(error.contains("expected the log of a search"), "{error}");
        }
        drop(Log::create(&path, &header()).expect("a log"));
        let mut text = std::fs::read_to_string(&path).expect("a log");
        text += "{\"rung\":0,\"passes\":\"a\",\"recipe\":\"\",\"feasible\":false,\"seconds\":0}\n";
        std::fs::write(&path, text).expect("written");
        let error = read(&path).expect_err("no numbers").to_string();
        assert!(error.contains("line 2 with neither numbers"), "{error}");
    }
}
