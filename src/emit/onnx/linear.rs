//! Linear layers: products with f32, with bytes, or with what a graph unpacks when it is loaded.

use super::SignPlanes;
use super::graph::{Constant, Graph, Value};
use super::proto::{Attribute, Type};
use crate::checkpoint::Dtype;
use crate::model::binary::whole_levels;
use crate::model::{Binary, DoubleBinary, Int8, Linear, LowRank, Scales, Weight};
use std::collections::HashMap;

/// Writes linear layers, and rounds inputs that several of them share once.
pub struct Linears {
    sign_planes: SignPlanes,
    rounded: HashMap<(Value, u32), Rounded>,
}

/// A token's numbers on levels of its own: `(code − zero) · scale`, as `runtime::kernels::rounded` has them.
/// `DynamicQuantizeLinear` knows one scale for a whole tensor; `QuantizeLinear` takes one a row, and computed ones too.
#[derive(Debug, Clone)]
struct Rounded {
    /// Bytes, `[tokens, in]`.
    codes: Value,
    /// `[tokens]`.
    scale: Value,
    /// Bytes, `[tokens]`.
    zero: Value,
    /// `zero · scale`, `[tokens, 1]`, and `(code − zero) · scale`, once somebody asked for them.
    offset: Option<Value>,
    values: Option<Value>,
}

/// A matrix as bytes, each output in units of its own.
struct Bytes {
    /// `[in, out]`.
    codes: Value,
    /// f32, `[out]`.
    unit: Value,
    /// `−Σ codes · unit`, `[1, out]`: what an input that is one lower adds.
    shift: Value,
}

/// Columns that share a scale in `MatMulNBits`: the largest block that has a fast kernel in ONNX Runtime.
const BLOCK: usize = 128;

impl Linears {
    pub fn new(sign_planes: SignPlanes) -> Linears {
        Linears { sign_planes, rounded: HashMap::new() }
    }

    /// The layer over `x`, `[tokens, in]`. `like`: a value with as many tokens, where the layer has no inputs.
    pub fn forward<'m>(
        &mut self,
        graph: &mut Graph<'m>,
        linear: &'m Linear,
        x: &str,
        like: &str,
    ) -> Value {
        let weight = &linear.weight;
        let bias = linear.bias.as_ref().map(|b| graph.wide(b));
        if weight.cols() == 0 {
            let first = graph.slice(like, -1, 0, 1);
            let zero = graph.float(0.0);
            let nothing = graph.op("Mul", &[&first, &zero]);
            let bias = bias.expect("a layer has a bias");
            return graph.op("Add", &[&nothing, &bias]);
        }
        let bits = linear.activations.bits();
        let product = match (weight, bits) {
            (Weight::Dense(tensor), _) => {
                let inputs = self.values(graph, x, bits);
                let matrix = transposed(graph, Constant::from(tensor));
                graph.op("MatMul", &[&inputs, &matrix])
            }
            (Weight::Int8(int8), None) => {
                let codes = int8_codes(graph, int8);
                let codes = graph.cast(&codes, Type::F32);
                let product = graph.op("MatMul", &[x, &codes]);
                let scale = int8_scale(graph, int8);
                graph.op("Mul", &[&product, &scale])
            }
            (Weight::Int8(int8), Some(bits)) => {
                let bytes = int8_bytes(graph, int8);
                return self.by_bytes(graph, &[bytes], bias, x, bits);
            }
            (Weight::Binary(binary), _) => {
                let product = self.planes(graph, binary, x, bits);
                self.with_residual(graph, binary, product, x, bits)
            }
            (Weight::Double(double), None) => self.double(graph, double, x),
            (Weight::Double(double), Some(bits)) => {
                return self.double_by_bytes(graph, double, bias, x, bits);
            }
            // Of tables alone; a layer cannot have them.
            (Weight::Subspace(_) | Weight::Factored(_), _) => {
                let (name, shape) =
                    (format!("{}.weight", weight.name()), [weight.rows(), weight.cols()]);
                let values = || weight.to_f32().expect("a packed form is expanded").into_owned();
                let inputs = self.values(graph, x, bits);
                let constant = Constant::numbers(&name, &shape, Dtype::F32, values);
                let matrix = transposed(graph, constant);
                graph.op("MatMul", &[&inputs, &matrix])
            }
        };
        match bias {
            Some(bias) => graph.op("Add", &[&product, &bias]),
            None => product,
        }
    }

    /// The outputs of several layers of bytes over `x` side by side, `[tokens, out + out + …]`, by one product; nothing
    /// where they are not bytes, or not all rounded alike. Runtimes put the matrices side by side once, when they load.
    /// (Matrices in f32 stay alone: software that quantises a graph looks for constants.)
    pub fn together<'m>(
        &mut self,
        graph: &mut Graph<'m>,
        linears: &[&'m Linear],
        x: &str,
    ) -> Option<Value> {
        let bits = self.one_product(linears[0])?;
        let biased = |l: &&&Linear| self.one_product(l) == Some(bits) && l.bias.is_some();
        if linears.iter().filter(biased).count() < linears.len() {
            return None;
        }
        let biases: Vec<Value> =
            linears.iter().filter_map(|l| l.bias.as_ref()).map(|b| graph.wide(b)).collect();
        let matrices: Vec<Bytes> = linears
            .iter()
            .flat_map(|l| match &l.weight {
                Weight::Int8(int8) => vec![int8_bytes(graph, int8)],
                Weight::Binary(binary) => self.planes_as_bytes(graph, binary, bits),
                _ => unreachable!("other forms are not one product"),
            })
            .collect();
        let mut beside = |of: fn(&Bytes) -> &Value, axis| {
            let values: Vec<&str> = matrices.iter().map(|b| of(b).as_str()).collect();
            graph.with("Concat", &values, &[("axis", Attribute::Int(axis))])
        };
        let bytes = Bytes {
            codes: beside(|b| &b.codes, 1),
            unit: beside(|b| &b.unit, 0),
            shift: beside(|b| &b.shift, 1),
        };
        let biases: Vec<&str> = biases.iter().map(String::as_str).collect();
        let bias = graph.with("Concat", &biases, &[("axis", Attribute::Int(0))]);
        Some(self.by_bytes(graph, &[bytes], Some(bias), x, bits))
    }

    /// The bits of its inputs, where a layer is one product of bytes and nothing besides.
    fn one_product(&self, linear: &Linear) -> Option<u32> {
        let bits = linear.activations.bits();
        match &linear.weight {
            weight if weight.cols() == 0 => None,
            Weight::Int8(_) => bits,
            Weight::Binary(b) if b.low_rank.is_none() && self.one_matrix(b, bits) => bits,
            _ => None,
        }
    }

    /// Whether the planes of a matrix are one product of bytes.
    fn one_matrix(&self, binary: &Binary, bits: Option<u32>) -> bool {
        let whole = self.sign_planes != SignPlanes::Nbits && binary.group >= binary.cols;
        whole && (binary.planes == 1 || bits == Some(8))
    }

    /// Sign planes, without their residual.
    fn planes<'m>(
        &mut self,
        graph: &mut Graph<'m>,
        binary: &'m Binary,
        x: &str,
        bits: Option<u32>,
    ) -> Value {
        match (self.sign_planes, bits) {
            (SignPlanes::Nbits, _) => {
                let terms =
                    (0..binary.planes).map(|plane| nbits(graph, binary, plane, x)).collect();
                sum(graph, terms)
            }
            (_, Some(bits)) if binary.group >= binary.cols => {
                let bytes = self.planes_as_bytes(graph, binary, bits);
                self.by_bytes(graph, &bytes, None, x, bits)
            }
            _ => {
                let inputs = self.values(graph, x, bits);
                let matrix = unpacked(graph, binary);
                let matrix = graph.transpose(&matrix, &[1, 0]);
                graph.op("MatMul", &[&inputs, &matrix])
            }
        }
    }

    fn with_residual<'m>(
        &mut self,
        graph: &mut Graph<'m>,
        binary: &'m Binary,
        product: Value,
        x: &str,
        bits: Option<u32>,
    ) -> Value {
        let Some(low) = &binary.low_rank else { return product };
        let (rows, cols) = (binary.rows, binary.cols);
        // Beside planes with a scale a row the residual sees inputs as they are.
        let inputs = if binary.group < cols { self.values(graph, x, bits) } else { x.to_string() };
        let [u, v] = factors(graph, &binary.name, low, rows, cols);
        let inner = graph.op("MatMul", &[&inputs, &v]);
        let residual = graph.op("MatMul", &[&inner, &u]);
        graph.op("Add", &[&product, &residual])
    }

    /// Planes with a scale a row: one matrix where they are one product, else one for each plane.
    fn planes_as_bytes<'m>(
        &self,
        graph: &mut Graph<'m>,
        binary: &'m Binary,
        bits: u32,
    ) -> Vec<Bytes> {
        if binary.planes > 1 && self.one_matrix(binary, Some(bits)) {
            return vec![self.levels(graph, binary)];
        }
        let (rows, cols) = (binary.rows, binary.cols);
        let plane = |plane: usize| {
            let name = format!("{}.plane{plane}", binary.name);
            let scales = move || binary.scales[plane * rows..(plane + 1) * rows].to_vec();
            self.signs_as_bytes(graph, &name, words(binary, plane), [rows, cols], scales)
        };
        (0..binary.planes).map(plane).collect()
    }

    /// Several planes as whole numbers up to 64, one product for all, as the runtime has them.
    fn levels<'m>(&self, graph: &mut Graph<'m>, binary: &'m Binary) -> Bytes {
        let (name, rows, cols, planes) = (&binary.name, binary.rows, binary.cols, binary.planes);
        let of_row = move |r: usize| {
            let scales: Vec<f32> = (0..planes).map(|k| binary.scales[k * rows + r]).collect();
            whole_levels(&scales, Int8::MOST)
        };
        // A row of zeros has no unit, and needs none.
        let units = move || (0..rows).map(|r| of_row(r).1.max(1e-30)).collect();
        let unit = graph.floats(&format!("{name}.unit"), &[rows], units);
        let codes = match self.sign_planes {
            SignPlanes::Int8 => {
                graph.constant(&format!("{name}.levels"), Type::I8, &[cols, rows], move || {
                    let tables: Vec<[i8; 16]> = (0..rows).map(|r| of_row(r).0).collect();
                    let codes = binary.codes();
                    let level =
                        |i: usize| tables[i % rows][codes[i % rows * cols + i / rows] as usize];
                    (0..rows * cols).map(|i| level(i) as u8).collect()
                })
            }
            SignPlanes::Unpack | SignPlanes::Nbits => {
                let matrix = unpacked(graph, binary);
                let column = graph.unsqueeze(&unit, &[-1]);
                let steps = graph.op("Div", &[&matrix, &column]);
                // To the nearest, halves away from 0: `Round` takes them to even numbers.
                let (sign, size) = (graph.op("Sign", &[&steps]), graph.op("Abs", &[&steps]));
                let half = graph.float(0.5);
                let size = graph.op("Add", &[&size, &half]);
                let size = graph.op("Floor", &[&size]);
                let whole = graph.op("Mul", &[&size, &sign]);
                let whole = graph.cast(&whole, Type::I8);
                graph.transpose(&whole, &[1, 0])
            }
        };
        let wide = graph.cast(&codes, Type::F32);
        let sums = graph.reduce("ReduceSum", &wide, &[0], true);
        let sums = graph.op("Mul", &[&sums, &unit]);
        let shift = graph.op("Neg", &[&sums]);
        Bytes { codes, unit, shift }
    }

    /// Two binary factors, inputs as they are.
    fn double<'m>(&self, graph: &mut Graph<'m>, double: &'m DoubleBinary, x: &str) -> Value {
        let DoubleBinary { name, rows, cols, rank, u, v, a, m, b } = double;
        let times = |graph: &mut Graph<'m>, y: &str, part: &str, n: usize, scales: &'m Scales| {
            let scale = graph.floats(&format!("{name}.{part}"), &[n], || scales.values.clone());
            graph.op("Mul", &[y, &scale])
        };
        let x = times(graph, x, "b", *cols, b);
        let inner = signs(graph, &format!("{name}.v"), v, [*rank, *cols], &x);
        let inner = times(graph, &inner, "m", *rank, m);
        let y = signs(graph, &format!("{name}.u"), u, [*rows, *rank], &inner);
        times(graph, &y, "a", *rows, a)
    }

    /// Two binary factors. Between them there are 8 bits.
    fn double_by_bytes<'m>(
        &mut self,
        graph: &mut Graph<'m>,
        double: &'m DoubleBinary,
        bias: Option<Value>,
        x: &str,
        bits: u32,
    ) -> Value {
        let DoubleBinary { name, rows, cols, rank, u, v, a, m, b } = double;
        let (rows, cols, rank) = (*rows, *cols, *rank);
        let b = graph.floats(&format!("{name}.b"), &[cols], || b.values.clone());
        let x = graph.op("Mul", &[x, &b]);
        let scales = || m.values.clone();
        let bytes = self.signs_as_bytes(graph, &format!("{name}.v"), v, [rank, cols], scales);
        let inner = self.by_bytes(graph, &[bytes], None, &x, bits);
        let scales = || a.values.clone();
        let bytes = self.signs_as_bytes(graph, &format!("{name}.u"), u, [rows, rank], scales);
        self.by_bytes(graph, &[bytes], bias, &inner, 8)
    }

    /// A matrix of signs, each row times its scale.
    fn signs_as_bytes<'m>(
        &self,
        graph: &mut Graph<'m>,
        name: &str,
        words: &'m [u32],
        [rows, cols]: [usize; 2],
        scales: impl Fn() -> Vec<f32> + Clone + 'm,
    ) -> Bytes {
        let line = cols.div_ceil(32);
        let bit = move |row: usize, col: usize| words[row * line + col / 32] >> (col % 32) & 1 == 1;
        let codes = match self.sign_planes {
            SignPlanes::Int8 => {
                graph.constant(&format!("{name}.signs"), Type::I8, &[cols, rows], move || {
                    let sign = |i: usize| if bit(i % rows, i / rows) { 1i8 } else { -1 };
                    (0..rows * cols).map(|i| sign(i) as u8).collect()
                })
            }
            SignPlanes::Unpack | SignPlanes::Nbits => {
                let signs = unpack_constant(graph, name, words, 1, [rows, cols]);
                let signs = graph.reshape(&signs, &[rows as i64, cols as i64]);
                let signs = graph.cast(&signs, Type::I8);
                graph.transpose(&signs, &[1, 0])
            }
        };
        let unit = graph.floats(&format!("{name}.scale"), &[rows], scales.clone());
        let ones = |row: &[u32]| row.iter().map(|w| w.count_ones()).sum::<u32>() as f32;
        let sum = move |row: &[u32]| 2.0 * ones(row) - cols as f32;
        let shifts = move || {
            let rows = words.chunks_exact(line).zip(scales());
            rows.map(|(row, scale)| -sum(row) * scale).collect()
        };
        let shift = graph.floats(&format!("{name}.shift"), &[1, rows], shifts);
        Bytes { codes, unit, shift }
    }

    /// The product with the sum of some matrices: `scale · unit · Σ codes · codes − zero · scale · Σ codes · unit + bias`.
    /// The zero points differ from token to token, which `MatMulInteger` does not know in ONNX Runtime: their part is a
    /// product of its own, of one column, that brings the bias along.
    fn by_bytes(
        &mut self,
        graph: &mut Graph,
        matrices: &[Bytes],
        bias: Option<Value>,
        x: &str,
        bits: u32,
    ) -> Value {
        let rounded = self.rounded(graph, x, bits);
        let offset = self.offset(graph, x, bits);
        let term = |matrix: &Bytes| {
            let product = graph.op("MatMulInteger", &[&rounded.codes, &matrix.codes]);
            let steps = rows_at(graph, "DequantizeLinear", &[&product, &rounded.scale]);
            graph.op("Mul", &[&steps, &matrix.unit])
        };
        let terms = matrices.iter().map(term).collect();
        let total = sum(graph, terms);
        let shift = sum(graph, matrices.iter().map(|m| m.shift.clone()).collect());
        let rest = match &bias {
            Some(bias) => graph.op("Gemm", &[&offset, &shift, bias]),
            None => graph.op("MatMul", &[&offset, &shift]),
        };
        graph.op("Add", &[&total, &rest])
    }

    fn rounded(&mut self, graph: &mut Graph, x: &str, bits: u32) -> Rounded {
        if let Some(known) = self.rounded.get(&(x.to_string(), bits)) {
            return known.clone();
        }
        let low = graph.reduce("ReduceMin", x, &[-1], false);
        let low = graph.op("Neg", &[&low]);
        let below = graph.op("Relu", &[&low]);
        let high = graph.reduce("ReduceMax", x, &[-1], false);
        let above = graph.op("Relu", &[&high]);
        let range = graph.op("Add", &[&below, &above]);
        let most = (1 << bits) - 1;
        let top = graph.float(most as f32);
        let scale = graph.op("Div", &[&range, &top]);
        let least = graph.float(1e-30); // a token of zeros
        let scale = graph.op("Max", &[&scale, &least]);
        let zero = rows_at(graph, "QuantizeLinear", &[&below, &scale]);
        let mut codes = rows_at(graph, "QuantizeLinear", &[x, &scale, &zero]);
        if bits < 8 {
            let (least, most) = (graph.byte(0), graph.byte(most as u8));
            codes = graph.op("Clip", &[&codes, &least, &most]);
        }
        let rounded = Rounded { codes, scale, zero, offset: None, values: None };
        self.rounded.insert((x.to_string(), bits), rounded.clone());
        rounded
    }

    /// `zero · scale` of each token, `[tokens, 1]`.
    fn offset(&mut self, graph: &mut Graph, x: &str, bits: u32) -> Value {
        let mut rounded = self.rounded(graph, x, bits);
        if rounded.offset.is_none() {
            let zero = graph.cast(&rounded.zero, Type::F32);
            let offset = graph.op("Mul", &[&zero, &rounded.scale]);
            rounded.offset = Some(graph.unsqueeze(&offset, &[-1]));
            self.rounded.insert((x.to_string(), bits), rounded.clone());
        }
        rounded.offset.expect("just made")
    }

    /// `x` as it is multiplied in f32: rounded, or as it is.
    fn values(&mut self, graph: &mut Graph, x: &str, bits: Option<u32>) -> Value {
        let Some(bits) = bits else { return x.to_string() };
        let mut rounded = self.rounded(graph, x, bits);
        if rounded.values.is_none() {
            let column = |graph: &mut Graph, value: &str| graph.unsqueeze(value, &[-1]);
            let zero = graph.cast(&rounded.zero, Type::F32);
            let (zero, scale) = (column(graph, &zero), column(graph, &rounded.scale));
            let codes = graph.cast(&rounded.codes, Type::F32);
            let steps = graph.op("Sub", &[&codes, &zero]);
            rounded.values = Some(graph.op("Mul", &[&steps, &scale]));
            self.rounded.insert((x.to_string(), bits), rounded.clone());
        }
        rounded.values.expect("just made")
    }
}

/// An operator whose scales are those of rows.
fn rows_at(graph: &mut Graph, op: &str, inputs: &[&str]) -> Value {
    graph.with(op, inputs, &[("axis", Attribute::Int(0))])
}

fn int8_bytes<'m>(graph: &mut Graph<'m>, int8: &'m Int8) -> Bytes {
    let (rows, cols) = (int8.rows, int8.cols);
    let (codes, unit) = (int8_codes(graph, int8), int8_scale(graph, int8));
    let sum = |row: &[i8]| row.iter().map(|&c| c as f32).sum::<f32>();
    let shifts = move || {
        let rows = int8.codes.chunks_exact(cols).zip(&int8.scales.values);
        rows.map(|(row, scale)| -sum(row) * scale).collect()
    };
    let shift = graph.floats(&format!("{}.shift", int8.name), &[1, rows], shifts);
    Bytes { codes, unit, shift }
}

/// `[in, out]`.
fn int8_codes<'m>(graph: &mut Graph<'m>, int8: &'m Int8) -> Value {
    let (name, rows, cols) = (&int8.name, int8.rows, int8.cols);
    graph.constant(&format!("{name}.codes"), Type::I8, &[cols, rows], move || {
        flip(bytemuck::cast_slice(&int8.codes), [rows, cols], 1)
    })
}

fn int8_scale<'m>(graph: &mut Graph<'m>, int8: &'m Int8) -> Value {
    let scale = || int8.scales.values.clone();
    graph.floats(&format!("{}.scale", int8.name), &[int8.rows], scale)
}

/// The product with a matrix of signs in f32.
fn signs<'m>(
    graph: &mut Graph<'m>,
    name: &str,
    words: &'m [u32],
    shape: [usize; 2],
    x: &str,
) -> Value {
    let signs = unpack_constant(graph, name, words, 1, shape);
    let signs = graph.reshape(&signs, &[shape[0] as i64, shape[1] as i64]);
    let signs = graph.transpose(&signs, &[1, 0]);
    graph.op("MatMul", &[x, &signs])
}

fn sum(graph: &mut Graph, terms: Vec<Value>) -> Value {
    let total = terms.into_iter().reduce(|sum, term| graph.op("Add", &[&sum, &term]));
    total.expect("a plane")
}

/// The signs of one plane, `[rows, words]`; of a matrix without data there are none.
pub fn words(binary: &Binary, plane: usize) -> &[u32] {
    let size = binary.rows * binary.cols.div_ceil(32);
    binary.signs.get(plane * size..(plane + 1) * size).unwrap_or_default()
}

/// A matrix as `MatMul` wants it, `[in, out]` in f32.
fn transposed<'m>(graph: &mut Graph<'m>, matrix: Constant<'m>) -> Value {
    let Constant { name, kind, dims, data } = matrix;
    let [rows, cols] = [dims[0], dims[1]];
    graph.wide(Constant {
        name: format!("{name}.transposed"),
        kind,
        dims: vec![cols, rows],
        data: Box::new(move || flip(&data(), [rows, cols], kind.bytes())),
    })
}

/// `[rows, cols]` to `[cols, rows]`, entries of `size` bytes.
fn flip(bytes: &[u8], [rows, cols]: [usize; 2], size: usize) -> Vec<u8> {
    let mut out = vec![0; bytes.len()];
    for row in 0..rows {
        for col in 0..cols {
            let (from, to) = ((row * cols + col) * size, (col * rows + row) * size);
            out[to..to + size].copy_from_slice(&bytes[from..from + size]);
        }
    }
    out
}

/// The two factors of a residual as `MatMul` wants them: `[rank, rows]` and `[cols, rank]`.
fn factors<'m>(
    graph: &mut Graph<'m>,
    name: &str,
    low: &'m LowRank,
    rows: usize,
    cols: usize,
) -> [Value; 2] {
    let rank = low.rank;
    let mut factor = |part: &str, [lines, width]: [usize; 2], values: &'m [f32]| {
        let flipped =
            move || (0..values.len()).map(|i| values[i % lines * width + i / lines]).collect();
        let name = format!("{name}.{part}");
        graph.wide(Constant::numbers(&name, &[width, lines], factor_dtype(low), flipped))
    };
    [factor("lowrank_u", [rows, rank], &low.u), factor("lowrank_v", [rank, cols], &low.v)]
}

/// The type that holds the factors of a residual exactly.
pub fn factor_dtype(low: &LowRank) -> Dtype {
    if low.steps.is_some() { Dtype::F32 } else { Dtype::F16 }
}

/// The sum of the planes of a matrix, `[out, in]` in f32, made when the graph is loaded.
fn unpacked<'m>(graph: &mut Graph<'m>, binary: &'m Binary) -> Value {
    let Binary { name, rows, cols, planes, group, signs, .. } = binary;
    let signs = unpack_constant(graph, name, signs, *planes, [*rows, *cols]);
    let scales = spread_scales(graph, binary);
    let terms = if *group < *cols { scales } else { graph.unsqueeze(&scales, &[-1]) };
    let terms = graph.op("Mul", &[&signs, &terms]);
    graph.reduce("ReduceSum", &terms, &[0], false)
}

/// Scales of sign planes: `[planes, rows]`, or `[planes, rows, in]` where columns have groups.
pub fn spread_scales<'m>(graph: &mut Graph<'m>, binary: &'m Binary) -> Value {
    let (planes, rows, cols, group) = (binary.planes, binary.rows, binary.cols, binary.group);
    let groups = cols.div_ceil(group);
    let dims = if groups == 1 { vec![planes, rows] } else { vec![planes, rows, groups] };
    let name = format!("{}.scale", binary.name);
    let scales = || binary.scales.clone();
    let scales = graph.wide(Constant::numbers(&name, &dims, binary.scale_dtype, scales));
    if groups == 1 {
        return scales;
    }
    let columns: Vec<i64> = (0..cols).map(|c| (c / group) as i64).collect();
    let columns = graph.ints(&columns);
    graph.with("Gather", &[&scales, &columns], &[("axis", Attribute::Int(2))])
}

/// Signs of `planes` matrices, −1 and 1 in f32: `[planes, rows, cols]`.
pub fn unpack_constant<'m>(
    graph: &mut Graph<'m>,
    name: &str,
    words: &'m [u32],
    planes: usize,
    [rows, cols]: [usize; 2],
) -> Value {
    let line = 4 * cols.div_ceil(32);
    let dims = [planes, rows, line];
    let bytes = graph.constant(&format!("{name}.signs"), Type::U8, &dims, move || {
        bytemuck::cast_slice(words).to_vec()
    });
    unpack(graph, &bytes, cols)
}

/// Bits of bytes, lowest first, as −1 and 1 in f32: `[a, b, bytes]` to `[a, b, cols]`.
pub fn unpack(graph: &mut Graph, bytes: &str, cols: usize) -> Value {
    let each = graph.unsqueeze(bytes, &[-1]);
    let shifts = graph.bytes(&[0, 1, 2, 3, 4, 5, 6, 7]);
    let right = [("direction", Attribute::Text("RIGHT"))];
    let shifted = graph.with("BitShift", &[&each, &shifts], &right);
    let one = graph.bytes(&[1]);
    let bits = graph.op("BitwiseAnd", &[&shifted, &one]);
    let bits = graph.reshape(&bits, &[0, 0, -1]);
    let bits = graph.slice(&bits, 2, 0, cols as i64);
    let bits = graph.cast(&bits, Type::F32);
    let (two, one) = (graph.float(2.0), graph.float(1.0));
    let twice = graph.op("Mul", &[&bits, &two]);
    graph.op("Sub", &[&twice, &one])
}

/// One plane as `MatMulNBits` with two bits: codes 1 and 3 stand for −1 and +1 around 2 (notes on interoperability, §3).
fn nbits<'m>(graph: &mut Graph<'m>, binary: &'m Binary, plane: usize, x: &str) -> Value {
    let (rows, cols) = (binary.rows, binary.cols);
    let (blocks, words) = (cols.div_ceil(BLOCK), words(binary, plane));
    let line = cols.div_ceil(32);
    let at = format!("{}.plane{plane}", binary.name);
    let dims = [rows, blocks, BLOCK / 4];
    let codes = graph.constant(&format!("{at}.codes"), Type::U8, &dims, move || {
        let mut out = vec![0u8; rows * blocks * BLOCK / 4];
        for (out, row) in out.chunks_exact_mut(blocks * BLOCK / 4).zip(words.chunks_exact(line)) {
            for (out, &word) in out.chunks_exact_mut(8).zip(row) {
                out.copy_from_slice(
                    &(spread_bits(word) << 1 | 0x5555_5555_5555_5555).to_le_bytes(),
                );
            }
        }
        out
    });
    let scales = move || {
        let scales = &binary.scales[plane * rows..(plane + 1) * rows];
        scales.iter().flat_map(|&s| vec![s; blocks]).collect()
    };
    let scales = graph.floats(&format!("{at}.scale"), &[rows, blocks], scales);
    let int = |n: usize| Attribute::Int(n as i64);
    graph.contrib(
        "MatMulNBits",
        &[x, &codes, &scales],
        &[
            ("K", int(cols)),
            ("N", int(rows)),
            ("bits", int(2)),
            ("block_size", int(BLOCK)),
            ("accuracy_level", int(4)),
        ],
    )
}

/// Bit i of a word to bit 2i.
pub fn spread_bits(word: u32) -> u64 {
    (0..32).fold(0, |out, i| out | ((word >> i & 1) as u64) << (2 * i))
}
