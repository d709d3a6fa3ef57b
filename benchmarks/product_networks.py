"""Networks of a few equal products of random 2:4 weights, dense and in the plugin, and their engines."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt._files import written_atomically
from sparseflow_trt.engines.plugin.loading import load_plugin
from sparseflow_trt.engines.protocol import EngineOptions
from sparseflow_trt.engines.tensorrt.api import load_flavour
from sparseflow_trt.engines.tensorrt.build_engine import build_engine
from sparseflow_trt.engines.tensorrt.log import BuildLog
from sparseflow_trt.exporters.plugin.nodes import put_into_plugin
from sparseflow_trt.exporters.saving import save_plugin_model
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.plans.shapes import Profile, ShapeRange

_SEARCHED = re.compile(r"SparseFlowLinear24: M=(\d+): (algorithm .*), ([0-9.]+) us")


@dataclass(frozen=True)
class Build:
    """An engine of a network of products, with one profile: low ≤ m ≤ high."""

    library: Path
    model: Path
    engine: Path
    k: int
    count: int
    low: int
    high: int
    level: int | None = None


def make_weights(k: int, n: int, count: int) -> list[Any]:
    """Random 2:4 weights [K, N] in FP16: one, and that one turned by some groups of four along K."""
    first = np.random.default_rng(0).standard_normal((k, n), np.float32) * np.float32(k**-0.5)
    pruned = prune_2to4(first.astype(np.float16), 0)
    return [np.roll(pruned, 4 * i, axis=0) for i in range(count)]


def write_models(dense: Path, plugin: Path, weights: Sequence[Any]) -> None:
    """Writes y_i = x_i · W_i as MatMul, and the same with the plugin's nodes."""
    k, n = weights[0].shape
    count = len(weights)
    if not dense.exists():
        nodes = [
            helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"], f"product{i}") for i in range(count)
        ]
        inputs, outputs = (
            [
                helper.make_tensor_value_info(f"{what}{i}", TensorProto.FLOAT16, ["m", size])
                for i in range(count)
            ]
            for what, size in (("x", k), ("y", n))
        )
        tensors = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
        graph = helper.make_graph(nodes, "products", inputs, outputs, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, dense, save_as_external_data=True, location=f"{dense.name}.data")
    write_plugin(dense, plugin, count, 0)


def write_plugin(dense: Path, plugin: Path, count: int, dense_below: int) -> None:
    """Puts the products into the plugin; below so many rows they run dense copies."""
    if not plugin.exists():
        typed = read_model(dense)
        names = [f"product{i}" for i in range(count)]
        put_into_plugin(typed, names, dense_below_m=dict.fromkeys(names, dense_below))
        save_plugin_model(typed.ir, plugin)


def build(asked: Build) -> tuple[float | None, dict[str, Any]]:
    """Builds an engine, if it is not there; gives the seconds and what the plugin measured in them."""
    if asked.engine.exists():
        return None, {}
    flavour = load_flavour("tensorrt")
    load_plugin(flavour, asked.library)
    opt = min(max(1024, asked.low), asked.high)
    shapes = ShapeRange(min=(asked.low, asked.k), opt=(opt, asked.k), max=(asked.high, asked.k))
    profile = Profile(name="m", inputs={f"x{i}": shapes for i in range(asked.count)})
    started = time.monotonic()
    text = asked.engine.with_suffix(".log")
    with text.open("w") as stream, written_atomically(asked.engine) as path:
        build_engine(
            flavour, asked.model, path, (profile,), False, EngineOptions(optimization_level=asked.level),
            BuildLog(stream), lambda _: None,
        )  # fmt: skip
    searched = {
        m: {"chosen": chosen, "us": float(us)} for m, chosen, us in _SEARCHED.findall(text.read_text())
    }
    return round(time.monotonic() - started, 1), searched
