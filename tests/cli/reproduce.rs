//! `compress reproduce`: an output is made again, and compared.

use crate::support::Dir;
use crate::train::words;
use serde_json::{Value, json};
use std::fs;

const RUN: &str = "-q --passes prune(sparsity=0.4),binarize --calib data.tsv --calib-texts 6 --max-shard-size 1 \
     --emit hf --eval data.tsv model -o out";

fn edited(dir: &Dir, edit: impl FnOnce(&mut Value)) -> String {
    let path = dir.path("out/report.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut report = serde_json::from_str(&text).unwrap();
    edit(&mut report);
    fs::write(&path, format!("{report:#}\n")).unwrap();
    text
}

#[test]
fn an_output_is_made_again_and_compared() {
    let dir = Dir::with_tiny();
    dir.ok(&words(RUN));
    let mut text = String::new();
    let again = "reproduce out --model model -q";
    text += &dir.ok(&words(again));
    let with_eval = format!("{again} --eval data.tsv");
    text += &dir.ok(&words(&with_eval));
    let found = dir.json(&words(&with_eval));
    assert_eq!(found["ok"], true);
    assert_eq!(found["not_compared"], json!([]));
    let report: Value =
        serde_json::from_slice(&fs::read(dir.path("out/report.json")).unwrap()).unwrap();
    let files = report["files"].as_array().unwrap().len();
    assert_eq!(found["files"], files + 1); // report.json names all but itself
    text += &dir.ok(&words("reproduce out/report.json --model model -q --keep kept --threads 1"));
    assert!(dir.path("kept/model.safetensors").is_file());
    fs::rename(dir.path("model"), dir.path("moved")).unwrap();
    text += &dir.ok(&words("reproduce out --model moved -q --eval data.tsv"));
    insta::assert_snapshot!(text, @r"
    ok: 11 files, the same bytes; README.md, report.json, report.md were not compared: give --eval as it was given
    ok: 14 files, the same bytes
    ok: 11 files, the same bytes; README.md, report.json, report.md were not compared: give --eval as it was given
    ok: 11 files, the same bytes; README.md, report.json, report.md were not compared: they name model
    ");
    // Every input is named in the card.
    let card = fs::read_to_string(dir.path("out/README.md")).unwrap();
    let inputs = report["inputs"].as_array().unwrap();
    assert!(inputs.iter().any(|i| i["name"] == "data.tsv" && i["of_model"] == false));
    assert!(inputs.iter().any(|i| i["name"] == "model.safetensors" && i["of_model"] == true));
    for input in inputs {
        assert!(card.contains(input["sha256"].as_str().unwrap()), "{input} is not in {card}");
    }
}

#[test]
fn what_is_not_the_same_is_named() {
    let dir = Dir::with_tiny();
    dir.ok(&words(RUN));
    let again = words("reproduce out --model model -q");
    let mut text = String::new();
    let plain = |text: String| {
        let mut out = String::new();
        for word in text.split_inclusive([' ', ',', ';']) {
            let bare = word.trim_end_matches([' ', ',', ';']);
            let hash = bare.len() == 64 && bare.bytes().all(|b| b.is_ascii_hexdigit());
            out += &if hash { word.replace(bare, "[HASH]") } else { word.to_string() };
        }
        out + "\n"
    };

    // The output is not what the recipe makes.
    let report = edited(&dir, |report| {
        let files = report["files"].as_array_mut().unwrap();
        files.retain(|f| f["name"] != "hf/config.json");
        let file = files.iter_mut().find(|f| f["name"] == "model.safetensors").unwrap();
        file["sha256"] = json!("00");
    });
    text += &plain(dir.fails(5, &again));
    fs::write(dir.path("out/report.json"), &report).unwrap();

    // Other texts, another model, no texts.
    let data = fs::read(dir.path("data.tsv")).unwrap();
    dir.write("data.tsv", [&data[..], b"the best film\t1\n"].concat());
    text += &plain(dir.fails(4, &again));
    fs::remove_file(dir.path("data.tsv")).unwrap();
    text += &plain(dir.fails(4, &again));
    dir.write("data.tsv", &data);
    let config = fs::read_to_string(dir.path("model/config.json")).unwrap();
    dir.write("model/config.json", format!("{config}\n"));
    text += &plain(dir.fails(4, &again));
    dir.write("model/config.json", &config);

    // Other examples of the same name.
    fs::create_dir(dir.path("more")).unwrap();
    dir.write("more/data.tsv", "sentence\tlabel\na good film\t1\n");
    text += &plain(dir.fails(4, &[&again[..], &["--eval", "more/data.tsv"]].concat()));

    // What a report must not say.
    for arguments in ["--calib data.tsv --cache elsewhere", "-o elsewhere", "'", "--seed x"] {
        edited(&dir, |report| report["arguments"] = json!(arguments));
        text += &plain(dir.fails(4, &again));
        fs::write(dir.path("out/report.json"), &report).unwrap();
    }
    edited(&dir, |report| report["inputs"] = json!(3));
    text += &plain(dir.fails(4, &again));
    fs::write(dir.path("out/report.json"), &report).unwrap();
    fs::remove_file(dir.path("out/recipe.toml")).unwrap();
    text += &plain(dir.fails(4, &again));
    insta::assert_snapshot!(text, @r"
    not reproduced: 2 of 11 files have other bytes: model.safetensors, hf/config.json; another version or another kind of processor rounds differently; --keep lets you look at it
    data.tsv with the SHA-256 [HASH], but it was made from [HASH]; give the same --model, and run it where its texts have the same paths
    no data.tsv in the current folder, [DIR], but it was made from [HASH]; give the same --model, and run it where its texts have the same paths
    config.json with the SHA-256 [HASH], but it was made from [HASH]; give the same --model, and run it where its texts have the same paths
    more/data.tsv has the SHA-256 [HASH], but it was judged by data.tsv with [HASH]; give that file with --eval, or leave --eval out: no output depends on it
    out/report.json: found `arguments` that are none of a run, expected those of its run; give the report of an output that this version wrote
    out/report.json: found `arguments` that are none of a run, expected those of its run; give the report of an output that this version wrote
    out/report.json: found no `arguments`, expected those of its run; give the report of an output that this version wrote
    out/report.json: found `arguments` that are none of a run, expected those of its run; give the report of an output that this version wrote
    out/report.json: found no readable `inputs`, expected the files that it was made from; give the report of an output that this version wrote
    out has no recipe.toml, but `reproduce` makes again what a recipe made; give an output of `compress --passes` or --recipe
    ");
}
