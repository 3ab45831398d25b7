use proptest::prelude::*;

use super::*;

fn read_with(name: &str, content: impl AsRef<[u8]>, columns: &Columns) -> Result<Table> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    read_examples(&path, columns)
}

fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Table> {
    read_with(name, content, &Columns::default())
}

/// The message, without the temporary folder.
fn message(name: &str, content: impl AsRef<[u8]>, columns: &Columns) -> String {
    let message = read_with(name, content, columns).unwrap_err().to_string();
    message[message.find(name).unwrap_or(0)..].to_string()
}

fn columns(text: &str, pair: &str, label: &str) -> Columns {
    let given = |name: &str| Some(name.to_string()).filter(|n| !n.is_empty());
    Columns { text: given(text), pair: given(pair), label: given(label) }
}

/// Text, pair and label of each row, `-` for none.
fn rows(table: &Table) -> Vec<[String; 3]> {
    let or_dash = |cell: &Option<String>| cell.clone().unwrap_or("-".into());
    let row = |e: &Example| [e.text.clone(), or_dash(&e.pair), or_dash(&e.label)];
    table.examples.iter().map(row).collect()
}

#[test]
fn glue_headers_are_known() {
    // Header and row of each task's file, and what is read of it.
    for (header, row, expected) in [
        ("sentence\tlabel", "fine \t1", (["fine ", "-", "1"], ["sentence", "", "label"])),
        (
            "index\tsentence1\tsentence2\tlabel",
            "0\ta\tb\tentailment",
            (["a", "b", "entailment"], ["sentence1", "sentence2", "label"]),
        ),
        (
            "index\tquestion\tsentence\tlabel",
            "0\ta\tb\tentailment",
            (["a", "b", "entailment"], ["question", "sentence", "label"]),
        ),
        (
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
            "0\tg\tf\t2012\t1\tnone\tnone\ta\tb\t5.000",
            (["a", "b", "5.000"], ["sentence1", "sentence2", "score"]),
        ),
        (
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            "1\t2\t3\ta\tb\t0",
            (["a", "b", "0"], ["question1", "question2", "is_duplicate"]),
        ),
        (
            "index\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label",
            "0\ta\tb\tneutral\tneutral\tcontradiction",
            (["a", "b", "contradiction"], ["sentence1", "sentence2", "gold_label"]),
        ),
        (
            "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
            "1\t7\t8\ta\tb",
            (["a", "b", "1"], ["#1 String", "#2 String", "Quality"]),
        ),
    ] {
        let table = read("dev.tsv", format!("{header}\n{row}\n")).unwrap();
        assert_eq!(rows(&table), [expected.0], "{header}");
        let [text, pair, label] = expected.1;
        assert_eq!(table.columns, columns(text, pair, label), "{header}");
    }
}

#[test]
fn a_table_without_labels_is_fine() {
    let table = read("a.tsv", "index\tsentence\n0\tfine\n").unwrap();
    assert_eq!(rows(&table), [["fine", "-", "-"]]);
}

#[test]
fn an_empty_label_is_none() {
    assert_eq!(rows(&read("a.tsv", "text\tlabel\nfine\t\n").unwrap()), [["fine", "-", "-"]]);
}

#[test]
fn quotes_in_tsv_are_literal() {
    let table = read("a.tsv", "sentence\tlabel\n\"So \"\"it\"\t0\nx\\ty\t1\n").unwrap();
    assert_eq!(rows(&table), [["\"So \"\"it\"", "-", "0"], ["x\\ty", "-", "1"]]);
}

#[test]
fn windows_files_are_read() {
    let table = read("a.TSV", "\u{feff}sentence\tlabel\r\nfine\t1\r\n\r\n").unwrap();
    assert_eq!(rows(&table), [["fine", "-", "1"]]);
    let table = read("a.csv", "\u{feff}sentence,label\r\nfine,1\r\n\"so, so\",0\r\n").unwrap();
    assert_eq!(rows(&table), [["fine", "-", "1"], ["so, so", "-", "0"]]);
}

#[test]
fn cola_has_no_header() {
    let table = read("a.tsv", "gj04\t1\t\tWe sailed.\ngj04\t0\t*\tSailed we.\n").unwrap();
    assert_eq!(rows(&table), [["We sailed.", "-", "1"], ["Sailed we.", "-", "0"]]);
    assert_eq!(table.columns, columns("4", "", "2"));
}

#[test]
fn xnli_has_no_header() {
    let nli = "他说，妈妈，我回来了。\t他没说。\tneutral\n他说，妈妈，我回来了。\t他说了。\tentailment\n\
        我不知道我要去哪里。\t我知道。\tneutral\n我不知道我要去哪里。\t我不知道。\tentailment\n";
    let table = read("a.tsv", nli).unwrap();
    assert_eq!(rows(&table)[0], ["他说，妈妈，我回来了。", "他没说。", "neutral"]);
    assert_eq!(table.columns, columns("1", "2", "3"));
}

#[test]
fn one_column_of_labels_tells_two_columns_apart() {
    let table = read("a.tsv", "so fine\t1\nso bad\t0\n").unwrap();
    assert_eq!(table.columns, columns("1", "", "2"));
    let table = read("a.tsv", "good\tso fine\nbad\tso bad\nbad\tworse\ngood\tyes\n").unwrap();
    assert_eq!(table.columns, columns("2", "", "1"));
    let table = read("a.tsv", "so fine\t4.5\nso bad\t0.5\n").unwrap();
    assert_eq!(table.columns, columns("1", "", "2"));
}

#[test]
fn a_class_named_like_a_column_makes_no_header() {
    let table =
        read("a.tsv", "is it\tquestion\nit is\tanswer\nwas it\tquestion\nno\tanswer\n").unwrap();
    assert_eq!(table.columns, columns("1", "", "2"));
    assert_eq!(table.examples.len(), 4);
}

#[test]
fn unknown_names_above_numbers_are_a_header() {
    let content = "tweet\tpolarity\nso fine\t1\nso bad\t0\nmeh\t0\n";
    assert_eq!(
        message("a.tsv", content, &Columns::default()),
        "a.tsv: found columns `tweet`, `polarity`, expected columns that can be told apart, as by a \
         header with `sentence` and `label`; \
         name them with --text-column, --pair-column and --label-column"
    );
    let table = read_with("a.tsv", content, &columns("tweet", "", "polarity")).unwrap();
    assert_eq!(rows(&table)[0], ["so fine", "-", "1"]);
    let table = read_with("a.tsv", content, &columns("1", "", "2")).unwrap();
    assert_eq!(table.examples.len(), 3);
}

#[test]
fn the_only_column_beside_the_label_is_the_text() {
    let table = read("a.csv", "tweet,label\nfine,1\n").unwrap();
    assert_eq!(table.columns, columns("tweet", "", "label"));
}

#[test]
fn ambiguous_columns_are_an_error() {
    for content in [
        "so fine\tso bad\nso fine\tso good\n", // two texts
        "1\tso fine\n2\tso bad\n3\tso so\n",   // ids, not labels
        "a-1\tso fine\tpos\na-2\tso bad\tneg\na-3\tso so\tpos\na-4\tnot so\tneg\n", // ids, not texts
        "1\t2\t3\t4\t5\n",
    ] {
        let message = message("a.tsv", content, &Columns::default());
        assert!(
            message.contains("columns without a known header, the first row being"),
            "{message}"
        );
    }
}

#[test]
fn given_columns_win() {
    let content = "sentence1\tsentence2\tnote\tlabel\tother\na\tb\tc\t0\t1\n";
    let read = |c| rows(&read_with("a.tsv", content, &c).unwrap()).remove(0);
    assert_eq!(read(columns("note", "", "other")), ["c", "-", "1"]);
    assert_eq!(read(columns("sentence1", "", "")), ["a", "-", "0"]);
    assert_eq!(read(columns("2", "Sentence1", "")), ["b", "a", "0"]);
    assert_eq!(read(columns("", "note", "")), ["a", "c", "0"]);
}

#[test]
fn an_absent_column_is_an_error_that_shows_those_there() {
    assert_eq!(
        message("a.tsv", "sentence\tlabel\na\t1\n", &columns("body", "", "")),
        "a.tsv: found columns `sentence`, `label`, expected a column `body`; \
         name one of the columns or give its number, counted from 1"
    );
    let message = message("a.tsv", "so fine\t1\nso bad\t0\n", &columns("3", "", ""));
    assert!(
        message.contains("the first row being `so fine`, `1`, expected a column `3`"),
        "{message}"
    );
}

#[test]
fn a_short_row_names_its_line() {
    assert_eq!(
        message("a.tsv", "index\tsentence\tlabel\n0\ta\t1\n\n1\tb\n", &Columns::default()),
        "a.tsv: found 2 columns on line 4, expected 3 as on line 1; \
         check the separators of that line"
    );
}

#[test]
fn a_long_row_is_not_read_askew() {
    let message = message("a.tsv", "sentence\tlabel\na tab\there\t1\n", &Columns::default());
    assert!(message.contains("found 3 columns on line 2, expected 2"), "{message}");
}

#[test]
fn csv_cells_hold_commas_quotes_and_lines() {
    let table = read("a.csv", "text,label\n\"a \"\"b\"\", c\nd\",1\n\"\",0\nx\"y,1").unwrap();
    assert_eq!(rows(&table), [["a \"b\", c\nd", "-", "1"], ["", "-", "0"], ["x\"y", "-", "1"]]);
    assert_eq!(table.examples.iter().map(|e| e.line).collect::<Vec<_>>(), [2, 4, 5]);
}

#[test]
fn bad_csv_quotes_name_their_line() {
    let open = message("a.csv", "text,label\na,1\n\"b,1\n", &Columns::default());
    assert!(open.contains("found a quote that never closes on line 3"), "{open}");
    let after = message("a.csv", "text,label\n\"a\nb\"c,1\n", &Columns::default());
    assert!(after.contains("found text after a closing quote on line 3"), "{after}");
}

#[test]
fn jsonl_takes_strings_and_labels_of_any_kind() {
    let content = r#"{"premise": "a", "hypothesis": "b\n", "label": 2, "tokens": [1]}

        {"hypothesis": "d", "premise": "c", "label": "neutral"}
        {"premise": "e", "hypothesis": "f", "label": true}
        {"premise": "g", "hypothesis": "h", "label": null}
        {"premise": "i", "hypothesis": "j"}"#;
    let table = read("a.jsonl", content).unwrap();
    let labels: Vec<_> = rows(&table).into_iter().map(|[_, _, label]| label).collect();
    assert_eq!(labels, ["2", "neutral", "1", "-", "-"]);
    assert_eq!(rows(&table)[1], ["c", "d", "neutral"]);
    assert_eq!(table.examples[1].line, 3);
    assert_eq!(table.columns, columns("premise", "hypothesis", "label"));
}

#[test]
fn bad_jsonl_names_its_line() {
    for (content, expected) in [
        ("{\"text\": \"a\"}\n[1]\n", "found `[1]` (invalid type: sequence"),
        ("{\"text\": \"a\"}\n{\"body\": \"b\"}\n", "found no `text` on line 2, expected a string"),
        ("{\"text\": \"a\"}\n{\"text\": 3}\n", "found `text`: `3` on line 2, expected a string"),
        ("{\"text\": \"a\", \"label\": [1]}\n", "found label `[1]` on line 1"),
        ("{\"body\": \"a\"}\n", "found keys `body` on line 1"),
        ("{}\n", "found keys  on line 1"),
    ] {
        let message = message("a.jsonl", content, &Columns::default());
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn plain_text_is_one_text_a_line() {
    let table = read("a.txt", "text\n\n  \nlabel\t1\r\n").unwrap();
    assert_eq!(rows(&table), [["text", "-", "-"], ["label\t1", "-", "-"]]);
    assert_eq!(table.examples[1].line, 4);
    assert_eq!(
        message("a.txt", "a\n", &columns("", "", "2")),
        "column `2` was asked for, but a .txt file is one text a line and has no columns; \
         drop the option, or give a .tsv, .csv or .jsonl file"
    );
}

#[test]
fn other_extensions_are_refused() {
    for name in ["a.json", "a"] {
        let message = message(name, "x", &Columns::default());
        assert!(message.ends_with("is not supported; this build knows: .tsv, .csv, .jsonl, .txt"));
    }
}

#[test]
fn files_without_examples_are_refused() {
    for (name, content) in [
        ("a.tsv", ""),
        ("a.tsv", "\n\n"),
        ("a.tsv", "sentence\tlabel\n"),
        ("a.csv", "sentence,label\r\n"),
        ("a.jsonl", "\n"),
        ("a.txt", " \n"),
    ] {
        let message = message(name, content, &Columns::default());
        assert!(message.contains("found no examples, expected at least one row"), "{message}");
    }
}

#[test]
fn bytes_that_are_not_utf8_name_their_line() {
    assert_eq!(
        message("a.tsv", b"sentence\tlabel\nfine\t1\ncaf\xe9\t1\n", &Columns::default()),
        "a.tsv: found bytes that are not UTF-8 on line 3, expected UTF-8 text; \
         save the file as UTF-8"
    );
}

#[test]
fn an_absent_file_cannot_be_read() {
    let err = read_examples(Path::new("/nowhere/a.tsv"), &Columns::default()).unwrap_err();
    assert!(matches!(err, Error::Read { .. }));
}

proptest! {
    #[test]
    fn csv_gives_back_what_was_written(texts in proptest::collection::vec("[a-c,\"\r\n é]{0,8}", 1..5)) {
        let mut content = "text,label\n".to_string();
        for text in &texts {
            content += &format!("\"{}\",1\n", text.replace('"', "\"\""));
        }
        let table = read("a.csv", content).unwrap();
        let found: Vec<_> = table.examples.into_iter().map(|e| e.text).collect();
        prop_assert_eq!(found, texts);
    }

    #[test]
    fn no_content_panics(
        content in "[a1,\"\t\r\n {}:]{0,40}",
        name in proptest::sample::select(vec!["a.tsv", "a.csv", "a.jsonl", "a.txt"]),
        column in proptest::option::of("[a0-3]"),
    ) {
        let _ = read_with(name, content, &Columns { label: column, ..Default::default() });
    }
}

fn tags(table: &Table) -> Vec<Option<Annotation>> {
    table.examples.iter().map(|e| e.annotation.clone()).collect()
}

fn some_tags(tags: &[&str]) -> Option<Annotation> {
    Some(Annotation::Tags(tags.iter().map(|t| t.to_string()).collect()))
}

fn some_spans(spans: &[(usize, &str)]) -> Option<Annotation> {
    let span = |&(start, text): &(usize, &str)| Span { start, text: text.into() };
    Some(Annotation::Spans(spans.iter().map(span).collect()))
}

#[test]
fn words_and_tags_are_read_from_lists() {
    let content = r#"{"id": "0", "tokens": ["In", "Rome", "."], "pos_tags": [1, 2, 3], "ner_tags": ["O", " B-LOC ", "O"]}
        {"tokens": ["In"], "ner_tags": [7], "id": "1"}
        {"tokens": [], "ner_tags": []}
        {"tokens": ["x", "y\u00a0z"], "ner_tags": null}
        {"tokens": ["x"]}"#;
    let table = read("a.jsonl", content).unwrap();
    assert_eq!(table.columns, columns("tokens", "", "ner_tags"));
    let texts: Vec<_> = table.examples.iter().map(|e| e.text.as_str()).collect();
    assert_eq!(texts, ["In Rome .", "In", "", "x y\u{a0}z", "x"]);
    let expected = [some_tags(&["O", "B-LOC", "O"]), some_tags(&["7"]), some_tags(&[]), None, None];
    assert_eq!(tags(&table), expected);
    assert!(table.examples.iter().all(|e| e.label.is_none() && e.pair.is_none()));
    assert_eq!(table.examples[4].line, 5);
}

#[test]
fn words_and_tags_are_found_under_their_usual_names_or_as_named() {
    for key in ["tags", "labels", "label", "pos_tags", "upos"] {
        let table = read("a.jsonl", format!(r#"{{"words": ["a"], "{key}": ["x"]}}"#)).unwrap();
        assert_eq!(table.columns, columns("words", "", key));
        assert_eq!(tags(&table), [some_tags(&["x"])]);
    }
    let content = r#"{"tokens": ["a"], "pieces": ["b"], "ner_tags": ["x"], "chunks": ["y"]}"#;
    let named = |text, label| {
        let table = read_with("a.jsonl", content, &columns(text, "", label)).unwrap();
        (table.examples[0].text.clone(), tags(&table).remove(0))
    };
    assert_eq!(named("", "chunks"), ("a".into(), some_tags(&["y"])));
    assert_eq!(named("Pieces", ""), ("b".into(), some_tags(&["x"])));
    // Without tags the words are a text all the same, when they are asked for.
    let table =
        read_with("a.jsonl", r#"{"parts": ["a", "b"]}"#, &columns("parts", "", "")).unwrap();
    assert_eq!(
        (rows(&table), tags(&table)),
        (vec![["a b", "-", "-"].map(String::from)], vec![None])
    );
}

#[test]
fn a_text_with_a_class_is_one_even_if_it_has_words_and_tags() {
    let content = r#"{"text": "a b", "tokens": ["a", "b"], "pos_tags": [1, 2], "label": 1}"#;
    let table = read("a.jsonl", content).unwrap();
    assert_eq!(
        (rows(&table), tags(&table)),
        (vec![["a b", "-", "1"].map(String::from)], vec![None])
    );
    let content = r#"{"question": "a", "context": "b", "answers": {}, "label": "yes"}"#;
    assert_eq!(rows(&read("a.jsonl", content).unwrap()), [["a", "-", "yes"]]);
}

#[test]
fn questions_are_read_as_the_hub_stores_squad() {
    let content = r#"{"id": "x", "title": "t", "question": "Wo?", "context": "Für Rom, in Rom", "answers": {"text": ["Rom", "in Rom"], "answer_start": [4, 9]}}
        {"question": "q", "context": "c", "answers": {"text": [], "answer_start": []}}
        {"question": "q", "context": "c", "answers": null}
        {"question": "q", "context": "c"}"#;
    let table = read("a.jsonl", content).unwrap();
    assert_eq!(table.columns, columns("question", "context", "answers"));
    let expected = [some_spans(&[(4, "Rom"), (9, "in Rom")]), some_spans(&[]), None, None];
    assert_eq!(tags(&table), expected);
    assert_eq!(rows(&table)[0], ["Wo?", "Für Rom, in Rom", "-"]);
}

#[test]
fn one_answer_beside_its_start_will_do() {
    let content = r#"{"context": "in 好 Rome", "question": "q", "answer": "Rome", "answer_start": 5}
        {"context": "c", "question": "q", "answer": "", "answer_start": -1}
        {"context": "c", "question": "q", "answer": null, "answer_start": null}
        {"context": "c", "question": "q"}"#;
    let table = read("a.jsonl", content).unwrap();
    assert_eq!(tags(&table), [some_spans(&[(5, "Rome")]), some_spans(&[]), some_spans(&[]), None]);
    let content =
        r#"{"query": "q", "passage": "in Rome", "found": {"text": ["in"], "answer_start": [0]}}"#;
    let table = read_with("a.jsonl", content, &columns("query", "passage", "found")).unwrap();
    assert_eq!(tags(&table), [some_spans(&[(0, "in")])]);
}

#[test]
fn a_question_and_a_context_are_a_pair_without_answers_too() {
    for more in ["", r#", "answers": ["b"]"#, r#", "answer": "b""#] {
        let table =
            read("a.jsonl", format!(r#"{{"question": "a", "context": "b"{more}}}"#)).unwrap();
        assert_eq!(
            (rows(&table), tags(&table)),
            (vec![["a", "b", "-"].map(String::from)], vec![None])
        );
    }
    let pair = r#"{"question": "a", "sentence": "b", "context": "c"}"#;
    assert_eq!(rows(&read("a.jsonl", pair).unwrap()), [["a", "b", "-"]]);
}

#[test]
fn bad_tags_name_their_line() {
    let refused = |line: &str| {
        let content = format!("{{\"tokens\": [\"a\", \"b\"], \"tags\": [\"O\", \"O\"]}}\n{line}\n");
        message("a.jsonl", content, &Columns::default())
    };
    insta::assert_snapshot!(refused(r#"{"tokens": ["a", "b"], "tags": ["O"]}"#), @"a.jsonl: found `tokens` of length 2 and `tags` of length 1 on line 2, expected one tag for every word; add the tags that are missing, or drop the line");
    insta::assert_snapshot!(refused(r#"{"tokens": ["a", 3], "tags": ["O", "O"]}"#), @r#"a.jsonl: found `3` in `tokens` on line 2, expected words, as strings; write lists, as in {"tokens": ["in", "Rome"], "ner_tags": ["O", "B-LOC"]}"#);
    insta::assert_snapshot!(refused(r#"{"tokens": ["a", ""], "tags": ["O", "O"]}"#), @"a.jsonl: found an empty word on line 2, expected words with letters or signs; drop that word and its tag");
    insta::assert_snapshot!(refused(r#"{"tokens": ["a", "b c"], "tags": ["O", "O"]}"#), @"a.jsonl: found the word `b c` on line 2, expected words without a space; split it into words with a tag each, or take the space out");
    insta::assert_snapshot!(refused(r#"{"tokens": "a b", "tags": ["O", "O"]}"#), @r#"a.jsonl: found `tokens`: `"a b"` on line 2, expected a list; write lists, as in {"tokens": ["in", "Rome"], "ner_tags": ["O", "B-LOC"]}"#);
    insta::assert_snapshot!(refused(r#"{"tags": ["O", "O"]}"#), @r#"a.jsonl: found no `tokens` on line 2, expected a list; write lists, as in {"tokens": ["in", "Rome"], "ner_tags": ["O", "B-LOC"]}"#);
    insta::assert_snapshot!(refused(r#"{"tokens": ["a", "b"], "tags": "O O"}"#), @r#"a.jsonl: found `tags`: `"O O"` on line 2, expected a list; write lists, as in {"tokens": ["in", "Rome"], "ner_tags": ["O", "B-LOC"]}"#);
    insta::assert_snapshot!(refused(r#"{"tokens": ["a", "b"], "tags": ["O", null]}"#), @r#"a.jsonl: found tag `null` on line 2, expected the name or the id of a class; write lists, as in {"tokens": ["in", "Rome"], "ner_tags": ["O", "B-LOC"]}"#);
}

#[test]
fn bad_answers_name_their_line() {
    let refused = |answers: &str| {
        let content = format!(
            "{{\"question\": \"q\", \"context\": \"c\", \"answers\": {{\"text\": [], \"answer_start\": []}}}}\n\
             {{\"question\": \"q\", \"context\": \"für Rom\", {answers}}}\n"
        );
        message("a.jsonl", content, &Columns::default())
    };
    let lists = |text: &str, start: &str| {
        refused(&format!(r#""answers": {{"text": {text}, "answer_start": {start}}}"#))
    };
    insta::assert_snapshot!(lists(r#"["Rom"]"#, "[5]"), @"a.jsonl: found `om` at `answer_start` 5 on line 2, expected `Rom`; count from 0 in characters, not bytes, and spell the answer as the context does");
    insta::assert_snapshot!(lists(r#"["Rom"]"#, "[7]"), @"a.jsonl: found nothing at `answer_start` 7, behind the end of the context, on line 2, expected `Rom`; count from 0 in characters, not bytes, and spell the answer as the context does");
    insta::assert_snapshot!(lists(r#"["rom"]"#, "[4]"), @"a.jsonl: found `Rom` at `answer_start` 4 on line 2, expected `rom`; count from 0 in characters, not bytes, and spell the answer as the context does");
    insta::assert_snapshot!(lists(r#"["Rom"]"#, "[-1]"), @r#"a.jsonl: found `answer_start` `-1` on line 2, expected a whole number from 0; write {"text": ["Rome"], "answer_start": [3]}, with empty lists where there is no answer"#);
    insta::assert_snapshot!(lists(r#"["Rom"]"#, "[18446744073709551615]"), @"a.jsonl: found nothing at `answer_start` 18446744073709551615, behind the end of the context, on line 2, expected `Rom`; count from 0 in characters, not bytes, and spell the answer as the context does");
    insta::assert_snapshot!(lists(r#"["Rom", "für"]"#, "[4]"), @r#"a.jsonl: found `text` of length 2 and `answer_start` of length 1 on line 2, expected one start for every text; write {"text": ["Rome"], "answer_start": [3]}, with empty lists where there is no answer"#);
    insta::assert_snapshot!(lists(r#"[""]"#, "[0]"), @r#"a.jsonl: found answer `""` on line 2, expected a text; write {"text": ["Rome"], "answer_start": [3]}, with empty lists where there is no answer"#);
    insta::assert_snapshot!(lists(r#"[3]"#, "[0]"), @r#"a.jsonl: found answer `3` on line 2, expected a text; write {"text": ["Rome"], "answer_start": [3]}, with empty lists where there is no answer"#);
    insta::assert_snapshot!(lists(r#""Rom""#, "4"), @r#"a.jsonl: found `text`: `"Rom"` on line 2, expected a list; write {"text": ["Rome"], "answer_start": [3]}, with empty lists where there is no answer"#);
    insta::assert_snapshot!(refused(r#""answers": {"text": ["Rom"]}"#), @r#"a.jsonl: found answers without `answer_start` on line 2, expected texts and starts; write {"text": ["Rome"], "answer_start": [3]}, with empty lists where there is no answer"#);
    insta::assert_snapshot!(refused(r#""answers": ["Rom"]"#), @r#"a.jsonl: found `answers`: `["Rom"]` on line 2, expected lists of texts and starts; write {"text": ["Rome"], "answer_start": [3]}, with empty lists where there is no answer"#);
    insta::assert_snapshot!(refused(r#""answers": {"text": [], "answer_start": []}, "context": 3"#), @"a.jsonl: found `context`: `3` on line 2, expected a string; name them with --text-column, --pair-column and --label-column");
    let plain = r#"{"question": "q", "context": "Rom", "answer": "Rom", "answer_start": 1}"#;
    insta::assert_snapshot!(message("a.jsonl", plain, &Columns::default()), @"a.jsonl: found `om` at `answer_start` 1 on line 1, expected `Rom`; count from 0 in characters, not bytes, and spell the answer as the context does");
}

#[test]
fn a_column_has_one_role() {
    let content = "sentence\tother\tlabel\na b\tc\t1\nd e\tf\t0\n";
    let error = |text, pair, label| message("x.tsv", content, &columns(text, pair, label));
    assert_eq!(
        error("label", "", ""),
        "x.tsv: column `label` is the text and the label, but each has a column of its own; \
         name them with --text-column, --pair-column and --label-column"
    );
    assert!(error("", "sentence", "").contains("`sentence` is the text and the second text"));
    assert!(error("", "2", "other").contains("`other` is the second text and the label"));
    assert!(read_with("x.tsv", content, &columns("label", "", "other")).is_ok());
}

#[test]
fn commas_in_a_tsv_are_named() {
    let error = |content| message("x.tsv", content, &Columns::default());
    assert_eq!(
        error("sentence,label\ngood,1\n"),
        "x.tsv: found one column, the first line being `sentence,label`, expected tabs between the cells of \
         a .tsv: these look like commas; name the file .csv, or write tabs"
    );
    assert!(error("good,1\nbad,0\nfine,1\n").contains("look like commas"));
    // Texts with commas are texts.
    for content in ["so, so\nwell, well\nno, no\n", "sentence\nin May, 9\nin June\nin July, 8\n"] {
        assert!(read("x.tsv", content).is_ok(), "{content}");
    }
}

#[test]
fn line_ends_of_old_macs_are_line_ends() {
    let table = read("x.tsv", "sentence\tlabel\rgood\t1\rbad\t0\r").unwrap();
    assert_eq!(rows(&table), [["good", "-", "1"], ["bad", "-", "0"]]);
    // Beside line feeds a carriage return is what it was.
    assert_eq!(rows(&read("x.txt", "a\rb\nc\n").unwrap())[0][0], "a\rb");
}

#[test]
fn quotes_around_every_text_of_a_tsv_are_noticed() {
    let quoted = |name: &str, content: &str| read(name, content).unwrap().is_quoted();
    assert!(quoted("x.tsv", "sentence\tlabel\n\"good\"\t1\n\"bad\"\t0\n"));
    assert!(!quoted("x.tsv", "sentence\tlabel\n\"good\"\t1\nbad\t0\n"));
    assert!(!quoted("x.csv", "sentence,label\n\"good\",1\n\"bad\",0\n"));
}
