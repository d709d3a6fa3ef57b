"""What the ONNX Runtime writes of a model with bodies can be read again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.engines.backends import ort
from sparseflow_trt.engines.backends.ort import OnnxRuntimeBackend
from sparseflow_trt.engines.backends.shadowed import rename_shadowed

if TYPE_CHECKING:
    from collections.abc import Callable

    from sparseflow_trt.engines.protocol import BuildRequest

HALF = TensorProto.FLOAT16


def _save(folder: Path) -> Path:
    """x @ w, and that times w again, or w itself, by a condition: both branches and the graph read w."""

    def branch(nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
        return helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info("b", HALF, [2, 64])])

    then = branch([helper.make_node("MatMul", ["a", "w"], ["b"], name="again")])
    other = branch([helper.make_node("MatMul", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["b"])])
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
            helper.make_node("If", ["which"], ["y"], name="if", then_branch=then, else_branch=other),
        ],
        "graph",
        [
            helper.make_tensor_value_info("x", HALF, [2, 64]),
            helper.make_tensor_value_info("which", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", HALF, [2, 64])],
        [numpy_helper.from_array((np.random.default_rng(0).random((64, 64)) / 64).astype(np.float16), "w")],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize("which", [False, True])
@pytest.mark.parametrize("files", [1, 2])
def test_an_engine_whose_branches_read_what_the_graph_reads(
    files: int, which: bool, tmp_path: Path, make_request: Callable[..., BuildRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if files == 2:
        monkeypatch.setattr(ort, "_INLINE_BYTES", 1 << 10)
    model = _save(tmp_path)
    built = OnnxRuntimeBackend().build(make_request(model), lambda _: None)
    assert len(built.files) == files
    x = np.random.default_rng(1).random((2, 64)).astype(np.float16)
    expected, got = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
            None, {"x": x, "which": np.array(which)}
        )[0]
        for path in (model, built.file)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_a_file_with_nothing_to_rename_stays_as_it_is(tmp_path: Path) -> None:
    path = _save(tmp_path)
    before = path.read_bytes()
    rename_shadowed(path)
    assert path.read_bytes() == before
