"""What `kernels.rs` compares with: products `[tokens, cols] · [cols, rows]` by PyTorch in f32, and by ONNX Runtime in
int8 (one MatMul through quantize_dynamic, weights symmetric per channel), each on one thread.

A request is a line on stdin, and its answer a line on stdout:
`shape COLS ROWS TOKENS` -> `ready`; `torch N` or `onnx N` -> seconds that N products kept this thread running.

Needs torch, onnx and onnxruntime.
"""

import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

torch.set_num_threads(1)
torch.set_grad_enabled(False)
logging.disable(logging.WARNING)  # quantize_dynamic advises to preprocess the model: there is nothing to fuse


def torch_linear(x, weights):
    """A closure that multiplies: x `[tokens, cols]`, weights `[cols, rows]`."""
    x, weights = torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(weights.T))
    return lambda: torch.nn.functional.linear(x, weights)


def onnx_int8(x, weights):
    """As `torch_linear`; memory of input and output is bound once, so that no copy is counted."""
    tokens, cols = x.shape
    rows = weights.shape[1]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [tokens, cols])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [tokens, rows])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with tempfile.TemporaryDirectory() as folder:
        plain, quantised = Path(folder, "plain.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, plain)
        quantize_dynamic(plain, quantised, per_channel=True, weight_type=QuantType.QInt8)
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = ort.InferenceSession(quantised, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    y = ort.OrtValue.ortvalue_from_numpy(np.empty((tokens, rows), np.float32))
    binding.bind_ortvalue_output("y", y)
    session.run_with_iobinding(binding)
    error = np.abs(y.numpy() - x @ weights).max() / np.abs(x @ weights).max()
    assert error < 0.05, f"the int8 product is off by {error}"
    return lambda: session.run_with_iobinding(binding)


def main():
    random = np.random.default_rng(0)
    ways = {}
    for line in sys.stdin:
        name, *numbers = line.split()
        numbers = [int(n) for n in numbers]
        if name == "shape":
            cols, rows, tokens = numbers
            x = random.standard_normal((tokens, cols), np.float32)
            weights = random.standard_normal((cols, rows), np.float32)
            ways = {"torch": torch_linear(x, weights), "onnx": onnx_int8(x, weights)}
            print("ready", flush=True)
        else:
            multiply = ways[name]
            start = time.thread_time()
            for _ in range(numbers[0]):
                multiply()
            print(time.thread_time() - start, flush=True)


main()
