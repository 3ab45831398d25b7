//! Rows of the word table, in every form that it is stored in. Nothing expands it: a graph looks rows up.

use super::graph::{Constant, Graph, Value};
use super::linear::{factor_dtype, spread_scales, unpack, unpack_constant, words};
use super::proto::Type;
use crate::model::{Binary, Codes, DoubleBinary, Exact, Subspace, Weight};

/// Rows `ids`, `[batch, tokens]`, as `[batch, tokens, cols]` in f32.
pub fn rows<'m>(graph: &mut Graph<'m>, table: &'m Weight, ids: &str) -> Value {
    match table {
        Weight::Dense(tensor) => graph.rows(tensor, ids),
        Weight::Int8(int8) => {
            let [codes, scale] = &int8.tensors()[..] else { unreachable!("codes and scales") };
            let codes = graph.stored(codes);
            let codes = graph.op("Gather", &[&codes, ids]);
            let codes = graph.cast(&codes, Type::F32);
            let scale = graph.rows(scale, ids);
            let scale = graph.unsqueeze(&scale, &[-1]);
            graph.op("Mul", &[&codes, &scale])
        }
        Weight::Binary(binary) => planes(graph, binary, ids),
        Weight::Double(double) => factors(graph, double, ids),
        Weight::Subspace(subspace) => {
            let rows = codewords(graph, subspace, ids);
            let shape = [subspace.rows, subspace.cols];
            exact(graph, &subspace.name, &subspace.exact, shape, ids, rows)
        }
        Weight::Factored(factored) => {
            let u = graph.rows(&factored.u, ids);
            let dims = [factored.rank, factored.cols];
            let name = format!("{}.factor_v", factored.name);
            let v = || factored.v.clone();
            let v = graph.wide(Constant::numbers(&name, &dims, factored.v_dtype, v));
            let rows = graph.op("MatMul", &[&u, &v]);
            let shape = [factored.rows, factored.cols];
            exact(graph, &factored.name, &factored.exact, shape, ids, rows)
        }
    }
}

/// All rows, `[rows, cols]`: runtimes make them once, when they load the graph.
pub fn all<'m>(graph: &mut Graph<'m>, table: &'m Weight) -> Value {
    if let Weight::Dense(tensor) = table {
        return graph.wide(tensor);
    }
    let ids: Vec<i64> = (0..table.rows() as i64).collect();
    let ids = graph.ints(&ids);
    let ids = graph.unsqueeze(&ids, &[0]);
    let rows = rows(graph, table, &ids);
    graph.reshape(&rows, &[table.rows() as i64, table.cols() as i64])
}

/// Codewords side by side, turned back, and the mean.
fn codewords<'m>(graph: &mut Graph<'m>, table: &'m Subspace, ids: &str) -> Value {
    let Subspace { name, cols, slices, words, width, .. } = table;
    let codes = match &table.codes {
        Codes::Stored(codes) => {
            let stored = graph.stored(&codes.clone().renamed(format!("{name}.pq_codes")));
            let codes = graph.op("Gather", &[&stored, ids]);
            graph.cast(&codes, Type::I64)
        }
        Codes::Digits => {
            let powers: Vec<i64> = (0..*slices).map(|m| (*words as i64).pow(m as u32)).collect();
            let (powers, base) = (graph.ints(&powers), graph.int(*words as i64));
            let ids = graph.unsqueeze(ids, &[-1]);
            let shifted = graph.op("Div", &[&ids, &powers]);
            graph.op("Mod", &[&shifted, &base])
        }
    };
    let places = match table.book_count() {
        1 => codes,
        _ => {
            let starts: Vec<i64> = (0..*slices).map(|m| (m * words) as i64).collect();
            let starts = graph.ints(&starts);
            graph.op("Add", &[&codes, &starts])
        }
    };
    let shape = [table.book_count() * words, *width];
    let at = format!("{name}.pq_codebooks");
    let books = Constant::numbers(&at, &shape, table.books_dtype, || table.books.clone());
    let found = graph.rows(books, &places);
    let mut rows = graph.reshape(&found, &[0, 0, (slices * width) as i64]);
    if slices * width > *cols {
        rows = graph.slice(&rows, 2, 0, *cols as i64);
    }
    if let Some(rotation) = &table.rotation {
        let (block, blocks) = (rotation.block, cols / rotation.block);
        // A row times the transpose of its block.
        let flipped = move |i: usize| {
            let (b, r, c) = (i / (block * block), i / block % block, i % block);
            rotation.values[(b * block + c) * block + r]
        };
        let flipped = move || (0..rotation.values.len()).map(flipped).collect();
        let dims = if blocks == 1 { vec![block, block] } else { vec![blocks, block, block] };
        let at = format!("{name}.pq_rotation");
        let matrix = graph.wide(Constant::numbers(&at, &dims, rotation.dtype, flipped));
        rows = match blocks {
            1 => graph.op("MatMul", &[&rows, &matrix]),
            _ => {
                let cut = graph.reshape(&rows, &[0, 0, blocks as i64, 1, block as i64]);
                let turned = graph.op("MatMul", &[&cut, &matrix]);
                graph.reshape(&turned, &[0, 0, *cols as i64])
            }
        };
    }
    if let Some(mean) = &table.mean {
        let mean = graph.floats(&format!("{name}.pq_mean"), &[*cols], || mean.clone());
        rows = graph.op("Add", &[&rows, &mean]);
    }
    rows
}

/// `rows`, but for ids that are stored as they are. A list says where: 0 for the others.
fn exact<'m>(
    graph: &mut Graph<'m>,
    name: &str,
    exact: &'m Exact,
    [count, cols]: [usize; 2],
    ids: &str,
    rows: Value,
) -> Value {
    if exact.ids.is_empty() {
        return rows;
    }
    let places = graph.constant(&format!("{name}.exact_places"), Type::I32, &[count], move || {
        let mut places = vec![0i32; count];
        exact.ids.iter().enumerate().for_each(|(i, &id)| places[id as usize] = i as i32 + 1);
        bytemuck::cast_slice(&places).to_vec()
    });
    let place = graph.op("Gather", &[&places, ids]);
    let (at, dims) = (format!("{name}.exact_rows"), [exact.ids.len() + 1, cols]);
    let kept = move || [&vec![0.0; cols][..], &exact.rows].concat();
    let kept = graph.rows(Constant::numbers(&at, &dims, exact.dtype, kept), &place);
    let none = graph.small_i32(0);
    let coded = graph.op("Equal", &[&place, &none]);
    let coded = graph.unsqueeze(&coded, &[-1]);
    graph.op("Where", &[&coded, &rows, &kept])
}

/// Sign planes of the rows, their scales, and the residual.
fn planes<'m>(graph: &mut Graph<'m>, binary: &'m Binary, ids: &str) -> Value {
    let (name, rows, cols, planes) = (&binary.name, binary.rows, binary.cols, binary.planes);
    let line = cols.div_ceil(32);
    let scales = spread_scales(graph, binary); // [planes, rows] or [planes, rows, cols]
    let mut total: Option<Value> = None;
    for plane in 0..planes {
        let words = words(binary, plane);
        let at = format!("{name}.plane{plane}.signs");
        let bytes = graph.constant(&at, Type::U8, &[rows, 4 * line], move || {
            bytemuck::cast_slice(words).to_vec()
        });
        let bytes = graph.op("Gather", &[&bytes, ids]);
        let signs = unpack(graph, &bytes, cols);
        let index = graph.int(plane as i64);
        let scale = graph.op("Gather", &[&scales, &index]);
        let scale = graph.op("Gather", &[&scale, ids]);
        let scale = if binary.group < cols { scale } else { graph.unsqueeze(&scale, &[-1]) };
        let term = graph.op("Mul", &[&signs, &scale]);
        total = Some(match total {
            Some(total) => graph.op("Add", &[&total, &term]),
            None => term,
        });
    }
    let total = total.expect("a plane");
    let Some(low) = &binary.low_rank else { return total };
    let factor = |part: &str, dims: [usize; 2], values: &'m [f32]| {
        Constant::numbers(&format!("{name}.{part}"), &dims, factor_dtype(low), || values.to_vec())
    };
    let u = graph.rows(factor("lowrank_u", [rows, low.rank], &low.u), ids);
    let v = graph.wide(factor("lowrank_v", [low.rank, cols], &low.v));
    let residual = graph.op("MatMul", &[&u, &v]);
    graph.op("Add", &[&total, &residual])
}

/// Rows of a matrix of two binary factors.
fn factors<'m>(graph: &mut Graph<'m>, double: &'m DoubleBinary, ids: &str) -> Value {
    let DoubleBinary { name, rows, cols, rank, u, v, a, m, b } = double;
    let (rows, cols, rank) = (*rows, *cols, *rank);
    let line = 4 * rank.div_ceil(32);
    let bytes = graph.constant(&format!("{name}.u.signs"), Type::U8, &[rows, line], move || {
        bytemuck::cast_slice(u).to_vec()
    });
    let bytes = graph.op("Gather", &[&bytes, ids]);
    let signs = unpack(graph, &bytes, rank);
    let m = graph.floats(&format!("{name}.m"), &[rank], || m.values.clone());
    let inner = graph.op("Mul", &[&signs, &m]);
    let v = unpack_constant(graph, &format!("{name}.v"), v, 1, [rank, cols]);
    let v = graph.reshape(&v, &[rank as i64, cols as i64]);
    let outer = graph.op("MatMul", &[&inner, &v]);
    let b = graph.floats(&format!("{name}.b"), &[cols], || b.values.clone());
    let outer = graph.op("Mul", &[&outer, &b]);
    let a = graph.floats(&format!("{name}.a"), &[rows, 1], || a.values.clone());
    let a = graph.op("Gather", &[&a, ids]);
    graph.op("Mul", &[&outer, &a])
}
