//! Parses a file of ours: protobuf, and the messages of ONNX, by field numbers of their own.

use super::Array;
use std::collections::HashMap;

/// Fields of a message, in their order: number, integer, bytes.
fn fields(bytes: &[u8]) -> Vec<(u32, u64, &[u8])> {
    let (mut at, mut out) = (0, Vec::new());
    let varint = |at: &mut usize| -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[*at];
            *at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    };
    while at < bytes.len() {
        let key = varint(&mut at);
        let field = (key >> 3) as u32;
        match key & 7 {
            0 => {
                let value = varint(&mut at);
                out.push((field, value, &bytes[..0]));
            }
            2 => {
                let len = varint(&mut at) as usize;
                out.push((field, 0, &bytes[at..at + len]));
                at += len;
            }
            5 => {
                out.push((field, 0, &bytes[at..at + 4]));
                at += 4;
            }
            other => panic!("wire type {other}"),
        }
    }
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[derive(Debug)]
pub struct Node {
    pub op: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub ints: HashMap<String, Vec<i64>>,
    pub floats: HashMap<String, f64>,
}

impl Node {
    pub fn int(&self, name: &str, otherwise: i64) -> i64 {
        self.ints.get(name).map_or(otherwise, |list| list[0])
    }
}

#[derive(Debug)]
pub struct File {
    pub nodes: Vec<Node>,
    pub constants: HashMap<String, Array>,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub opset: u64,
}

/// Parses a model; `beside` is the file of external data.
///
/// # Panics
/// Where it breaks the rules: names that repeat, nodes before their inputs, bytes that do not fill a shape.
pub fn read(bytes: &[u8], beside: &[u8]) -> File {
    let mut file = File {
        nodes: Vec::new(),
        constants: HashMap::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        opset: 0,
    };
    for (field, _, value) in fields(bytes) {
        match field {
            7 => graph(value, beside, &mut file),
            8 => {
                let parts = fields(value);
                let domain = parts.iter().find(|f| f.0 == 1).map_or(String::new(), |f| text(f.2));
                if domain.is_empty() {
                    file.opset = parts.iter().find(|f| f.0 == 2).expect("a version").1;
                }
            }
            _ => {}
        }
    }
    let mut known: Vec<&String> = file.constants.keys().chain(&file.inputs).collect();
    for node in &file.nodes {
        for input in &node.inputs {
            assert!(known.contains(&input), "`{input}` of {node:?} comes later");
        }
        for output in &node.outputs {
            assert!(!known.contains(&output), "`{output}` is there twice");
            known.push(output);
        }
    }
    file
}

fn graph(bytes: &[u8], beside: &[u8], file: &mut File) {
    for (field, _, value) in fields(bytes) {
        let name = || text(fields(value).iter().find(|f| f.0 == 1).expect("a name").2);
        match field {
            1 => file.nodes.push(node(value)),
            5 => {
                let (name, array) = tensor(value, beside);
                assert!(
                    file.constants.insert(name.clone(), array).is_none(),
                    "`{name}` is there twice"
                );
            }
            11 => file.inputs.push(name()),
            12 => file.outputs.push(name()),
            _ => {}
        }
    }
}

fn node(bytes: &[u8]) -> Node {
    let mut node = Node {
        op: String::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        ints: HashMap::new(),
        floats: HashMap::new(),
    };
    for (field, _, value) in fields(bytes) {
        match field {
            1 => node.inputs.push(text(value)),
            2 => node.outputs.push(text(value)),
            4 => node.op = text(value),
            5 => {
                let parts = fields(value);
                let name = text(parts[0].2);
                for (field, int, value) in parts {
                    match field {
                        2 => {
                            let value = f32::from_le_bytes(value.try_into().expect("4 bytes"));
                            node.floats.insert(name.clone(), value.into());
                        }
                        3 | 8 => node.ints.entry(name.clone()).or_default().push(int as i64),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    node
}

fn tensor(bytes: &[u8], beside: &[u8]) -> (String, Array) {
    let (mut dims, mut kind, mut name, mut raw) = (Vec::new(), 0, String::new(), &[][..]);
    let mut outside = HashMap::new();
    for (field, int, value) in fields(bytes) {
        match field {
            1 => dims.push(int as usize),
            2 => kind = int,
            8 => name = text(value),
            9 => raw = value,
            13 => {
                let entry = fields(value);
                outside.insert(text(entry[0].2), text(entry[1].2));
            }
            _ => {}
        }
    }
    if let Some(start) = outside.get("offset") {
        let (start, len): (usize, usize) =
            (start.parse().unwrap(), outside["length"].parse().unwrap());
        assert_eq!(start % 4096, 0);
        raw = &beside[start..start + len];
    }
    let value = |b: &[u8]| -> f64 {
        match kind {
            1 => f32::from_le_bytes(b.try_into().unwrap()).into(),
            2 | 9 => b[0].into(),
            3 => (b[0] as i8).into(),
            4 => u16::from_le_bytes(b.try_into().unwrap()).into(),
            6 => i32::from_le_bytes(b.try_into().unwrap()).into(),
            7 => i64::from_le_bytes(b.try_into().unwrap()) as f64,
            10 => half::f16::from_le_bytes(b.try_into().unwrap()).to_f64(),
            other => panic!("type {other}"),
        }
    };
    let size = match kind {
        2 | 3 | 9 => 1,
        4 | 10 => 2,
        7 => 8,
        _ => 4,
    };
    let values: Vec<f64> = raw.chunks_exact(size).map(value).collect();
    assert_eq!(values.len(), dims.iter().product::<usize>(), "numbers of `{name}`");
    let whole = !matches!(kind, 1 | 10);
    (name, Array { dims, values, whole })
}
