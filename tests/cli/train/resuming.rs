//! Training that is stopped and goes on.
#![cfg(unix)]

use super::{with_reviews, words};
use crate::determinism::timeless;
use crate::support::{Dir, stored, wait, write_tensors};
use compress::checkpoint::{Dtype, Tensor};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const DISTILL: &str = "--passes distill(steps=2),prune(sparsity=0.5,repair=false,mode=text),\
     distill(steps=24,batch=16,dropout=0.1,evaluate=5) --calib-texts 16 --data train.tsv \
     --data-texts 48 model";
const TRAIN: &str =
    "train model --data train.tsv --data-texts 48 --steps 24 --batch 16 --rate 0.001";

pub fn start(dir: &Dir, command: &str, more: &str) -> Child {
    let mut child = dir.command(&[words(command), words(more)].concat());
    child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the file of a state was written `times` times by the running `child`.
pub fn await_state(child: &mut Child, file: &PathBuf, times: usize) {
    // A state takes the old one's place, as another file.
    let seen = || fs::metadata(file).map(|m| (m.ino(), m.mtime(), m.mtime_nsec())).ok();
    let (mut last, mut left, start) = (seen(), times, Instant::now());
    while left > 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was stopped");
        assert!(start.elapsed() < Duration::from_secs(60), "no state in {}", file.display());
        std::thread::sleep(Duration::from_millis(1));
        let now = seen();
        left -= usize::from(now.is_some() && now != last);
        last = now;
    }
}

pub fn stderr(mut child: Child) -> String {
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

/// Kills a run three times on its way, and compares what comes out in the end with a run in one go.
fn killed_runs_give_the_same_bytes(command: &str, state: &str) {
    let dir = with_reviews();
    dir.ok(&[words(command), words("-q -o whole")].concat());
    let resume = "-o out --resume --save-every 0";
    let file = dir.path("out.resume").join(state);
    for times in [1, 3, 2] {
        let mut child = start(&dir, command, resume);
        await_state(&mut child, &file, times);
        child.kill().unwrap(); // SIGKILL
        assert_eq!(wait(&mut child), None);
        assert!(!dir.path("out").exists());
        assert!(file.exists(), "a state is whole or the one before");
    }
    // How it is watched and on how many threads it runs is no part of what it is.
    let mut last = start(&dir, command, "-o out --resume --save-every 1 --threads 1");
    assert_eq!(wait(&mut last), Some(0));
    let told = stderr(last);
    assert!(told.contains(": going on after step "), "{told}");
    assert!(!dir.path("out.resume").exists());
    assert_eq!(timeless(&dir, "out"), timeless(&dir, "whole"));
    dir.ok(&["verify", "out"]);
}

#[test]
fn a_killed_recovery_goes_on_as_if_nothing_had_happened() {
    killed_runs_give_the_same_bytes(DISTILL, "2-distill.safetensors");
}

#[test]
fn a_killed_fine_tuning_goes_on_as_if_nothing_had_happened() {
    killed_runs_give_the_same_bytes(TRAIN, "0-train.safetensors");
}

/// What becomes of the values of a tensor; none: it is left out.
type Change<'a> = &'a dyn Fn(&str, Vec<f32>) -> Option<Vec<f32>>;

/// Stops a run by Ctrl-C and by SIGTERM, and then gives it what it cannot go on with.
fn a_state_is_kept_and_checked(command: &str, state: &str, other: [&str; 2]) -> String {
    let dir = with_reviews();
    let resume = "-o out --resume --save-every 0";
    let file = dir.path("out.resume").join(state);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut child = start(&dir, command, resume);
        await_state(&mut child, &file, 1);
        // SAFETY: the child is ours and not yet waited for, so the number is still its own.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        assert_eq!(wait(&mut child), Some(130), "signal {signal}");
        let told = stderr(child);
        let end = "the state is in out.resume; the same command goes on\n\
                   error: interrupted; nothing was written\n";
        assert!(told.ends_with(end), "{told}");
        assert!(!dir.path("out").exists());
    }

    // `fails` sees to it that no file changes.
    let mut text = String::new();
    let again = format!("{command} -q {resume}");
    let changed = again.replace(other[0], other[1]);
    assert_ne!(again, changed);
    text += &format!("other arguments: {}\n", dir.fails(2, &words(&changed)));
    let data = fs::read(dir.path("train.tsv")).unwrap();
    dir.write("train.tsv", [&data[..], b"A good film.\t1\n"].concat());
    text += &format!("other data: {}\n", dir.fails(2, &words(&again)));
    dir.write("train.tsv", data);

    let whole = fs::read(&file).unwrap();
    let mut damaged = |name: &str, bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        text += &format!("{name}: {}\n", dir.fails(4, &words(&again)));
    };
    damaged("cut", &whole[..100_000]);
    damaged("cut in its head", &whole[..100]);
    damaged("nothing", &[]);
    damaged("garbage", &[7; 5000]);
    let parts = stored(&file_of(&dir, &whole));
    let mut rewritten = |name: &str, change: Change| {
        let tensors = parts.iter().filter_map(|(name, t)| match &t.dtype[..] {
            "F32" => {
                let values = change(name, t.f32())?;
                Some(Tensor::from_f32(name, &[values.len()], &values, Dtype::F32))
            }
            _ => Some(Tensor::from_u8(name.clone(), &t.shape, &t.bytes)),
        });
        write_tensors(&file, &tensors.collect::<Vec<_>>());
        text += &format!("{name}: {}\n", dir.fails(4, &words(&again)));
    };
    let short = |name: &'static str| {
        move |n: &str, values: Vec<f32>| {
            Some(if n.ends_with(name) { values[1..].to_vec() } else { values })
        }
    };
    rewritten("short values", &short("query.weight.0.value"));
    rewritten("short means", &short("query.weight.0.mean"));
    rewritten("no means", &|n, values| (!n.ends_with("query.weight.0.mean")).then_some(values));
    if parts.contains_key("best.0") {
        rewritten("short best", &short("best.3"));
        rewritten("best with a hole", &|n, values| (n != "best.3").then_some(values));
        rewritten("no best", &|n, values| (n != "best.0").then_some(values));
    }

    // The state as it was is as good as before.
    fs::write(&file, &whole).unwrap();
    dir.ok(&words(&again));
    dir.ok(&["verify", "out"]);
    without_numbers(&text)
}

/// Numbers of three digits and more depend on when the run was stopped.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for part in text.split_inclusive(|c: char| !c.is_ascii_digit()) {
        let digits = part.trim_end_matches(|c: char| !c.is_ascii_digit());
        let rest = &part[digits.len()..];
        out += if digits.len() < 3 { digits } else { "[N]" };
        out += rest;
    }
    out
}

/// The bytes as a file that is not touched any more.
fn file_of(dir: &Dir, bytes: &[u8]) -> PathBuf {
    dir.write("copy.safetensors", bytes);
    dir.path("copy.safetensors")
}

#[test]
fn an_interrupted_recovery_keeps_its_state() {
    let other = ["dropout=0.1", "dropout=0.2"];
    let text = a_state_is_kept_and_checked(DISTILL, "2-distill.safetensors", other);
    insta::assert_snapshot!(text, @r#"
    other arguments: out.resume/2-distill.safetensors belongs to another run; give the arguments and the files of that run, or remove the folder to start anew
    other data: out.resume/0-distill.safetensors belongs to another run; give the arguments and the files of that run, or remove the folder to start anew
    cut: pass `distill` failed: out.resume/2-distill.safetensors: found tensor `bert.encoder.layer.0.attention.output.dense.weight.0.square` from byte [N] to byte [N] of the data, expected at most [N], where the file ends; remove it to start anew
    cut in its head: pass `distill` failed: out.resume/2-distill.safetensors: found a header length of [N] bytes, expected at most the 92 bytes that follow in the file; remove it to start anew
    nothing: pass `distill` failed: out.resume/2-distill.safetensors: found 0 bytes, expected a safetensors file, which starts with 8 bytes of header length; remove it to start anew
    garbage: pass `distill` failed: out.resume/2-distill.safetensors: found a header length of [N] bytes, expected at most [N]; remove it to start anew
    short values: pass `distill` failed: out.resume/2-distill.safetensors: found `bert.encoder.layer.0.attention.self.query.weight.0.value` of [N] values, expected the state of a training run; remove it to start anew
    short means: pass `distill` failed: out.resume/2-distill.safetensors: found `bert.encoder.layer.0.attention.self.query.weight.0.mean` of [N] values, expected the state of a training run; remove it to start anew
    no means: pass `distill` failed: out.resume/2-distill.safetensors: found no tensor `bert.encoder.layer.0.attention.self.query.weight.0.mean`, expected the state of a training run; remove it to start anew
    short best: pass `distill` failed: out.resume/2-distill.safetensors: found best values that fit no parameters, expected the state of a training run; remove it to start anew
    best with a hole: pass `distill` failed: out.resume/2-distill.safetensors: found best values that fit no parameters, expected the state of a training run; remove it to start anew
    no best: pass `distill` failed: out.resume/2-distill.safetensors: found best values that fit no parameters, expected the state of a training run; remove it to start anew
    "#);
}

#[test]
fn an_interrupted_fine_tuning_keeps_its_state() {
    let other = ["--rate 0.001", "--rate 0.002"];
    let text = a_state_is_kept_and_checked(TRAIN, "0-train.safetensors", other);
    insta::assert_snapshot!(text, @r#"
    other arguments: out.resume/0-train.safetensors belongs to another run; give the arguments and the files of that run, or remove the folder to start anew
    other data: out.resume/0-train.safetensors belongs to another run; give the arguments and the files of that run, or remove the folder to start anew
    cut: out.resume/0-train.safetensors: found tensor `bert.embeddings.position_embeddings.weight.0.value` from byte [N] to byte [N] of the data, expected at most [N], where the file ends; remove it to start anew
    cut in its head: out.resume/0-train.safetensors: found a header length of [N] bytes, expected at most the 92 bytes that follow in the file; remove it to start anew
    nothing: out.resume/0-train.safetensors: found 0 bytes, expected a safetensors file, which starts with 8 bytes of header length; remove it to start anew
    garbage: out.resume/0-train.safetensors: found a header length of [N] bytes, expected at most [N]; remove it to start anew
    short values: out.resume/0-train.safetensors: found `bert.encoder.layer.0.attention.self.query.weight.0.value` of [N] values, expected the state of a training run; remove it to start anew
    short means: out.resume/0-train.safetensors: found `bert.encoder.layer.0.attention.self.query.weight.0.mean` of [N] values, expected the state of a training run; remove it to start anew
    no means: out.resume/0-train.safetensors: found no tensor `bert.encoder.layer.0.attention.self.query.weight.0.mean`, expected the state of a training run; remove it to start anew
    "#);
}

/// In a container a run often has the number of the one before.
#[test]
fn what_a_killed_run_with_the_same_number_left_is_in_nobodys_way() {
    let dir = with_reviews();
    fs::create_dir(dir.path("out.resume")).unwrap();
    let mut child = start(&dir, TRAIN, "-o out --resume --save-every 0");
    let left = format!("out.resume/.0-train.safetensors.tmp-{}", child.id());
    dir.write(&left, "half a state");
    let code = wait(&mut child);
    assert_eq!(code, Some(0), "{}", stderr(child));
    assert!(!dir.path("out.resume").exists());
}

#[test]
fn a_run_that_fails_before_it_trains_leaves_no_folder() {
    let dir = Dir::with_tiny();
    dir.fails(4, &words("-q --passes distill --calib none --resume model -o out"));
}

#[test]
fn only_what_training_wrote_is_removed() {
    let dir = Dir::with_tiny();
    fs::create_dir(dir.path("out.resume")).unwrap();
    dir.write("out.resume/notes.txt", "mine");
    dir.write("out.resume/.0-distill.safetensors.tmp-7", "of a killed run");
    dir.write("out.resume/0-distill-more.safetensors", "of a second loop of a pass");
    let run = "-q --passes distill(steps=2),distill(steps=2) --resume --save-every 0 model -o out";
    dir.ok(&words(run));
    let left: Vec<String> = dir.tree("out.resume").into_keys().collect();
    assert_eq!(left, ["/", "/notes.txt"]);
}

#[test]
fn a_file_in_the_place_of_the_folder_is_said() {
    let dir = Dir::with_tiny();
    dir.write("out.resume", "");
    let message = dir.fails(6, &words("-q --passes distill --resume model -o out"));
    insta::assert_snapshot!(message, @r#"cannot write out.resume: File exists (os error 17)"#);
}
