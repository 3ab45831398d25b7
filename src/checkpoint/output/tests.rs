use super::*;
use crate::checkpoint::shards::SINGLE;
use crate::checkpoint::{Checkpoint, Dtype};

const ALL: u64 = u64::MAX;
const GO_ON: &dyn Fn() -> bool = &|| false;

/// A folder with an input checkpoint `in`, and room for outputs.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir(place.at("in")).unwrap();
        fs::write(place.at("in/config.json"), "{}").unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn create(&self, target: &str, force: bool) -> Result<OutputFolder> {
        OutputFolder::create(&self.at(target), &self.at("in"), force)
    }

    #[track_caller]
    fn refuses(&self, target: &Path, force: bool, words: &str) {
        let error = OutputFolder::create(target, &self.at("in"), force).unwrap_err();
        assert!(matches!(error, Error::Usage { .. }), "{error}");
        assert!(error.to_string().contains(words), "no {words:?} in {error}");
    }

    /// All that is in the place but `in`.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|n| n != "in").collect();
        names.sort();
        names
    }
}

fn tensors() -> Vec<Tensor> {
    let values: Vec<f32> = (0..300).map(|i| i as f32).collect();
    vec![
        Tensor::from_f32("b", &[30, 10], &values, Dtype::F32),
        Tensor::from_f32("a", &[300], &values, Dtype::F16),
        Tensor::from_u8("odd", &[3], &[1, 2, 3]),
        Tensor::from_i64("none", &[0, 4], &[]),
    ]
}

fn assert_same(checkpoint: &Checkpoint, tensors: &[Tensor]) {
    assert_eq!(checkpoint.len(), tensors.len());
    for tensor in tensors {
        let read = checkpoint.get(&tensor.name).unwrap();
        assert_eq!((read.dtype, &read.shape), (tensor.dtype, &tensor.shape));
        assert_eq!(read.bytes(), tensor.bytes());
    }
}

#[test]
fn a_copy_of_a_checkpoint_is_the_same_file() {
    let place = Place::new();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut first = place.create("first", false).unwrap();
    first.write_tensors(&tensors(), &metadata, ALL, GO_ON).unwrap();
    let first = first.commit(GO_ON).unwrap();

    let read = Checkpoint::open(&first).unwrap();
    assert_same(&read, &tensors());
    let views: Vec<Tensor> = read.iter().cloned().collect();
    let mut second = OutputFolder::create(&place.at("second"), &first, false).unwrap();
    let written = second.write_tensors(&views, &read.metadata, ALL, GO_ON).unwrap();
    let second = second.commit(GO_ON).unwrap();
    let bytes = fs::read(second.join(SINGLE)).unwrap();
    assert_eq!(bytes, fs::read(first.join(SINGLE)).unwrap());
    assert_eq!((written[0].name.as_str(), written[0].bytes), (SINGLE, bytes.len() as u64));
    assert!(read.get("b").unwrap().to_f32().is_ok_and(|v| v[299] == 299.0), "after release");
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.tensor("odd").unwrap().data(), [1, 2, 3]);
}

#[test]
fn shards_come_back() {
    let place = Place::new();
    let mut out = place.create("out", false).unwrap();
    let written = out.write_tensors(&tensors(), &BTreeMap::new(), 1300, GO_ON).unwrap();
    let names: Vec<_> = written.iter().map(|f| f.name.as_str()).collect();
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    assert_eq!(names, [shards[0], shards[1], INDEX]);
    let read = Checkpoint::open(&out.commit(GO_ON).unwrap()).unwrap();
    assert_eq!(read.files.len(), 2);
    assert_same(&read, &tensors());
    let index = fs::read_to_string(place.at("out").join(INDEX)).unwrap();
    assert!(index.starts_with("{\n  \"metadata\": {\n    \"total_size\": 1803\n  },\n"), "{index}");
    assert!(index.ends_with("  }\n}\n"), "{index}");
}

#[test]
fn side_files_are_written_and_copied_into_sub_folders() {
    let place = Place::new();
    let mut out = place.create("deep/er/out", false).unwrap();
    out.add_file("config.json", b"{}").unwrap();
    out.copy_file(&place.at("in/config.json"), "1_Pooling/x/config.json").unwrap();
    let twice = out.add_file("config.json", b"{}").unwrap_err();
    assert!(matches!(twice, Error::Write { path, .. } if path.ends_with("config.json")));
    let missing = out.copy_file(&place.at("in/none"), "none").unwrap_err();
    assert!(matches!(missing, Error::Read { .. }));
    for name in ["../x", "/x", "a/../../x", ""] {
        assert!(matches!(out.add_file(name, b""), Err(Error::Malformed { .. })), "{name}");
    }
    assert_eq!(out.commit(GO_ON).unwrap(), place.at("deep/er/out"));
    assert_eq!(fs::read(place.at("deep/er/out/1_Pooling/x/config.json")).unwrap(), b"{}");
    assert_eq!(fs::read_dir(place.at("deep/er")).unwrap().count(), 1);
}

#[test]
fn nothing_is_left_without_commit() {
    let place = Place::new();
    for target in ["out", "deep/er/out"] {
        let mut out = place.create(target, false).unwrap();
        out.write_tensors(&tensors(), &BTreeMap::new(), ALL, GO_ON).unwrap();
        assert!(!place.names().is_empty());
        drop(out);
        assert!(place.names().is_empty());
    }
}

#[test]
fn an_interrupt_leaves_nothing() {
    let place = Place::new();
    let mut out = place.create("out", false).unwrap();
    let result = out.write_tensors(&tensors(), &BTreeMap::new(), ALL, &|| true);
    assert!(matches!(result, Err(Error::Interrupted)));
    assert!(matches!(out.commit(&|| true), Err(Error::Interrupted)));
    assert!(place.names().is_empty());
}

#[test]
fn an_output_that_overlaps_the_input_is_refused_even_with_force() {
    let place = Place::new();
    for target in ["in", "in/", "in/out", "in/a/b", "in/../in", ""] {
        place.refuses(&place.at(target), true, "overlap");
    }
    let file = OutputFolder::create(&place.at("in"), &place.at("in/config.json"), true);
    assert!(matches!(file, Err(Error::Usage { .. })));
    assert!(place.at("in/config.json").exists());
}

#[cfg(unix)]
#[test]
fn links_do_not_hide_an_overlap() {
    let place = Place::new();
    std::os::unix::fs::symlink(place.at("in"), place.at("link")).unwrap();
    place.refuses(&place.at("link"), true, "overlap");
    place.refuses(&place.at("link/out"), true, "overlap");
    let input = OutputFolder::create(&place.at("in/out"), &place.at("link"), true);
    assert!(matches!(input, Err(Error::Usage { .. })));
}

#[test]
fn odd_targets_are_refused() {
    let place = Place::new();
    place.refuses(Path::new(""), true, "empty");
    place.refuses(Path::new("."), true, "current folder");
    place.refuses(Path::new("/"), true, "no name");
    place.refuses(&place.at("new/../out"), true, "goes up");
    place.refuses(&place.at("in/config.json"), true, "overlap");
    fs::write(place.at("file"), "x").unwrap();
    place.refuses(&place.at("file"), true, "is a file");
    place.refuses(&place.at("file/out"), true, "is a file");
    let no_input = OutputFolder::create(&place.at("out"), &place.at("none"), false);
    assert!(matches!(no_input, Err(Error::Read { .. })));
}

#[test]
fn only_an_old_checkpoint_is_replaced_and_only_with_force() {
    let place = Place::new();
    fs::create_dir(place.at("out")).unwrap();
    place.create("out", false).unwrap().commit(GO_ON).unwrap(); // empty: fine

    fs::write(place.at("out/thesis.txt"), "x").unwrap();
    place.refuses(&place.at("out"), false, "not empty");
    place.refuses(&place.at("out"), true, "no checkpoint");

    fs::write(place.at("out/config.json"), "{}").unwrap();
    place.refuses(&place.at("out"), false, "not empty");
    place.refuses(&place.at("out"), true, "holds `thesis.txt`");

    fs::rename(place.at("out/thesis.txt"), place.at("out/vocab.txt")).unwrap();
    let mut out = place.create("out", true).unwrap();
    out.add_file("report.json", b"{}").unwrap();
    assert!(place.at("out/vocab.txt").exists(), "kept until the end");
    out.commit(GO_ON).unwrap();
    assert!(place.at("out/report.json").exists());
    assert!(!place.at("out/config.json").exists());
    assert_eq!(place.names(), ["out"]);
}

#[test]
fn force_deletes_nothing_but_checkpoints() {
    let place = Place::new();
    let put = |name: &str| {
        let path = place.at("out").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "[]").unwrap();
    };
    let whole = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "masks.safetensors",
        "tokenizer.json",
        "LICENSE.txt",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "hf/modeling_compress.py",
        "hf/1_Pooling/config.json",
        "onnx/model.onnx_data",
        "dense/config.json",
    ];
    whole.iter().for_each(|name| put(name));
    place.create("out", true).unwrap();
    for (name, found) in [
        (".git/HEAD", ".git"),
        (".gitignore", ".gitignore"),
        ("src/main.c", "src"),
        ("src/config.json", "src"),
        ("photos/a.jpg", "photos"),
        ("thesis.doc", "thesis.doc"),
        ("pytorch_model.bin", "pytorch_model.bin"),
        ("vocab.txt/notes", "vocab.txt"),
        ("hf/notes.txt", "hf/notes.txt"),
        ("1_Pooling/.git/HEAD", "1_Pooling/.git"),
    ] {
        put(name);
        place.refuses(&place.at("out"), true, &format!("holds `{found}`,"));
        assert!(place.at("out").join(name).exists());
        let path = place.at("out").join(found);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }
    // Modules have the folders that their list says.
    put("pool/deep/config.json");
    place.refuses(&place.at("out"), true, "holds `pool`");
    fs::write(place.at("out/modules.json"), r#"[{"path": "pool/deep"}]"#).unwrap();
    let out = place.create("out", true).unwrap();

    // What comes meanwhile stays too.
    put("thesis.doc");
    let error = out.commit(GO_ON).unwrap_err();
    assert!(error.to_string().contains("holds `thesis.doc`"), "{error}");
    assert!(place.at("out/thesis.doc").exists() && place.at("out/config.json").exists());
    assert_eq!(place.names(), ["out"]);

    // A new version carries over what is to stay.
    OutputFolder::replace(&place.at("out")).unwrap();
}

#[test]
fn a_failed_replacement_puts_the_old_folder_back() {
    let place = Place::new();
    fs::create_dir(place.at("out")).unwrap();
    fs::write(place.at("out/config.json"), "old").unwrap();
    let out = place.create("out", true).unwrap();
    let temp = out.temp.clone();
    let sabotage = move || {
        fs::remove_dir_all(&temp).unwrap();
        false
    };
    assert!(matches!(out.commit(&sabotage), Err(Error::Write { .. })));
    assert_eq!(fs::read(place.at("out/config.json")).unwrap(), b"old");
    assert_eq!(place.names(), ["out"]);
}

#[test]
fn a_target_that_appears_during_the_run_is_not_replaced() {
    let place = Place::new();
    let out = place.create("out", false).unwrap();
    fs::create_dir(place.at("out")).unwrap();
    fs::write(place.at("out/config.json"), "theirs").unwrap();
    assert!(matches!(out.commit(GO_ON), Err(Error::Usage { .. })));
    assert_eq!(fs::read(place.at("out/config.json")).unwrap(), b"theirs");
    assert_eq!(place.names(), ["out"]);
}

#[test]
fn two_runs_for_one_target_do_not_meet() {
    let place = Place::new();
    let mut one = place.create("out", false).unwrap();
    let two = place.create("out", false).unwrap();
    one.add_file("config.json", b"one").unwrap();
    two.commit(GO_ON).unwrap();
    one.commit(GO_ON).unwrap(); // the other one was empty
    assert_eq!(fs::read(place.at("out/config.json")).unwrap(), b"one");
}

/// The PID of a process that is gone.
fn dead_pid() -> u32 {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

#[cfg(unix)]
#[test]
fn leftovers_of_dead_processes_are_removed_and_nothing_else() {
    let place = Place::new();
    let (dead, ours) = (dead_pid(), std::process::id());
    let kept = [
        format!(".out.tmp-{ours}-0"),
        format!(".other.tmp-{dead}-0"),
        format!(".out.tmp-{dead}"),
        format!(".out.tmp-{dead}-0x"),
        format!(".out.tmp-+{dead}-0"),
        format!(".out.tmp-0{dead}-0"),
        format!(".out.tmp-{dead}-1-"),
        format!("out.tmp-{dead}-0"),
        format!(".out.new-{dead}-0"),
        format!(".out.tmp-{dead}-8"),
    ];
    let removed =
        [".out.tmp-PID-0", ".out.tmp-PID-12"].map(|n| n.replace("PID", &dead.to_string()));
    for name in kept.iter().chain(&removed) {
        fs::create_dir(place.at(name)).unwrap();
        fs::write(place.at(name).join("model.safetensors"), "x").unwrap();
    }
    let lock = File::open(place.at(&format!(".out.tmp-{dead}-8"))).unwrap();
    lock.lock().unwrap();
    fs::write(place.at(&format!(".out.tmp-{dead}-9")), "a file").unwrap();
    remove_stale(&place.at("out"));
    let mut expected = kept.to_vec();
    expected.push(format!(".out.tmp-{dead}-9"));
    expected.sort();
    assert_eq!(place.names(), expected);
}

#[cfg(unix)]
#[test]
fn a_folder_that_was_being_replaced_gets_its_name_back() {
    let place = Place::new();
    let aside = place.at(&format!(".out.old-{}-0", dead_pid()));
    fs::create_dir(&aside).unwrap();
    fs::write(aside.join("config.json"), "old").unwrap();
    place.refuses(&place.at("out"), false, "not empty");
    assert_eq!(place.names(), ["out"]);

    fs::create_dir(&aside).unwrap();
    remove_stale(&place.at("out"));
    assert_eq!(place.names(), ["out"]);
}

#[cfg(target_os = "linux")]
#[test]
fn files_are_as_readable_as_the_umask_allows() {
    use std::os::unix::fs::PermissionsExt;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let umask = status.lines().find_map(|l| l.strip_prefix("Umask:")).unwrap().trim();
    let umask = u32::from_str_radix(umask, 8).unwrap();
    let place = Place::new();
    let source = place.at("in/config.json");
    fs::set_permissions(&source, fs::Permissions::from_mode(0o400)).unwrap();
    let mut out = place.create("out", false).unwrap();
    out.copy_file(&source, "config.json").unwrap();
    let out = out.commit(GO_ON).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&out.join("config.json")), 0o644 & !umask);
    assert_eq!(mode(&out), 0o777 & !umask);
}

/// A file system of half a MiB; `None` where we may not mount one.
#[cfg(target_os = "linux")]
struct SmallDisk(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(dir.path());
        mount.output().is_ok_and(|o| o.status.success()).then(|| SmallDisk(dir))
    }
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_a_write_error_and_leaves_nothing() {
    let Some(disk) = SmallDisk::mount() else {
        return eprintln!("skipped: no right to mount a small tmpfs");
    };
    let place = Place::new();
    let target = disk.0.path().join("out");
    let big = [Tensor::from_f32("big", &[1 << 18], &vec![1.0; 1 << 18], Dtype::F32)];
    fs::write(place.at("in/big"), vec![0; 1 << 20]).unwrap();
    type Fill<'a> = &'a dyn Fn(&mut OutputFolder) -> Result<()>;
    let fills: [Fill; 3] = [
        &|out| out.write_tensors(&big, &BTreeMap::new(), ALL, GO_ON).map(drop),
        &|out| out.copy_file(&place.at("in/big"), "big").map(drop),
        &|out| out.add_file("big", &vec![0; 1 << 20]).map(drop),
    ];
    for fill in fills {
        let mut out = OutputFolder::create(&target, &place.at("in"), false).unwrap();
        match fill(&mut out).unwrap_err() {
            Error::Write { source, .. } => {
                assert_eq!(source.kind(), io::ErrorKind::StorageFull);
            }
            other => panic!("{other}"),
        }
        drop(out);
        assert_eq!(fs::read_dir(disk.0.path()).unwrap().count(), 0);
    }
}
