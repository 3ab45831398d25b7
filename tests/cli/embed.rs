//! Tables in forms of their own, from the command line.

use crate::support::{Dir, reviews};

#[test]
fn an_embedded_table_is_inspected_verified_and_told_of() {
    let dir = Dir::new();
    let (model, dev) = (reviews("model"), reviews("dev.tsv"));
    dir.ok(&["--passes", "embed", &model, "--calib", &dev, "-o", "out"]);
    dir.ok(&["verify", "out"]);
    let said = dir.ok(&["inspect", "out"]);
    assert!(said.contains("word table: subspace(slices="), "{said}");
    let report = std::fs::read_to_string(dir.path("out/report.md")).unwrap();
    assert!(report.contains("Words are counted in dev.tsv: "), "{report}");
    let json = dir.json(&["inspect", "out"]);
    assert!(json["cost"]["embeddings"]["bytes"].as_u64().unwrap() < 984 * 1024 / 4, "{json}");
}

#[test]
fn the_order_of_passes_is_checked() {
    let dir = Dir::with_tiny();
    let run = |passes, code| {
        dir.fails(code, &["--passes", passes, "--calib", "none", "model", "-o", "out"])
    };
    for (passes, code, part) in [
        ("embed,prune", 3, "`prune` before `embed`"),
        ("embed,embed(method=svd)", 3, "`embed` once"),
        ("embed,quantize", 4, "`quantize(embeddings=none)`"),
        ("embed,binarize(embeddings=2)", 4, "`binarize(embeddings=0)`"),
    ] {
        let message = run(passes, code);
        assert!(message.contains(part), "{passes}: {message}");
    }
    for passes in [
        "embed,binarize",
        "prune,embed,quantize(embeddings=none)",
        "quantize(embeddings=none),embed",
    ] {
        dir.ok(&["--passes", passes, "--calib", "none", "model", "-o", "out", "--force"]);
        dir.ok(&["verify", "out"]);
    }
}

#[test]
fn codewords_recover() {
    let dir = Dir::new();
    let (model, train) = (reviews("model"), reviews("train.tsv"));
    let run = |passes: &str, out: &str| -> f64 {
        let args =
            ["-q", "--passes", passes, &model, "--data", &train, "--data-texts", "1500", "-o", out];
        let json = dir.json(&args);
        let fidelity = json["report"]["quality"]["fidelity"].as_array().unwrap().clone();
        let kl = fidelity.iter().find(|m| m["name"] == "mean_kl_nats").unwrap();
        kl["value"].as_f64().unwrap()
    };
    let packed = run("embed(bytes=2,exact=0)", "a");
    let trained = run("embed(bytes=2,exact=0),distill(steps=60)", "b");
    assert!(trained < 0.85 * packed, "{packed} before, {trained} after");
    dir.ok(&["verify", "b"]);
}
