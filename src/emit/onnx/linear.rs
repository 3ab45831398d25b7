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

/// A token's numbers on levels of its own: `(code − zero) · scale`, as `runtime::kernels::rounded` has them. The
/// operators that quantise in ONNX know one scale for a whole tensor.
#[derive(Debug, Clone)]
struct Rounded {
    /// f32, whole numbers.
    code: Value,
    scale: Value,
    zero: Value,
    /// `code` in bytes, and `(code − zero) · scale`, once somebody asked for them.
    bytes: Option<Value>,
    values: Option<Value>,
}

/// Columns that share a scale in `MatMulNBits`: the largest block that has a fast kernel in ONNX Runtime.
const BLOCK: usize = 128;

impl Linears {
    pub fn new(sign_planes: SignPlanes) -> Linears {
        Linears { sign_planes, rounded: HashMap::new() }
    }

    /// The layer over `x`, `[.., in]`. `like`: a value with the same sides but the last, where the layer has no inputs.
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
        let product = match weight {
            Weight::Dense(tensor) => {
                let inputs = self.values(graph, x, bits);
                let matrix = transposed(graph, Constant::from(tensor));
                graph.op("MatMul", &[&inputs, &matrix])
            }
            Weight::Int8(int8) => self.int8(graph, int8, x, bits),
            Weight::Binary(binary) => self.planes(graph, binary, x, bits),
            Weight::Double(double) => self.double(graph, double, x, bits),
            // Of tables alone; a layer cannot have them.
            Weight::Subspace(_) | Weight::Factored(_) => {
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

    fn int8<'m>(
        &mut self,
        graph: &mut Graph<'m>,
        int8: &'m Int8,
        x: &str,
        bits: Option<u32>,
    ) -> Value {
        let (name, rows, cols) = (&int8.name, int8.rows, int8.cols);
        let codes = graph.constant(&format!("{name}.codes"), Type::I8, &[cols, rows], move || {
            flip(bytemuck::cast_slice(&int8.codes), [rows, cols], 1)
        });
        let scale = || int8.scales.values.clone();
        let scale = graph.floats(&format!("{name}.scale"), &[rows], scale);
        if bits.is_none() {
            let codes = graph.cast(&codes, Type::F32);
            let product = graph.op("MatMul", &[x, &codes]);
            return graph.op("Mul", &[&product, &scale]);
        }
        let sum = |row: &[i8]| row.iter().map(|&c| c as f32).sum();
        let sums = move || int8.codes.chunks_exact(cols).map(sum).collect();
        let sums = graph.floats(&format!("{name}.sums"), &[rows], sums);
        let product = self.by_bytes(graph, &codes, &sums, x, bits);
        let product = graph.op("Mul", &[&product, &scale]);
        let rounded = self.rounded(graph, x, bits.unwrap_or_default());
        graph.op("Mul", &[&product, &rounded.scale])
    }

    /// Sign planes and their residual.
    fn planes<'m>(
        &mut self,
        graph: &mut Graph<'m>,
        binary: &'m Binary,
        x: &str,
        bits: Option<u32>,
    ) -> Value {
        let (name, rows, cols) = (&binary.name, binary.rows, binary.cols);
        let grouped = binary.group < cols;
        let product = match (self.sign_planes, bits) {
            (SignPlanes::Nbits, _) => {
                let terms =
                    (0..binary.planes).map(|plane| nbits(graph, binary, plane, x)).collect();
                sum(graph, terms)
            }
            (_, Some(8)) if binary.planes > 1 && !grouped => self.levels(graph, binary, x),
            (_, Some(bits)) if !grouped => {
                let mut terms = Vec::new();
                for plane in 0..binary.planes {
                    let words = words(binary, plane);
                    let at = format!("{name}.plane{plane}");
                    let term = self.signs_by_bytes(graph, &at, words, [rows, cols], x, bits);
                    let scales = move || binary.scales[plane * rows..(plane + 1) * rows].to_vec();
                    let scales = graph.floats(&format!("{at}.scale"), &[rows], scales);
                    terms.push(graph.op("Mul", &[&term, &scales]));
                }
                let total = sum(graph, terms);
                let rounded = self.rounded(graph, x, bits);
                graph.op("Mul", &[&total, &rounded.scale])
            }
            _ => {
                let inputs = self.values(graph, x, bits);
                let matrix = unpacked(graph, binary);
                let matrix = graph.transpose(&matrix, &[1, 0]);
                graph.op("MatMul", &[&inputs, &matrix])
            }
        };
        let Some(low) = &binary.low_rank else { return product };
        // Beside planes with a scale a row the residual sees inputs as they are.
        let inputs = if grouped { self.values(graph, x, bits) } else { x.to_string() };
        let [u, v] = factors(graph, name, low, rows, cols);
        let inner = graph.op("MatMul", &[&inputs, &v]);
        let residual = graph.op("MatMul", &[&inner, &u]);
        graph.op("Add", &[&product, &residual])
    }

    /// Several planes as whole numbers up to 64, one product for all, as the runtime has them.
    fn levels<'m>(&mut self, graph: &mut Graph<'m>, binary: &'m Binary, x: &str) -> Value {
        let (name, rows, cols, planes) = (&binary.name, binary.rows, binary.cols, binary.planes);
        let of_row = move |r: usize| {
            let scales: Vec<f32> = (0..planes).map(|k| binary.scales[k * rows + r]).collect();
            whole_levels(&scales, Int8::MOST)
        };
        // A row of zeros has no unit, and needs none.
        let units = move || (0..rows).map(|r| of_row(r).1.max(1e-30)).collect();
        let units = graph.floats(&format!("{name}.unit"), &[rows], units);
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
                let unit = graph.unsqueeze(&units, &[-1]);
                let steps = graph.op("Div", &[&matrix, &unit]);
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
        let sums = graph.reduce("ReduceSum", &wide, &[0], false);
        let product = self.by_bytes(graph, &codes, &sums, x, Some(8));
        let product = graph.op("Mul", &[&product, &units]);
        let rounded = self.rounded(graph, x, 8);
        graph.op("Mul", &[&product, &rounded.scale])
    }

    /// Two binary factors. Between them there are at least 8 bits.
    fn double<'m>(
        &mut self,
        graph: &mut Graph<'m>,
        double: &'m DoubleBinary,
        x: &str,
        bits: Option<u32>,
    ) -> Value {
        let DoubleBinary { name, rows, cols, rank, u, v, a, m, b } = double;
        let (rows, cols, rank) = (*rows, *cols, *rank);
        let mut scale = |part: &str, n: usize, scales: &'m Scales| {
            graph.floats(&format!("{name}.{part}"), &[n], || scales.values.clone())
        };
        let (a, m, b) = (scale("a", rows, a), scale("m", rank, m), scale("b", cols, b));
        let x = graph.op("Mul", &[x, &b]);
        let inner = self.signs(graph, &format!("{name}.v"), v, [rank, cols], &x, bits);
        let inner = graph.op("Mul", &[&inner, &m]);
        let bits = bits.map(|_| 8);
        let y = self.signs(graph, &format!("{name}.u"), u, [rows, rank], &inner, bits);
        graph.op("Mul", &[&y, &a])
    }

    /// The product with a matrix of signs, as this graph multiplies them.
    fn signs<'m>(
        &mut self,
        graph: &mut Graph<'m>,
        name: &str,
        words: &'m [u32],
        shape: [usize; 2],
        x: &str,
        bits: Option<u32>,
    ) -> Value {
        if let Some(bits) = bits {
            let product = self.signs_by_bytes(graph, name, words, shape, x, bits);
            let rounded = self.rounded(graph, x, bits);
            return graph.op("Mul", &[&product, &rounded.scale]);
        }
        let signs = unpack_constant(graph, name, words, 1, shape);
        let signs = graph.reshape(&signs, &[shape[0] as i64, shape[1] as i64]);
        let signs = graph.transpose(&signs, &[1, 0]);
        graph.op("MatMul", &[x, &signs])
    }

    /// Signs as bytes times the codes of `x`, still to be multiplied by the scale of each token.
    fn signs_by_bytes<'m>(
        &mut self,
        graph: &mut Graph<'m>,
        name: &str,
        words: &'m [u32],
        [rows, cols]: [usize; 2],
        x: &str,
        bits: u32,
    ) -> Value {
        let line = cols.div_ceil(32);
        let bit = move |row: usize, col: usize| words[row * line + col / 32] >> (col % 32) & 1 == 1;
        let bytes = match self.sign_planes {
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
        let ones = |row: &[u32]| row.iter().map(|w| w.count_ones()).sum::<u32>() as f32;
        let sum = move |row: &[u32]| 2.0 * ones(row) - cols as f32;
        let sums = move || words.chunks_exact(line).map(sum).collect();
        let sums = graph.floats(&format!("{name}.sums"), &[rows], sums);
        self.by_bytes(graph, &bytes, &sums, x, Some(bits))
    }

    /// `Σ (code − zero) · matrix`. The zero points differ from token to token, which `MatMulInteger` does not know in
    /// ONNX Runtime: their part is taken off behind it.
    fn by_bytes(
        &mut self,
        graph: &mut Graph,
        matrix: &str,
        sums: &str,
        x: &str,
        bits: Option<u32>,
    ) -> Value {
        let rounded = self.bytes(graph, x, bits.unwrap_or(8));
        let codes = rounded.bytes.expect("just asked for");
        let product = graph.op("MatMulInteger", &[&codes, matrix]);
        let product = graph.cast(&product, Type::F32);
        let shift = graph.op("Mul", &[&rounded.zero, sums]);
        graph.op("Sub", &[&product, &shift])
    }

    fn rounded(&mut self, graph: &mut Graph, x: &str, bits: u32) -> Rounded {
        if let Some(known) = self.rounded.get(&(x.to_string(), bits)) {
            return known.clone();
        }
        let zero = graph.float(0.0);
        let low = graph.reduce("ReduceMin", x, &[-1], true);
        let low = graph.op("Min", &[&low, &zero]);
        let high = graph.reduce("ReduceMax", x, &[-1], true);
        let high = graph.op("Max", &[&high, &zero]);
        let top = graph.float(((1 << bits) - 1) as f32);
        let range = graph.op("Sub", &[&high, &low]);
        let scale = graph.op("Div", &[&range, &top]);
        let least = graph.float(1e-30); // a token of zeros
        let scale = graph.op("Max", &[&scale, &least]);
        let start = graph.op("Div", &[&low, &scale]);
        let start = graph.op("Round", &[&start]);
        let zero_point = graph.op("Neg", &[&start]);
        let code = graph.op("Div", &[x, &scale]);
        let code = graph.op("Round", &[&code]);
        let code = graph.op("Add", &[&code, &zero_point]);
        let code = graph.op("Clip", &[&code, &zero, &top]);
        let rounded = Rounded { code, scale, zero: zero_point, bytes: None, values: None };
        self.rounded.insert((x.to_string(), bits), rounded.clone());
        rounded
    }

    fn bytes(&mut self, graph: &mut Graph, x: &str, bits: u32) -> Rounded {
        let mut rounded = self.rounded(graph, x, bits);
        if rounded.bytes.is_none() {
            rounded.bytes = Some(graph.cast(&rounded.code, Type::U8));
            self.rounded.insert((x.to_string(), bits), rounded.clone());
        }
        rounded
    }

    /// `x` as it is multiplied in f32: rounded, or as it is.
    fn values(&mut self, graph: &mut Graph, x: &str, bits: Option<u32>) -> Value {
        let Some(bits) = bits else { return x.to_string() };
        let mut rounded = self.rounded(graph, x, bits);
        if rounded.values.is_none() {
            let steps = graph.op("Sub", &[&rounded.code, &rounded.zero]);
            rounded.values = Some(graph.op("Mul", &[&steps, &rounded.scale]));
            self.rounded.insert((x.to_string(), bits), rounded.clone());
        }
        rounded.values.expect("just made")
    }
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
