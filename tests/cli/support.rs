//! A fresh folder to run the binary in, and what came out.

use crate::tiny::Tiny;
use compress::checkpoint::Tensor;
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const BIN: &str = env!("CARGO_BIN_EXE_compress");

/// No run of a test takes near as long on a slow machine: beyond it, it hangs.
const HANGS: Duration = Duration::from_secs(300);

/// Address space of a run that must fail: a hostile file must not make it ask for more.
#[cfg(target_os = "linux")]
const LIMIT_KIB: &str = "4000000";

pub struct Dir {
    _temp: tempfile::TempDir,
    path: PathBuf,
}

#[derive(Debug)]
pub struct Run {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Dir {
    pub fn new() -> Dir {
        let temp = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(temp.path()).unwrap();
        Dir { _temp: temp, path }
    }

    /// With a tiny classifier at `model` and examples for it at `data.tsv`.
    pub fn with_tiny() -> Dir {
        let dir = Dir::new();
        Tiny::classifier().save(&dir.path("model"));
        dir.write("data.tsv", DATA);
        dir
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BIN);
        command.args(args);
        self.prepared(command)
    }

    fn prepared(&self, mut command: Command) -> Command {
        command.current_dir(&self.path).env("RAYON_NUM_THREADS", "2").env("NO_COLOR", "1");
        command.env_remove("COLUMNS").env_remove("RUST_BACKTRACE").stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Run {
        self.finish(self.command(args))
    }

    /// Runs to the end; a run that hangs fails the test.
    pub fn finish(&self, mut command: Command) -> Run {
        let (mut stdout, mut stderr) =
            (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
        let code = wait(&mut command.spawn().unwrap());
        let text = |file: &mut File| {
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text.replace(self.path.to_str().unwrap(), "[DIR]")
        };
        Run { code, stdout: text(&mut stdout), stderr: text(&mut stderr) }
    }

    /// Runs what must succeed without a word on stderr, and returns its stdout.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let run = self.run(args);
        assert!(run.code == Some(0) && run.stderr.is_empty(), "{args:?}: {run:#?}");
        run.stdout
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e} in {text}"))
    }

    /// Runs what must fail with this exit code, one paragraph on stderr and nothing on stdout, and
    /// leave every file as it was. Returns the message without `error: `.
    #[track_caller]
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        self.refusal(code, args).unwrap_or_else(|broken| panic!("{args:?}: {broken}"))
    }

    /// [`Dir::fails`], or how it did not, for tables that show every broken case at once.
    pub fn refusal(&self, code: i32, args: &[&str]) -> Result<String, String> {
        let before = self.tree("");
        let Run { code: found, stdout, stderr } = self.finish(self.limited(args));
        let message = stderr.strip_suffix('\n').and_then(|m| m.strip_prefix("error: "));
        let paragraph = message.filter(|m| !m.is_empty() && !m.chars().any(char::is_control));
        match paragraph {
            _ if found != Some(code) => Err(format!("exit code {found:?}, not {code}: {stderr}")),
            _ if !stdout.is_empty() => Err(format!("stdout is data: {stdout}")),
            _ if self.tree("") != before => Err(format!("files: {:?}", self.tree("").keys())),
            None => Err(format!("not one plain paragraph: {stderr:?}")),
            Some(message) => Ok(message.to_string()),
        }
    }

    #[cfg(target_os = "linux")]
    fn limited(&self, args: &[&str]) -> Command {
        let mut command = Command::new("sh");
        let script = format!("ulimit -v {LIMIT_KIB} && exec \"$0\" \"$@\"");
        command.args(["-c", &script, BIN]).args(args);
        self.prepared(command)
    }

    #[cfg(not(target_os = "linux"))]
    fn limited(&self, args: &[&str]) -> Command {
        self.command(args)
    }

    /// Every file below `name`, with the hash of its content; folders end in `/`.
    pub fn tree(&self, name: &str) -> BTreeMap<String, String> {
        tree(&self.path(name))
    }
}

/// Examples in the words of [`Tiny`].
const DATA: &str = "sentence\tlabel\n\
    a good film\t1\na bad film\t0\nthe food was good\t1\nthe food was bad\t0\nnot good\t0\nnot bad\t1\n\
    it was the worst\t0\nit was the best\t1\n";

pub fn tree(path: &Path) -> BTreeMap<String, String> {
    fn visit(path: &Path, name: &str, found: &mut BTreeMap<String, String>) {
        let kind = fs::symlink_metadata(path).unwrap().file_type();
        if kind.is_dir() {
            found.insert(format!("{name}/"), String::new());
            for entry in fs::read_dir(path).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{name}/{}", entry.file_name().to_string_lossy());
                visit(&entry.path(), &name, found);
            }
        } else if kind.is_file() {
            let hash = Sha256::digest(fs::read(path).unwrap());
            let hash = hash.iter().map(|b| format!("{b:02x}")).collect();
            found.insert(name.to_string(), hash);
        } else {
            found.insert(name.to_string(), format!("{kind:?}"));
        }
    }
    let mut found = BTreeMap::new();
    visit(path, "", &mut found);
    found
}

/// The exit code, or `None` after a signal: ours, when it hangs.
pub fn wait(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if start.elapsed() > HANGS {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A tensor as an independent reader sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Stored {
    pub fn f32(&self) -> Vec<f32> {
        assert_eq!(self.dtype, "F32");
        self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// The tensors of all safetensors files of a folder, or of one file.
pub fn stored(path: &Path) -> BTreeMap<String, Stored> {
    if path.is_dir() {
        let files = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        let weights = files.filter(|f| f.extension().is_some_and(|e| e == "safetensors"));
        return weights.flat_map(|file| stored(&file)).collect();
    }
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, t)| {
        let dtype = t.dtype().to_string();
        (name, Stored { dtype, shape: t.shape().to_vec(), bytes: t.data().to_vec() })
    });
    tensors.collect()
}

/// Writes tensors as one file.
pub fn write_tensors(path: &Path, tensors: &[Tensor]) {
    compress::checkpoint::write_file(path, tensors, &|| false).unwrap();
}

/// `../shared/NAME`; `None`, said aloud, where it is missing.
#[track_caller]
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(name);
    if path.exists() {
        return Some(path);
    }
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!ci, "{} is missing, and CI must have it", path.display());
    println!("skipped: no ../shared");
    None
}

/// The trained model of `fixtures/reviews`, its data beside it.
#[track_caller]
pub fn reviews(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reviews").join(name);
    assert!(path.exists(), "{} is missing: `just fixtures` makes it", path.display());
    path.to_str().unwrap().to_string()
}

/// Of a report, every number that was planned, with its bounds and what came.
pub fn planned(report: &Value) -> Vec<(String, [u64; 2], u64)> {
    let met = |name: String, met: &Value| {
        let bound = |i: usize| met["planned"][i].as_u64().unwrap();
        (name, [bound(0), bound(1)], met["came"].as_u64().unwrap())
    };
    let plan = &report["plan"];
    let mut found = vec![met("file".into(), &plan["file_bytes"])];
    for target in report["emitted"].as_array().into_iter().flatten() {
        let [low, high] = [0, 1].map(|i| target["planned_weight_bytes"][i].as_u64().unwrap());
        let came = target["weight_bytes"].as_u64().unwrap();
        found.push((format!("file of {}", target["target"]), [low, high], came));
    }
    for pass in plan["passes"].as_array().unwrap() {
        for number in ["params", "bytes", "flops"] {
            found.push(met(format!("{number} behind {}", pass["name"]), &pass[number]));
        }
    }
    found
}
