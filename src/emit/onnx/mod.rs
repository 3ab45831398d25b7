//! ONNX files, written by hand: opset 18, plain operators, dynamic batch and length, every layer in its own shape.
//!
//! Nodes and sizes are known before the first byte is written; the bytes of each constant are made when it is its turn.

mod encoder;
mod graph;
#[cfg(test)]
mod interpreter;
mod linear;
mod proto;
mod tables;
#[cfg(test)]
mod tests;
mod tokens;

use super::{unread, unwritten};
use crate::checkpoint::{OutputFolder, WrittenFile};
use crate::model::{Linear, Model, Weight};
use crate::{Error, Result};
use encoder::Built;
use graph::Constant;
use proto::{Message, RAW_DATA, external, prefix, tensor};

/// How layers of sign planes multiply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SignPlanes {
    /// Bits in the file, which a runtime unpacks when it loads it: to bytes where layers round their inputs, else to f32.
    #[default]
    Unpack,
    /// The same products, of bytes that are bytes in the file too: larger, and loaded faster.
    Int8,
    /// `MatMulNBits` of Microsoft's domain with 2 bits: small in memory; it rounds inputs in its own way.
    Nbits,
}

impl SignPlanes {
    pub const ALL: [SignPlanes; 3] = [SignPlanes::Unpack, SignPlanes::Int8, SignPlanes::Nbits];

    pub fn name(self) -> &'static str {
        match self {
            SignPlanes::Unpack => "unpack",
            SignPlanes::Int8 => "int8",
            SignPlanes::Nbits => "nbits",
        }
    }

    /// # Errors
    /// [`Error::Usage`], with all names.
    pub fn named(name: &str) -> Result<SignPlanes> {
        SignPlanes::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| Error::Usage {
            found: format!("sign planes are not written as `{name}`"),
            advice: format!(
                "this build knows {}",
                SignPlanes::ALL.map(SignPlanes::name).join(", ")
            ),
        })
    }

    /// Checks that the sign planes of `model` can be written so.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for scales of groups, which bytes cannot have.
    pub(super) fn check(self, model: &Model, written: bool) -> Result<()> {
        if self == SignPlanes::Unpack || !written {
            return Ok(());
        }
        let grouped = |l: &&Linear| matches!(&l.weight, Weight::Binary(b) if b.group < b.cols);
        match model.linears().into_iter().find(grouped) {
            None => Ok(()),
            Some(linear) => Err(Error::Mismatch {
                found: format!("columns of `{}` have scales by groups", linear.weight.name()),
                expected: format!("sign planes written as `{}` have one a row", self.name()),
                advice: "leave --onnx-binary out, or run `binarize` without `group`",
            }),
        }
    }

    /// What is to be said of it.
    pub(super) fn note(self, model: &Model) -> Option<String> {
        let planes = |l: &Linear| matches!(l.weight, Weight::Binary(_) | Weight::Double(_));
        if !model.linears().into_iter().any(planes) {
            return None;
        }
        Some(match self {
            SignPlanes::Unpack => {
                "signs are bits in the file, and bytes or f32 in memory once it is loaded".to_string()
            }
            SignPlanes::Int8 => "signs are bytes, in the file and in memory".to_string(),
            SignPlanes::Nbits => {
                "signs have 2 bits, and `MatMulNBits` rounds what it multiplies in its own way: answers differ by that"
                    .to_string()
            }
        })
    }
}

/// What of `model` a graph of ours cannot say.
pub fn refusal(model: &Model) -> Option<String> {
    unread(model).or_else(|| unwritten(model))
}

/// Where hubs look for it.
const FILE: &str = "onnx/model.onnx";
const DATA: &str = "model.onnx_data";

/// Protobuf ends at 2 GiB: from here on constants stand beside the file.
const LARGE: usize = 1_900_000_000;
/// Constants below this stay inline all the same: shapes must be seen.
const SMALL: usize = 1 << 10;
/// Constants in another file begin at multiples of this, so that they can be mapped.
const ALIGN: u64 = 4096;

/// Writes `model` below `onnx/`.
///
/// # Errors
/// If a tensor is of a type that no graph has, and what the folder refuses.
pub fn write(
    model: &Model,
    sign_planes: SignPlanes,
    folder: &mut OutputFolder,
    interrupted: &dyn Fn() -> bool,
) -> Result<Vec<WrittenFile>> {
    write_within(LARGE, model, sign_planes, folder, interrupted)
}

/// As [`write`], with constants in another file where all together have more than `large` bytes.
fn write_within(
    large: usize,
    model: &Model,
    sign_planes: SignPlanes,
    folder: &mut OutputFolder,
    interrupted: &dyn Fn() -> bool,
) -> Result<Vec<WrittenFile>> {
    let model = model.compacted();
    let Built { graph, inputs, outputs } = encoder::build(&model, sign_planes)?;
    let bytes: usize = graph.constants.iter().map(Constant::bytes).sum();
    let outside = |c: &Constant| bytes > large && c.bytes() >= SMALL;

    let mut body = Message::default();
    for node in &graph.nodes {
        body = body.message(1, node);
    }
    body = body.text(2, "compress");
    let mut end = 0u64;
    let mut heads = Vec::new();
    for constant in &graph.constants {
        let head = tensor(&constant.name, constant.kind, &constant.dims);
        heads.push(match outside(constant) {
            true => {
                let start = end.next_multiple_of(ALIGN);
                end = start + constant.bytes() as u64;
                external(head, DATA, start, constant.bytes() as u64).0
            }
            false => [head.0, prefix(RAW_DATA, constant.bytes())].concat(),
        });
    }
    for (field, list) in [(11, &inputs), (12, &outputs)] {
        for value in list {
            body = body.message(field, value);
        }
    }
    let inline = |c: &Constant| if outside(c) { 0 } else { c.bytes() };
    let sizes: Vec<usize> =
        heads.iter().zip(&graph.constants).map(|(head, c)| head.len() + inline(c)).collect();
    let total = body.0.len() + sizes.iter().map(|&n| prefix(5, n).len() + n).sum::<usize>();

    let start = Message::default().int(1, 8).text(2, "compress").text(3, env!("CARGO_PKG_VERSION"));
    let opset = |domain: &str, version| Message::default().text(1, domain).int(2, version);
    let mut rest = Message::default().message(8, &opset("", 18));
    if graph.contrib {
        rest = rest.message(8, &opset("com.microsoft", 1));
    }
    let stop = || if interrupted() { Err(Error::Interrupted) } else { Ok(()) };
    let mut files = vec![folder.add_pieces(FILE, |write| {
        write(&start.0)?;
        write(&prefix(7, total))?;
        write(&body.0)?;
        for ((head, constant), &size) in heads.iter().zip(&graph.constants).zip(&sizes) {
            stop()?;
            write(&prefix(5, size))?;
            write(head)?;
            if !outside(constant) {
                write(&data(constant))?;
            }
        }
        write(&rest.0)
    })?];
    if end > 0 {
        let path = FILE.replace("model.onnx", DATA);
        files.push(folder.add_pieces(&path, |write| {
            let mut at = 0u64;
            for constant in graph.constants.iter().filter(|c| outside(c)) {
                stop()?;
                let gap = at.next_multiple_of(ALIGN) - at;
                write(&vec![0; gap as usize])?;
                write(&data(constant))?;
                at += gap + constant.bytes() as u64;
            }
            Ok(())
        })?);
    }
    Ok(files)
}

fn data(constant: &Constant) -> Vec<u8> {
    let data = (constant.data)();
    assert_eq!(
        data.len(),
        constant.bytes(),
        "constant `{}` has the bytes of its shape",
        constant.name
    );
    data
}
