//! The few messages of ONNX that a model needs, in protobuf's wire format. Field numbers are those of onnx.proto3
//! (ONNX 1.16 and later; they never change).

use crate::checkpoint::Dtype;

/// A message under construction: its fields, in any order.
#[derive(Debug, Clone, Default)]
pub struct Message(pub Vec<u8>);

impl Message {
    /// An integer field: wire type 0.
    pub fn int(mut self, field: u32, value: i64) -> Message {
        varint(&mut self.0, (field << 3) as u64);
        varint(&mut self.0, value as u64);
        self
    }

    /// A float field: wire type 5.
    pub fn float(mut self, field: u32, value: f32) -> Message {
        varint(&mut self.0, (field << 3 | 5) as u64);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A string, bytes or message field: wire type 2.
    pub fn bytes(mut self, field: u32, value: &[u8]) -> Message {
        self.0.extend(prefix(field, value.len()));
        self.0.extend(value);
        self
    }

    pub fn text(self, field: u32, value: &str) -> Message {
        self.bytes(field, value.as_bytes())
    }

    pub fn message(self, field: u32, value: &Message) -> Message {
        self.bytes(field, &value.0)
    }
}

/// What stands before the `len` bytes of a field of wire type 2.
pub fn prefix(field: u32, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    varint(&mut out, (field << 3 | 2) as u64);
    varint(&mut out, len as u64);
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Element types, by their number in `TensorProto.DataType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    F32 = 1,
    U8 = 2,
    I8 = 3,
    U16 = 4,
    I32 = 6,
    I64 = 7,
    Bool = 9,
    F16 = 10,
}

impl Type {
    /// The type of the same bytes.
    ///
    /// # Panics
    /// For types that no weight has: a bug in the caller.
    pub fn of(dtype: Dtype) -> Type {
        match dtype {
            Dtype::F32 => Type::F32,
            Dtype::F16 => Type::F16,
            Dtype::U8 => Type::U8,
            Dtype::I8 => Type::I8,
            Dtype::U16 => Type::U16,
            Dtype::I32 => Type::I32,
            Dtype::I64 => Type::I64,
            other => panic!("a graph has no constants of {other}"),
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Type::U8 | Type::I8 | Type::Bool => 1,
            Type::U16 | Type::F16 => 2,
            Type::F32 | Type::I32 => 4,
            Type::I64 => 8,
        }
    }
}

/// An attribute of a node.
#[derive(Debug, Clone)]
pub enum Attribute {
    Int(i64),
    Float(f32),
    Text(&'static str),
    Ints(Vec<i64>),
}

/// `NodeProto`.
pub fn node(
    (domain, op): (&str, &str),
    name: &str,
    inputs: &[&str],
    outputs: &[String],
    attributes: &[(&str, Attribute)],
) -> Message {
    let mut node = Message::default();
    for input in inputs {
        node = node.text(1, input);
    }
    for output in outputs {
        node = node.text(2, output);
    }
    node = node.text(3, name).text(4, op);
    for (name, value) in attributes {
        let attribute = Message::default().text(1, name);
        let attribute = match value {
            Attribute::Float(x) => attribute.float(2, *x).int(20, 1),
            Attribute::Int(i) => attribute.int(3, *i).int(20, 2),
            Attribute::Text(text) => attribute.text(4, text).int(20, 3),
            Attribute::Ints(list) => list.iter().fold(attribute, |a, &i| a.int(8, i)).int(20, 7),
        };
        node = node.message(5, &attribute);
    }
    if domain.is_empty() { node } else { node.text(7, domain) }
}

/// A side of a graph's input or output.
#[derive(Debug, Clone, Copy)]
pub enum Dim {
    Named(&'static str),
    Fixed(usize),
}

/// `ValueInfoProto`.
pub fn value_info(name: &str, kind: Type, dims: &[Dim]) -> Message {
    let mut shape = Message::default();
    for dim in dims {
        let dim = match dim {
            Dim::Fixed(n) => Message::default().int(1, *n as i64),
            Dim::Named(name) => Message::default().text(2, name),
        };
        shape = shape.message(1, &dim);
    }
    let tensor = Message::default().int(1, kind as i64).message(2, &shape);
    Message::default().text(1, name).message(2, &Message::default().message(1, &tensor))
}

/// `TensorProto` without its data.
pub fn tensor(name: &str, kind: Type, dims: &[usize]) -> Message {
    let mut tensor = Message::default();
    for &dim in dims {
        tensor = tensor.int(1, dim as i64);
    }
    tensor.int(2, kind as i64).text(8, name)
}

/// Field of a `TensorProto` that holds its bytes, little-endian and row-major.
pub const RAW_DATA: u32 = 9;

/// `TensorProto` whose bytes stand in another file.
pub fn external(tensor: Message, file: &str, offset: u64, bytes: u64) -> Message {
    let entry = |key: &str, value: &str| Message::default().text(1, key).text(2, value);
    tensor
        .message(13, &entry("location", file))
        .message(13, &entry("offset", &offset.to_string()))
        .message(13, &entry("length", &bytes.to_string()))
        .int(14, 1)
}
