"""`inspect` on 4 GB of FP16 weights in external data: throughput with a warm file cache, peak memory.

python benchmarks/inspect_large.py [GIGABYTES]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from measure import BIN, peak_memory, summary, write_result
from onnx import TensorProto, helper

K, N = 4096, 14336
RUNS = 5


def main(gigabytes: float) -> None:
    """Writes the model, runs `inspect` on it, writes results/inspect_large.json."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "large.onnx"
        # Written by another process: Linux counts a parent's memory at the fork as its child's peak.
        subprocess.run([sys.executable, __file__, str(gigabytes), str(path)], check=True)
        size = path.with_suffix(".data").stat().st_size
        command = [str(BIN / "sparseflow-trt"), "inspect", str(path), "--json"]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)  # warms the cache
        runs = [peak_memory(command) for _ in range(RUNS)]
        seconds = [s for s, _ in runs]
        write_result(
            "inspect_large",
            {
                "bytes": size,
                "layers": len(found["layers"]),
                "verdict": found["summary"],
                "seconds, whole command": summary(seconds),
                "GB/s, whole command": summary([size / 1e9 / s for s in seconds]),
                "peak memory MB": round(max(peak for _, peak in runs) / 1e6, 1),
            },
        )


def write_model(path: Path, gigabytes: float) -> None:
    """Writes a chain of 2:4 products, K along the first and the second axis in turn."""
    from sparseflow_trt.model.pattern import prune_2to4

    rng = np.random.default_rng(0)
    up = prune_2to4(rng.standard_normal((K, N)).astype(np.float16), 0)  # MatMul: [K, N]
    down = prune_2to4(rng.standard_normal((K, N)).astype(np.float16), 1)  # Gemm, transB: [N, K]
    count = max(2, round(gigabytes * 1e9 / up.nbytes))
    nodes, tensors, value = [], [], "x"
    with path.with_suffix(".data").open("wb") as data:
        for i in range(count):
            weight = up if i % 2 == 0 else down
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT16, dims=weight.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, entry in (
                ("location", f"{path.stem}.data"),
                ("offset", data.tell()),
                ("length", weight.nbytes),
            ):
                tensor.external_data.add(key=key, value=str(entry))
            data.write(weight.data)
            tensors.append(tensor)
            op = ("MatMul", {}) if i % 2 == 0 else ("Gemm", {"transB": 1})
            nodes.append(helper.make_node(op[0], [value, f"w{i}"], [f"v{i}"], f"n{i}", **op[1]))
            value = f"v{i}"
    width = N if count % 2 else K
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["m", K])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT16, ["m", width])],
        tensors,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        write_model(Path(sys.argv[2]), float(sys.argv[1]))
    else:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 4.0)
