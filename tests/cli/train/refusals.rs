//! What is refused, and how it is said.

use super::{save_every_head, words, write_examples};
use crate::support::Dir;

#[test]
fn options_of_distill_that_make_no_sense() {
    let dir = Dir::with_tiny();
    let mut text = String::new();
    for options in [
        "steps=-1",
        "steps=200000000",
        "batch=0",
        "batch=100000",
        "accumulate=0",
        "rate=-1",
        "rate=2",
        "rate=nan",
        "warmup=1.5",
        "dropout=1",
        "dropout=-0.1",
        "swap=1.5",
        "replace=2",
        "replaced_at=-1",
        "temperature=0",
        "temperature=1000",
        "decay=-1",
        "clip=-1",
        "hidden=-1",
        "task=inf",
        "prediction=0,hidden=0,task=0,similarity=0",
        "prediction=0,sinkhorn=1",
        "method=magic",
        "schedule=magic",
        "matching=magic",
        "embeddings=2",
        "stps=3",
    ] {
        let passes = format!("distill({options})");
        let message = dir.fails(3, &["--passes", &passes, "model", "-o", "out"]);
        text += &format!("{options}\n    {message}\n");
    }
    insta::assert_snapshot!(text, @r#"
    steps=-1
        cannot read the recipe: found `steps=-1` of `distill`, expected a whole number, 0 or more; `compress passes distill` says more
    steps=200000000
        pass `distill`: `steps` is 200000000, expected a number from 0 to 100000000
    batch=0
        pass `distill`: `batch` is 0, expected a number from 1 to 65536
    batch=100000
        pass `distill`: `batch` is 100000, expected a number from 1 to 65536
    accumulate=0
        pass `distill`: `accumulate` is 0, expected a number from 1 to 65536
    rate=-1
        pass `distill`: `rate` is -1, expected a number in [0, 1]
    rate=2
        pass `distill`: `rate` is 2, expected a number in [0, 1]
    rate=nan
        pass `distill`: `rate` is NaN, expected a number in [0, 1]
    warmup=1.5
        pass `distill`: `warmup` is 1.5, expected a number in [0, 1]
    dropout=1
        pass `distill`: `dropout` is 1, expected a number in [0, 1)
    dropout=-0.1
        pass `distill`: `dropout` is -0.1, expected a number in [0, 1)
    swap=1.5
        pass `distill`: `swap` is 1.5, expected a number in [0, 1]
    replace=2
        pass `distill`: `replace` is 2, expected a number in [0, 1]
    replaced_at=-1
        pass `distill`: `replaced_at` is -1, expected a number in [0, 1]
    temperature=0
        pass `distill`: `temperature` is 0, expected a number in (0, 100]
    temperature=1000
        pass `distill`: `temperature` is 1000, expected a number in (0, 100]
    decay=-1
        pass `distill`: `decay` is -1, expected a number from 0 to 1000000
    clip=-1
        pass `distill`: `clip` is -1, expected a number from 0 to 1000000
    hidden=-1
        pass `distill`: `hidden` is -1, expected a number from 0 to 1000000
    task=inf
        pass `distill`: `task` is inf, expected a number from 0 to 1000000
    prediction=0,hidden=0,task=0,similarity=0
        pass `distill`: `prediction` is 0, as all other weights are, expected one above 0
    prediction=0,sinkhorn=1
        pass `distill`: `prediction` is 0, with sinkhorn, expected above 0: the distance alone does not say which text is which
    method=magic
        cannot read the recipe: found `method="magic"` of `distill`, expected `kd` or `theseus`; `compress passes distill` says more
    schedule=magic
        cannot read the recipe: found `schedule="magic"` of `distill`, expected one of `linear`, `cosine`, `constant`; `compress passes distill` says more
    matching=magic
        cannot read the recipe: found `matching="magic"` of `distill`, expected one of `uniform`, `dynamic`, `ordered`; `compress passes distill` says more
    embeddings=2
        cannot read the recipe: found `embeddings=2` of `distill`, expected true or false; `compress passes distill` says more
    stps=3
        pass `distill` has no option `stps`, did you mean `steps`?; it knows: accumulate, attention, batch, bucket, clip, codewords, decay, dropout, embedding, embeddings, evaluate, hidden, matching, method, patience, prediction, rate, relations, replace, replaced_at, schedule, similarity, sinkhorn, steps, swap, task, temperature, warmup
    "#);
}

#[test]
fn a_loss_that_does_not_apply_is_no_loss() {
    let dir = Dir::with_tiny();
    write_examples(&dir);
    save_every_head(&dir);
    let mut text = String::new();
    for args in [
        // `similarity` is for sentence embeddings.
        "distill(prediction=0,hidden=0,task=0) --data data.tsv classifier",
        "distill(prediction=0,hidden=0) --data texts.txt classifier",
        "distill(prediction=0,method=theseus) --data texts.txt classifier",
        "distill(prediction=0,hidden=0,similarity=0) --data data.tsv bare",
    ] {
        let run = format!("-q --calib none -o out --passes {args}");
        text += &format!("{args}\n    {}\n", dir.fails(4, &words(&run)));
    }
    insta::assert_snapshot!(text, @r#"
    distill(prediction=0,hidden=0,task=0) --data data.tsv classifier
        pass `distill` failed: no loss with a weight above 0 is one of sequence classification, but training needs a loss; give `prediction` a weight above 0
    distill(prediction=0,hidden=0) --data texts.txt classifier
        pass `distill` failed: no loss with a weight above 0 is one of sequence classification without labels, but training needs a loss; give `prediction` a weight above 0
    distill(prediction=0,method=theseus) --data texts.txt classifier
        pass `distill` failed: no loss with a weight above 0 is one of sequence classification without labels, but training needs a loss; give `prediction` a weight above 0
    distill(prediction=0,hidden=0,similarity=0) --data data.tsv bare
        pass `distill` failed: no loss with a weight above 0 is one of bare encoder without labels, but training needs a loss; give `prediction` a weight above 0
    "#);
}

#[test]
fn data_that_distill_cannot_use() {
    let dir = Dir::with_tiny();
    write_examples(&dir);
    save_every_head(&dir);
    dir.write("none.tsv", "");
    let mut text = String::new();
    for (code, args) in [
        (2, "--data-texts 4"),
        (2, "--data texts.txt --data-texts 0"),
        (2, "--save-every 5"),
        (6, "--data nosuch.txt"),
        (4, "--data none.tsv"),
        (4, "--data classes.tsv"),
        (4, "--data texts.txt --label-column verdict"),
    ] {
        let run = format!("--passes distill -q --calib none model -o out {args}");
        let found = dir.run(&words(&run));
        assert_eq!((found.code, &found.stdout[..]), (Some(code), ""), "{args}: {found:?}");
        assert!(!dir.path("out").exists());
        text += &format!("{args} ({code})\n{}", found.stderr);
    }
    insta::assert_snapshot!(text, @r#"
    --data-texts 4 (2)
    error: the following required arguments were not provided:
      --data <FILE>
    
    Usage: compress --passes PASSES MODEL -o OUT [OPTIONS]
           compress <COMMAND>
    
    For more information, try '--help'.
    --data texts.txt --data-texts 0 (2)
    error: --data-texts is 0; give at least 1, or leave --data out
    --save-every 5 (2)
    error: the following required arguments were not provided:
      --resume
    
    Usage: compress --passes PASSES MODEL -o OUT [OPTIONS]
           compress <COMMAND>
    
    For more information, try '--help'.
    --data nosuch.txt (6)
    error: cannot read nosuch.txt: No such file or directory (os error 2)
    --data none.tsv (4)
    error: none.tsv: found no examples, expected at least one row; check that the file was written completely
    --data classes.tsv (4)
    error: classes.tsv has the labels `blame`, `praise`, but the model has `negative`, `positive`; write the model's names or class ids into the file, or set `id2label` in config.json
    --data texts.txt --label-column verdict (4)
    error: column `verdict` was asked for, but a .txt file is one text a line and has no columns; drop the option, or give a .tsv, .csv or .jsonl file
    "#);
}

#[test]
fn flags_of_train_that_make_no_sense() {
    let dir = Dir::with_tiny();
    let mut text = String::new();
    for flags in [
        "--steps 0",
        "--steps 200000000",
        "--epochs 0",
        "--batch 0",
        "--batch 100000",
        "--accumulate 0",
        "--accumulate 100000",
        "--data-texts 0",
        "--rate 0",
        "--rate 2",
        "--rate nan",
        "--warmup 1.5",
        "--decay=-1",
        "--clip=-1",
        "--dropout 1",
        "--max-length 0",
        "--max-length 33",
        "--threads 0",
    ] {
        let run = format!("train -q model --data data.tsv -o out {flags}");
        text += &format!("{flags}\n    {}\n", dir.fails(2, &words(&run)));
    }
    insta::assert_snapshot!(text, @r#"
    --steps 0
        --steps is 0; give at least 1
    --steps 200000000
        --steps is 200000000; give at most 100000000
    --epochs 0
        --epochs is 0; give a number above 0
    --batch 0
        --batch is 0; give at least 1
    --batch 100000
        --batch is 100000; give at most 65536
    --accumulate 0
        --accumulate is 0; give at least 1
    --accumulate 100000
        --accumulate is 100000; give at most 65536
    --data-texts 0
        --data-texts is 0; give at least 1
    --rate 0
        --rate is 0; give a number in (0, 1]
    --rate 2
        --rate is 2; give a number in (0, 1]
    --rate nan
        --rate is NaN; give a number in (0, 1]
    --warmup 1.5
        --warmup is 1.5; give a number in [0, 1]
    --decay=-1
        --decay is -1; give a number from 0 on
    --clip=-1
        --clip is -1; give a number from 0 on
    --dropout 1
        --dropout is 1; give a number in [0, 1)
    --max-length 0
        --max-length is 0; the model takes 3 to 32 tokens of a text
    --max-length 33
        --max-length is 33; the model takes 3 to 32 tokens of a text
    --threads 0
        --threads is 0; give at least 1
    "#);
}

/// What clap refuses; the lines about usage and help are its own.
#[test]
fn flags_of_train_that_exclude_each_other() {
    let dir = Dir::with_tiny();
    let mut text = String::new();
    for args in [
        "model -o out",
        "model --data data.tsv",
        "--data data.tsv -o out",
        "model --data data.tsv -o out --steps 3 --epochs 2",
        "model --data data.tsv -o out --patience 2",
        "model --data data.tsv -o out --save-every 2",
        "model --data data.tsv -o out --order o.txt --bucket 2",
        "model --data data.tsv -o out --order o.txt --evaluate 2",
        "model --data data.tsv -o out --order o.txt --data-texts 2",
        "model --data data.tsv -o out --task magic",
        "model --data data.tsv -o out --schedule magic",
        "model --data data.tsv -o out --passes distill",
    ] {
        let run = dir.run(&words(&format!("train {args}")));
        assert_eq!((run.code, &run.stdout[..]), (Some(2), ""), "{args}: {run:?}");
        let told = run.stderr.split("\n\n").next().unwrap();
        text += &format!("{args}\n    {}\n", told.trim_end().replace('\n', "\n    "));
    }
    assert!(!dir.path("out").exists());
    insta::assert_snapshot!(text, @r#"
    model -o out
        error: the following required arguments were not provided:
          --data <FILE>
    model --data data.tsv
        error: the following required arguments were not provided:
          --output <OUT>
    --data data.tsv -o out
        error: the following required arguments were not provided:
          <MODEL>
    model --data data.tsv -o out --steps 3 --epochs 2
        error: the argument '--steps <N>' cannot be used with '--epochs <N>'
    model --data data.tsv -o out --patience 2
        error: the following required arguments were not provided:
          --evaluate <N>
    model --data data.tsv -o out --save-every 2
        error: the following required arguments were not provided:
          --resume
    model --data data.tsv -o out --order o.txt --bucket 2
        error: the argument '--order <FILE>' cannot be used with '--bucket <N>'
    model --data data.tsv -o out --order o.txt --evaluate 2
        error: the argument '--order <FILE>' cannot be used with '--evaluate <N>'
    model --data data.tsv -o out --order o.txt --data-texts 2
        error: the argument '--order <FILE>' cannot be used with '--data-texts <N>'
    model --data data.tsv -o out --task magic
        error: invalid value 'magic' for '--task <TASK>'
          [possible values: classification, regression, tokens, questions, masked-lm]
    model --data data.tsv -o out --schedule magic
        error: invalid value 'magic' for '--schedule <SCHEDULE>'
          [possible values: linear, cosine, constant]
    model --data data.tsv -o out --passes distill
        error: unexpected argument '--passes' found
    "#);
}

#[test]
fn huge_numbers_are_no_panic() {
    let dir = Dir::with_tiny();
    let most = i64::MAX;
    dir.ok(&words(&format!("train -q model --data data.tsv --steps 1 -o a --bucket {most}")));
    let passes = format!("distill(steps=1,bucket={most},evaluate={most},patience={most})");
    dir.ok(&words(&format!("-q --data data.tsv model -o b --passes {passes}")));
}

/// The gradient of the squared distance to the label is beyond f32.
const ENDLESS: &str = "sentence\tscore\nnot bad\t3.4e38\n";

#[test]
fn training_that_diverges_writes_nothing() {
    let dir = Dir::with_tiny();
    save_every_head(&dir);
    dir.write("endless.tsv", ENDLESS);
    let mut text = String::new();
    for args in [
        "--passes distill(task=1) --data endless.tsv regression",
        "--passes distill(task=1) --data endless.tsv --resume regression",
        "train --data endless.tsv regression",
    ] {
        let run = format!("{args} -q -o out");
        text += &format!("{}\n", dir.fails(1, &words(&run)).replace("NaN", "inf"));
    }
    insta::assert_snapshot!(text, @r#"
    pass `distill` failed: training diverged: the loss or its gradient is inf at step 1, expected a finite number; lower the learning rate, or check the labels
    pass `distill` failed: training diverged: the loss or its gradient is inf at step 1, expected a finite number; lower the learning rate, or check the labels
    training diverged: the loss or its gradient is inf at step 1, expected a finite number; lower the learning rate, or check the labels
    "#);
}
