#!/bin/sh
# Whole passes of a model here, in ONNX Runtime (f32, int8) and in PyTorch, in turn: texts of 16 to 256 tokens one by one and by 32, then the
# texts of files. A table for each. Takes minutes; other work on the machine shows.
#
#   COMPRESS_PYTHON=python3 benches/peers.sh MODEL THREADS RUNS [FILE...]
set -eu
[ $# -ge 3 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
: "${COMPRESS_PYTHON:?name a Python that has torch, transformers, onnxscript and onnxruntime}"
export COMPRESS_PYTHON
model=$1 threads=$2 runs=$3
shift 3
latency() {
    printf '\n## %s, texts by %s, %s thread(s)\n\n' "$1" "$2" "$threads"
    cargo run --release --quiet --example latency -- "$1" "$threads" "$model" --batch "$2" --tokens 256 --runs "$runs" --texts 256
}
for batch in 1 32; do
    for tokens in 16 64 128 256; do latency "$tokens" "$batch"; done
    for file; do latency "$file" "$batch"; done
done
