//! docs/format.md is enough to read what we write: its Python reads our outputs.

use crate::support::Dir;
use compress::model::{Linear, Model, Weight};
use std::path::Path;
use std::process::Command;

/// Writes every matrix as plain f32 beside the model.
const DRIVER: &str = r#"
import sys
try:
    import numpy
except ImportError:
    sys.exit(77)
READER
for name, matrix in expand(sys.argv[1]).items():
    matrix.astype("<f4").tofile(f"{sys.argv[1]}/{name}.f32")
"#;

/// With NumPy, in the Python of `COMPRESS_PYTHON` or `python3`.
#[test]
fn the_documented_reader_expands_every_form() {
    let format =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/format.md"))
            .unwrap();
    let (_, block) = format.split_once("```python\n").expect("a block of Python");
    let (reader, _) = block.split_once("```").expect("the end of the block");
    let script = DRIVER.replace("READER", reader);
    let python = std::env::var("COMPRESS_PYTHON").unwrap_or_else(|_| "python3".into());
    let dir = Dir::with_tiny();
    for (passes, forms) in [
        ("binarize(planes=2,group=10,rank=2,embeddings=3)", "binary"),
        ("binarize(planes=1,rank=2,factors=int8,head=4)", "binary"),
        (
            "binarize(form=double,embeddings=1),quantize(form=none,embeddings=none,head=int8)",
            "double",
        ),
        ("quantize", "int8"),
        ("embed", "subspace"),
        ("embed(bytes=5,exact=3,words=5,rotation=none)", "subspace"),
        ("embed(method=paper)", "subspace"),
        ("embed(method=paper,assignment=dispersed,slices=2)", "subspace"),
        ("embed(method=svd,exact=2)", "factored"),
    ] {
        dir.ok(&["--passes", passes, "--calib", "none", "model", "-o", "out", "--force"]);
        let mut command = Command::new(&python);
        command.args(["-c", &script]).arg(dir.path("out"));
        let Some(run) = command.output().ok().filter(|run| run.status.code() != Some(77)) else {
            println!("skipped: no Python with NumPy");
            return;
        };
        assert!(run.status.success(), "{passes}: {}", String::from_utf8_lossy(&run.stderr));
        let mut model = Model::open(&dir.path("out")).unwrap();
        let mut linears = vec![Linear::table(&model.embeddings.word)];
        linears.extend(model.layers.iter().flat_map(|l| l.linears()).map(|(_, l)| l.clone()));
        linears.extend(model.head.linears_mut().into_iter().map(|l| l.clone()));
        let mut seen = 0;
        for weight in linears.iter().map(|l| &l.weight) {
            if matches!(weight, Weight::Dense(_)) {
                continue;
            }
            seen += weight.form().starts_with(forms) as usize;
            let path = dir.path("out").join(format!("{}.weight.f32", weight.name()));
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            let expected = weight.to_f32().unwrap();
            assert_eq!(found.len(), expected.len(), "{passes}: {}", weight.name());
            let most = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            for (found, expected) in found.zip(expected.iter()) {
                // Sums of 32 terms in another order.
                assert!((found - expected).abs() < 1e-5 * most, "{passes}: {}", weight.name());
            }
        }
        // Two layers of six matrices, or the table.
        let least = if passes.starts_with("embed") { 1 } else { 12 };
        assert!(seen >= least, "{passes}: {seen} matrices");
    }
}
