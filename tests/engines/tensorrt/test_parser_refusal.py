"""What TensorRT-RTX's real parser refuses: the node, its reason and what to do are told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from sparseflow_trt.engines.backends.tensorrt_rtx import TensorRtRtxBackend
from sparseflow_trt.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sparseflow_trt.engines.protocol import BuildRequest

ONE = np.ones(4, np.float32)
QDQ = "TensorRT takes INT8 as QuantizeLinear and DequantizeLinear with zero points of 0"
ELSEWHERE = "Export the model without it, or build for ONNX Runtime: --backend onnxruntime."


def _model(folder: Path, op: str, constants: list[Any], outputs: int, attributes: dict[str, Any]) -> Path:
    names = [f"c{i}" for i in range(len(constants))]
    made = ["y", *(f"o{i}" for i in range(1, outputs))]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], made, name="it", **attributes)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(c), n) for c, n in zip(constants, names, strict=True)],
    )
    path = folder / "model.onnx"
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("op", "constants", "outputs", "attributes", "says", "hint"),
    [
        ("Bogus", [], 1, {}, "TensorRT-RTX 1.7.1.116 has no operator for node 'it' (Bogus)", ELSEWHERE),
        (
            "QuickGelu", [], 1, {"domain": "com.microsoft"}, "has no operator for node 'it' (QuickGelu)",
            "Only ONNX Runtime has it: give the file from before ONNX Runtime's optimiser, or build for ONNX",
        ),
        ("DynamicQuantizeLinear", [], 3, {}, "has no operator for node 'it' (Dynamic", QDQ),
        (
            "BatchNormalization", [ONE, ONE, ONE, ONE], 3, {"training_mode": 1},
            "refuses node 'it' (BatchNormalization) of model.onnx: This version of TensorRT does not support "
            "training_mode == 1 in BatchNormalization.", ELSEWHERE,
        ),
        (
            "Slice", [np.array([1]), np.array([2])], 1, {},
            "refuses node 'it' (Slice) of model.onnx: Assertion failed: (starts.size() == axes.size())",
            ELSEWHERE,
        ),
        (
            "QuantizeLinear", [np.float32(0.1), np.uint8(3)], 1, {},
            "refuses node 'it' (QuantizeLinear) of model.onnx: Assertion failed: shiftIsAllZeros(zeroPoint): "
            "Non-zero zero point is not supported.", QDQ,
        ),
        (
            "QuantizeLinear", [np.float32(0.1), np.uint16(0)], 1, {},
            "does not take constant 'c1' of model.onnx, which is UINT16.", QDQ,
        ),
        (
            "Gather", [np.array([0], np.uint16)], 1, {},
            "does not take constant 'c0' of model.onnx, which is UINT16.", ELSEWHERE,
        ),
        (  # it has the operator, and not for these types
            "MatMulNBits", [np.ones((8, 1, 16), np.uint8), np.ones((8, 1), np.float32)], 1,
            {"domain": "com.microsoft", "K": 32, "N": 8, "bits": 4, "block_size": 32},
            "refuses node 'it' (MatMulNBits) of model.onnx: ", ELSEWHERE,
        ),
        (
            "MatMul", [np.ones((8, 8), np.float16)], 1, {}, "must have same input types.",
            "a cast. Export the model again. If another tool has changed the file since, give the file from",
        ),
    ],
)  # fmt: skip
def test_a_refusal_tells_the_parser_s_reason_and_what_to_do(
    op: str, constants: list[Any], outputs: int, attributes: dict[str, Any], says: str, hint: str,
    tmp_path: Path, make_request: Callable[..., BuildRequest],
) -> None:  # fmt: skip
    model = _model(tmp_path, op, constants, outputs, attributes)
    with pytest.raises(BuildError) as caught:
        TensorRtRtxBackend().build(make_request(model, 2, name="x"), lambda _: None)
    assert says.replace("1.7.1.116", TensorRtRtxBackend().versions()["tensorrt-rtx"]) in caught.value.message
    assert hint in caught.value.hint
