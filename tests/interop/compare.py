#!/usr/bin/env python3
"""Every target of four variants of a model, in Transformers and in ONNX Runtime, beside what `compress` answers.

    tests/interop/compare.py COMPRESS MODEL [--texts FILE] [--variants 'prune;tokens'] [--latency] [-- OPTIONS]

COMPRESS is the program, MODEL a checkpoint with a tokenizer, FILE holds examples. Each variant is made, written for
all targets that can carry it, and verified (`compress verify --python`): Transformers and ONNX Runtime run in the
Python that runs this script. Prints a table, and ends with 1 where a target answers otherwise, or a target is refused
that should not be.

With --latency also times our graphs beside those of the original in f32 and in ONNX Runtime's dynamic int8: one thread,
one text of each length, in turn, medians. That needs the `onnx` package besides.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VARIANTS = "prune;prune,binarize;prune,embed;tokens"
TARGETS = ["hf", "onnx", "dense"]
# What a padded checkpoint cannot carry.
REFUSED = {("tokens", "dense")}


def run(*args, **more):
    return subprocess.run([str(a) for a in args], capture_output=True, text=True, **more)


def make(compress, passes, model, out, targets, *more):
    return run(compress, "--passes", passes, "--emit", ",".join(targets), *more, model, "-o", out, "--quiet", "--force")


def row(*cells):
    print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)


def variants(args, where):
    """Makes and verifies them; returns whether all is as it should be."""
    good = True
    row("variant", "target", "bytes of weights", "by", "texts", "largest difference", "same choice")
    row(*["---"] * 7)
    for passes in args.variants.split(";"):
        out, targets = where / passes.replace(",", "-"), []
        for target in TARGETS:
            refused = any((p.split("(")[0], target) in REFUSED for p in passes.split(","))
            done = make(args.compress, passes, args.model, where / "refused", [target]) if refused else None
            if done is None:
                targets.append(target)
            elif done.returncode != 4:
                print(f"`{passes}` for {target} was not refused: {done.stderr}")
                good = False
            else:
                row(passes, target, "-", done.stderr.strip().removeprefix("error: "), "-", "-", "-")
        done = make(args.compress, passes, args.model, out, targets, *args.more)
        if done.returncode:
            print(done.stderr)
            return False
        data = ["--data", args.texts] if args.texts else []
        done = run(args.compress, "verify", out, f"--python={sys.executable}", "--json", *data)
        if not done.stdout:
            print(done.stderr)
            return False
        report = json.loads((out / "report.json").read_text())
        bytes_of = {e["target"]: e["weight_bytes"] for e in report["emitted"]}
        for c in json.loads(done.stdout)["targets"]:
            same = "/".join(map(str, c["same"])) if c["same"] else "-"
            row(passes, c["target"], f"{bytes_of[c['target']]:,}", c["by"], c["texts"], f"{c['difference']:.1e}", same)
        if done.returncode:
            print(done.stderr)
            good = False
    return good


def session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def latency(args, where):
    import numpy as np
    from onnxruntime.quantization import QuantType, quantize_dynamic

    done = make(args.compress, "", args.model, where / "original", ["onnx"])
    assert done.returncode == 0, done.stderr
    f32, int8 = where / "original/onnx/model.onnx", where / "int8.onnx"
    quantize_dynamic(f32, int8, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
    paths = {"original, f32": f32, "original, ONNX Runtime dynamic int8": int8}
    for passes in args.variants.split(";"):
        paths[passes] = where / passes.replace(",", "-") / "onnx/model.onnx"
    for passes, how in [("quantize", "unpack"), ("prune,quantize", "unpack"), ("prune,binarize", "int8"), ("prune,binarize", "nbits")]:
        out = where / f"{passes.replace(',', '-')}-{how}"
        done = make(args.compress, passes, args.model, out, ["onnx"], "--onnx-binary", how)
        assert done.returncode == 0, done.stderr
        paths[f"{passes}, sign planes as {how}" if "binarize" in passes else passes] = out / "onnx/model.onnx"
    sessions = {name: session(path) for name, path in paths.items()}
    print()
    row("graph", "bytes", *[f"ms, {n} tokens" for n in args.lengths])
    row(*["---"] * (2 + len(args.lengths)))
    times = {(name, n): [] for name in sessions for n in args.lengths}
    for n in args.lengths:
        ids = (np.arange(n) * 7919 + 13) % 1900
        feed = {"input_ids": ids[None], "attention_mask": np.ones((1, n), np.int64), "token_type_ids": np.zeros((1, n), np.int64)}
        for _ in range(args.runs + 2):
            for name, s in sessions.items():
                takes = {x.name for x in s.get_inputs()}
                start = time.perf_counter()
                s.run(None, {key: value for key, value in feed.items() if key in takes})
                times[name, n].append(1e3 * (time.perf_counter() - start))
    for name, path in paths.items():
        # The first two rounds warm up.
        medians = [f"{statistics.median(times[name, n][2:]):.2f}" for n in args.lengths]
        row(name, f"{os.path.getsize(path):,}", *medians)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compress", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", type=Path, help="a file of examples [default: 64 of the built-in text]")
    parser.add_argument("--variants", default=VARIANTS)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 16], help="tokens of the texts that are timed")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--keep", type=Path, help="where the variants are written [default: a temporary folder]")
    parser.epilog = "What stands behind -- are options for the runs of `compress`."
    own = sys.argv[1:]
    at = own.index("--") if "--" in own else len(own)
    args = parser.parse_args(own[:at])
    args.more = own[at + 1 :]
    with tempfile.TemporaryDirectory() as temporary:
        where = args.keep or Path(temporary)
        good = variants(args, where)
        if good and args.latency:
            latency(args, where)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
