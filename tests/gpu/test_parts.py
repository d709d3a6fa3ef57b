"""Rows that Slices take of a fused weight, on the real TensorRT: each runs as a layer of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.pipeline import BuildOptions, build
from sparseflow_trt.plans.shapes import ShapeRange

HIDDEN, PART = 256, 512


def test_slices_of_a_fused_weight_are_layers_of_the_engine(tmp_path: Path) -> None:
    """x[m, 256] → gate and up, each of 512 rows of one weight float32[1024, 256] → their product."""
    rng = np.random.default_rng(0)
    fused = prune_2to4((rng.standard_normal((2 * PART, HIDDEN)) * HIDDEN**-0.5).astype(np.float32), 1)
    tensors = [numpy_helper.from_array(fused, "fused")]
    nodes = []
    for name, start in {"gate": 0, "up": PART}.items():
        ends = {"start": [start], "end": [start + PART], "axis": [0]}
        tensors += [numpy_helper.from_array(np.array(v, np.int64), f"{name}_{w}") for w, v in ends.items()]
        given = ["fused", *(f"{name}_{word}" for word in ends)]
        nodes.append(helper.make_node("Slice", given, [f"{name}_weight"], f"{name}_slice"))
        nodes.append(helper.make_node("Gemm", ["x", f"{name}_weight"], [name], f"{name}_proj", transB=1))
    nodes.append(helper.make_node("Mul", ["gate", "up"], ["y"], "mul"))
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", width])
        for name, width in {"x": HIDDEN, "y": PART}.items()
    )
    graph = helper.make_graph(nodes, "gated", [x], [y], tensors)
    model = tmp_path / "gated.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    shapes = ShapeRange(min=(1, HIDDEN), opt=(128, HIDDEN), max=(128, HIDDEN))

    built = build(
        model,
        BuildOptions(
            tmp_path / "gated.artifact",
            PlanOptions(shapes={"x": shapes}, precision="fp16", sparsity="force"),
            backend="tensorrt",
        ),
    )

    assert built.manifest.status == "pass"
    assert {layer.name: layer.sparsity for layer in built.manifest.layers} == {
        "gate_proj": "sparse",
        "up_proj": "sparse",
    }
    found = {outcome.layer: outcome for outcome in built.manifest.engine.outcomes}
    assert set(found) == {"gate_proj", "up_proj"}
    for outcome in found.values():
        assert outcome.tactic
        assert outcome.precision.partition("->")[0] == "Half"
