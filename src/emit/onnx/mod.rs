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
use std::borrow::Cow;

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

    /// What of `model` is in the way of sign planes that are written so: scales of groups, which bytes cannot have.
    pub fn refusal(self, model: &Model) -> Option<String> {
        let grouped = |l: &&Linear| matches!(&l.weight, Weight::Binary(b) if b.group < b.cols);
        let found = model.linears().into_iter().find(grouped);
        let found = found.filter(|_| self != SignPlanes::Unpack)?;
        Some(format!("columns of `{}` have scales by groups", found.weight.name()))
    }

    /// Checks that the sign planes of `model` can be written so.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for what [`SignPlanes::refusal`] finds.
    pub(super) fn check(self, model: &Model, written: bool) -> Result<()> {
        match self.refusal(model).filter(|_| written) {
            None => Ok(()),
            Some(found) => Err(Error::Mismatch {
                found,
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
const DATA_FILE: &str = "onnx/model.onnx_data";
/// [`DATA_FILE`] as [`FILE`] names it.
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
/// What the folder refuses, and [`Error::Interrupted`].
pub fn write(
    model: &Model,
    sign_planes: SignPlanes,
    folder: &mut OutputFolder,
    interrupted: &dyn Fn() -> bool,
) -> Result<Vec<WrittenFile>> {
    write_within(LARGE, model, sign_planes, folder, interrupted)
}

/// Names and bytes of the files that [`write()`] makes of `model`. No data is read of it: it may have none.
pub fn files(model: &Model, sign_planes: SignPlanes) -> Vec<(String, u64)> {
    let model = model.compacted();
    let files = lay_out(encoder::build(&model, sign_planes), LARGE);
    files.iter().map(|file| (file.name.to_string(), file.bytes())).collect()
}

/// As [`write()`], with constants in another file where all together have more than `large` bytes.
fn write_within(
    large: usize,
    model: &Model,
    sign_planes: SignPlanes,
    folder: &mut OutputFolder,
    interrupted: &dyn Fn() -> bool,
) -> Result<Vec<WrittenFile>> {
    let model = model.compacted();
    let mut written = Vec::new();
    for file in lay_out(encoder::build(&model, sign_planes), large) {
        written.push(folder.add_pieces(file.name, |write| {
            for piece in &file.pieces {
                if interrupted() {
                    return Err(Error::Interrupted);
                }
                write(&piece.content())?;
            }
            Ok(())
        })?);
    }
    Ok(written)
}

/// A file that is still to be written, piece behind piece.
struct File<'m> {
    name: &'static str,
    pieces: Vec<Piece<'m>>,
}

enum Piece<'m> {
    Bytes(Vec<u8>),
    /// The bytes of this constant, which are made when it is its turn.
    Data(Constant<'m>),
}

impl File<'_> {
    fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes() as u64).sum()
    }
}

impl Piece<'_> {
    fn bytes(&self) -> usize {
        match self {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::Data(constant) => constant.bytes(),
        }
    }

    fn content(&self) -> Cow<'_, [u8]> {
        match self {
            Piece::Bytes(bytes) => Cow::Borrowed(bytes),
            Piece::Data(constant) => {
                let data = (constant.data)();
                let Constant { name, .. } = constant;
                assert_eq!(
                    data.len(),
                    self.bytes(),
                    "constant `{name}` has the bytes of its shape"
                );
                Cow::Owned(data)
            }
        }
    }
}

/// The graph as a `ModelProto`; its constants in a file of their own where all together have more than `large` bytes.
fn lay_out(built: Built<'_>, large: usize) -> Vec<File<'_>> {
    let Built { graph, inputs, outputs } = built;
    let bytes: usize = graph.constants.iter().map(Constant::bytes).sum();

    let mut body = Message::default();
    for node in &graph.nodes {
        body = body.message(1, node);
    }
    body = body.text(2, "compress");
    for (field, list) in [(11, &inputs), (12, &outputs)] {
        for value in list {
            body = body.message(field, value);
        }
    }
    // `TensorProto` by `TensorProto`, with or without its bytes.
    let (mut tensors, mut outside) = (Vec::new(), Vec::new());
    let mut end = 0u64;
    for constant in graph.constants {
        let head = tensor(&constant.name, constant.kind, &constant.dims);
        let size = constant.bytes();
        if bytes > large && size >= SMALL {
            let start = end.next_multiple_of(ALIGN);
            let head = external(head, DATA, start, size as u64).0;
            tensors.push(Piece::Bytes([prefix(5, head.len()), head].concat()));
            outside.push(Piece::Bytes(vec![0; (start - end) as usize]));
            outside.push(Piece::Data(constant));
            end = start + size as u64;
        } else {
            let head = [head.0, prefix(RAW_DATA, size)].concat();
            tensors.push(Piece::Bytes([prefix(5, head.len() + size), head].concat()));
            tensors.push(Piece::Data(constant));
        }
    }

    let total = body.0.len() + tensors.iter().map(Piece::bytes).sum::<usize>();
    let start = Message::default().int(1, 8).text(2, "compress").text(3, env!("CARGO_PKG_VERSION"));
    let opset = |domain: &str, version| Message::default().text(1, domain).int(2, version);
    let mut rest = Message::default().message(8, &opset("", 18));
    if graph.contrib {
        rest = rest.message(8, &opset("com.microsoft", 1));
    }
    let mut pieces = vec![Piece::Bytes([start.0, prefix(7, total), body.0].concat())];
    pieces.extend(tensors);
    pieces.push(Piece::Bytes(rest.0));
    let mut files = vec![File { name: FILE, pieces }];
    if !outside.is_empty() {
        files.push(File { name: DATA_FILE, pieces: outside });
    }
    files
}
