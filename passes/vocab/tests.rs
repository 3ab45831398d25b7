//! Which tokens stay, what the files say then, and that texts of those tokens are cut as before.

use super::*;
use crate::checkpoint::{Dtype, Tensor};
use crate::data::Calibration;
use crate::model::testing::*;
use crate::model::{Int8, Task, Weight};
use crate::report;
use proptest::prelude::*;
use serde_json::json;
use std::fs;

/// A tokenizer.json that cuts words at spaces, between `[CLS]` and `[SEP]` with the ids 2 and 3.
fn file(model: Value, added: &[(&str, u32)]) -> Value {
    let token = |&(content, id): &(&str, u32)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let special = |name: &str, id: u32| json!({"id": name, "ids": [id], "tokens": [name]});
    let one = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    json!({
        "version": "1.0", "truncation": null,
        "padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": added.iter().map(token).collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [one("[CLS]"), text("A"), one("[SEP]")],
            "pair": [one("[CLS]"), text("A"), one("[SEP]"), text("B"), one("[SEP]")],
            "special_tokens": {"[CLS]": special("[CLS]", 2), "[SEP]": special("[SEP]", 3)}},
        "decoder": null, "model": model,
    })
}

const SPECIAL: [(&str, u32); 4] = [("[PAD]", 0), ("[UNK]", 1), ("[CLS]", 2), ("[SEP]", 3)];

/// `SPECIAL`, and `tokens` behind it.
fn numbered(tokens: &[&str]) -> Value {
    let special = SPECIAL.iter().map(|&(token, _)| token);
    let tokens = special.chain(tokens.iter().copied()).enumerate();
    tokens
        .map(|(id, token)| (token.to_string(), json!(id)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn wordpiece(tokens: &[&str]) -> Value {
    json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": numbered(tokens)})
}

fn bpe(tokens: &[&str], merges: Value) -> Value {
    json!({"type": "BPE", "dropout": null, "unk_token": "[UNK]", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": numbered(tokens), "merges": merges})
}

fn unigram(pieces: &[(&str, f64)]) -> Value {
    let special = SPECIAL.iter().map(|&(token, _)| (token, 0.0));
    let vocab: Vec<Value> =
        special.chain(pieces.iter().copied()).map(|(token, score)| json!([token, score])).collect();
    json!({"type": "Unigram", "unk_id": 1, "byte_fallback": false, "vocab": vocab})
}

/// A tokenizer in a folder of its own.
fn load(json: &Value) -> Result<(tempfile::TempDir, Tokenizer)> {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("tokenizer.json"), json.to_string()).expect("written");
    let tokenizer = Tokenizer::load(folder.path())?.expect("a tokenizer file");
    Ok((folder, tokenizer))
}

fn data(tokenizer: &Tokenizer, texts: &[&str]) -> Dataset {
    let encode = |text: &&str| tokenizer.encode(text, None, 99).expect("a text");
    let texts = texts.iter().map(encode).collect();
    Dataset { texts, targets: None, masker: None, source: "texts".into() }
}

/// Runs the pass on a model of 30 rows, with `texts` to train on.
fn run(options: &Vocab, json: &Value, texts: &[&str]) -> Result<(Model, Work)> {
    let (_folder, tokenizer) = load(json)?;
    let data = data(&tokenizer, texts);
    let mut model = tiny("bert", Task::Bare, 1);
    model.config.raw["pad_token_id"] = json!(0);
    model.config.pad_id = 0;
    let before = model.clone();
    let cx = Context { tokenizer: Some(&tokenizer), data: Some(&data), ..Context::new(&before) };
    let work = options.run(&mut model, &cx)?;
    model.validate()?;
    Ok((model, work))
}

/// What is left: tokens in the order of their ids, and the new tokenizer.json.
fn left(options: &Vocab, json: &Value, texts: &[&str]) -> (Vec<String>, Value) {
    let (model, work) = run(options, json, texts).expect("a smaller vocabulary");
    let vocabulary = work.vocabulary.expect("a smaller vocabulary");
    let mut tokens: Vec<(String, u32)> = vocabulary.tokenizer.tokens().into_iter().collect();
    tokens.sort_by_key(|(_, id)| *id);
    let ids: Vec<u32> = tokens.iter().map(|(_, id)| *id).collect();
    assert_eq!(ids, (0..tokens.len() as u32).collect::<Vec<_>>(), "no id is free");
    assert_eq!(model.config.vocab, vocabulary.kept.len());
    let (name, content) = &vocabulary.files[0];
    assert_eq!(name, "tokenizer.json");
    let content = content.as_ref().expect("rewritten");
    let json = serde_json::from_slice(content).expect("JSON");
    (tokens.into_iter().map(|(token, _)| token).collect(), json)
}

#[test]
fn wordpiece_keeps_what_occurs_and_single_characters() {
    let json =
        file(wordpiece(&["a", "##a", "aab", "aa", "b", "##b", "##ab", "##", "abb"]), &SPECIAL);
    let (tokens, json) = left(&Vocab::default(), &json, &["aa aab", "b"]);
    let kept = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##a", "aab", "aa", "b", "##b", "##"];
    // `##ab` and `abb` are made of others; of the `#` in `##`, nothing else is.
    assert_eq!(tokens, kept);
    assert_eq!(json["model"]["vocab"]["##b"], 9);
}

#[test]
fn a_token_stays_where_a_character_has_none_of_its_own() {
    let json = file(wordpiece(&["a", "##a", "ax", "##b", "ab"]), &SPECIAL);
    let (tokens, _) = left(&Vocab::default(), &json, &["a"]);
    // `##x` and `b` are in no vocabulary, `##b` is.
    assert_eq!(tokens[4..], ["a", "##a", "ax", "##b"]);
}

#[test]
fn bpe_keeps_what_a_token_is_made_of() {
    let tokens = ["a", "b", "c", "bc", "ab", "abc", "abca", "cc"];
    let pairs = [["b", "c"], ["a", "b"], ["ab", "c"], ["abc", "a"], ["c", "c"]];
    let lines: Vec<String> = pairs.iter().map(|pair| pair.join(" ")).collect();
    // `bc` goes first: `abca` is made of `a` and `bc`, as no text shows.
    for merges in [json!(pairs), json!(lines)] {
        let json = file(bpe(&tokens, merges.clone()), &SPECIAL);
        let (tokens, json) = left(&Vocab::default(), &json, &["ab"]);
        assert_eq!(tokens[4..], ["a", "b", "c", "ab"]);
        assert_eq!(json["model"]["merges"], json!([merges[1]]));
    }
    let more = [["a", "b"], ["ab", "c"], ["b", "c"], ["abc", "a"], ["c", "c"], ["a", "bc"]];
    let json = file(bpe(&tokens, json!(more)), &SPECIAL);
    let (tokens, json) = left(&Vocab::default(), &json, &["abca"]);
    // Both ways to `abc`.
    assert_eq!(tokens[4..], ["a", "b", "c", "bc", "ab", "abc", "abca"]);
    let merges = json!([["a", "b"], ["ab", "c"], ["b", "c"], ["abc", "a"], ["a", "bc"]]);
    assert_eq!(json["model"]["merges"], merges);
}

#[test]
fn bytes_stay_and_whole_words_need_their_merges_no_less() {
    let mut model = bpe(&["a", "b", "ab", "<0x0A>", "<0xFF>", "<0xZZ>", "bab"], json!(["a b"]));
    model["byte_fallback"] = json!(true);
    model["ignore_merges"] = json!(true);
    let (tokens, _) = left(&Vocab::default(), &file(model.clone(), &SPECIAL), &["bab"]);
    // `<0xZZ>` is no byte, but it has characters that no other token has.
    assert_eq!(tokens[4..], ["a", "b", "<0x0A>", "<0xFF>", "<0xZZ>", "bab"]);
    model["vocab"]["<"] = json!(11);
    for (i, c) in ["0", "x", "Z", ">"].into_iter().enumerate() {
        model["vocab"][c] = json!(12 + i);
    }
    let (tokens, _) = left(&Vocab::default(), &file(model, &SPECIAL), &["ab"]);
    assert_eq!(tokens[4..8], ["a", "b", "ab", "<0x0A>"]);
    assert!(!tokens.contains(&"<0xZZ>".to_string()));
}

#[test]
fn unigram_keeps_scores_and_the_lowest_of_them() {
    let pieces =
        [("a", -3.0), ("ab", -2.5), ("b", -3.5), ("abab", -1.25), ("bb", -9.1), ("ba", -2.0)];
    let mut model = unigram(&pieces);
    model["vocab"].as_array_mut().expect("a list").push(json!(["<mask>", 0.0]));
    let added: Vec<(&str, u32)> = SPECIAL.into_iter().chain([("<mask>", 10)]).collect();
    let (tokens, json) = left(&Vocab::default(), &file(model, &added), &["abab"]);
    assert_eq!(tokens[4..], ["a", "b", "abab", "bb", "<mask>"]);
    assert_eq!(json["model"]["vocab"][6], json!(["abab", -1.25]));
    assert_eq!(json["model"]["unk_id"], 1);
    assert_eq!(json["added_tokens"][4]["id"], 8, "the last one stays last");
}

#[test]
fn ids_move_wherever_a_tokenizer_names_them() {
    let mut json = file(wordpiece(&["q", "a", "##a", "w", "##w", "waw"]), &SPECIAL);
    // `[UNK]` behind a token that goes, and the separators behind it.
    json["model"]["vocab"] = json!({"[PAD]": 0, "aw": 1, "[UNK]": 2, "[CLS]": 3, "[SEP]": 4,
        "a": 5, "##a": 6, "w": 7, "##w": 8});
    let ids = [0, 2, 3, 4];
    for (token, id) in json["added_tokens"].as_array_mut().expect("a list").iter_mut().zip(ids) {
        token["id"] = json!(id);
    }
    json["added_tokens"].as_array_mut().expect("a list").push(json!({"id": 9, "content": "[MASK]",
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}));
    json["padding"]["pad_id"] = json!(9);
    json["post_processor"] = json!({"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        {"type": "BertProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 3]},
        {"type": "RobertaProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 3], "trim_offsets": true,
            "add_prefix_space": false},
        {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"[SEP]": {"id": "[SEP]", "ids": [4, 9], "tokens": ["[SEP]", "[MASK]"]}}}]});
    let (tokens, json) = left(&Vocab::default(), &json, &["a"]);
    assert_eq!(tokens, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##a", "w", "##w", "[MASK]"]);
    let added: Vec<&Value> =
        json["added_tokens"].as_array().expect("a list").iter().map(|t| &t["id"]).collect();
    assert_eq!(json!(added), json!([0, 1, 2, 3, 8]));
    assert_eq!(json["padding"]["pad_id"], 8);
    let processors = &json["post_processor"]["processors"];
    assert_eq!(processors[1]["sep"], json!(["[SEP]", 3]));
    assert_eq!(processors[2]["cls"], json!(["[CLS]", 2]));
    assert_eq!(processors[3]["special_tokens"]["[SEP]"]["ids"], json!([3, 8]));
}

#[test]
fn the_most_frequent_tokens_stay_as_far_as_the_size_goes() {
    let json = file(wordpiece(&["a", "##a", "aa", "aaa", "aaaa"]), &SPECIAL);
    let texts = ["aa aaa aaa", "aaaa aaaa aa aaa"];
    let with = |min_count, size| {
        let options = Vocab { min_count, size, ..Vocab::default() };
        left(&options, &json, &texts).0[6..].to_vec()
    };
    assert_eq!(with(1, 0), ["aa", "aaa", "aaaa"]);
    assert_eq!(with(3, 0), ["aaa"]);
    assert_eq!(with(1, 8), ["aa", "aaa"], "of two as frequent the first");
    let error = run(&Vocab { size: 5, ..Vocab::default() }, &json, &texts).expect_err("too small");
    insta::assert_snapshot!(error, @"pass `vocab`: `size` is 5, expected at least 6: special tokens and single characters stay");
    // A token of BPE takes its parts along, or stays away.
    let bpe = bpe(&["a", "aa", "aaaa"], json!([["a", "a"], ["aa", "aa"]]));
    let with = |size| {
        left(&Vocab { size, ..Vocab::default() }, &file(bpe.clone(), &SPECIAL), &["aaaa aaaa aa"]).0
    };
    assert_eq!(with(6).last().map(String::as_str), Some("aa"));
    assert_eq!(with(7).last().map(String::as_str), Some("aaaa"));
}

/// A model with a table of `rows`.
fn with_rows(family: &str, rows: usize) -> Model {
    let mut parts = parts(family, Task::Bare, 3);
    let name = "embeddings.word_embeddings.weight";
    let values = gaussian(rows * HIDDEN, 4);
    *parts.tensor(name) = Tensor::from_f32(name, &[rows, HIDDEN], &values, Dtype::F32);
    parts.config["vocab_size"] = json!(rows);
    parts.open()
}

#[test]
fn low_special_tokens_and_the_padding_stay_where_they_are() {
    let names: Vec<String> = (4..300).map(|i| format!("[unused{i}]")).collect();
    let mut tokens: Vec<&str> = names.iter().map(String::as_str).collect();
    tokens[6] = "[LOW]"; // 10
    tokens[96] = "[HIGH]"; // 100
    tokens.extend(["a", "##a", "[", "##u", "##]"]);
    let added: Vec<(&str, u32)> =
        SPECIAL.into_iter().chain([("[LOW]", 10), ("[HIGH]", 100)]).collect();
    let mut model = wordpiece(&tokens);
    for (i, c) in "nused0123456789".chars().enumerate() {
        model["vocab"][format!("##{c}")] = json!(305 + i);
    }
    let (_folder, tokenizer) = load(&file(model, &added)).expect("a tokenizer");
    let data = data(&tokenizer, &["a"]);
    let kept = |family: &str, rows: usize, padding: u32| {
        let mut model = with_rows(family, rows);
        (model.config.pad_id, model.config.raw["pad_token_id"]) = (padding, json!(padding));
        let before = model.clone();
        let cx =
            Context { tokenizer: Some(&tokenizer), data: Some(&data), ..Context::new(&before) };
        let work = Vocab::default().run(&mut model, &cx).expect("a smaller vocabulary");
        work.vocabulary.expect("a smaller vocabulary").kept
    };
    // One in 64: 10 of 704 rows are low, 100 is not. Rows without a token are gone.
    let low = kept("bert", 704, 0);
    assert_eq!(low[..13], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 100, 300]);
    assert_eq!(kept("bert", 640, 0)[..6], [0, 1, 2, 3, 10, 100]);
    // Positions of RoBERTa start behind the padding.
    assert_eq!(kept("roberta", 640, 6)[..8], [0, 1, 2, 3, 4, 5, 6, 10]);
}

#[test]
fn a_vocabulary_that_is_all_needed_stays_byte_for_byte() {
    let tokens: Vec<String> = (0..26).map(|i| char::from(b'a' + i).to_string()).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let json = file(wordpiece(&tokens), &SPECIAL);
    let (model, work) = run(&Vocab::default(), &json, &["a"]).expect("runs");
    assert!(work.vocabulary.is_none() && work.changes.is_empty());
    assert_eq!(work.notes, ["all 30 rows of the word embeddings stay"]);
    assert_eq!(stored(&model), stored(&tiny("bert", Task::Bare, 1)));
}

#[test]
fn rows_beyond_the_tokenizer_go_and_tokens_beyond_the_table_too() {
    let json = file(wordpiece(&["a", "##a", "aa"]), &SPECIAL);
    let (model, _) = run(&Vocab::default(), &json, &["a"]).expect("runs");
    assert_eq!(model.config.vocab, 6, "of 30 rows, 7 of which have a token");
    let mut json = json;
    json["model"]["vocab"]["aaa"] = json!(30);
    let (tokens, _) = left(&Vocab::default(), &json, &["a aaa"]);
    assert_eq!(tokens.len(), 6, "{tokens:?}");
}

#[test]
fn files_say_the_same_as_tokenizer_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let merges = ["#version: 0.2", "b c", "a c", "a b", "ab c"];
    let json = file(bpe(&["a", "b", "c", "ac", "bc", "ab", "abc"], json!(merges[1..])), &SPECIAL);
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("written");
        (path, name.to_string())
    };
    let files = [
        write(
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"0": {"content": "[PAD]"}, "8": {"content": "bc"}}, "unk_token": "[UNK]"}"#,
        ),
        write("added_tokens.json", r#"{"bc": 8}"#),
        write("vocab.json", "{}"),
        write("merges.txt", &merges.join("\n")),
        write("sentencepiece.bpe.model", "\u{1}"),
        write("special_tokens_map.json", "{}"),
    ];
    let (_files, tokenizer) = load(&json).expect("a tokenizer");
    let data = data(&tokenizer, &["ab"]);
    let mut model = tiny("bert", Task::Bare, 1);
    let before = model.clone();
    let cx = Context {
        tokenizer: Some(&tokenizer),
        data: Some(&data),
        side_files: &files,
        ..Context::new(&before)
    };
    let work = Vocab::default().run(&mut model, &cx).expect("a smaller vocabulary");
    let said: Vec<String> = work.vocabulary.expect("a smaller vocabulary").files[1..]
        .iter()
        .map(|(name, content)| match content {
            Some(bytes) => {
                let text = String::from_utf8(bytes.clone()).expect("UTF-8");
                let words: Vec<&str> = text.split_whitespace().collect();
                format!("{name}: {}", words.join(" "))
            }
            None => format!("{name}: left out"),
        })
        .collect();
    insta::assert_snapshot!(said.join("\n"), @r#"
    tokenizer_config.json: { "added_tokens_decoder": { "0": { "content": "[PAD]" }, "7": { "content": "bc" } }, "unk_token": "[UNK]" }
    added_tokens.json: { "bc": 7 }
    vocab.json: { "[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5, "c": 6, "bc": 7, "ab": 8 }
    merges.txt: #version: 0.2 b c a b
    sentencepiece.bpe.model: left out
    "#);
    insta::assert_snapshot!(work.notes.join("\n"), @r"
    9 of 30 rows of the word embeddings are left, of which 3 occur in the texts
    sentencepiece.bpe.model is left out: it holds the whole vocabulary in a form that is not rewritten; tokenizer.json has all there is to know
    ");
    insta::assert_snapshot!(report::markdown_changes(&work.changes), @r"
    | matrix | before | after | error |
    |---|---|---|---|
    | embeddings.word_embeddings | f32 30 x 16 | f32 9 x 16 | - |
    ");
}

#[test]
fn a_vocabulary_of_lines_stays_one() {
    let lines = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nab\n##b\nb\n##a\nabb\n".to_string();
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("vocab.txt"), &lines).expect("written");
    let tokenizer = Tokenizer::load(folder.path()).expect("read").expect("there");
    let data = data(&tokenizer, &["abb"]);
    let files = [(folder.path().join("vocab.txt"), "vocab.txt".to_string())];
    let mut model = tiny("bert", Task::Bare, 1);
    let before = model.clone();
    let cx = Context {
        tokenizer: Some(&tokenizer),
        data: Some(&data),
        side_files: &files,
        ..Context::new(&before)
    };
    let work = Vocab::default().run(&mut model, &cx).expect("a smaller vocabulary");
    let vocabulary = work.vocabulary.expect("a smaller vocabulary");
    let [(name, Some(content))] = &vocabulary.files[..] else { panic!("{:?}", vocabulary.files) };
    assert_eq!(name, "vocab.txt");
    assert_eq!(String::from_utf8_lossy(content), lines.replace("\nab\n", "\n"));
    fs::write(folder.path().join("vocab.txt"), content).expect("written");
    let read = Tokenizer::load(folder.path()).expect("read").expect("there");
    assert_eq!(read.tokens(), vocabulary.tokenizer.tokens());
}

#[test]
fn files_to_keep_are_counted_whole_and_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("written");
        path
    };
    let plain = path("a.txt", "aa a\na\n");
    let table = path("b.tsv", "one\tother\tlabel\naaa\taa\t0\n");
    let json = file(wordpiece(&["a", "##a", "aa", "aaa", "aaaa"]), &SPECIAL);
    let (_files, tokenizer) = load(&json).expect("a tokenizer");
    let run = |options: Vocab| {
        let mut model = tiny("bert", Task::Bare, 1);
        let before = model.clone();
        let cx = Context { tokenizer: Some(&tokenizer), ..Context::new(&before) };
        options.run(&mut model, &cx)
    };
    let keep = OneOrMore::More(vec![plain.clone(), table.clone()]);
    let columns = OneOrMore::More(vec!["one".into(), "other".into()]);
    let both = Vocab { keep, columns, ..Vocab::default() };
    assert_eq!(both.reads(), [plain.clone(), table]);
    let work = run(Vocab { min_count: 2, ..both }).expect("runs");
    assert_eq!(work.vocabulary.expect("smaller").kept, [0, 1, 2, 3, 4, 5, 6]);
    let folder_name = format!("{}/", folder.path().display());
    insta::assert_snapshot!(work.notes.join("\n").replace(&folder_name, ""), @r"
    7 of 30 rows of the word embeddings are left, of which 5 occur in the texts
    a.txt: 100.00 % of 2 texts are cut into the same tokens; 3.50 tokens a text before, 3.50 after
    b.tsv: 0.00 % of 1 texts are cut into the same tokens; 5.00 tokens a text before, 6.00 after
    ");
    let one = Vocab { keep: OneOrMore::One(plain), ..Vocab::default() };
    assert_eq!(run(one).expect("runs").figures["keep_same"], 1.0);
    let unclear = path("c.tsv", "one\tother\tmore\naaa\taa\tb\n");
    let unclear = run(Vocab { keep: OneOrMore::One(unclear), ..Vocab::default() });
    let error = unclear.expect_err("columns of any kind").to_string();
    let advice = "name them in `columns`, as in `vocab(keep=\"FILE\",columns=[\"text\"])`";
    assert!(error.ends_with(advice), "{error}");
    let missing = Vocab { keep: OneOrMore::One("nowhere.txt".into()), ..Vocab::default() };
    insta::assert_snapshot!(run(missing).expect_err("missing"), @"cannot read nowhere.txt");
}

#[test]
fn refusals_say_what_to_do() {
    let json = file(wordpiece(&["a", "##a", "aa"]), &SPECIAL);
    let (_files, tokenizer) = load(&json).expect("a tokenizer");
    let refused = |options: &Vocab, model: &mut Model, cx: &Context| {
        options.run(model, cx).expect_err("refused").to_string()
    };
    let before = tiny("bert", Task::Bare, 1);
    let with = Context { tokenizer: Some(&tokenizer), ..Context::new(&before) };
    let mut model = before.clone();
    let default = Vocab::default();
    insta::assert_snapshot!(refused(&default, &mut model, &Context::new(&before)), @"the model has no tokenizer, but its tokens are what `vocab` chooses from; copy tokenizer.json from the model that this one was trained from");
    insta::assert_snapshot!(refused(&default, &mut model, &with), @r#"no text was given, but what the texts of the model's use need is what `vocab` keeps; name files of them, as in `vocab(keep="corpus.txt")`, or give --data or --calib"#);
    let builtin = Calibration { source: "built-in text".into(), ..calibration(3, 2) };
    let text = Context {
        calibration: Some(&builtin),
        ..Context { tokenizer: Some(&tokenizer), ..Context::new(&before) }
    };
    assert_eq!(refused(&default, &mut model, &text), refused(&default, &mut model, &with));
    let columns = OneOrMore::One("text".to_string());
    insta::assert_snapshot!(refused(&Vocab { columns, ..default.clone() }, &mut model, &with), @"pass `vocab`: `columns` is `text`, expected files in `keep` to read them from");
    let three = OneOrMore::More(["a", "b", "c"].map(String::from).to_vec());
    insta::assert_snapshot!(refused(&Vocab { columns: three, ..default.clone() }, &mut model, &with), @"pass `vocab`: `columns` is 3 columns, expected that of the text, or that of both texts of a pair");
    insta::assert_snapshot!(refused(&Vocab { min_count: 0, ..default.clone() }, &mut model, &with), @"pass `vocab`: `min_count` is 0, expected at least 1");
    let table = before.embeddings.word.to_f32().expect("dense");
    let name = before.embeddings.word.name().to_string();
    model.embeddings.word = Weight::Int8(Int8::new(name, (VOCAB, HIDDEN), &table));
    insta::assert_snapshot!(refused(&default, &mut model, &with), @"`embeddings.word_embeddings` is stored as int8, but only rows of a dense table can be cut out; run `vocab` before the passes that pack the word embeddings: `embed`, `binarize`, `quantize`");
}

#[test]
fn broken_tokenizers_are_refused() {
    let error = |change: &dyn Fn(&mut Value)| {
        let mut json = file(bpe(&["a", "b", "ab"], json!(["a b"])), &SPECIAL);
        change(&mut json);
        let path = |e: String| match e.split_once("tokenizer.json: ") {
            Some((_, rest)) => rest.to_string(),
            None => e,
        };
        path(run(&Vocab::default(), &json, &["ab"]).expect_err("broken").to_string())
    };
    insta::assert_snapshot!(error(&|t| { t["model"]["vocab"]["c"] = json!(4); }), @r#"found the id 4 for "a" and for "c", expected one token an id; fetch it again, or save it as tokenizer.json with a current Transformers"#);
    insta::assert_snapshot!(error(&|t| { t["model"]["merges"] = json!(["a c"]); }), @"found Token `c` out of vocabulary at line 1 column 1485, expected a complete tokenizer; fetch it again, or save it as tokenizer.json with a current Transformers");
    insta::assert_snapshot!(error(&|t| { t["model"]["merges"] = json!(["b a"]); }), @"found Token `ba` out of vocabulary at line 1 column 1485, expected a complete tokenizer; fetch it again, or save it as tokenizer.json with a current Transformers");
    insta::assert_snapshot!(error(&|t| { t["added_tokens"][3]["id"] = json!(5); }), @r#"found the added token "[SEP]" with the id 5, expected 3, its id in the vocabulary; fetch it again, or save it as tokenizer.json with a current Transformers"#);
    insta::assert_snapshot!(error(&|t| { t["padding"]["pad_id"] = json!(30); }), @"found the id 30 in `padding`, expected a row of the word table, which has 30; fetch it again, or save it as tokenizer.json with a current Transformers");
    insta::assert_snapshot!(error(&|t| { t["post_processor"]["special_tokens"]["[SEP]"]["ids"] = json!([99]); }), @"found the id 99 in `post_processor`, expected a row of the word table, which has 30; fetch it again, or save it as tokenizer.json with a current Transformers");
    insta::assert_snapshot!(error(&|t| {
        let vocab = t["model"]["vocab"].clone();
        t["model"] = json!({"type": "WordLevel", "unk_token": "[UNK]", "vocab": vocab});
    }), @"tokenizer model `WordLevel` is not supported; this build knows: WordPiece, BPE, Unigram");
    let pieces = |json: Value| {
        let json = json!({"model": json});
        Pieces::read(&json, Path::new("tokenizer.json")).expect_err("broken").to_string()
    };
    insta::assert_snapshot!(pieces(json!({"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]})), @r#"tokenizer.json: found the merge of "a" and "b" without the token "ab", expected a token for both parts and for what they make; fetch it again, or save it as tokenizer.json with a current Transformers"#);
    insta::assert_snapshot!(pieces(json!({"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]})), @r#"tokenizer.json: found the merge ["a"], expected two tokens; fetch it again, or save it as tokenizer.json with a current Transformers"#);
    insta::assert_snapshot!(pieces(json!({"type": "BPE", "vocab": {"a": -1}, "merges": []})), @r#"tokenizer.json: found the id -1 of "a", expected a number from 0 on; fetch it again, or save it as tokenizer.json with a current Transformers"#);
    insta::assert_snapshot!(pieces(json!({"type": "Unigram", "vocab": [["a", 0], ["b", 0], ["a", -1]]})), @r#"tokenizer.json: found the token "a" twice, with the ids 0 and 2, expected one id a token; fetch it again, or save it as tokenizer.json with a current Transformers"#);
    insta::assert_snapshot!(pieces(json!({"type": "Unigram", "vocab": [3]})), @"tokenizer.json: found the piece 3, expected a token and its score; fetch it again, or save it as tokenizer.json with a current Transformers");
}

/// A tokenizer of up to 30 tokens over `a`, `b`, `c`, `é`: the tokenizer.json, and the characters that it knows at
/// every place of a word.
fn some_tokenizer() -> impl Strategy<Value = (Value, Vec<char>)> {
    let word = proptest::string::string_regex("[abcé]{2,4}").expect("a pattern");
    let words = proptest::collection::vec((word, any::<bool>(), -6i32..0), 0..14);
    let singles = proptest::collection::vec(any::<[bool; 2]>(), 4);
    (words, singles, 0..4usize, any::<u64>()).prop_map(|(words, singles, kind, draw)| {
        let characters = ['a', 'b', 'c', 'é'];
        let has = |i: usize, inside: usize| singles[i][inside] || draw % 3 > 0;
        let mut known: Vec<char> = characters.to_vec();
        let mut tokens: Vec<String> = Vec::new();
        let mut add = |token: String| {
            let new = !tokens.contains(&token) && tokens.len() < 26;
            if new {
                tokens.push(token);
            }
            new
        };
        let model = match kind {
            0 => {
                for (i, c) in characters.into_iter().enumerate() {
                    let there =
                        [has(i, 0) && add(c.to_string()), has(i, 1) && add(format!("##{c}"))];
                    known.retain(|&k| k != c || there == [true; 2]);
                }
                for (word, inside, _) in words {
                    add(if inside { format!("##{word}") } else { word });
                }
                wordpiece(&tokens.iter().map(String::as_str).collect::<Vec<_>>())
            }
            1 | 2 => {
                for (i, c) in characters.into_iter().enumerate() {
                    let there = has(i, 0) && add(c.to_string());
                    known.retain(|&k| k != c || there);
                }
                let mut made: Vec<String> = known.iter().map(char::to_string).collect();
                let mut merges: Vec<[String; 2]> = Vec::new();
                for (i, (word, _, score)) in words.iter().enumerate() {
                    if made.is_empty() {
                        break;
                    }
                    let pick = |n: usize| made[n % made.len()].clone();
                    let pair = [pick(word.len() * 7 + i), pick(score.unsigned_abs() as usize + i)];
                    let product = pair.concat();
                    if !merges.contains(&pair) && (made.contains(&product) || add(product.clone()))
                    {
                        merges.push(pair);
                        if !made.contains(&product) {
                            made.push(product);
                        }
                    }
                }
                let merges = match kind {
                    1 => json!(merges),
                    _ => json!(merges.iter().map(|pair| pair.join(" ")).collect::<Vec<_>>()),
                };
                let mut model = bpe(&tokens.iter().map(String::as_str).collect::<Vec<_>>(), merges);
                model["ignore_merges"] = json!(draw % 2 == 0);
                model["fuse_unk"] = json!(draw % 5 == 0);
                model
            }
            _ => {
                let mut pieces = Vec::new();
                for (i, c) in characters.into_iter().enumerate() {
                    if has(i, 0) && add(c.to_string()) {
                        pieces.push((c.to_string(), -3.0 - i as f64));
                    } else {
                        known.retain(|&k| k != c);
                    }
                }
                for (word, _, score) in words {
                    if add(word.clone()) {
                        pieces.push((word, score as f64)); // ties, often
                    }
                }
                unigram(&pieces.iter().map(|(p, s)| (p.as_str(), *s)).collect::<Vec<_>>())
            }
        };
        (file(model, &SPECIAL), known)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn texts_of_kept_tokens_are_cut_as_before_and_no_character_is_lost(
        (json, known) in some_tokenizer(),
        corpus in proptest::collection::vec("[abcé]{1,5}( [abcé]{1,4})?", 0..4),
        texts in proptest::collection::vec("[abcé]{1,6}( [abcé]{1,6}){0,2}", 20),
        min_count in 1..3u64,
    ) {
        let corpus: Vec<&str> = corpus.iter().map(String::as_str).collect();
        let (_files, before) = load(&json).expect("a tokenizer");
        let (_, work) = run(&Vocab { min_count, ..Vocab::default() }, &json, &corpus).expect("runs");
        let after = work.vocabulary.expect("the table has rows without tokens");
        prop_assert!(after.kept.windows(2).all(|w| w[0] < w[1]));
        prop_assert_eq!(&after.kept[..4], &[0, 1, 2, 3]);
        let corpus = if min_count == 1 { &corpus[..] } else { &[] };
        for text in corpus.iter().copied().chain(texts.iter().map(String::as_str)) {
            let old = before.encode(text, None, 99).expect("a text").ids;
            let new = after.tokenizer.encode(text, None, 99).expect("a text").ids;
            let all_kept = old.iter().all(|id| after.kept.binary_search(id).is_ok());
            prop_assert!(corpus.iter().all(|t| t != &text) || all_kept);
            // A word that WordPiece could not cut may be one that it can, with a longer token gone.
            let exempt = after.unknown.is_some_and(|id| old.contains(&id));
            if all_kept && !exempt {
                let back: Vec<u32> = new.iter().map(|&id| after.kept[id as usize]).collect();
                prop_assert_eq!(&back, &old, "{}", text);
            }
            if text.chars().all(|c| c == ' ' || known.contains(&c)) {
                prop_assert!(!new.contains(&1), "{} of {:?}", text, known);
            }
        }
    }
}
