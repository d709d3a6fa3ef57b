"""LLaMA MLP blocks on TensorRT: the dense engine against the sparse one, on the GPU of this machine.

    python benchmarks/tensorrt_mlp.py CASE [CASE …]

CASE: tinyllama, llama-8b, tinyllama-int8, tinyllama-mixed. Same 2:4 weights on both sides. "mixed" plans
gate in FP16 sparse, up in FP16 dense (taken out of sparse tactics by one element) and down in FP32. Each
engine goes through the whole pipeline (plan, typed graph, build, Polygraphy comparison with FP32); the two
are timed in turn, as CUDA graphs. Writes results/tensorrt_mlp_CASE.json.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from measure import write_result
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.engines.benchmark import ratio, time_interleaved
from sparseflow_trt.engines.hardware import find_gpus
from sparseflow_trt.engines.runner import Engine
from sparseflow_trt.engines.tensorrt_api import load_flavour
from sparseflow_trt.graph import read_layers
from sparseflow_trt.model_file import input_dims, read_model
from sparseflow_trt.pattern import prune_2to4
from sparseflow_trt.pipeline import BuildOptions, BuildResult, ValidationOptions, build
from sparseflow_trt.plan import make_plan
from sparseflow_trt.shapes import Profile, ShapeRange

# hidden size, intermediate size, the profiles' opt M (each profile reaches down to the one before it)
CASES: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "tinyllama": (2048, 5632, (256, 2048)),
    "llama-8b": (4096, 14336, (1024,)),
    "tinyllama-int8": (2048, 5632, (1024,)),
    "tinyllama-mixed": (2048, 5632, (1024,)),
}
MIXED = {
    "gate_proj": {"precision": "fp16", "sparsity": "sparse"},
    "up_proj": {"precision": "fp16", "sparsity": "dense", "reason": "asked for"},
    "down_proj": {"precision": "fp32", "sparsity": "dense", "reason": "asked for"},
}


def main(cases: list[str]) -> None:
    """Runs the cases, each into a result file of its own."""
    gpu = find_gpus()[0]
    for case in cases:
        hidden, intermediate, sizes = CASES[case]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = folder / f"{case}.onnx"
            (write_int8 if case.endswith("int8") else write_fp16)(model, hidden, intermediate)
            mixed = MIXED if case.endswith("mixed") else {}
            results = {mode: run_build(model, folder / mode, sizes, mode, mixed) for mode in ("off", "force")}
            figures = {
                "gpu": dataclasses.asdict(gpu),
                "shape": {"hidden": hidden, "intermediate": intermediate},
                "build seconds": {m: r.manifest.engine.build_seconds for m, r in results.items()},
                "layers": [outcome.model_dump() for outcome in results["force"].manifest.engine.outcomes],
                "errors": {m: errors(r) for m, r in results.items()},
                "opted out": [o.model_dump() for o in results["force"].manifest.graph.opted_out],
                "engine bytes": {m: (r.artifact / "model.engine").stat().st_size for m, r in results.items()},
                "times": [compare(results, hidden, m) for m in sizes],
            }
        write_result(f"tensorrt_mlp_{case}", figures, f"python benchmarks/tensorrt_mlp.py {case}")


def run_build(
    model: Path,
    output: Path,
    sizes: tuple[int, ...],
    mode: Literal["off", "force"],
    mixed: dict[str, dict[str, str]],
) -> BuildResult:
    """One artifact, a profile for each M of `sizes`; `mixed` overrides the sparse plan, layer by layer."""
    read = read_model(model)
    dims = input_dims(read)
    width = dims["x"][1]
    assert isinstance(width, int)
    lows = (1, *(m + 1 for m in sizes[:-1]))
    profiles = tuple(
        Profile(
            name=f"m{m}",
            inputs={"x": ShapeRange(min=(low, width), opt=(m, width), max=(m, width))},
        )
        for low, m in zip(lows, sizes, strict=True)
    )
    plan = make_plan(read_layers(read), profiles, dims, None, "fp16", mode, model.name)
    if mode == "force" and mixed:
        layers = tuple(layer.model_copy(update=mixed[layer.name]) for layer in plan.layers)
        plan = plan.model_copy(update={"layers": layers})
    options = BuildOptions(output, plan, backend="tensorrt", validation=ValidationOptions(), force=True)
    last = [""]

    def say(progress: Any) -> None:
        if progress.step != last[0]:
            last[0] = progress.step
            print(f"  {mode}: {progress.step}", file=sys.stderr, flush=True)

    return build(model, options, say)


def errors(result: BuildResult) -> list[dict[str, Any]]:
    """Each candidate's figures against FP32."""
    keys = ("input_set", "passed", "max_abs", "mean_abs", "cosine", "psnr", "reason")
    rows = []
    for candidate in result.manifest.validation.candidates:
        if not candidate.outputs:
            rows.append(
                {"candidate": candidate.name, "verdict": candidate.verdict, "reason": candidate.reason}
            )
        for output in candidate.outputs:
            data = output.model_dump()
            rows.append({"candidate": candidate.name, **{key: data[key] for key in keys}})
    return rows


def compare(results: dict[str, BuildResult], hidden: int, m: int) -> dict[str, Any]:
    """Both engines at one M, in turn."""
    flavour = load_flavour("tensorrt")
    feeds = {"x": np.random.default_rng(m).standard_normal((m, hidden)).astype(np.float32)}
    with (
        Engine(flavour, results["off"].artifact / "model.engine") as dense,
        Engine(flavour, results["force"].artifact / "model.engine") as sparse,
    ):
        timed = time_interleaved((dense, sparse), feeds)
        gain = ratio(*timed)
    rows = {
        name: {"p50_ms": t.p50, "p90_ms": t.p90, "p99_ms": t.p99, "launches": t.launches}
        for name, t in zip(("dense", "sparse"), timed, strict=True)
    }
    return {"m": m, **rows, "dense over sparse": dataclasses.asdict(gain)}


def weights(hidden: int, intermediate: int) -> dict[str, Any]:
    """Random 2:4 weights of a gated MLP, [K, N], FP32."""
    rng = np.random.default_rng(0)
    shapes = {"gate": (hidden, intermediate), "up": (hidden, intermediate), "down": (intermediate, hidden)}
    return {
        name: prune_2to4((rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32), 0)
        for name, shape in shapes.items()
    }


def write_fp16(path: Path, hidden: int, intermediate: int) -> None:
    """x → silu(x·gate) * (x·up) → ·down, in FP32: the plan types it."""
    nodes = [
        helper.make_node("MatMul", ["x", "gate"], ["a"], "gate_proj"),
        helper.make_node("MatMul", ["x", "up"], ["b"], "up_proj"),
        helper.make_node("Sigmoid", ["a"], ["s"], "sigmoid"),
        helper.make_node("Mul", ["a", "s"], ["silu"], "silu"),
        helper.make_node("Mul", ["silu", "b"], ["c"], "mul"),
        helper.make_node("MatMul", ["c", "down"], ["y"], "down_proj"),
    ]
    tensors = [numpy_helper.from_array(w, name) for name, w in weights(hidden, intermediate).items()]
    save(path, nodes, tensors, hidden)


def write_int8(path: Path, hidden: int, intermediate: int) -> None:
    """x·up, Relu, ·down with INT8 weights and activations; a Q node behind each product but the last."""
    made = weights(hidden, intermediate)
    scales = {"sx": 0.03, "sa": 0.03}
    tensors = [numpy_helper.from_array(np.asarray(np.float32(v)), n) for n, v in scales.items()]
    for name in ("up", "down"):
        scale = np.float32(np.abs(made[name]).max() / 127)
        tensors += [
            numpy_helper.from_array(np.round(made[name] / scale).astype(np.int8), name),
            numpy_helper.from_array(np.asarray(scale), f"s_{name}"),
        ]
    zero = numpy_helper.from_array(np.asarray(np.int8(0)), "zero")
    nodes = [
        *quantized("x", "sx", "x_q"),
        helper.make_node("DequantizeLinear", ["up", "s_up", "zero"], ["up_w"], "dequantize_up"),
        helper.make_node("MatMul", ["x_q_dq", "up_w"], ["a"], "up_proj"),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        *quantized("r", "sa", "r_q"),
        helper.make_node("DequantizeLinear", ["down", "s_down", "zero"], ["down_w"], "dequantize_down"),
        helper.make_node("MatMul", ["r_q_dq", "down_w"], ["y"], "down_proj"),
    ]
    save(path, nodes, [*tensors, zero], hidden)


def quantized(value: str, scale: str, name: str) -> list[Any]:
    """`value` through Q and DQ, as NAME_dq."""
    return [
        helper.make_node("QuantizeLinear", [value, scale, "zero"], [name], f"quantize_{value}"),
        helper.make_node("DequantizeLinear", [name, scale, "zero"], [f"{name}_dq"], f"dequantize_{value}"),
    ]


def save(path: Path, nodes: list[Any], tensors: list[Any], hidden: int) -> None:
    """Saves a graph from x to y, both [m, hidden]."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", hidden]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "mlp", values[:1], values[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
