"""LLaMA MLP blocks on TensorRT at M from 64 to 4096: dense, sparse as TensorRT picks, as a policy says.

    python benchmarks/tensorrt_mlp.py CASE [--policy FILE|NAME] [--plugin LIB] [--m 64,256] [--work DIR]
        [--stop-after S]

CASE: tinyllama, llama-8b, tinyllama-int8, tinyllama-mixed. Same 2:4 weights on all sides. "mixed" plans
gate in FP16 sparse, up in FP16 dense (taken out of sparse tactics by one element) and down in FP32, as it is
on the dense side. For each M every side is an engine with one profile, M/2 ≤ m ≤ M with its opt at M, that
goes through the whole pipeline (plan, typed graph, build, Polygraphy comparison with FP32); the engines are
timed in turn, as CUDA graphs. With --plugin there are sides with layers in it (engine_sides.py), and a policy
may choose it.

Writes results/tensorrt_mlp_CASE.json after each M. With --work the artifacts are kept: the same command goes
on where it was stopped, and --m adds rows. Of several GPUs, CUDA_VISIBLE_DEVICES says which one a case gets.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from compare_engines import run_profiles
from engine_sides import Settings, add_options, settings_from
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt._files import written_atomically
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.plans.profile_specs import ProfileSpec

GRID = (64, 256, 1024, 4096)
# hidden size, intermediate size, each M
CASES: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "tinyllama": (2048, 5632, GRID),
    "llama-8b": (4096, 14336, GRID),
    "tinyllama-int8": (2048, 5632, (1024,)),
    "tinyllama-mixed": (2048, 5632, (1024,)),
    "tiny": (64, 128, (8, 16)),  # to try this script without a GPU: --backend onnxruntime
}
FP32_DOWN = {"precision": "fp32", "sparsity": "dense", "reason": "asked for"}
MIXED = {
    "dense": {"down_proj": FP32_DOWN},
    "sparse": {"up_proj": {"sparsity": "dense", "reason": "asked for"}, "down_proj": FP32_DOWN},
}


def main() -> None:
    """Reads the command line and runs one case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--m", type=lambda text: tuple(map(int, text.split(","))), help="at these alone")
    add_options(parser)
    asked = parser.parse_args()
    with settings_from(asked) as settings:
        run_case(asked.case, asked.m or CASES[asked.case][2], settings)


def run_case(case: str, sizes: tuple[int, ...], settings: Settings) -> None:
    """Runs a case; the result is written after each M."""
    hidden, intermediate, _ = CASES[case]
    model = settings.work / f"{case}.onnx"
    if not model.exists():
        with written_atomically(model) as path:
            (write_int8 if case.endswith("int8") else write_fp32)(path, hidden, intermediate)
    run_profiles(
        f"tensorrt_mlp_{case}",
        model,
        [ProfileSpec(name=f"m{m}", axes={"m": (m // 2, m, m)}) for m in sizes],
        dataclasses.replace(settings, overrides=MIXED if case.endswith("mixed") else {}),
        {"shape": {"hidden": hidden, "intermediate": intermediate}, "profiles": "M/2 ≤ m ≤ M"},
        f"python benchmarks/tensorrt_mlp.py {case}",
    )


def weights(hidden: int, intermediate: int) -> dict[str, Any]:
    """Random 2:4 weights of a gated MLP, [K, N], FP32."""
    rng = np.random.default_rng(0)
    shapes = {"gate": (hidden, intermediate), "up": (hidden, intermediate), "down": (intermediate, hidden)}
    return {
        name: prune_2to4((rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32), 0)
        for name, shape in shapes.items()
    }


def write_fp32(path: Path, hidden: int, intermediate: int) -> None:
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
    main()
