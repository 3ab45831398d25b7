//! Writes safetensors files: the same tensors and metadata give the same bytes, those of the reference
//! implementation.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::header::MAX_HEADER_BYTES;
use super::shards::SINGLE;
use super::tensor::Tensor;
use crate::error::{Error, Result};

/// Between two pieces the mapped input is given back and an interrupt is noticed.
const PIECE_BYTES: usize = 4 << 20;

/// A finished file of an output folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenFile {
    /// Relative to the folder, with `/`.
    pub name: String,
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

/// `tensors` in the order of their data: by descending dtype as the reference writer does, so that
/// all are aligned, then by name.
///
/// # Errors
/// [`Error::Mismatch`] if two have the same name.
pub(super) fn ordered(tensors: &[Tensor]) -> Result<Vec<&Tensor>> {
    let mut ordered: Vec<&Tensor> = tensors.iter().collect();
    ordered.sort_by_key(|t| &t.name);
    if let Some(pair) = ordered.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Error::Mismatch {
            found: format!("two tensors are named `{}`", pair[0].name),
            expected: "a checkpoint holds one tensor of each name".to_owned(),
            advice: "rename or drop one in the input",
        });
    }
    ordered.sort_by_key(|t| std::cmp::Reverse(t.dtype)); // stable: names stay sorted
    Ok(ordered)
}

/// Cuts `ordered` into runs of at most `max_bytes`; a tensor that is larger is alone.
pub(super) fn shards<'a, 'b>(ordered: &'b [&'a Tensor], max_bytes: u64) -> Vec<&'b [&'a Tensor]> {
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, tensor) in ordered.iter().enumerate() {
        let len = tensor.byte_len() as u64;
        if i > start && bytes + len > max_bytes {
            shards.push(&ordered[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += len;
    }
    shards.push(&ordered[start..]);
    shards
}

/// Files in which `ordered` is written: `model.safetensors`, or shards of at most `max_bytes` of data.
pub(super) fn named<'a, 'b>(
    ordered: &'b [&'a Tensor],
    max_bytes: u64,
) -> Vec<(String, &'b [&'a Tensor])> {
    let shards = shards(ordered, max_bytes);
    let count = shards.len();
    let named = |(i, shard)| match count {
        1 => (SINGLE.to_owned(), shard),
        _ => (format!("model-{:05}-of-{count:05}.safetensors", i + 1), shard),
    };
    shards.into_iter().enumerate().map(named).collect()
}

/// Names and bytes of the files that hold a model of `tensors`, without the index of shards.
///
/// # Errors
/// As [`file_bytes`].
pub fn weight_files(tensors: &[Tensor], max_shard_bytes: u64) -> Result<Vec<(String, u64)>> {
    let ordered = ordered(tensors)?;
    let bytes = |(name, shard): (String, &[&Tensor])| {
        let data: usize = shard.iter().map(|t| t.byte_len()).sum();
        Ok((name, (header(shard, &metadata())?.len() + data) as u64))
    };
    named(&ordered, max_shard_bytes).into_iter().map(bytes).collect()
}

/// `model.safetensors.index.json` as Transformers writes it.
pub(super) fn index(shards: &[(String, &[&Tensor])]) -> Vec<u8> {
    let tensors = || shards.iter().flat_map(|(file, part)| part.iter().map(move |t| (t, file)));
    let total_size: usize = tensors().map(|(t, _)| t.byte_len()).sum();
    let weight_map: BTreeMap<_, _> = tensors().map(|(t, file)| (&t.name, file)).collect();
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    format!("{index:#}\n").into_bytes()
}

/// Writes one safetensors file, tensor by tensor, and gives mapped memory back on the way.
///
/// # Errors
/// [`Error::Write`]; [`Error::Interrupted`] once `interrupted` says so.
pub(super) fn write_tensors(
    path: &Path,
    name: String,
    tensors: &[&Tensor],
    metadata: &BTreeMap<String, String>,
    interrupted: &dyn Fn() -> bool,
) -> Result<WrittenFile> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let mut file = HashedFile::create(path).map_err(failed)?;
    file.write(&header(tensors, metadata)?).map_err(failed)?;
    for tensor in tensors {
        let mut start = 0;
        for piece in tensor.bytes().chunks(PIECE_BYTES) {
            if interrupted() {
                return Err(Error::Interrupted);
            }
            file.write(piece).map_err(failed)?;
            tensor.release_part(start..start + piece.len());
            start += piece.len();
        }
    }
    file.finish(name).map_err(failed)
}

/// Bytes of the file that holds a model of `tensors`, unless it is split.
///
/// # Errors
/// [`Error::Mismatch`] if two have the same name, or the names are too many for a header.
pub fn file_bytes(tensors: &[Tensor]) -> Result<u64> {
    let header = header(&ordered(tensors)?, &metadata())?;
    Ok(header.len() as u64 + tensors.iter().map(|t| t.byte_len() as u64).sum::<u64>())
}

/// What the header of a model's file says besides: Transformers asks for it.
pub fn metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_string(), "pt".to_string())])
}

/// A safetensors file in memory, with this metadata.
///
/// # Errors
/// [`Error::Mismatch`] if two tensors have the same name, or the names are too many for a header.
pub fn file_with(tensors: &[Tensor], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let ordered = ordered(tensors)?;
    let mut bytes = header(&ordered, metadata)?;
    ordered.iter().for_each(|tensor| bytes.extend_from_slice(tensor.bytes()));
    Ok(bytes)
}

/// Writes one safetensors file at `path`: beside it under a temporary name first, then renamed, so that
/// it is there whole or not at all. An existing file is replaced.
///
/// # Errors
/// As [`super::OutputFolder::write_tensors`].
pub fn write_file(path: &Path, tensors: &[Tensor], interrupted: &dyn Fn() -> bool) -> Result<()> {
    let ordered = ordered(tensors)?;
    replace(path, |temp, name| write_tensors(temp, name, &ordered, &BTreeMap::new(), interrupted))
}

/// Writes `bytes` at `path`, whole or not at all. An existing file is replaced.
///
/// # Errors
/// [`Error::Write`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |temp, name| {
        let failed = |source| Error::Write { path: path.to_owned(), source };
        let mut file = HashedFile::create(temp).map_err(failed)?;
        file.write(bytes).map_err(failed)?;
        file.finish(name).map_err(failed)
    })
}

/// Checks that a file can be written at `path`, as [`write_bytes`] does it, and leaves nothing behind.
///
/// # Errors
/// [`Error::Write`].
pub fn check_writable(path: &Path) -> Result<()> {
    let temp = temporary(path);
    let _ = std::fs::remove_file(&temp);
    let made = HashedFile::create(&temp);
    let _ = std::fs::remove_file(&temp);
    made.map(drop).map_err(|source| Error::Write { path: path.to_owned(), source })
}

fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp-{}", std::process::id()))
}

/// What `write` makes of a temporary name beside `path` takes its place.
fn replace(path: &Path, write: impl FnOnce(&Path, String) -> Result<WrittenFile>) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let temp = temporary(path);
    // Of a killed process with our number, as in a container that was started again.
    let _ = std::fs::remove_file(&temp);
    let done = write(&temp, name).and_then(|_| {
        std::fs::rename(&temp, path)
            .map_err(|source| Error::Write { path: path.to_owned(), source })
    });
    if done.is_err() {
        let _ = std::fs::remove_file(&temp);
    }
    done
}

/// Length and JSON header of a file with `tensors` in this order, padded so that data starts at a
/// multiple of 8.
fn header(tensors: &[&Tensor], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut entries = serde_json::Map::new(); // keeps the order of insertion: `preserve_order`
    if !metadata.is_empty() {
        entries.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut begin = 0;
    for tensor in tensors {
        let Tensor { name, dtype, shape, .. } = tensor;
        let len = tensor.byte_len();
        assert_eq!(dtype.byte_len(shape), Some(len), "tensor `{name}` has the bytes of its shape");
        let end = begin + len;
        let entry = json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [begin, end] });
        entries.insert(name.clone(), entry);
        begin = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() > MAX_HEADER_BYTES {
        return Err(Error::Mismatch {
            found: format!("the names of {} tensors need {} bytes", tensors.len(), json.len()),
            expected: format!("a safetensors header holds {MAX_HEADER_BYTES}"),
            advice: "write smaller shards",
        });
    }
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

/// A new file that is hashed while it is written.
pub(super) struct HashedFile {
    file: io::BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl HashedFile {
    /// Readable by all, as far as the umask allows; an existing file is an error.
    pub fn create(path: &Path) -> io::Result<HashedFile> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o644);
        let file = io::BufWriter::with_capacity(1 << 20, options.open(path)?);
        Ok(HashedFile { file, hash: Sha256::new(), bytes: 0 })
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    /// Waits until the disk has everything: some systems notice only then that it is full.
    pub fn finish(self, name: String) -> io::Result<WrittenFile> {
        self.file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        let sha256 = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(WrittenFile { name, bytes: self.bytes, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::tensor::TensorView;

    use super::super::Dtype;
    use super::*;

    fn mixed() -> Vec<Tensor> {
        vec![
            Tensor::from_u8("odd", &[3], &[1, 2, 3]),
            Tensor::from_f32("z", &[2], &[1.0, 2.0], Dtype::F32),
            Tensor::from_f32("a", &[], &[3.0], Dtype::F32),
            Tensor::from_f32("half", &[3], &[1.0, 2.0, 3.0], Dtype::F16),
            Tensor::new("packed", Dtype::F4, &[2], &[9]),
            Tensor::from_i64("ids", &[0], &[]),
            Tensor::new("flag \"quoted\" é", Dtype::Bool, &[1], &[1]),
        ]
    }

    fn write(tensors: &[Tensor], metadata: &[(&str, &str)]) -> (Vec<u8>, WrittenFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let metadata = metadata.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        let tensors = ordered(tensors).unwrap();
        let written = write_tensors(&path, "m".into(), &tensors, &metadata, &|| false).unwrap();
        (std::fs::read(path).unwrap(), written)
    }

    #[test]
    fn files_are_those_of_the_reference_byte_for_byte() {
        let tensors = mixed();
        let views = tensors.iter().map(|t| {
            let dtype = serde_json::from_value(t.dtype.name().into()).unwrap();
            (&t.name, TensorView::new(dtype, t.shape.clone(), t.bytes()).unwrap())
        });
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let theirs = safetensors::serialize(views, Some(metadata)).unwrap();
        assert_eq!(write(&tensors, &[("format", "pt")]).0, theirs);
    }

    #[test]
    fn data_starts_aligned_and_metadata_is_sorted() {
        let (bytes, _) = write(&mixed(), &[("b", "2"), ("a", "1"), ("format", "pt")]);
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert!(len.is_multiple_of(8));
        let json = std::str::from_utf8(&bytes[8..8 + len]).unwrap();
        assert!(json.starts_with(r#"{"__metadata__":{"a":"1","b":"2","format":"pt"},"ids":"#));
    }

    #[test]
    fn size_and_hash_are_those_of_the_file() {
        let (bytes, written) = write(&mixed(), &[]);
        assert_eq!(written.bytes, bytes.len() as u64);
        let sha256: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(written.sha256, sha256);
    }

    #[test]
    fn the_order_of_the_tensors_does_not_matter() {
        let mut reversed = mixed();
        reversed.reverse();
        assert_eq!(write(&mixed(), &[]).0, write(&reversed, &[]).0);
    }

    #[test]
    fn no_tensors_make_a_valid_file() {
        let (bytes, _) = write(&[], &[]);
        assert_eq!(bytes, b"\x08\0\0\0\0\0\0\0{}      ");
    }

    #[test]
    fn equal_names_are_refused() {
        let tensors = [Tensor::from_u8("a", &[0], &[]), Tensor::from_i32("a", &[0], &[])];
        let message = ordered(&tensors).unwrap_err().to_string();
        assert!(message.starts_with("two tensors are named `a`"), "{message}");
    }

    #[test]
    fn shards_are_filled_in_order_and_never_empty() {
        let tensors: Vec<Tensor> = [4usize, 4, 9, 1, 1]
            .iter()
            .enumerate()
            .map(|(i, &len)| Tensor::from_u8(i.to_string(), &[len], &vec![0; len]))
            .collect();
        let tensors = ordered(&tensors).unwrap();
        let lens = |max| shards(&tensors, max).iter().map(|s| s.len()).collect::<Vec<_>>();
        assert_eq!(lens(8), [2, 1, 2]);
        assert_eq!(lens(0), [1; 5]);
        assert_eq!(lens(u64::MAX), [5]);
        assert_eq!(shards(&[], 8).len(), 1);
    }

    #[test]
    fn an_interrupt_is_noticed_between_tensors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let tensors = mixed();
        let tensors = ordered(&tensors).unwrap();
        let result = write_tensors(&path, "m".into(), &tensors, &BTreeMap::new(), &|| true);
        assert!(matches!(result, Err(Error::Interrupted)));
    }
}
