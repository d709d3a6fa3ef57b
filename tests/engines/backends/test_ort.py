"""Real builds with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.engines.backends import ort
from sparseflow_trt.engines.backends.ort import OnnxRuntimeBackend
from sparseflow_trt.engines.protocol import BuildRequest, Progress
from sparseflow_trt.errors import BuildError, ModelError
from sparseflow_trt.validation.runners import ort_runner
from tests.graphs import quantized_concat

SaveModel = Callable[..., Path]
MakeRequest = Callable[..., BuildRequest]


def ignore(progress: Progress) -> None:
    """Takes progress and does nothing."""


def outputs_of(model: Path, dtype: type[np.generic]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    x = np.linspace(-1, 1, 3 * 64).reshape(3, 64).astype(dtype)
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def test_builds_a_model_that_runs_and_gives_the_same(
    save_model: SaveModel, make_request: MakeRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    model = save_model(TensorProto.FLOAT)

    built = OnnxRuntimeBackend().build(make_request(model, 8), ignore)

    assert [path.name for path in built.files] == ["model.ort.onnx"]
    np.testing.assert_allclose(outputs_of(built.file, np.float32), outputs_of(model, np.float32), atol=1e-5)
    types = [(layer.name, layer.type, layer.precision) for layer in built.layers]
    assert types == [("project", "MatMul", "FLOAT"), ("after", "Relu", "FLOAT")]
    assert built.versions == OnnxRuntimeBackend().versions() == {"onnxruntime": onnxruntime.__version__}
    assert built.runs_here == ""
    assert "no kernels for 2:4" in built.sparse_tactics
    assert built.notes == ()
    assert capfd.readouterr() == ("", "")


def test_quantized_products_with_fp16_scales_and_a_bias_are_right(
    make_request: MakeRequest, tmp_path: Path
) -> None:
    """ONNX Runtime 1.31 takes FP16 scales for FP32 ones as it quantizes the bias."""
    rng = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {
        "s": np.array(0.02, np.float16), "z": np.array(0, np.int8), "so": np.array(0.03, np.float16),
        "w": rng.integers(-127, 127, (64, 64), np.int8), "ws": (rng.random(64) / 200).astype(np.float16),
        "wz": np.zeros(64, np.int8), "b": rng.standard_normal(64).astype(np.float16),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Gemm", ["d", "wd", "b"], ["p"], transB=1),
        helper.make_node("QuantizeLinear", ["p", "so", "z"], ["pq"]),
        helper.make_node("DequantizeLinear", ["pq", "so", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", 64]) for name in "xy"]
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(model, tmp_path / "quantized.onnx")
    x = rng.standard_normal((2, 64)).astype(np.float16)
    with ort_runner(tmp_path / "quantized.onnx", "as written") as runner:
        expected = np.array(runner.infer({"x": x})["y"])
    built = OnnxRuntimeBackend().build(make_request(tmp_path / "quantized.onnx", 8), ignore)
    with ort_runner(built.file, "engine", optimized=True) as runner:
        np.testing.assert_allclose(runner.infer({"x": x})["y"], expected, atol=0.04)  # one step of the output


def test_a_quantized_concat_with_fp16_scales_runs_as_it_was_built(
    make_request: MakeRequest, tmp_path: Path
) -> None:
    """As it loads such an engine, ONNX Runtime 1.31 would make a QLinearConcat, which takes FP32 scales."""
    built = OnnxRuntimeBackend().build(make_request(quantized_concat(tmp_path / "concat.onnx"), 8), ignore)
    x = np.linspace(-1, 1, 64).reshape(1, 64).astype(np.float16)
    with ort_runner(built.file, "engine", optimized=True) as runner:
        np.testing.assert_allclose(runner.infer({"x": x})["y"], np.hstack((x, -x)), atol=0.02)


def test_weights_of_a_large_model_get_a_file_of_their_own(
    save_model: SaveModel, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "_INLINE_BYTES", 1 << 10)
    model = save_model(TensorProto.FLOAT)

    built = OnnxRuntimeBackend().build(make_request(model, 8), ignore)

    assert [path.name for path in built.files] == ["model.ort.onnx", "model.ort.data"]
    assert built.file.stat().st_size < 4096
    np.testing.assert_allclose(outputs_of(built.file, np.float32), outputs_of(model, np.float32), atol=1e-5)


def test_weights_in_a_data_file_are_taken_along(save_model: SaveModel, make_request: MakeRequest) -> None:
    model = save_model(TensorProto.FLOAT, external=True)
    expected = outputs_of(model, np.float32)

    built = OnnxRuntimeBackend().build(make_request(model, 8), ignore)

    model.with_name("model.data").unlink()
    assert [path.name for path in built.files] == ["model.ort.onnx", "model.ort.data"]
    np.testing.assert_allclose(outputs_of(built.file, np.float32), expected, atol=1e-5)


def test_fp16_runs_with_a_note(save_model: SaveModel, make_request: MakeRequest) -> None:
    model = save_model(TensorProto.FLOAT16)

    built = OnnxRuntimeBackend().build(make_request(model, 8, sparse=True), ignore)

    assert outputs_of(built.file, np.float16).dtype == np.float16
    assert ["no speedup is claimed" in note for note in built.notes] == [True, False]
    assert "computes FP16 products in FP32" in built.notes[1]


def test_bf16_is_refused_by_node_and_type(
    save_model: SaveModel, make_request: MakeRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BuildError) as caught:
        OnnxRuntimeBackend().build(make_request(save_model(TensorProto.BFLOAT16), 8), ignore)

    assert caught.value.message == (
        "ONNX Runtime's CPU has no kernel for node 'project' (MatMul of BFLOAT16) of model.onnx."
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("second", "weight", "says"),
    [
        ("Bogus", None, "refuses node 'after' (Bogus) of model.onnx: This is an invalid model."),
        ("Relu", TensorProto.FLOAT, "refuses node 'project' (MatMul of FLOAT, FLOAT16) of model.onnx: Type"),
    ],
)
def test_a_wrong_graph_is_refused_by_node(
    second: str, weight: int | None, says: str, save_model: SaveModel, make_request: MakeRequest
) -> None:
    with pytest.raises(BuildError) as caught:
        OnnxRuntimeBackend().build(make_request(save_model(second=second, weight=weight), 8), ignore)

    assert says in caught.value.message
    assert "[ONNXRuntimeError]" not in caught.value.message
    assert "another tool has changed the file since, give the file from before" in caught.value.hint


def test_an_error_without_a_node_is_told_as_it_is(save_model: SaveModel, make_request: MakeRequest) -> None:
    path = save_model(TensorProto.FLOAT)
    model = onnx.load(path)
    model.graph.node[1].domain = "my.domain"
    model.opset_import.append(onnx.helper.make_opsetid("my.domain", 1))
    onnx.save(model, path)

    with pytest.raises(BuildError, match=r"cannot run model\.onnx: .*my\.domain:Relu.* is not a registered"):
        OnnxRuntimeBackend().build(make_request(path, 8), ignore)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, make_request: MakeRequest) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"not a model")

    with pytest.raises(ModelError):
        OnnxRuntimeBackend().build(make_request(model), ignore)
