"""Transformers that FP16 cannot hold in one place: an attention score of 1e5, 1e5 before a normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from onnx import helper

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Array, Models

WIDTH = 32
Trouble = Literal["", "score", "norm", "rounding"]


def save_transformer(models: Models, trouble: Trouble, layers: int = 3, at: int = 1) -> Path:
    """Pre-norm blocks over x (batch, seq, 32); block `at` has the trouble.

    "score" gives each query and key a constant of 320, so that scores have 102400 in common; "rounding" one
    of 172: 29584, where FP16 goes in steps of 16. "norm" makes the MLP's output 1e5, and normalises it.
    """
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "gain": np.ones(WIDTH, np.float32),
        "root": np.asarray(np.float32(WIDTH**-0.5)),
    }
    nodes = []

    def linear(source: str, name: str, k: int, n: int) -> str:
        weights[f"{name}.w"] = (rng.standard_normal((k, n)) * k**-0.5).astype(np.float32)
        weights[f"{name}.b"] = (rng.standard_normal(n) / 8).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [source, f"{name}.w"], [f"{name}.m"], name=name))
        nodes.append(helper.make_node("Add", [f"{name}.m", f"{name}.b"], [f"{name}.o"], name=f"{name}.bias"))
        return f"{name}.o"

    def node(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{name}.o"], name=name, **attributes))
        return f"{name}.o"

    x = "x"
    for i in range(layers):
        p = f"b{i}."
        n = node("LayerNormalization", [x, "gain"], p + "norm1")
        q, k, v = (linear(n, p + name, WIDTH, WIDTH) for name in "qkv")
        if i == at and trouble in ("score", "rounding"):
            for name in "qk":
                weights[f"{p}{name}.w"][:, 0] = 0
                weights[f"{p}{name}.b"][0] = 320 if trouble == "score" else 172
        turned = node("Transpose", [k], p + "turn", perm=[0, 2, 1])
        scores = node("Mul", [node("MatMul", [q, turned], p + "scores"), "root"], p + "scale")
        mixed = node("MatMul", [node("Softmax", [scores], p + "softmax"), v], p + "context")
        x = node("Add", [x, linear(mixed, p + "o", WIDTH, WIDTH)], p + "add1")
        up = linear(node("LayerNormalization", [x, "gain"], p + "norm2"), p + "up", WIDTH, 2 * WIDTH)
        down = linear(node("Relu", [up], p + "relu"), p + "down", 2 * WIDTH, WIDTH)
        x = node("Add", [x, down], p + "add2")
        if i == at and trouble == "norm":
            weights[p + "down.w"] *= 6e4
            x = node("LayerNormalization", [x, "gain"], p + "norm3")
    nodes.append(helper.make_node("Identity", [x], ["y"], name="out"))
    return models.save(models.model(nodes, weights, {"x": ("batch", "seq", WIDTH)}))
