"""`inspect` and `prune` against Polygraphy's `inspect sparsity` and `surgeon prune`, on the same files.

    python benchmarks/sparsity_tools.py

Times whole commands (interpreter start and imports included) and, apart from them, the same work as
calls in one process after the imports. Runs of the two sides alternate. `inspect` is timed on 2:4
weights, where every group has to be looked at: Polygraphy stops at a dense weight's first group.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from measure import BIN, summary, timed_call, timed_command, write_result
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.exporters.pruning.prune import prune_model
from sparseflow_trt.model.graph import read_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.pattern import prune_2to4

DEMO = Path(__file__).parent.parent / "demo" / "out"
OURS, THEIRS = str(BIN / "sparseflow-trt"), str(BIN / "polygraphy")
RUNS = 3


def main() -> None:
    """Runs every comparison and writes results/sparsity_tools.json."""
    if not (DEMO / "minilm.onnx").exists():
        raise SystemExit("demo/out/minilm.onnx is missing: run `make demo` first.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        big = folder / "square4096.onnx"
        save_product(big, np.random.default_rng(0).standard_normal((4096, 4096)).astype(np.float32))
        times = {model.stem: compare_times(model, folder) for model in (DEMO / "minilm.onnx", big)}
        write_result("sparsity_tools", {"seconds": times, "right": compare_verdicts(folder)})


def compare_times(model: Path, folder: Path) -> dict[str, Any]:
    """The times of both tools, in turn, on one model."""
    sparse, output = folder / f"{model.stem}.2to4.onnx", folder / "pruned.onnx"
    prune_model(read_model(model), sparse)
    commands = {
        "inspect": ([OURS, "inspect", str(sparse)], [THEIRS, "inspect", "sparsity", str(sparse)]),
        "prune": (
            [OURS, "prune", str(model), "-o", str(output)],
            [THEIRS, "surgeon", "prune", str(model), "-o", str(output)],
        ),
    }
    calls = {
        "inspect": (
            lambda: read_layers(read_model(sparse)),
            lambda: polygraphy("inspect", "sparsity", sparse),
        ),
        "prune": (
            lambda: prune_model(read_model(model), output),
            lambda: polygraphy("surgeon", "prune", model, "-o", output),
        ),
    }
    found: dict[str, Any] = {}
    for job, (ours, theirs) in commands.items():
        runs = [(timed_command(ours), timed_command(theirs)) for _ in range(RUNS)]
        found[f"{job}, whole command"] = compared(runs)
    for job, (call, other) in calls.items():
        call()
        runs = [(timed_call(call), timed_call(other)) for _ in range(RUNS)]
        found[f"{job}, in one process after imports"] = compared(runs)
    return found


def compared(runs: list[tuple[float, float]]) -> dict[str, Any]:
    """Both sides' times, and the ratio run by run."""
    return {
        "sparseflow-trt": summary([a for a, _ in runs]),
        "polygraphy": summary([b for _, b in runs]),
        "times faster": summary([b / a for a, b in runs]),
    }


def polygraphy(*arguments: Any) -> None:
    """Runs Polygraphy's command line in this process."""
    import contextlib
    import io

    from polygraphy.tools import main as polygraphy_main

    before = sys.argv
    sys.argv = ["polygraphy", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            polygraphy_main()
    except SystemExit as done:
        if done.code:
            raise
    finally:
        sys.argv = before


def compare_verdicts(folder: Path) -> list[dict[str, Any]]:
    """What each tool says of weights whose state is known by construction."""
    rng = np.random.default_rng(1)
    dense = rng.standard_normal((64, 64)).astype(np.float32)
    rows = []
    for kind, weight in {
        "FP32 [K, N]": dense,
        "BF16 [K, N]": dense.astype(ml_dtypes.bfloat16),
        "FP32 [batch, K, N]": rng.standard_normal((2, 64, 64)).astype(np.float32),
        "INT8 [K, N] behind DequantizeLinear": rng.integers(1, 127, (64, 64)).astype(np.int8),
    }.items():
        for sparse in (True, False):
            path = folder / "case.onnx"
            axis = weight.ndim - 2
            save_product(path, prune_2to4(weight, axis) if sparse else weight)
            ours = subprocess.run([OURS, "inspect", str(path)], capture_output=True, check=False).returncode
            rows.append(
                {
                    "weight": kind,
                    "is 2:4": sparse,
                    "sparseflow-trt": {0: "2:4", 3: "not 2:4"}.get(ours, f"exit {ours}"),
                    "polygraphy": polygraphy_verdict(path),
                }
            )
    return rows


def polygraphy_verdict(path: Path) -> str:
    """Polygraphy's words for the model's only weight."""
    done = subprocess.run(
        [THEIRS, "inspect", "sparsity", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return f"fails: {(done.stderr or done.stdout).strip().splitlines()[-1][:120]}"
    if "Found sparse tensor" in done.stdout:
        return "2:4"
    return "not 2:4" if "Found: 1 weight" in done.stdout else "not looked at"


def save_product(path: Path, weight: Any) -> None:
    """A model of one MatMul with `weight`, dequantized first where it is INT8."""
    types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16}
    dtype = types.get(weight.dtype, TensorProto.FLOAT)
    nodes, constants, name = [], [numpy_helper.from_array(weight, "w")], "w"
    if weight.dtype == np.int8:
        constants.append(numpy_helper.from_array(np.asarray(np.float32(0.05)), "scale"))
        nodes.append(helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"], "dequantize"))
        name = "wide"
    nodes.append(helper.make_node("MatMul", ["x", name], ["y"], "product"))
    k, n = weight.shape[-2:]
    lead = list(weight.shape[:-2])
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", dtype, [*lead, "m", k])],
        [helper.make_tensor_value_info("y", dtype, [*lead, "m", n])],
        constants,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


if __name__ == "__main__":
    main()
