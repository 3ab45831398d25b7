use super::*;
use crate::data::Targets;
use crate::eval::load::Spread;
use crate::model::Task;
use crate::model::testing::{batch, tiny};
use crate::pass::Quiet;

fn entry(name: &str, model: Model, right: &[u32]) -> Entry {
    let lengths: Vec<usize> = (0..right.len()).map(|i| 2 + i % 5).collect();
    let texts = batch(1, &lengths);
    let prepared = Prepared {
        rows: right.len(),
        examples: right.len(),
        tokens: texts.tokens(),
        batches: vec![texts],
        targets: Some(Targets::Classes(right.to_vec())),
        passages: Vec::new(),
        columns: Default::default(),
    };
    let loads = vec![Load::of(&typical(&prepared, 4), 2)];
    let (file_bytes, passes) =
        (file_bytes(&model.compacted().tensors()).expect("bytes"), Vec::new());
    Entry {
        name: name.into(),
        model,
        file_bytes,
        baseline: false,
        prepared: Some(prepared),
        loads,
        passes,
    }
}

/// A tiny classifier, what people would do to it instead, and another one.
fn comparison() -> Comparison {
    let model = tiny("bert", Task::SequenceClassification, 1);
    let labels = [0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 1];
    let mut entries = vec![entry("first", model.clone(), &labels)];
    for mut made in baselines("first", &model, &Quiet).expect("baselines") {
        made.prepared = entries[0].prepared.clone();
        made.loads = entries[0].loads.clone();
        entries.push(made);
    }
    let other = tiny("bert", Task::SequenceClassification, 2);
    entries.push(entry("<other> & \"one\"", other, &labels));
    entries[3].passes = vec![Removed {
        pass: "prune".into(),
        params_before: 4000,
        params_after: 3000,
        bytes_before: 16000,
        bytes_after: 12000,
    }];
    let data = DataNote { name: "dev.tsv".into(), examples: labels.len() };
    let mut comparison =
        compare(&entries, Some(data), "4 texts of dev.tsv".into(), 2, &Quiet).expect("compared");
    comparison.cpu_features = vec!["none"];
    comparison
}

#[test]
fn the_first_is_the_reference_of_all() {
    let c = comparison();
    let names: Vec<&str> = c.variants.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["first", "first (f16)", "first (int8)", "<other> & \"one\""]);
    let [first, half, int8, other] = &c.variants[..] else { panic!("four variants") };
    assert!(first.difference.is_none() && first.closeness.is_empty());
    assert_eq!(first.timings[0].speedup, Spread { median: 1.0, low: 1.0, high: 1.0 });
    // Half of the bytes but for the header, a quarter but for scales, biases and norms.
    assert!(half.file_bytes < first.file_bytes && int8.file_bytes < first.file_bytes);
    assert_eq!((half.bits_per_weight, first.bits_per_weight), (16.0, 32.0));
    let agreement = |v: &Variant| v.closeness[0].value;
    assert_eq!((half.closeness[0].name, agreement(half)), ("agreement", 1.0));
    // Of another model, the difference is that of the accuracies.
    let accuracy = |v: &Variant| v.metric().map(|m| m.value).expect("judged");
    let d = other.difference.expect("judged");
    assert!((d.value - (accuracy(other) - accuracy(first))).abs() < 1e-12);
    assert!(d.p.is_some_and(|p| (0.0..=1.0).contains(&p)));
}

#[test]
fn flops_by_part_are_all_of_them() {
    for v in comparison().variants {
        let f = &v.flops;
        assert_eq!(f.attention + f.products + f.ffn + f.around, f.total, "{}", v.name);
    }
}

#[test]
fn bytes_of_the_baselines_are_those_that_a_run_writes() {
    let model = tiny("bert", Task::SequenceClassification, 3);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    for made in baselines("m", &model, &Quiet).expect("baselines") {
        let tensors = made.model.compacted().tensors();
        crate::checkpoint::write_file(&path, &tensors, &|| false).expect("written");
        // The file of a run has `__metadata__` too.
        let written = std::fs::metadata(&path).expect("a file").len();
        assert!((written..written + 48).contains(&made.file_bytes), "{}", made.name);
    }
}

#[test]
fn the_front_is_what_nothing_beats_in_both() {
    let points = [(3.0, 0.9), (1.0, 0.7), (2.0, 0.95), (4.0, 0.95), (1.0, 0.6)];
    assert_eq!(front(&points), [1, 2]);
    assert_eq!(front(&[]), [0usize; 0]);
}

#[test]
fn typical_texts_are_spread_over_the_examples() {
    let model = tiny("bert", Task::SequenceClassification, 1);
    let entry = entry("m", model, &[0; 10]);
    let lengths = |n| {
        let texts = typical(entry.prepared.as_ref().expect("prepared"), n);
        texts.iter().map(|t| t.ids.len()).collect::<Vec<_>>()
    };
    assert_eq!(lengths(5), [2, 4, 6, 3, 5], "every second one");
    assert_eq!(lengths(99).len(), 10);
}

/// A page that needs nothing else, and whose points are the numbers of the comparison.
#[test]
fn the_page_shows_what_the_json_says() {
    let c = comparison();
    let html = page(&c);
    for (i, v) in c.variants.iter().enumerate() {
        let size = v.file_bytes as f64 / 1_048_576.0;
        let value = v.metric().map(|m| m.value).expect("judged");
        let name = plot::escape(&v.name);
        let point = format!("data-variant=\"{name}\" data-cost=\"{size}\" data-value=\"{value}\"");
        assert!(html.contains(&point), "{point}");
        let ms = v.timings[0].batch_ms.median;
        assert!(
            html.contains(&format!("data-variant=\"{name}\" data-cost=\"{ms}\"")),
            "{name} in time"
        );
        assert!(html.contains(&format!("class=\"key k{i}\">{}<", i + 1)));
    }
    let start = html.find("id=\"comparison\">").expect("the data") + "id=\"comparison\">".len();
    let data = &html[start..start + html[start..].find("</script>").expect("its end")];
    let read: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(read, serde_json::to_value(&c).expect("plain data"));
    for outside in ["http://", "https://", "//cdn", "@import", "url(", "<other>", "src="] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
}

#[test]
fn the_page_draws_what_a_search_tried() {
    let tried = |passes: &str, bytes, drop, whole: bool| Tried {
        passes: passes.into(),
        texts: 8,
        judged: 9,
        whole,
        bytes,
        speed: 2.0,
        measured: whole,
        drop,
        divergence: drop / 2.0,
        front: whole && drop < 0.1,
    };
    let searched = Searched {
        name: "out.search.jsonl".into(),
        model: "m".into(),
        judged_by: "9 held-out texts of <train>.tsv".into(),
        metric: "accuracy".into(),
        divergence: "mean_kl_nats".into(),
        tried: vec![
            tried("binarize", 1000, 0.05, true),
            tried("quantize", 2000, 0.25, true),
            tried("prune", 500, 0.01, false),
        ],
    };
    let text = searched_table(&searched);
    assert!(text.contains("3 recipes tried") && text.contains("-0.0500"), "{text}");
    assert!(text.contains("mean_kl_nats") && text.contains("0.0250"), "{text}");
    assert!(!text.contains("quantize") && !text.contains("prune"), "the front alone: {text}");
    let html = page(&Comparison { searches: vec![searched], ..comparison() });
    let section = &html[html.find("What a search tried").expect("a section")..];
    let section = &section[..section.find("<script").expect("its end")];
    // All three by size, and the two that were timed; numbers for those judged with all of the text.
    assert_eq!(section.matches("<circle").count(), 5);
    assert_eq!(section.matches("class=\"name\"").count(), 4);
    assert!(section.contains("r=\"3\" data-variant=\"prune\""), "{section}");
    // What the table says is beaten by none is what the figures show so.
    assert!(section.contains("beaten by none: binarize."), "{section}");
    assert!(section.contains("<td>0.0250</td><td>yes</td>"), "{section}");
    assert_eq!(section.matches(" hollow\"").count(), 2, "quantize, by size and by time: {section}");
    assert!(!section.contains("<polyline"), "{section}");
    assert!(section.contains("&lt;train&gt;.tsv"), "names stay text");
    assert!(!page(&comparison()).contains("What a search tried"));
}

#[test]
fn tables_have_a_column_for_each_variant() {
    let c = comparison();
    let text = table(&c);
    let name = |l: &str| l.trim().split("  ").next().unwrap_or_default().to_string();
    let rows: Vec<String> = text.lines().skip(1).map(name).collect();
    assert_eq!(
        rows,
        [
            "accuracy",
            "95 %",
            "difference",
            "95 %",
            "by chance",
            "agreement",
            "mean_kl_nats",
            "relative_l2",
            "bytes",
            "times smaller",
            "ms, batch of 2",
            "quarters",
            "times as fast",
            "bits per encoder weight",
            "parameters",
            "GFLOPs, 1 x 20 tokens",
        ]
    );
    assert!(text.lines().next().is_some_and(|l| l.contains("first (int8)")));
    assert!(removed(&c).contains("4,000 to 3,000"));
}

#[test]
fn a_report_without_numbers_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(removed_by_passes(folder.path()).expect("no report"), []);
    std::fs::write(folder.path().join("report.json"), r#"{"passes": [{"name": "prune"}]}"#)
        .expect("written");
    let error = removed_by_passes(folder.path()).expect_err("no numbers").to_string();
    assert!(error.contains("passes without a name or numbers"), "{error}");
}
