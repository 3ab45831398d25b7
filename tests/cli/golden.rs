//! Against what Transformers computes for a checkpoint of each family (`../shared/golden`).

use crate::support::{Dir, Stored, shared, stored};
use std::collections::BTreeMap;

/// Largest difference at live positions, relative to the largest value there. Sums of 48 to 120 products
/// in f32 in another order differ by less than 1e-5; a wrong epsilon or activation by more than 1e-3.
const TOLERANCE: f32 = 1e-4;

const READ: &[&str] = &[
    "albert-classify",
    "deberta-v2-classify",
    "mobilebert-classify",
    "modernbert-classify",
    "bert-base",
    "bert-classify",
    "bert-mlm",
    "bert-qa",
    "bert-tokens",
    "distilbert-classify",
    "electra-classify",
    "ernie-classify",
    "mpnet-classify",
    "roberta-classify",
    "xlm-roberta-classify",
];

/// Of these, families with a feature that no pass cuts, and how messages name it.
const UNCUT: &[(&str, &str)] = &[
    ("albert", "layers that share their weights"),
    ("deberta-v2", "disentangled attention"),
    ("mobilebert", "bottlenecks"),
    ("modernbert", "rotary positions and gated units"),
];

#[test]
fn every_family_computes_what_transformers_computes() {
    let Some(golden) = shared("golden") else { return };
    let dir = Dir::new();
    for case in READ {
        let (model, inputs) = (golden.join(case), golden.join(case).join("golden.safetensors"));
        let (model_arg, inputs_arg) = (model.to_str().unwrap(), inputs.to_str().unwrap());
        let out = format!("{case}.safetensors");
        dir.ok(&[
            "forward",
            model_arg,
            "--inputs",
            inputs_arg,
            "-o",
            &out,
            "--hidden-states",
            "--attentions",
        ]);
        let (expected, found) = (stored(&inputs), stored(&dir.path(&out)));
        let mask = ints(&expected["attention_mask"]);
        let names: Vec<&String> = expected.keys().filter(|n| !is_input(n)).collect();
        assert!(names.len() >= 8, "{case}: the fixture has outputs, {names:?}");
        for name in names {
            let found = found
                .get(name)
                .unwrap_or_else(|| panic!("{case}: no {name} in {:?}", found.keys()));
            let error = relative_error(&expected[name], found, &mask);
            // Without norms MobileBERT's states grow twentyfold a layer, and scores with them: Transformers' own
            // attentions are 2.4e-4 from what it computes in f64, ours 3.6e-5.
            let grown = case.starts_with("mobilebert") && name.starts_with("attentions");
            let most = if grown { 1e-3 } else { TOLERANCE };
            assert!(error < most, "{case}: {name} is off by {error}");
        }
    }
}

#[test]
fn every_family_is_copied_byte_for_byte() {
    let Some(golden) = shared("golden") else { return };
    let dir = Dir::new();
    for case in READ {
        let model = golden.join(case);
        // The golden values are no weights, and lie in the folder all the same.
        let weights: BTreeMap<_, _> = stored(&model.join("model.safetensors"));
        dir.ok(&["--passes", "", model.to_str().unwrap(), "-o", case]);
        assert_eq!(stored(&dir.path(case)), weights, "{case}");
        dir.ok(&["verify", case]);
    }
}

#[test]
fn every_family_is_pruned_and_packed() {
    let Some(golden) = shared("golden") else { return };
    let dir = Dir::new();
    for case in READ {
        let model = golden.join(case);
        let binarize = "binarize(planes=2,rank=2,embeddings=2,head=4)";
        let uncut = UNCUT.iter().any(|(family, _)| case.starts_with(family));
        let prune = if uncut { "" } else { "prune(sparsity=0.5)," };
        dir.ok(&["--passes", &format!("{prune}{binarize}"), model.to_str().unwrap(), "-o", case]);
        dir.ok(&["verify", case]);
    }
}

#[test]
fn every_family_answers_from_an_embedded_table() {
    let Some(golden) = shared("golden") else { return };
    let dir = Dir::new();
    let methods = ["", "(method=paper,assignment=hierarchical)", "(method=svd)", "(preset=small)"];
    for (i, case) in READ.iter().enumerate() {
        let model = golden.join(case);
        let passes = format!("embed{},binarize(planes=2)", methods[i % methods.len()]);
        dir.ok(&["--passes", &passes, model.to_str().unwrap(), "-o", case]);
        dir.ok(&["verify", case]);
    }
}

#[test]
fn what_a_family_does_not_take_is_refused_with_what_it_takes() {
    let Some(golden) = shared("golden") else { return };
    let dir = Dir::new();
    for (family, feature) in UNCUT {
        let model = golden.join(format!("{family}-classify"));
        let model = model.to_str().unwrap();
        for passes in ["prune", "tokens", "distill", "binarize(planes=1,activations=1)"] {
            let message = dir.fails(4, &["--passes", passes, model, "-o", "out"]);
            let has = format!("family `{family}` has {feature}, but `");
            assert!(message.starts_with(&has), "{message}");
            assert!(message.contains("vocab, embed, binarize, quantize run there"), "{message}");
        }
        for target in ["hf", "onnx"] {
            let message =
                dir.fails(4, &["--passes", "quantize", "--emit", target, model, "-o", "out"]);
            assert!(
                message.contains(feature) && message.contains("native, dense can"),
                "{message}"
            );
        }
        dir.ok(&["--passes", "quantize", "--emit", "dense", model, "-o", family]);
        dir.ok(&["verify", family]);
    }
}

fn is_input(name: &str) -> bool {
    ["input_ids", "attention_mask", "token_type_ids"].contains(&name)
}

fn ints(tensor: &Stored) -> Vec<i64> {
    assert_eq!(tensor.dtype, "I64");
    tensor.bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

/// What a model computes at padded positions is nobody's business.
fn relative_error(expected: &Stored, found: &Stored, mask: &[i64]) -> f32 {
    assert_eq!(found.shape, expected.shape);
    let (rows, tokens) = (expected.shape[0], mask.len() / expected.shape[0]);
    let live = |row: usize, token: usize| mask[row * tokens + token] != 0;
    let per_row: usize = expected.shape[1..].iter().product();
    let is_live = |i: usize| {
        let (row, rest) = (i / per_row, i % per_row);
        match expected.shape[1..] {
            [_, q, k] => live(row, rest / k % q) && live(row, rest % k), // attention
            [t, width] if t == tokens => live(row, rest / width),
            [t] if t == tokens => live(row, rest),
            _ => true,
        }
    };
    let (e, f) = (expected.f32(), found.f32());
    let live: Vec<usize> = (0..e.len()).filter(|&i| is_live(i)).collect();
    assert!(live.len() >= rows, "the fixture has live positions");
    let most = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, f32::max);
    let error = most(&mut live.iter().map(|&i| (e[i] - f[i]).abs()));
    assert!(live.iter().all(|&i| f[i].is_finite()), "finite numbers");
    error / most(&mut live.iter().map(|&i| e[i].abs()))
}
