"""What `latency.rs` compares whole models with: the same checkpoint in PyTorch f32, ONNX Runtime f32, and ONNX Runtime dynamic int8 (per channel),
each batch padded to its longest text, as these have to.

    model_peers.py MODEL THREADS

A request is a line on stdin, and its answer a line on stdout: JSON of batches, `[[[id, ...], ...], ...]` -> the names of the peers; a name -> the
milliseconds that one pass over all batches took.

Needs torch, transformers, onnx, onnxscript and onnxruntime. The ONNX file is exported by PyTorch and optimised by onnxruntime.transformers.
"""

import contextlib
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import transformers
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer

logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
torch.set_grad_enabled(False)


def padded(batch, pad):
    length = max(map(len, batch))
    ids = np.array([text + [pad] * (length - len(text)) for text in batch], np.int64)
    mask = np.array([[1] * len(text) + [0] * (length - len(text)) for text in batch], np.int64)
    return ids, mask


def load(path):
    config = transformers.AutoConfig.from_pretrained(path)
    classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    auto = transformers.AutoModelForSequenceClassification if classifies else transformers.AutoModel
    model = auto.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", return_dict=False)
    return config, model.eval()


class Exported(torch.nn.Module):
    """Ids and mask to the first output."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]


def export(config, model, folder):
    plain, fused, int8 = (str(Path(folder, name)) for name in ("plain.onnx", "f32.onnx", "int8.onnx"))
    ids = torch.ones((2, 7), dtype=torch.int64)
    axes = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
    mask = ids.clone()
    mask[0, 5:] = 0
    torch.onnx.export(Exported(model), (ids, mask), plain, input_names=list(axes), output_names=["y"],
                      dynamic_axes={**axes, "y": {0: "batch"}}, opset_version=18, dynamo=True)
    heads, hidden = config.num_attention_heads, config.hidden_size
    optimizer.optimize_model(plain, "bert", num_heads=heads, hidden_size=hidden).save_model_to_file(fused)
    # Shape inference stops at the fused operators.
    kinds = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(fused, int8, per_channel=True, weight_type=QuantType.QInt8, extra_options=kinds)
    return fused, int8


def session(path, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    found = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: found.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def main():
    path, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    config, model = load(path)
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):
            fused, int8 = export(config, model, folder)
        f32, int8 = session(fused, threads), session(int8, threads)
    reference = lambda ids, mask: model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))[0].numpy()
    peers = {"PyTorch f32": reference, "ONNX Runtime f32": f32, "ONNX Runtime int8": int8}
    batches = []
    for line in sys.stdin:
        line = line.strip()
        if line.startswith("["):
            batches = [padded(batch, config.pad_token_id or 0) for batch in json.loads(line)]
            expected, found = reference(*batches[0]), f32(*batches[0])
            live = np.abs(expected - found).max() if expected.ndim == 2 else np.abs((expected - found) * batches[0][1][..., None]).max()
            assert live < 1e-3 * max(1, np.abs(expected).max()), f"the exported model is off by {live}"
            print(json.dumps(list(peers)), flush=True)
        else:
            start = time.perf_counter()
            for ids, mask in batches:
                peers[line](ids, mask)
            print((time.perf_counter() - start) * 1e3, flush=True)


if __name__ == "__main__":
    main()
