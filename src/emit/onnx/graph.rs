//! A graph under construction: nodes in the order of computation, constants whose bytes are made when they are written.

use super::proto::{self, Attribute, Message, Type};
use crate::checkpoint::{Dtype, Tensor};
use std::collections::HashMap;

/// The name of a value.
pub type Value = String;

/// A constant of the graph. Its name, type and shape say how large it is, of a model without data too.
pub struct Constant<'m> {
    pub name: String,
    pub kind: Type,
    pub dims: Vec<usize>,
    pub data: Data<'m>,
}

/// Makes the bytes of a constant.
type Data<'m> = Box<dyn Fn() -> Vec<u8> + 'm>;

impl<'m> Constant<'m> {
    /// Numbers, `dims`, stored as `dtype`: F32 or F16, and BF16 as F32, which every runtime has.
    pub fn numbers(
        name: &str,
        dims: &[usize],
        dtype: Dtype,
        values: impl Fn() -> Vec<f32> + 'm,
    ) -> Constant<'m> {
        let (name, dims) = (name.to_string(), dims.to_vec());
        let dtype = plain(dtype);
        let shape = dims.clone();
        let data = move || Tensor::from_f32("", &shape, &values(), dtype).bytes().to_vec();
        Constant { name, kind: Type::of(dtype), dims, data: Box::new(data) }
    }

    pub fn bytes(&self) -> usize {
        self.dims.iter().product::<usize>() * self.kind.bytes()
    }
}

/// A tensor of the model as it is stored, but BF16 as F32.
impl From<&Tensor> for Constant<'_> {
    fn from(tensor: &Tensor) -> Self {
        let (tensor, dtype) = (tensor.clone(), plain(tensor.dtype));
        let (name, dims) = (tensor.name.clone(), tensor.shape.clone());
        let data = move || {
            let bytes = match tensor.dtype == dtype {
                true => tensor.bytes().to_vec(),
                false => {
                    let values = tensor.to_f32().expect("BF16 is a floating type");
                    bytemuck::cast_slice(&values).to_vec()
                }
            };
            tensor.release();
            bytes
        };
        Constant { name, kind: Type::of(dtype), dims, data: Box::new(data) }
    }
}

#[derive(Default)]
pub struct Graph<'m> {
    pub nodes: Vec<Message>,
    pub constants: Vec<Constant<'m>>,
    /// Where each constant is, by its name.
    known: HashMap<String, usize>,
    /// Whether a node is one of Microsoft's.
    pub contrib: bool,
}

impl<'m> Graph<'m> {
    /// A node of the standard with one output.
    pub fn op(&mut self, op: &str, inputs: &[&str]) -> Value {
        self.with(op, inputs, &[])
    }

    /// As [`Graph::op`], with attributes.
    pub fn with(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> Value {
        let name = format!("{op}_{}", self.nodes.len());
        self.push(("", op), inputs, vec![name.clone()], attributes);
        name
    }

    /// A node whose output is `name`: one of the graph's.
    pub fn named(&mut self, op: &str, inputs: &[&str], name: &str) {
        self.push(("", op), inputs, vec![name.to_string()], &[]);
    }

    /// A node of Microsoft's.
    pub fn contrib(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> Value {
        self.contrib = true;
        let name = format!("{op}_{}", self.nodes.len());
        self.push(("com.microsoft", op), inputs, vec![name.clone()], attributes);
        name
    }

    fn push(
        &mut self,
        op: (&str, &str),
        inputs: &[&str],
        outputs: Vec<String>,
        attributes: &[(&str, Attribute)],
    ) {
        let name = format!("node_{}_{}", self.nodes.len(), op.1);
        self.nodes.push(proto::node(op, &name, inputs, &outputs, attributes));
    }

    /// Places of the `k` largest of each row, or the smallest, `[rows, k]`, and their values; of equals the first.
    pub fn top(&mut self, x: &str, k: &str, largest: bool) -> [Value; 2] {
        let n = self.nodes.len();
        let outputs = [format!("TopK_{n}_values"), format!("TopK_{n}_places")];
        let attributes = [
            ("axis", Attribute::Int(-1)),
            ("largest", Attribute::Int(largest as i64)),
            ("sorted", Attribute::Int(1)),
        ];
        self.push(("", "TopK"), &[x, k], outputs.to_vec(), &attributes);
        outputs
    }

    /// A constant of any size; one of this name that is there already is meant again.
    pub fn constant(
        &mut self,
        name: &str,
        kind: Type,
        dims: &[usize],
        data: impl Fn() -> Vec<u8> + 'm,
    ) -> Value {
        let name = name.to_string();
        self.stored(Constant { name, kind, dims: dims.to_vec(), data: Box::new(data) })
    }

    /// As [`Graph::constant`].
    pub fn stored(&mut self, constant: impl Into<Constant<'m>>) -> Value {
        let constant = constant.into();
        let name = constant.name.clone();
        let Some(&at) = self.known.get(&name) else {
            self.known.insert(name.clone(), self.constants.len());
            self.constants.push(constant);
            return name;
        };
        // A table that is looked up twice, or a small number.
        let Constant { kind, dims, .. } = &self.constants[at];
        assert!((kind, dims) == (&constant.kind, &constant.dims), "constant `{name}` is one thing");
        name
    }

    /// Integers, `[values]`.
    pub fn ints(&mut self, values: &[i64]) -> Value {
        if values.len() > 8 {
            return self.list(values);
        }
        let name = format!("ints{}", values.iter().map(|v| format!("_{v}")).collect::<String>());
        self.small(name, Type::I64, &[values.len()], integers(values))
    }

    /// As [`Graph::ints`], of which the size of the graph does not depend on what the integers are.
    pub fn list(&mut self, values: &[i64]) -> Value {
        let name = format!("list_{}", self.constants.len());
        self.small(name, Type::I64, &[values.len()], integers(values))
    }

    /// One integer, without a dimension.
    pub fn int(&mut self, value: i64) -> Value {
        self.small(format!("int_{value}"), Type::I64, &[], value.to_le_bytes().to_vec())
    }

    /// One integer of 32 bits, without a dimension.
    pub fn small_i32(&mut self, value: i32) -> Value {
        self.small(format!("int32_{value}"), Type::I32, &[], value.to_le_bytes().to_vec())
    }

    /// One number, without a dimension.
    pub fn float(&mut self, value: f32) -> Value {
        self.small(format!("float_{value:e}"), Type::F32, &[], value.to_le_bytes().to_vec())
    }

    /// One byte, without a dimension.
    pub fn byte(&mut self, value: u8) -> Value {
        self.small(format!("byte_{value}"), Type::U8, &[], vec![value])
    }

    /// Bytes 0 to 255, `[values]`.
    pub fn bytes(&mut self, values: &[u8]) -> Value {
        let name = format!("bytes{}", values.iter().map(|v| format!("_{v}")).collect::<String>());
        self.small(name, Type::U8, &[values.len()], values.to_vec())
    }

    fn small(&mut self, name: String, kind: Type, dims: &[usize], bytes: Vec<u8>) -> Value {
        self.constant(&name, kind, dims, move || bytes.clone())
    }

    /// f32 numbers that are made when they are written.
    pub fn floats(
        &mut self,
        name: &str,
        dims: &[usize],
        values: impl Fn() -> Vec<f32> + 'm,
    ) -> Value {
        self.stored(Constant::numbers(name, dims, Dtype::F32, values))
    }

    /// Floating numbers, as f32 where they are used. Runtimes widen them once, when they load.
    pub fn wide(&mut self, numbers: impl Into<Constant<'m>>) -> Value {
        let numbers = numbers.into();
        let kind = numbers.kind;
        let stored = self.stored(numbers);
        if kind == Type::F32 { stored } else { self.cast(&stored, Type::F32) }
    }

    pub fn cast(&mut self, x: &str, to: Type) -> Value {
        self.with("Cast", &[x], &[("to", Attribute::Int(to as i64))])
    }

    /// Rows of a table, as f32.
    pub fn rows(&mut self, table: impl Into<Constant<'m>>, ids: &str) -> Value {
        let table = table.into();
        let kind = table.kind;
        let stored = self.stored(table);
        let rows = self.op("Gather", &[&stored, ids]);
        if kind == Type::F32 { rows } else { self.cast(&rows, Type::F32) }
    }

    pub fn unsqueeze(&mut self, x: &str, axes: &[i64]) -> Value {
        let axes = self.ints(axes);
        self.op("Unsqueeze", &[x, &axes])
    }

    pub fn reshape(&mut self, x: &str, shape: &[i64]) -> Value {
        let shape = self.ints(shape);
        self.op("Reshape", &[x, &shape])
    }

    pub fn transpose(&mut self, x: &str, perm: &[i64]) -> Value {
        self.with("Transpose", &[x], &[("perm", Attribute::Ints(perm.to_vec()))])
    }

    /// A reduction over `axes`.
    pub fn reduce(&mut self, op: &str, x: &str, axes: &[i64], keep: bool) -> Value {
        let axes = self.ints(axes);
        self.with(op, &[x, &axes], &[("keepdims", Attribute::Int(keep as i64))])
    }

    /// `x[.., from..to, ..]` along `axis`.
    pub fn slice(&mut self, x: &str, axis: i64, from: i64, to: i64) -> Value {
        let (from, to, axis) = (self.ints(&[from]), self.ints(&[to]), self.ints(&[axis]));
        self.op("Slice", &[x, &from, &to, &axis])
    }

    /// One side of `x`, as a list of one.
    pub fn side(&mut self, x: &str, axis: i64) -> Value {
        let attributes = [("start", Attribute::Int(axis)), ("end", Attribute::Int(axis + 1))];
        self.with("Shape", &[x], &attributes)
    }

    /// 0, 1, … up to the side of `x`: `[side]`.
    pub fn count(&mut self, x: &str, axis: i64) -> Value {
        let side = self.side(x, axis);
        let empty = self.ints(&[0]);
        let end = self.op("Squeeze", &[&side, &empty]);
        let (zero, one) = (self.int(0), self.int(1));
        self.op("Range", &[&zero, &end, &one])
    }
}

/// The type that every runtime has of what is stored as `dtype`.
fn plain(dtype: Dtype) -> Dtype {
    if dtype == Dtype::BF16 { Dtype::F32 } else { dtype }
}

fn integers(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
