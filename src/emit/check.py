"""Loads what `compress` wrote with Transformers and ONNX Runtime, and compares answers.

    python -c SCRIPT FOLDER TARGET...  < inputs and answers of `compress`, a safetensors file

Prints one line of JSON.
"""

import inspect
import json
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
cache = tempfile.TemporaryDirectory()
os.environ["HF_MODULES_CACHE"] = cache.name  # the code is copied there before it runs

import numpy as np
from safetensors.numpy import load

folder, targets = sys.argv[1], sys.argv[2:]
raw = sys.stdin.buffer.read()
said = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
given = load(raw)
task, count = said["task"], int(said["batches"])
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def pool(states, mask):
    live = mask[..., None].astype(states.dtype)
    if said["pool"] == "cls":
        y = states[:, 0]
    elif said["pool"] == "mean":
        y = (states * live).sum(1) / live.sum(1)
    else:
        y = np.where(live > 0, states, -np.inf).max(1)
    if said["normalize"] == "true":
        y = y / np.maximum(np.linalg.norm(y, axis=-1, keepdims=True), 1e-12)
    return y


def answer(outputs, mask):
    """What `compress` answers: a row a text, or a row a token that is there."""
    live = mask.astype(bool)
    if task == "SequenceClassification":
        return outputs["logits"]
    if task in ("TokenClassification", "MaskedLm"):
        return outputs["logits"][live]
    if task == "QuestionAnswering":
        return np.stack([outputs["start_logits"], outputs["end_logits"]], -1)[live]
    if task == "Embedding":
        pooled = pool(outputs["last_hidden_state"], mask)
        own = outputs.get("sentence_embedding")
        if own is not None and np.abs(own - pooled).max() > 1e-4 * max(1, np.abs(pooled).max()):
            raise SystemExit("sentence_embedding is not what pooling makes of last_hidden_state")
        return pooled
    return outputs["last_hidden_state"][live]


def transformers_model(name):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    classes = {
        "SequenceClassification": transformers.AutoModelForSequenceClassification,
        "TokenClassification": transformers.AutoModelForTokenClassification,
        "QuestionAnswering": transformers.AutoModelForQuestionAnswering,
        "MaskedLm": transformers.AutoModelForMaskedLM,
    }
    auto = classes.get(task, transformers.AutoModel)
    where = os.path.join(folder, name)
    model, loaded = auto.from_pretrained(
        where, trust_remote_code=name == "hf", output_loading_info=True, dtype=torch.float32
    )
    kinds = ["missing_keys", "mismatched_keys"] + (["unexpected_keys"] if name == "hf" else [])
    wrong = {kind: sorted(map(str, loaded[kind])) for kind in kinds if loaded[kind]}
    # A stock encoder makes a pooler where the checkpoint has none; nobody reads it.
    wrong = {kind: [key for key in keys if "pooler" not in key] for kind, keys in wrong.items()}
    if any(wrong.values()):
        raise SystemExit(f"Transformers loads {name} with {wrong}")
    model.eval()
    takes = inspect.signature(model.forward).parameters

    def run(feed):
        with torch.no_grad():
            outputs = model(**{key: torch.from_numpy(x) for key, x in feed.items() if key in takes})
        return {key: x.numpy() for key, x in outputs.items() if torch.is_tensor(x)}

    return run, f"Transformers {transformers.__version__}"


def onnx_model():
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = int(os.environ.get("COMPRESS_PYTHON_THREADS", "0"))
    path = os.path.join(folder, "onnx", "model.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    takes = {x.name for x in session.get_inputs()}
    names = [x.name for x in session.get_outputs()]

    def run(feed):
        return dict(zip(names, session.run(names, {key: x for key, x in feed.items() if key in takes})))

    return run, f"ONNX Runtime {onnxruntime.__version__}"


results = []
for target in targets:
    run, by = onnx_model() if target == "onnx" else transformers_model(target)
    difference, scale, same = 0.0, 1.0, [0, 0]
    squares, numbers = 0.0, 0
    for i in range(count):
        feed = {name: given[f"{name}.{i}"] for name in INPUTS}
        want = given[f"want_exact.{i}" if target == "dense" else f"want.{i}"]
        found = answer(run(feed), feed["attention_mask"])
        if found.shape != want.shape:
            raise SystemExit(f"{target} answers with the shape {found.shape}, expected {want.shape}")
        difference = float(np.maximum(difference, np.abs(found - want).max()))  # NaN stays NaN
        squares, numbers = squares + float(np.square(found - want, dtype=np.float64).sum()), numbers + want.size
        scale = max(scale, float(np.abs(want).max()))
        same[0] += int((found.argmax(-1) == want.argmax(-1)).sum())
        same[1] += len(want)
    results.append(
        {
            "target": target,
            "by": by,
            "difference": difference if np.isfinite(difference) else None,
            "typical": (squares / numbers) ** 0.5 if np.isfinite(squares) else None,
            "scale": scale,
            "same": same,
        }
    )
print(json.dumps(results))
