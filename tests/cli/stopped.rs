//! Runs that are killed, interrupted, or find the disk full.
#![cfg(unix)]

use crate::support::{Dir, reviews, tree, wait};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A run of about a second, so that there are moments to stop it at.
fn run(model: &str, out: &str) -> Vec<String> {
    let args = [
        "--passes",
        "prune(sparsity=0.5),binarize(planes=2,rank=4)",
        "--calib-texts",
        "96",
        model,
        "-o",
        out,
    ];
    args.map(String::from).to_vec()
}

fn command(dir: &Dir, args: &[String]) -> Command {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = dir.command(&args);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Hidden folders of unfinished runs.
fn leftovers(dir: &Dir) -> Vec<String> {
    let names = fs::read_dir(dir.path("")).unwrap().map(|e| e.unwrap().file_name());
    names.map(|n| n.to_string_lossy().into_owned()).filter(|n| n.starts_with(".out.")).collect()
}

#[test]
fn a_killed_run_leaves_nothing_that_looks_finished() {
    let dir = Dir::new();
    let model = reviews("model");
    let (input, args) = (tree(Path::new(&model)), run(&model, "out"));
    let start = Instant::now();
    assert_eq!(wait(&mut command(&dir, &args).spawn().unwrap()), Some(0));
    let whole = start.elapsed();
    let (mut unfinished, mut seen) = (0, false);
    for moment in 0..10 {
        if dir.path("out").exists() {
            fs::remove_dir_all(dir.path("out")).unwrap();
        }
        let mut child = command(&dir, &args).spawn().unwrap();
        std::thread::sleep(whole * (2 * moment + 1) / 20);
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        match dir.path("out").exists() {
            true => drop(dir.ok(&["verify", "out"])),
            false => unfinished += 1,
        }
        seen |= !leftovers(&dir).is_empty();
        assert!(leftovers(&dir).len() <= 1, "each run removes what the last one left");
    }
    // Half of them and more; but the first run may have been slowed down by others.
    assert!(unfinished >= 1 && seen, "{unfinished} of 10 runs of {whole:?} were stopped");
    if dir.path("out").exists() {
        fs::remove_dir_all(dir.path("out")).unwrap();
    }
    assert_eq!(wait(&mut command(&dir, &args).spawn().unwrap()), Some(0), "the next run succeeds");
    dir.ok(&["verify", "out"]);
    assert_eq!(leftovers(&dir), [""; 0]);
    assert!(tree(Path::new(&model)) == input, "the input changed");
}

#[test]
fn an_interrupted_run_leaves_everything_as_it_was() {
    let dir = Dir::with_tiny();
    let model = reviews("model");
    dir.ok(&["--passes", "", "model", "-o", "out"]);
    for (signal, force) in [(libc::SIGINT, false), (libc::SIGTERM, false), (libc::SIGINT, true)] {
        let mut args = run(&model, if force { "out" } else { "new" });
        args.extend(force.then(|| "--force".to_string()));
        let before = dir.tree("");
        let mut child = command(&dir, &args).spawn().unwrap();
        let start = Instant::now();
        while dir.tree("") == before {
            assert!(start.elapsed() < Duration::from_secs(60), "the run makes its folder");
            std::thread::sleep(Duration::from_millis(5));
        }
        // SAFETY: the child is ours and not yet waited for, so the number is still its own.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        assert_eq!(wait(&mut child), Some(130), "signal {signal}");
        let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert_eq!(stderr, "error: interrupted; nothing was written\n");
        assert!(dir.tree("") == before, "signal {signal}: {:?}", dir.tree("").keys());
    }
}

/// A file system of one megabyte, gone with the value.
#[cfg(target_os = "linux")]
struct Small(std::path::PathBuf);

#[cfg(target_os = "linux")]
impl Small {
    fn mount(path: std::path::PathBuf) -> Option<Small> {
        fs::create_dir(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&path).stderr(Stdio::null());
        mount.status().is_ok_and(|s| s.success()).then_some(Small(path))
    }
}

#[cfg(target_os = "linux")]
impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_said_and_left_as_it_was() {
    let dir = Dir::with_tiny();
    let Some(_small) = Small::mount(dir.path("small")) else {
        println!("skipped: no right to mount a small file system");
        return;
    };
    dir.ok(&["--passes", "", "model", "-o", "small/old"]);
    let model = reviews("model");
    for args in [
        &["--passes", "", &model, "-o", "small/new"][..],
        &["--passes", "", &model, "-o", "small/deep/new"],
        &["--passes", "", &model, "-o", "small/old", "--force"],
    ] {
        let message = dir.fails(6, args);
        assert!(message.starts_with("cannot write [DIR]/small/"), "{message}");
        assert!(message.ends_with("No space left on device (os error 28)"), "{message}");
    }
    dir.ok(&["verify", "small/old"]);

    let ids = compress::checkpoint::Tensor::from_i64("input_ids", &[64, 32], &[5; 64 * 32]);
    crate::support::write_tensors(&dir.path("in.safetensors"), &[ids]);
    let forward = ["forward", "model", "--inputs", "in.safetensors", "-o", "small/x.safetensors"];
    dir.fails(6, &[&forward[..], &["--hidden-states", "--attentions"]].concat());
    dir.ok(&forward);
}
