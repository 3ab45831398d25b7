//! Reads the header of a safetensors file and believes nothing in it.
//!
//! A file is 8 bytes of little-endian header length, a JSON header, and the data of the tensors. The
//! data must be covered exactly: no overlap, no hole, nothing after the last tensor.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use super::tensor::Dtype;
use crate::error::{Error, Result};

/// The limit of the reference implementation.
pub const MAX_HEADER_BYTES: usize = 100_000_000;
/// The limit of PyTorch and NumPy.
const MAX_DIMS: usize = 64;
/// Ours: the longest names in the wild have about 200, and a name ends up in messages.
const MAX_NAME_BYTES: usize = 4096;
/// The length in front of the header.
const PREFIX: usize = size_of::<u64>();

const METADATA: &str = "__metadata__";
const DAMAGED: &str = "the file is damaged or cut off; fetch it again";
const BAD_WRITER: &str = "the program that wrote the file is at fault; save the checkpoint again";

/// What a header says, checked against the length of its file.
#[derive(Debug)]
pub struct Header {
    pub metadata: BTreeMap<String, String>,
    /// In the order of their data.
    pub tensors: Vec<Entry>,
}

/// One tensor: `range` is inside the file and as long as `dtype` and `shape` say.
#[derive(Debug)]
pub struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Bytes of the file, counted from its start.
    pub range: Range<usize>,
}

/// Reads the header of `file`, the whole content of the file at `path`.
///
/// # Errors
/// [`Error::Malformed`] for everything that is not exactly right.
pub fn parse(path: &Path, file: &[u8]) -> Result<Header> {
    parse_file(file).map_err(|Complaint { found, expected, advice }| Error::Malformed {
        path: path.to_owned(),
        found,
        expected,
        advice,
    })
}

/// [`Error::Malformed`] before the path is known.
struct Complaint {
    found: String,
    expected: String,
    advice: &'static str,
}

fn complain<T>(
    found: impl Into<String>,
    expected: impl Into<String>,
    advice: &'static str,
) -> Result<T, Complaint> {
    Err(Complaint { found: found.into(), expected: expected.into(), advice })
}

fn parse_file(file: &[u8]) -> Result<Header, Complaint> {
    let (metadata, infos, data_start) = parse_json(file)?;
    let data_len = file.len() - data_start;
    let mut tensors = Vec::with_capacity(infos.len());
    for (name, info) in infos {
        tensors.push(check_entry(name, info, data_start, data_len)?);
    }
    tensors.sort_by_key(|t| (t.range.start, t.range.end));
    check_cover(&tensors, data_start, file.len())?;
    Ok(Header { metadata, tensors })
}

type Parsed = (BTreeMap<String, String>, BTreeMap<String, Info>, usize);

/// The JSON as it stands, and where the data starts.
fn parse_json(file: &[u8]) -> Result<Parsed, Complaint> {
    if file.starts_with(b"version https://git-lfs") {
        return complain("a Git LFS pointer", "a safetensors file", "run `git lfs pull`");
    }
    let Some((prefix, rest)) = file.split_first_chunk::<PREFIX>() else {
        return complain(
            format!("{} bytes", file.len()),
            "a safetensors file, which starts with 8 bytes of header length",
            DAMAGED,
        );
    };
    let len = u64::from_le_bytes(*prefix);
    let Some(len) = usize::try_from(len).ok().filter(|&n| n <= MAX_HEADER_BYTES) else {
        return complain(
            format!("a header length of {len} bytes"),
            format!("at most {MAX_HEADER_BYTES}"),
            "the file is damaged, or is not a safetensors file",
        );
    };
    let Some(header) = rest.get(..len) else {
        return complain(
            format!("a header length of {len} bytes"),
            format!("at most the {} bytes that follow in the file", rest.len()),
            DAMAGED,
        );
    };
    let text = match std::str::from_utf8(header) {
        Ok(text) => text,
        Err(e) => {
            let found = format!("a header that is not UTF-8 from byte {}", e.valid_up_to());
            return complain(found, "JSON", DAMAGED);
        }
    };
    if !text.starts_with('{') {
        let found = match text.chars().next() {
            Some(c) => format!("a header that starts with {c:?}"),
            None => "an empty header".to_owned(),
        };
        return complain(found, "a JSON object, which starts with '{'", DAMAGED);
    }

    let mut current = String::new();
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed = Json { current: &mut current }
        .deserialize(&mut json)
        .and_then(|maps| json.end().map(|()| maps));
    match parsed {
        Ok((metadata, infos)) => Ok((metadata, infos, PREFIX + len)),
        Err(error) => {
            let entry = match current.as_str() {
                "" => String::new(),
                name => format!(" at `{}`", shown(name)),
            };
            complain(
                format!("a header that cannot be read{entry}: {}", shown(&error.to_string())),
                "one `dtype`, `shape` and `data_offsets` for each tensor name, and no more",
                DAMAGED,
            )
        }
    }
}

/// A tensor of the header, its numbers not yet checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

fn check_entry(
    name: String,
    info: Info,
    data_start: usize,
    data_len: usize,
) -> Result<Entry, Complaint> {
    let shown_name = shown(&name);
    // Control characters would reach the terminal with the first message about this tensor.
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return complain(
            format!("a tensor named `{shown_name}` ({} bytes)", name.len()),
            format!("1 to {MAX_NAME_BYTES} bytes and no control characters"),
            BAD_WRITER,
        );
    }
    let Info { dtype, shape, data_offsets: (begin, end) } = info;
    let Some(dtype) = Dtype::named(&dtype) else {
        let known: Vec<_> = Dtype::all().map(Dtype::name).collect();
        return complain(
            format!("tensor `{shown_name}` with dtype `{}`", shown(&dtype)),
            format!("one of {}", known.join(", ")),
            "save the checkpoint with a dtype of this list",
        );
    };
    if shape.len() > MAX_DIMS {
        return complain(
            format!("tensor `{shown_name}` with {} dimensions", shape.len()),
            format!("at most {MAX_DIMS}"),
            BAD_WRITER,
        );
    }
    let Some(byte_len) = dtype.byte_len(&shape) else {
        return complain(
            format!("tensor `{shown_name}` with {dtype} of shape {shape:?}"),
            "a size in whole bytes that a computer can address",
            BAD_WRITER,
        );
    };
    if begin > end {
        return complain(
            format!("tensor `{shown_name}` from byte {begin} to byte {end} of the data"),
            "an end that is not before its start",
            BAD_WRITER,
        );
    }
    if end > data_len {
        return complain(
            format!("tensor `{shown_name}` from byte {begin} to byte {end} of the data"),
            format!("at most {data_len}, where the file ends"),
            DAMAGED,
        );
    }
    if end - begin != byte_len {
        return complain(
            format!("tensor `{shown_name}` with {} bytes", end - begin),
            format!("{byte_len}, for {dtype} of shape {shape:?}"),
            BAD_WRITER,
        );
    }
    Ok(Entry { name, dtype, shape, range: data_start + begin..data_start + end })
}

/// Checks that `tensors`, in the order of their data, cover the data exactly.
fn check_cover(tensors: &[Entry], data_start: usize, file_len: usize) -> Result<(), Complaint> {
    let mut reached = data_start;
    let mut last = "the header".to_owned();
    for Entry { name, range, .. } in tensors {
        let this = format!("tensor `{name}`");
        if range.start < reached {
            return complain(
                format!("{this} at byte {} of the file, inside {last}", range.start),
                format!("the end of {last}, byte {reached}"),
                BAD_WRITER,
            );
        }
        if range.start > reached {
            return complain(
                format!("{} unused bytes between {last} and {this}", range.start - reached),
                "none",
                BAD_WRITER,
            );
        }
        reached = range.end;
        last = this;
    }
    if reached < file_len {
        return complain(
            format!("{} unused bytes after {last}", file_len - reached),
            format!("a file of {reached} bytes"),
            DAMAGED,
        );
    }
    Ok(())
}

/// The top level of the header; a map type would keep the last of two equal names.
struct Json<'a> {
    /// The name being read, for the message if that fails.
    current: &'a mut String,
}

impl<'de> DeserializeSeed<'de> for Json<'_> {
    type Value = (BTreeMap<String, String>, BTreeMap<String, Info>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Json<'_> {
    type Value = (BTreeMap<String, String>, BTreeMap<String, Info>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut metadata: Option<StringMap> = None;
        let mut infos = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            self.current.clone_from(&name);
            if name == METADATA {
                if metadata.replace(map.next_value()?).is_some() {
                    return Err(A::Error::custom("a second `__metadata__`"));
                }
                continue;
            }
            match infos.entry(name) {
                Slot::Vacant(slot) => slot.insert(map.next_value::<Info>()?),
                Slot::Occupied(_) => return Err(A::Error::custom("a second tensor of this name")),
            };
        }
        self.current.clear();
        Ok((metadata.unwrap_or_default().0, infos))
    }
}

/// A JSON object of strings that refuses to name a key twice.
#[derive(Debug, Default)]
pub(super) struct StringMap(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for StringMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<StringMap, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = StringMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StringMap, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    let message = format!("a second key `{}`", shown(&key));
                    if strings.insert(key, value).is_some() {
                        return Err(A::Error::custom(message));
                    }
                }
                Ok(StringMap(strings))
            }
        }
        deserializer.deserialize_map(Strings)
    }
}

/// Foreign text made fit for a message: no control characters, and no more than a line or two.
pub(super) fn shown(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == MAX_CHARS {
            out.push('…');
            break;
        }
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data_len: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data_len, 7);
        file
    }

    fn check(header: &str, data_len: usize) -> Result<Header> {
        parse(Path::new("m.safetensors"), &file(header, data_len))
    }

    /// Fails unless the message says all of `words`; that it is `Malformed` shows in its prefix.
    #[track_caller]
    fn refuses_bytes(file: &[u8], words: &[&str]) {
        let error = parse(Path::new("m.safetensors"), file).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }));
        let message = error.to_string();
        for word in words {
            assert!(message.contains(word), "no {word:?} in {message:?}");
        }
    }

    #[track_caller]
    fn refuses(header: &str, data_len: usize, words: &[&str]) {
        refuses_bytes(&file(header, data_len), words);
    }

    fn entry(name: &str, dtype: &str, shape: &str, begin: usize, end: usize) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    }

    /// A header of one-dimensional U8 tensors.
    fn bytes_header(tensors: &[(&str, usize, usize)]) -> String {
        let entries: Vec<_> = tensors
            .iter()
            .map(|&(n, b, e)| entry(n, "U8", &format!("[{}]", e - b), b, e))
            .collect();
        format!("{{{}}}", entries.join(","))
    }

    #[test]
    fn reads_tensors_in_the_order_of_their_data() {
        let header = format!(
            r#"{{"__metadata__":{{"format":"pt"}},{},{},{}}}   "#,
            entry("b", "F32", "[2,1]", 2, 10),
            entry("a", "U8", "[2]", 0, 2),
            entry("none", "F32", "[0,3]", 10, 10),
        );
        let start = 8 + header.len();
        let parsed = check(&header, 10).unwrap();
        assert_eq!(parsed.metadata["format"], "pt");
        let names: Vec<_> = parsed.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "none"]);
        assert_eq!(parsed.tensors[1].shape, [2, 1]);
        assert_eq!(parsed.tensors[1].range, start + 2..start + 10);
    }

    #[test]
    fn accepts_no_tensors_scalars_and_packed_types() {
        assert!(check("{}", 0).unwrap().tensors.is_empty());
        let header =
            format!("{{{},{}}}", entry("s", "F32", "[]", 0, 4), entry("p", "F4", "[4]", 4, 6));
        assert_eq!(check(&header, 6).unwrap().tensors.len(), 2);
    }

    #[test]
    fn refuses_files_that_are_too_short() {
        refuses_bytes(b"", &["0 bytes"]);
        refuses_bytes(&[2, 0, 0, 0, 0, 0, 0], &["7 bytes", "8 bytes of header length"]);
    }

    #[test]
    fn refuses_header_lengths_out_of_bounds() {
        refuses_bytes(&u64::MAX.to_le_bytes(), &["18446744073709551615", "at most 100000000"]);
        refuses_bytes(&100_000_001u64.to_le_bytes(), &["100000001"]);
        refuses_bytes(&[3, 0, 0, 0, 0, 0, 0, 0, b'{', b'}'], &["length of 3", "the 2 bytes"]);
    }

    #[test]
    fn a_git_lfs_pointer_is_recognised() {
        refuses_bytes(b"version https://git-lfs.github.com/spec/v1\n", &["git lfs pull"]);
    }

    #[test]
    fn refuses_what_is_not_a_json_object() {
        refuses("", 0, &["an empty header"]);
        refuses(" {}", 0, &["starts with ' '"]);
        refuses("[1]", 0, &["starts with '['"]);
        refuses("{", 0, &["line 1 column 1"]);
        refuses("{}x", 0, &["trailing characters"]);
        refuses("{}\0", 0, &["trailing characters"]);
        refuses_bytes(&[2, 0, 0, 0, 0, 0, 0, 0, b'{', 0xff], &["not UTF-8 from byte 1"]);
        refuses(&"{\"a\":".repeat(5000), 0, &["`a`"]);
        refuses(&format!("{{\"a\":{}", "[".repeat(5000)), 0, &["`a`"]);
    }

    #[test]
    fn refuses_duplicate_names() {
        let a = entry("a", "U8", "[1]", 0, 1);
        refuses(&format!("{{{a},{a}}}"), 1, &["`a`", "a second tensor"]);
        // The same name in another spelling.
        refuses(&format!("{{{a},{}}}", a.replace("\"a\"", r#""\u0061""#)), 1, &["second tensor"]);
        refuses(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, &["a second `__metadata__`"]);
        refuses(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0, &["a second key `k`"]);
        refuses(r#"{"a":{"dtype":"U8","dtype":"U8"}}"#, 0, &["duplicate field `dtype`"]);
    }

    #[test]
    fn refuses_entries_with_other_fields() {
        refuses(r#"{"a":{"dtype":"U8","shape":[1]}}"#, 1, &["missing field `data_offsets`", "`a`"]);
        refuses(r#"{"a":{"evil":1}}"#, 1, &["unknown field `evil`", "`a`"]);
        refuses(r#"{"a":3}"#, 1, &["`a`", "invalid type: integer `3`"]);
        refuses(r#"{"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}}"#, 1, &["integer `8`"]);
    }

    #[test]
    fn refuses_metadata_that_is_not_strings() {
        for value in ["3", "null", "[]", r#"{"k":1}"#, r#"{"k":{}}"#, r#""pt""#] {
            let header = format!(r#"{{"__metadata__":{value}}}"#);
            refuses(&header, 0, &["at `__metadata__`", "invalid type"]);
        }
    }

    #[test]
    fn refuses_unknown_dtypes() {
        let header = format!("{{{}}}", entry("a", "f32", "[1]", 0, 4));
        refuses(&header, 4, &["tensor `a` with dtype `f32`", "one of BOOL, F4,"]);
    }

    #[test]
    fn refuses_impossible_shapes() {
        let shape = |s| format!("{{{}}}", entry("a", "F32", s, 0, 4));
        refuses(&shape("[-1]"), 4, &["`a`", "integer `-1`"]);
        refuses(&shape("[1.0]"), 4, &["`a`", "floating point `1.0`"]);
        refuses(&shape("[1e400]"), 4, &["`a`", "number out of range"]);
        refuses(&shape("[18446744073709551616]"), 4, &["`a`", "floating point"]);
        refuses(&shape("[\"1\"]"), 4, &["`a`", "string"]);
        refuses(&shape("[4294967296,4294967296]"), 4, &["[4294967296, 4294967296]"]);
        refuses(&shape("[18446744073709551615]"), 4, &["[18446744073709551615]"]);
        refuses(&shape(&format!("[{}1]", "1,".repeat(64))), 4, &["`a` with 65 dimensions"]);
        let packed = format!("{{{}}}", entry("a", "F4", "[3]", 0, 2));
        refuses(&packed, 2, &["F4 of shape [3]", "whole bytes"]);
    }

    #[test]
    fn refuses_impossible_offsets() {
        let offsets =
            |o: &str| format!(r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{o}}}}}"#);
        refuses(&offsets("[4,0]"), 4, &["`a` from byte 4 to byte 0"]);
        refuses(&offsets("[1,5]"), 4, &["byte 1 to byte 5", "at most 4"]);
        refuses(&offsets("[18446744073709551615,18446744073709551615]"), 4, &["at most 4"]);
        refuses(&offsets("[0,3]"), 3, &["`a` with 3 bytes", "4, for U8 of shape [4]"]);
        refuses(&offsets("[0]"), 4, &["`a`", "invalid length 1"]);
        refuses(&offsets("[0,4,4]"), 4, &["`a`"]);
        refuses(&offsets("[-4,0]"), 4, &["`a`", "integer `-4`"]);
    }

    #[test]
    fn refuses_overlaps_holes_and_trailing_bytes() {
        let overlap = bytes_header(&[("a", 0, 4), ("b", 3, 6)]);
        refuses(&overlap, 6, &["tensor `b`", "inside tensor `a`"]);
        let same = bytes_header(&[("a", 0, 4), ("b", 0, 4)]);
        refuses(&same, 4, &["tensor `b`", "inside tensor `a`"]);
        let empty_inside = bytes_header(&[("a", 0, 4), ("b", 2, 2)]);
        refuses(&empty_inside, 4, &["tensor `b`", "inside tensor `a`"]);
        let hole = bytes_header(&[("a", 0, 4), ("b", 6, 7)]);
        refuses(&hole, 7, &["2 unused bytes between tensor `a` and tensor `b`"]);
        refuses(&bytes_header(&[("a", 1, 2)]), 2, &["1 unused bytes between the header and"]);
        refuses(&bytes_header(&[("a", 0, 2)]), 5, &["3 unused bytes after tensor `a`"]);
        refuses("{}", 1, &["1 unused bytes after the header"]);
    }

    #[test]
    fn refuses_names_that_cannot_be_shown() {
        refuses(&bytes_header(&[("", 0, 1)]), 1, &["named `` (0 bytes)"]);
        refuses(&bytes_header(&[(r"a\u0000", 0, 1)]), 1, &[r"named `a\u{0}`"]);
        refuses(&bytes_header(&[(r"\u001b[2J", 0, 1)]), 1, &[r"named `\u{1b}[2J`"]);
        refuses(&bytes_header(&[(&"x".repeat(5000), 0, 1)]), 1, &["(5000 bytes)", "x…"]);
        refuses("{\"a\":{\"\\u001b[2J\":1}}", 0, &[r"unknown field `\u{1b}[2J`"]);
    }

    /// A valid file with metadata, several dtypes and an empty tensor.
    fn sample() -> Vec<u8> {
        let header = format!(
            r#"{{"__metadata__":{{"format":"pt"}},{},{},{}}}"#,
            entry("layer.0.weight", "F32", "[2,3]", 0, 24),
            entry("layer.0.bias", "F16", "[3]", 24, 30),
            entry("empty", "I64", "[0]", 30, 30),
        );
        file(&header, 30)
    }

    /// What a parsed header promises to the rest of the program.
    fn assert_sound(file: &[u8]) {
        let Ok(header) = parse(Path::new("m"), file) else { return };
        for t in header.tensors {
            assert!(t.range.end <= file.len());
            assert_eq!(t.dtype.byte_len(&t.shape), Some(t.range.len()));
        }
    }

    /// A few random edits: bytes set, runs cut out or doubled, digits and punctuation swapped in.
    fn mutate(file: &mut Vec<u8>, mut random: impl FnMut() -> usize) {
        const LIKELY: &[u8] = b"0123456789-.eE{}[]\",: \\nu\0\xff";
        for _ in 0..1 + random() % 4 {
            let at = random() % file.len().max(1);
            let until = (at + random() % 9).min(file.len());
            match random() % 5 {
                0 if !file.is_empty() => file[at] = random() as u8,
                1 if !file.is_empty() => file[at] = LIKELY[random() % LIKELY.len()],
                2 => drop(file.drain(at.min(until)..until)),
                3 => file.insert(at, LIKELY[random() % LIKELY.len()]),
                _ => {
                    let run = file[at.min(until)..until].to_vec();
                    file.splice(at..at, run);
                }
            }
        }
    }

    /// The header length follows the header, so that mutations reach what is behind it.
    fn fix_length(file: &mut [u8], data_len: usize) {
        if let Some(len) = file.len().checked_sub(8 + data_len) {
            file[..8].copy_from_slice(&(len as u64).to_le_bytes());
        }
    }

    proptest! {
        #[test]
        fn mutated_files_never_panic(numbers in prop::collection::vec(any::<usize>(), 32), fix: bool) {
            let mut file = sample();
            let mut numbers = numbers.into_iter().cycle();
            mutate(&mut file, || numbers.next().expect("it cycles"));
            if fix {
                fix_length(&mut file, 30);
            }
            assert_sound(&file);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            assert_sound(&bytes);
        }

        /// Whatever we accept, the reference accepts too.
        #[test]
        fn is_at_least_as_strict_as_the_reference(numbers in prop::collection::vec(any::<usize>(), 32)) {
            let mut file = sample();
            let mut numbers = numbers.into_iter().cycle();
            mutate(&mut file, || numbers.next().expect("it cycles"));
            fix_length(&mut file, 30);
            if parse(Path::new("m"), &file).is_ok() {
                prop_assert!(safetensors::SafeTensors::deserialize(&file).is_ok());
            }
        }
    }

    /// By hand: `cargo test --release a_million -- --ignored`.
    #[test]
    #[ignore = "takes seconds; the short version is `mutated_files_never_panic`"]
    fn a_million_mutations_never_panic() {
        let mut state = 1u64;
        let mut random = move || {
            // SplitMix64 (Steele et al. 2014).
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) as usize
        };
        let mut accepted = 0;
        for round in 0..1_000_000 {
            let mut file = sample();
            mutate(&mut file, &mut random);
            if round % 4 != 0 {
                fix_length(&mut file, 30);
            }
            assert_sound(&file);
            if parse(Path::new("m"), &file).is_ok() {
                accepted += 1;
                assert!(safetensors::SafeTensors::deserialize(&file).is_ok());
            }
        }
        println!("{accepted} of a million were still valid");
    }
}
