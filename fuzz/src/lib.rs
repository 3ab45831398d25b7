//! What the targets share: inputs that are a folder of several files.

use compress::checkpoint::{Dtype, Tensor, file_with, metadata};
use std::collections::BTreeMap;
use std::fs;
use tempfile::TempDir;

/// Between the files of an input.
const BETWEEN: &[u8] = b"\n--\n";
/// Data of a tensor: enough for tiny models.
const MOST_BYTES: usize = 1 << 16;

/// Parallel work is done on this thread: a run does not wait for others to wake up, and takes the same way every time.
pub fn on_one_thread() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    pool.build_global().expect("the first pool");
}

/// The parts of `input`, as files of these names in a folder; an empty part is no file. A `.safetensors` file is
/// written as [`tensors`], any other as it stands.
pub fn folder(input: &[u8], names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, part) in names.iter().zip(parts(input)) {
        if part.is_empty() {
            continue;
        }
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("the folder around it")).expect("a folder");
        let written = match name.ends_with(".safetensors") {
            true => fs::write(&path, file_with(&tensors(part), &metadata()).expect("few names")),
            false => fs::write(&path, part),
        };
        written.expect("a file");
    }
    folder
}

fn parts(mut input: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some(at) = input.windows(BETWEEN.len()).position(|window| window == BETWEEN) {
        parts.push(&input[..at]);
        input = &input[at + BETWEEN.len()..];
    }
    parts.push(input);
    parts
}

/// Tensors, one a line: `name dtype dim dim … = number number …`, the numbers as often as there is room for them; without
/// any, 0 and 1. What makes no tensor is left out: this is not what is tested.
fn tensors(text: &[u8]) -> Vec<Tensor> {
    let text = String::from_utf8_lossy(text);
    let tensors = text.lines().filter_map(tensor).map(|t| (t.name.clone(), t));
    tensors.collect::<BTreeMap<_, _>>().into_values().collect()
}

fn tensor(line: &str) -> Option<Tensor> {
    let (what, numbers) = line.split_once(" = ").unwrap_or((line, "0 1"));
    let mut what = what.split(' ');
    let (name, dtype) = (what.next()?, Dtype::named(what.next()?)?);
    let shape: Vec<usize> = what.map(|dim| dim.parse().ok()).collect::<Option<_>>()?;
    let bytes = dtype.byte_len(&shape).filter(|&bytes| bytes <= MOST_BYTES)?;
    let numbers: Vec<f32> = numbers.split(' ').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let numbers = numbers.into_iter().cycle();
    Some(match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => {
            let values: Vec<f32> = numbers.take(shape.iter().product()).collect();
            Tensor::from_f32(name, &shape, &values, dtype)
        }
        _ => {
            // Little-endian integers, cut to their width.
            let width = dtype.bits().div_ceil(8);
            let cut = |n: f32| (n as i64).to_le_bytes().into_iter().take(width);
            let data: Vec<u8> = numbers.flat_map(cut).take(bytes).collect();
            Tensor::new(name, dtype, &shape, &data)
        }
    })
}
