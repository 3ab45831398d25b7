# List the recipes
default:
    @just --list

# What CI runs, in order
check:
    bash .ci/run

# All tests
test:
    cargo test

# Accept changed snapshot files (inline ones: edit, or `cargo insta accept`)
bless:
    INSTA_UPDATE=always cargo test

# The main job on the checkpoint that the repository ships
demo:
    cargo run --release -- --passes 'prune,binarize(embeddings=4)' fixtures/reviews/model --eval fixtures/reviews/dev.tsv -o target/reviews-small --force

# Time the kernels and the forward pass
bench:
    cargo bench

# Make the tables of docs/results.md: just results MODEL DEV TRAIN
results model dev train:
    cargo build --release --bin compress
    cargo run --release --example results -- {{model}} {{dev}} {{train}}

# Make the fixtures again (Python with torch and transformers, ten minutes): just fixtures GOLDEN_BERT_CLASSIFY
fixtures golden:
    python3 fixtures/reviews/make.py
    python3 fixtures/gradients/make.py {{golden}}

# All targets beside what compress answers, and their latency (Python with torch, transformers and onnxruntime): just interop PYTHON MODEL TEXTS
interop python model texts:
    cargo build --release --bin compress
    {{python}} tests/interop/compare.py target/release/compress {{model}} --texts {{texts}} --latency

# Build and open the documentation
docs:
    cargo doc --no-deps --open

# Make the book of README, passes and docs/ in target/book (cargo install mdbook)
book:
    mdbook build
