"""Shapes that a file lacks or has wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.model.infer_shapes import infer_shapes
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.symbolic import SymbolicM
from tests.graphs import layers_of, random_weight

if TYPE_CHECKING:
    from tests.conftest import Models


def _with_lstm(models: Models, producer: str = "pytorch", named: str = "") -> Path:
    """x[batch, seq, 16] through an LSTM and a product, as torch writes it where 5 steps are traced.

    `named` is what the file calls the first dimension of what a computed Reshape makes of it, 10 else.
    """
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r"], ["steps"], hidden_size=8),
        helper.make_node("Squeeze", ["steps", "one"], ["s"]),
        helper.make_node("MatMul", ["s", "up"], ["y"], name="up_proj"),
        helper.make_node("Reshape", ["y", "shape"], ["z"]),
        helper.make_node("MatMul", ["z", "down"], ["out"], name="down_proj"),
    ]
    weights = {"w": random_weight(1, 32, 16), "r": random_weight(1, 32, 8), "up": random_weight(8, 64)}
    weights |= {"down": random_weight(64, 32), "one": np.array([1], np.int64)}
    model = models.model(nodes, weights, {"x": ("batch", "seq", 16)}, outputs=["out"])
    model.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [2]))
    shapes: dict[str, Any] = {"s": (5, "batch", 8), "y": (5, "batch", 64), "z": (named or 10, 64)}
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in shapes.items()
    )
    model.producer_name = producer
    return models.save(model)


def _rows(path: Path) -> list[SymbolicM]:
    return [layer.m for layer in layers_of(path) if layer.op_type == "MatMul"]


def test_behind_an_lstm_of_torchs_the_length_is_the_inputs(models: Models) -> None:
    up, down = _rows(_with_lstm(models))
    assert up == SymbolicM(("seq", "batch"))
    assert str(down) == "?", "10 is of the trace"
    assert str(_rows(_with_lstm(models, named="rows"))[1]) == "rows"


def test_shapes_that_others_write_behind_an_lstm_are_believed(models: Models) -> None:
    assert [str(m) for m in _rows(_with_lstm(models, "tf2onnx"))] == ["5*batch", "10"]


EXPORT = """
import sys
import torch

class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.GRU(16, 16, batch_first=True)
        self.up_proj = torch.nn.Linear(16, 64)
    def forward(self, x):
        return self.up_proj(self.rnn(x)[0])

axes = ({0: "batch", 1: "seq"},)
torch.onnx.export(Recurrent().eval(), (torch.randn(2, 5, 16),), sys.argv[1], dynamo=True, dynamic_shapes=axes)
"""


def test_a_shape_of_unknown_type_is_no_warning(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    """Such values are left by quantizers that replace what made them."""
    model = read_model(models.matmul(random_weight(64, 8))).ir
    (node,) = model.graph
    value = node.inputs[0]
    assert value is not None
    value.shape, value.type = ir.Shape(["batch", 64]), None
    infer_shapes(model)
    assert caplog.messages == []


def test_what_torch_exports_by_itself_has_the_inputs_length(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    # in a process of its own: of a second recurrent layer in one process torch 2.13 fixes the length
    subprocess.run([sys.executable, "-c", EXPORT, str(tmp_path / "m")], check=True, capture_output=True)
    (m,) = _rows(tmp_path / "m")
    assert m.evaluate({"batch": 3, "seq": 7}) == 21
