//! Times products `[tokens, cols] · [cols, rows]` on one thread: f32 (of two matrices as they lie, and of one in panels, as dense
//! layers are multiplied here), and packed matrices with activations made integers in each call. In each round every way is timed
//! once, so that all of them see the same noise; what counts is the time on the processor, so that other programs do not. Weights
//! stay in cache as far as they fit.
//!
//! `cargo run --release --example kernels -- [--rounds N] [TOKENS ...] [COLSxROWS ...]`
//!
//! `COMPRESS_SIMD=avx2` (`scalar`, `avx512`, `amx`, `neon`, `neon-dot`) takes kernels for less than the machine has; f32
//! products do not change.
//!
//! With `COMPRESS_PYTHON`, a Python that has torch, onnx and onnxruntime, also by these (`kernel_peers.py`); the
//! call from Python, a few µs, is counted to them.

use compress::runtime::kernels::packed::{Bits, Packed, quantise};
use compress::runtime::kernels::{Level, Mat, MatMut, Panels, limit_by_environment, product};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: kernels [--rounds N] [TOKENS ...] [COLSxROWS ...]";
/// Timed rounds, after one that warms up and counts.
const ROUNDS: usize = 9;
const TOKENS: [usize; 4] = [1, 32, 128, 4096];
/// The linear layers of encoders of width 384 and 768.
const SHAPES: [(usize, usize); 6] =
    [(384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768)];
/// A product is repeated until it has taken this long: in less, reading the clock shows.
const SAMPLE_S: f64 = 2e-3;
const OURS: [&str; 7] = ["f32", "f32 in panels", "Int8", "W1A8", "W2A8", "W1A4", "W1A1"];
const PEERS: [&str; 2] = ["PyTorch f32", "ONNX Runtime int8"];
/// What `kernel_peers.py` calls them.
const REQUESTS: [&str; 2] = ["torch", "onnx"];
/// What the ratios are to: positions in [`OURS`] followed by [`PEERS`].
const F32: usize = 0;
const ONNX: usize = OURS.len() + 1;

/// A product of ours.
type Way<'a> = Box<dyn FnMut() + 'a>;

fn main() -> Result<()> {
    limit_by_environment()?;
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?; // or panels find threads to share with
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut rounds = ROUNDS;
    if let Some(at) = args.iter().position(|a| a == "--rounds") {
        rounds = args.get(at + 1).ok_or(USAGE)?.parse()?;
        args.drain(at..at + 2);
    }
    let (mut tokens, mut shapes) = (Vec::new(), Vec::new());
    for arg in &args {
        match arg.split_once('x') {
            Some((cols, rows)) => shapes.push((cols.parse()?, rows.parse()?)),
            None => tokens.push(arg.parse().map_err(|_| USAGE)?),
        }
    }
    if tokens.is_empty() {
        tokens = TOKENS.to_vec();
    }
    if shapes.is_empty() {
        shapes = SHAPES.to_vec();
    }
    if rounds == 0 || tokens.contains(&0) || shapes.iter().any(|&(c, r)| c == 0 || r == 0) {
        return Err("rounds, tokens and shapes are 1 or more".into());
    }

    let mut peers = match std::env::var_os("COMPRESS_PYTHON") {
        Some(python) => Some(Peers::start(&python)?),
        None => None,
    };
    let names = &[&OURS[..], &PEERS[..]].concat()[..OURS.len() + peers.iter().len() * PEERS.len()];
    println!(
        "µs of processor time a product, on one thread: median of {rounds}; factors are those to f32. Packed products by `{}`.\n",
        Level::best().name()
    );
    println!("| cols x rows | tokens | {} |", names.join(" | "));
    println!("|---|---|{}", "---|".repeat(names.len()));
    let mut results = Vec::new();
    for &(cols, rows) in &shapes {
        for &tokens in &tokens {
            let seconds = measure(cols, rows, tokens, rounds, peers.as_mut())?;
            let cell = |s: &f64| format!("{:.1} ({:.2})", s * 1e6, seconds[F32] / s);
            let cells: Vec<String> = seconds.iter().map(cell).collect();
            println!("| {cols}x{rows} | {tokens} | {} |", cells.join(" | "));
            results.push((tokens, seconds));
        }
    }
    summary(names, F32, &tokens, &results);
    if peers.is_some() {
        summary(names, ONNX, &tokens, &results);
    }
    Ok(())
}

/// Median seconds of each way.
fn measure(
    cols: usize,
    rows: usize,
    tokens: usize,
    rounds: usize,
    mut peers: Option<&mut Peers>,
) -> Result<Vec<f64>> {
    let ways = OURS.len() + peers.iter().len() * PEERS.len();
    let (x, w) = (numbers(tokens * cols), numbers(rows * cols));
    let codes: Vec<i8> = w.iter().map(|w| (w * 64.0).round() as i8).collect();
    let scales = vec![1.0 / 64.0; 2 * rows];
    let words = 2 * rows * cols.div_ceil(32);
    let signs: Vec<u32> = (0..words as u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    let int8 = Packed::int8(&codes, &scales[..rows], rows, cols);
    let one = Packed::signs(&signs[..words / 2], &scales[..rows], 1, rows, cols);
    let two = Packed::signs(&signs, &scales, 2, rows, cols);

    let packed = |weights, bits| -> Way {
        let (x, mut y) = (&x, vec![0.0; tokens * rows]);
        Box::new(move || {
            let x = quantise(x, tokens, cols, bits);
            Packed::multiply(weights, &x, None, MatMut::new(&mut y, tokens, rows));
        })
    };
    let panels = Panels::new(Mat::new(&w, rows, cols)).ok_or("no kernels for panels here")?;
    let (mut y, mut z) = (vec![0.0; tokens * rows], vec![0.0; tokens * rows]);
    let mut ours: [Way; OURS.len()] = [
        Box::new(|| {
            let (x, w) = (Mat::new(&x, tokens, cols), Mat::new(&w, rows, cols).t());
            product(MatMut::new(&mut y, tokens, rows), x, w, 1.0);
        }),
        Box::new(|| {
            let x = Mat::new(&x, tokens, cols);
            panels.multiply(x, None, MatMut::new(&mut z, tokens, rows));
        }),
        packed(&int8, Bits::Eight),
        packed(&one, Bits::Eight),
        packed(&two, Bits::Eight),
        packed(&one, Bits::Four),
        packed(&one, Bits::One),
    ];
    if let Some(peers) = &mut peers {
        peers.shape(cols, rows, tokens)?;
    }
    let mut time = |way: usize, products: usize| match &mut peers {
        Some(peers) if way >= OURS.len() => peers.time(REQUESTS[way - OURS.len()], products),
        _ => {
            let start = thread_seconds();
            (0..products).for_each(|_| ours[way]());
            Ok(thread_seconds() - start)
        }
    };

    let mut products = vec![1; ways];
    for (way, products) in products.iter_mut().enumerate() {
        let mut seconds = time(way, 1)?;
        while seconds < SAMPLE_S {
            *products *= 2;
            seconds = time(way, *products)?;
        }
    }
    let mut seconds = vec![Vec::new(); ways];
    for _ in 0..rounds {
        for way in 0..ways {
            seconds[way].push(time(way, products[way])? / products[way] as f64);
        }
    }
    let median = |mut seconds: Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    };
    Ok(seconds.into_iter().map(median).collect())
}

/// Seconds that this thread has run.
#[cfg(unix)]
fn thread_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a `timespec` that outlives the call.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "the clock of a thread");
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Seconds since the first call: there is no clock of a thread.
#[cfg(not(unix))]
fn thread_seconds() -> f64 {
    static START: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed().as_secs_f64()
}

/// In [-1, 1].
fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7919 % 1001) as f32 / 500.0 - 1.0).collect()
}

/// Prints how many times as fast as way `than` each is, as the geometric mean over the shapes.
fn summary(names: &[&str], than: usize, tokens: &[usize], results: &[(usize, Vec<f64>)]) {
    println!("\nTimes as fast as {}, geometric mean over the shapes:\n", names[than]);
    println!("| tokens | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
    for &tokens in tokens {
        let rows: Vec<&Vec<f64>> =
            results.iter().filter(|(t, _)| *t == tokens).map(|(_, seconds)| seconds).collect();
        let mean = |way: usize| {
            let logarithms = rows.iter().map(|seconds| (seconds[than] / seconds[way]).ln());
            format!("{:.2}", (logarithms.sum::<f64>() / rows.len() as f64).exp())
        };
        let cells: Vec<String> = (0..names.len()).map(mean).collect();
        println!("| {tokens} | {} |", cells.join(" | "));
    }
}

/// `kernel_peers.py` at work.
struct Peers {
    process: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Peers {
    fn start(python: &OsStr) -> Result<Peers> {
        let mut process = Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/kernel_peers.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().ok_or("no pipe to read from")?);
        Ok(Peers { process, requests, answers })
    }

    fn ask(&mut self, request: &str) -> Result<String> {
        let requests = self.requests.as_mut().ok_or("no pipe to write to")?;
        writeln!(requests, "{request}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        match answer.trim() {
            "" => Err(format!("kernel_peers.py did not answer `{request}`").into()),
            answer => Ok(answer.to_string()),
        }
    }

    fn shape(&mut self, cols: usize, rows: usize, tokens: usize) -> Result<()> {
        self.ask(&format!("shape {cols} {rows} {tokens}")).map(|_| ())
    }

    /// Seconds of so many products.
    fn time(&mut self, peer: &str, products: usize) -> Result<f64> {
        Ok(self.ask(&format!("{peer} {products}"))?.parse()?)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // At the end of its input it ends.
        self.requests = None;
        let _ = self.process.wait();
    }
}
