//! Reads a file of ours as a stranger would, and runs it in f64: slow, small, and written from the operators'
//! specification, for tests.

mod parse;

pub use parse::read;

use parse::{File, Node};
use std::collections::HashMap;

/// An array of any type; integers are whole numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    pub dims: Vec<usize>,
    pub values: Vec<f64>,
    /// Division cuts off the rest.
    whole: bool,
}

impl Array {
    pub fn whole(dims: &[usize], values: impl IntoIterator<Item = i64>) -> Array {
        let values = values.into_iter().map(|v| v as f64).collect();
        Array { dims: dims.to_vec(), values, whole: true }
    }

    fn real(dims: Vec<usize>, values: Vec<f64>) -> Array {
        Array { dims, values, whole: false }
    }

    /// Products of the sides behind each.
    fn strides(&self) -> Vec<usize> {
        strides(&self.dims)
    }

    fn list(&self) -> Vec<i64> {
        self.values.iter().map(|&v| v as i64).collect()
    }

    /// The place of a side, counted from behind where it is negative.
    fn axis(&self, axis: i64) -> usize {
        if axis < 0 { (axis + self.dims.len() as i64) as usize } else { axis as usize }
    }

    /// Sides in front of `axis`, its own, and behind, each as one.
    fn around(&self, axis: usize) -> (usize, usize, usize) {
        let product = |dims: &[usize]| dims.iter().product();
        (product(&self.dims[..axis]), self.dims[axis], product(&self.dims[axis + 1..]))
    }
}

fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i];
    }
    strides
}

impl File {
    /// The outputs by name.
    pub fn run(&self, inputs: &[(&str, Array)]) -> HashMap<String, Array> {
        let mut values: HashMap<&str, Array> =
            self.constants.iter().map(|(name, array)| (name.as_str(), array.clone())).collect();
        for (name, array) in inputs {
            if self.inputs.iter().any(|i| i == name) {
                values.insert(name, array.clone());
            }
        }
        for node in &self.nodes {
            let inputs: Vec<&Array> = node.inputs.iter().map(|i| &values[i.as_str()]).collect();
            let outputs = apply(node, &inputs);
            for (name, array) in node.outputs.iter().zip(outputs) {
                values.insert(name, array);
            }
        }
        self.outputs.iter().map(|name| (name.clone(), values[name.as_str()].clone())).collect()
    }
}

fn apply(node: &Node, x: &[&Array]) -> Vec<Array> {
    let truth = |b: bool| f64::from(u8::from(b));
    let pair = |f: &dyn Fn(f64, f64) -> f64| vec![broadcast(x[0], x[1], f)];
    let each = |f: &dyn Fn(f64) -> f64| {
        vec![Array { values: x[0].values.iter().map(|&v| f(v)).collect(), ..x[0].clone() }]
    };
    match node.op.as_str() {
        "Add" => pair(&|a, b| a + b),
        "Sub" => pair(&|a, b| a - b),
        "Mul" => pair(&|a, b| a * b),
        "Div" if x[0].whole => pair(&|a, b| (a / b).trunc()),
        "Div" => pair(&|a, b| a / b),
        "Mod" => pair(&|a, b| a.rem_euclid(b)),
        "Pow" => pair(&f64::powf),
        "Min" => pair(&f64::min),
        "Max" => pair(&f64::max),
        "Equal" => pair(&|a, b| truth(a == b)),
        "Less" => pair(&|a, b| truth(a < b)),
        "And" => pair(&|a, b| a * b),
        "Or" => pair(&f64::max),
        "BitShift" => pair(&|a, b| f64::from(a as u32 >> b as u32)),
        "BitwiseAnd" => pair(&|a, b| f64::from(a as u32 & b as u32)),
        "Not" => each(&|a| 1.0 - a),
        "Neg" => each(&|a| -a),
        "Abs" => each(&f64::abs),
        "Sign" => each(&|a| if a == 0.0 { 0.0 } else { a.signum() }),
        "Floor" => each(&f64::floor),
        "Round" => each(&f64::round_ties_even),
        "Sqrt" => each(&f64::sqrt),
        "Tanh" => each(&f64::tanh),
        "Sigmoid" => each(&|a| 1.0 / (1.0 + (-a).exp())),
        "Relu" => each(&|a| a.max(0.0)),
        "Erf" => each(&erf),
        "Identity" => each(&|a| a),
        "Clip" => each(&|a| a.clamp(x[1].values[0], x[2].values[0])),
        "Cast" => {
            let to = node.int("to", 1);
            let values = x[0].values.iter().map(|&v| if to == 1 { v } else { v.trunc() }).collect();
            vec![Array { dims: x[0].dims.clone(), values, whole: to != 1 }]
        }
        "Where" => {
            let chosen = broadcast(x[0], x[1], &|c, a| if c != 0.0 { a } else { f64::NAN });
            let mut out = broadcast(&chosen, x[2], &|a, b| if a.is_nan() { b } else { a });
            out.whole = x[1].whole;
            vec![out]
        }
        "MatMul" | "MatMulInteger" => vec![matmul(x[0], x[1])],
        "Gemm" => vec![broadcast(&matmul(x[0], x[1]), x[2], &|a, b| a + b)],
        "QuantizeLinear" | "DequantizeLinear" => {
            assert_eq!(node.int("axis", 1), 0, "as it is used here");
            let (rows, mut out) = (x[1].values.len(), x[0].clone());
            let zero = |row: usize| x.get(2).map_or(0.0, |z| z.values[row]);
            let width = out.values.len() / rows;
            for (i, v) in out.values.iter_mut().enumerate() {
                let (scale, zero) = (x[1].values[i / width], zero(i / width));
                *v = match node.op.as_str() {
                    "QuantizeLinear" => ((*v / scale).round_ties_even() + zero).clamp(0.0, 255.0),
                    _ => (*v - zero) * scale,
                };
            }
            out.whole = node.op == "QuantizeLinear";
            vec![out]
        }
        "Shape" => {
            let rank = x[0].dims.len() as i64;
            let (start, end) = (node.int("start", 0), node.int("end", rank));
            let from = if start < 0 { start + rank } else { start };
            let to = if end <= 0 { end + rank } else { end };
            let sides = &x[0].dims[from as usize..to as usize];
            vec![Array::whole(&[sides.len()], sides.iter().map(|&d| d as i64))]
        }
        "Range" => {
            let n = x[1].values[0] as i64;
            vec![Array::whole(&[n as usize], 0..n)]
        }
        "Reshape" => {
            let mut dims: Vec<usize> = Vec::new();
            let asked = x[1].list();
            for (i, &side) in asked.iter().enumerate() {
                dims.push(match side {
                    0 => x[0].dims[i],
                    -1 => 1,
                    n => n as usize,
                });
            }
            if let Some(at) = asked.iter().position(|&s| s == -1) {
                dims[at] = x[0].values.len() / dims.iter().product::<usize>();
            }
            assert_eq!(dims.iter().product::<usize>(), x[0].values.len(), "{node:?}");
            vec![Array { dims, ..x[0].clone() }]
        }
        "Unsqueeze" => {
            let rank = x[0].dims.len() + x[1].values.len();
            let axes: Vec<usize> =
                x[1].list().iter().map(|&a| (a.rem_euclid(rank as i64)) as usize).collect();
            let mut sides = x[0].dims.iter();
            let dims =
                (0..rank).map(|i| if axes.contains(&i) { 1 } else { *sides.next().unwrap() });
            vec![Array { dims: dims.collect(), ..x[0].clone() }]
        }
        "Squeeze" => {
            let mut dims = x[0].dims.clone();
            assert_eq!(dims.remove(x[1].values[0] as usize), 1);
            vec![Array { dims, ..x[0].clone() }]
        }
        "Transpose" => {
            let perm: Vec<usize> = node.ints["perm"].iter().map(|&p| p as usize).collect();
            let dims: Vec<usize> = perm.iter().map(|&p| x[0].dims[p]).collect();
            let from = x[0].strides();
            let steps: Vec<usize> = perm.iter().map(|&p| from[p]).collect();
            vec![Array {
                values: walk(&dims, &steps).map(|i| x[0].values[i]).collect(),
                dims,
                ..x[0].clone()
            }]
        }
        "Expand" => {
            let shape: Vec<usize> = x[1].list().iter().map(|&d| d as usize).collect();
            let ones =
                Array { values: vec![0.0; shape.iter().product()], dims: shape, whole: x[0].whole };
            vec![broadcast(x[0], &ones, &|a, _| a)]
        }
        "Concat" => {
            let axis = x[0].axis(node.int("axis", 0));
            let (outer, _, inner) = x[0].around(axis);
            let mut values = Vec::new();
            for o in 0..outer {
                for a in x {
                    let line = a.dims[axis] * inner;
                    values.extend(&a.values[o * line..(o + 1) * line]);
                }
            }
            let mut dims = x[0].dims.clone();
            dims[axis] = x.iter().map(|a| a.dims[axis]).sum();
            vec![Array { dims, values, whole: x[0].whole }]
        }
        "Slice" => {
            let axis = x[0].axis(x[3].values[0] as i64);
            let (outer, side, inner) = x[0].around(axis);
            let (from, to) = (x[1].values[0] as usize, (x[2].values[0] as usize).min(side));
            let values = (0..outer).flat_map(|o| {
                x[0].values[(o * side + from) * inner..(o * side + to) * inner].to_vec()
            });
            let mut dims = x[0].dims.clone();
            dims[axis] = to - from;
            vec![Array { dims, values: values.collect(), whole: x[0].whole }]
        }
        "Gather" => {
            let axis = x[0].axis(node.int("axis", 0));
            let (outer, side, inner) = x[0].around(axis);
            let mut values = Vec::new();
            for o in 0..outer {
                for &i in &x[1].values {
                    assert!((i as usize) < side && i >= 0.0, "{node:?} takes {i} of {side}");
                    let at = (o * side + i as usize) * inner;
                    values.extend(&x[0].values[at..at + inner]);
                }
            }
            let dims = [&x[0].dims[..axis], &x[1].dims, &x[0].dims[axis + 1..]].concat();
            vec![Array { dims, values, whole: x[0].whole }]
        }
        "GatherElements" => {
            let axis = x[0].axis(node.int("axis", 0));
            assert_eq!((axis, x[0].dims.len()), (1, 2), "as it is used here");
            let width = x[1].dims[1];
            let value =
                |(i, &place): (usize, &f64)| x[0].values[i / width * x[0].dims[1] + place as usize];
            let values = x[1].values.iter().enumerate().map(value).collect();
            vec![Array { dims: x[1].dims.clone(), values, whole: x[0].whole }]
        }
        "GatherND" => {
            assert_eq!((node.int("batch_dims", 0), x[1].dims[2]), (1, 1), "as it is used here");
            let (most, tokens, width) = (x[1].dims[1], x[0].dims[1], x[0].dims[2]);
            let row = |(i, &place): (usize, &f64)| {
                let at = (i / most * tokens + place as usize) * width;
                x[0].values[at..at + width].to_vec()
            };
            let values = x[1].values.iter().enumerate().flat_map(row).collect();
            vec![Array { dims: vec![x[0].dims[0], most, width], values, whole: x[0].whole }]
        }
        "ScatterElements" => {
            let axis = x[0].axis(node.int("axis", 0));
            assert_eq!((axis, x[0].dims.len()), (1, 3), "as it is used here");
            let mut out = x[0].clone();
            let (rows, width) = (x[1].dims[1], x[1].dims[2]);
            for (i, (&place, &value)) in x[1].values.iter().zip(&x[2].values).enumerate() {
                let (b, c) = (i / (rows * width), i % width);
                out.values[(b * x[0].dims[1] + place as usize) * width + c] = value;
            }
            vec![out]
        }
        "CumSum" => {
            let width = x[0].dims[1];
            let mut out = x[0].clone();
            for row in out.values.chunks_exact_mut(width) {
                (1..width).for_each(|i| row[i] += row[i - 1]);
            }
            vec![out]
        }
        "ReduceSum" => vec![reduce(node, x, 0.0, &|a, b| a + b)],
        "ReduceMax" => vec![reduce(node, x, f64::NEG_INFINITY, &f64::max)],
        "ReduceMin" => vec![reduce(node, x, f64::INFINITY, &f64::min)],
        "Softmax" => {
            let mut out = x[0].clone();
            for row in out.values.chunks_exact_mut(*x[0].dims.last().unwrap()) {
                let most = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
                row.iter_mut().for_each(|v| *v = (*v - most).exp());
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|v| *v /= sum);
            }
            vec![out]
        }
        "LayerNormalization" => {
            let mut out = x[0].clone();
            let width = *x[0].dims.last().unwrap();
            for row in out.values.chunks_exact_mut(width) {
                let mean = row.iter().sum::<f64>() / width as f64;
                let spread = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
                for (i, v) in row.iter_mut().enumerate() {
                    let normal = (*v - mean) / (spread + node.floats["epsilon"]).sqrt();
                    *v = normal * x[1].values[i] + x[2].values[i];
                }
            }
            vec![out]
        }
        "TopK" => {
            let (width, k) = (*x[0].dims.last().unwrap(), x[1].values[0] as usize);
            let largest = node.int("largest", 1) == 1;
            let (mut values, mut places) = (Vec::new(), Vec::new());
            for row in x[0].values.chunks_exact(width) {
                let mut order: Vec<usize> = (0..width).collect();
                order.sort_by(|&a, &b| match largest {
                    true => row[b].total_cmp(&row[a]),
                    false => row[a].total_cmp(&row[b]),
                });
                values.extend(order[..k].iter().map(|&i| row[i]));
                places.extend(order[..k].iter().map(|&i| i as f64));
            }
            let dims = vec![x[0].dims[0], k];
            let values = Array { dims: dims.clone(), values, whole: x[0].whole };
            vec![values, Array { dims, values: places, whole: true }]
        }
        other => panic!("operator {other}"),
    }
}

/// Places of an array of `dims` in row-major order, `steps` apart.
fn walk<'a>(dims: &'a [usize], steps: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
    let own = strides(dims);
    (0..dims.iter().product()).map(move |i: usize| {
        own.iter()
            .zip(dims)
            .zip(steps)
            .map(|((&stride, &dim), &step)| i / stride % dim * step)
            .sum()
    })
}

fn broadcast(a: &Array, b: &Array, f: &dyn Fn(f64, f64) -> f64) -> Array {
    let rank = a.dims.len().max(b.dims.len());
    let full = |x: &Array| [vec![1; rank - x.dims.len()], x.dims.clone()].concat();
    let (da, db) = (full(a), full(b));
    let side = |(&a, &b): (&usize, &usize)| {
        assert!(a == b || a == 1 || b == 1, "{da:?} beside {db:?}");
        if a == 1 { b } else { a }
    };
    let dims: Vec<usize> = da.iter().zip(&db).map(side).collect();
    let steps = |d: &[usize]| -> Vec<usize> {
        strides(d).iter().zip(d).map(|(&s, &d)| if d == 1 { 0 } else { s }).collect()
    };
    let (sa, sb) = (steps(&da), steps(&db));
    let values =
        walk(&dims, &sa).zip(walk(&dims, &sb)).map(|(i, j)| f(a.values[i], b.values[j])).collect();
    Array { values, dims, whole: a.whole }
}

fn matmul(a: &Array, b: &Array) -> Array {
    let (n, k) = (a.dims[a.dims.len() - 2], a.dims[a.dims.len() - 1]);
    let m = b.dims[b.dims.len() - 1];
    assert_eq!(b.dims[b.dims.len() - 2], k, "{:?} by {:?}", a.dims, b.dims);
    let numbers = |x: &Array| {
        let dims = x.dims[..x.dims.len() - 2].to_vec();
        let count = dims.iter().product::<usize>() as i64;
        Array::whole(&dims, 0..count)
    };
    let (na, nb) = (numbers(a), numbers(b));
    let (ia, ib) = (broadcast(&na, &nb, &|a, _| a), broadcast(&na, &nb, &|_, b| b));
    let mut values = Vec::new();
    for (&i, &j) in ia.values.iter().zip(&ib.values) {
        let (a, b) = (&a.values[i as usize * n * k..], &b.values[j as usize * k * m..]);
        for r in 0..n {
            for c in 0..m {
                values.push((0..k).map(|t| a[r * k + t] * b[t * m + c]).sum());
            }
        }
    }
    Array::real([&ia.dims[..], &[n, m]].concat(), values)
}

fn reduce(node: &Node, x: &[&Array], start: f64, f: &dyn Fn(f64, f64) -> f64) -> Array {
    let axes: Vec<usize> = x[1].list().iter().map(|&a| x[0].axis(a)).collect();
    let dims: Vec<usize> =
        x[0].dims.iter().enumerate().map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect();
    let own = strides(&dims);
    let steps: Vec<usize> =
        (0..dims.len()).map(|i| if axes.contains(&i) { 0 } else { own[i] }).collect();
    let mut values = vec![start; dims.iter().product()];
    for (to, &v) in walk(&x[0].dims, &steps).zip(&x[0].values) {
        values[to] = f(values[to], v);
    }
    let kept = |(i, &d): (usize, &usize)| {
        (node.int("keepdims", 1) == 1 || !axes.contains(&i)).then_some(d)
    };
    Array { dims: dims.iter().enumerate().filter_map(kept).collect(), values, whole: x[0].whole }
}

/// By its series near 0, and by its continued fraction elsewhere.
fn erf(x: f64) -> f64 {
    if x.abs() > 3.0 {
        let mut tail = 0.0;
        for n in (1..60).rev() {
            tail = n as f64 / 2.0 / (x.abs() + tail);
        }
        let rest = (-x * x).exp() / std::f64::consts::PI.sqrt() / (x.abs() + tail);
        return x.signum() * (1.0 - rest);
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..80 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    2.0 / std::f64::consts::PI.sqrt() * sum
}
