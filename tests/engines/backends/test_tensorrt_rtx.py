"""Real TensorRT-RTX builds of tiny models, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.engines.backends.tensorrt_rtx import TensorRtRtxBackend, why_not_here
from sparseflow_trt.engines.machine.hardware import Gpu
from sparseflow_trt.engines.protocol import BuildRequest, Progress
from sparseflow_trt.errors import EXIT_EVIDENCE_DIFFERS, BuildError, EvidenceError
from sparseflow_trt.plans.plan import PlannedLayer, Precision

SaveModel = Callable[..., Path]
MakeRequest = Callable[..., BuildRequest]

K = 64


def ignore(progress: Progress) -> None:
    """Takes progress and does nothing."""


def gpu(capability: str) -> Gpu:
    return Gpu("a GPU", capability, 1 << 30, 100, sparse_tensor_cores=True, driver_version="13.0")


def test_builds_an_engine_with_two_profiles_and_says_what_is_in_it(
    save_model: SaveModel,
    make_request: MakeRequest,
    temporary_files_in: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    steps: list[Progress] = []
    request = make_request(save_model(TensorProto.FLOAT16), 8, 64)

    built = TensorRtRtxBackend().build(request, steps.append)

    assert built.file == request.folder / "model.engine"
    assert built.file.stat().st_size > 128 * 64 * 2
    assert [path.name for path in request.folder.iterdir()] == ["model.engine"]
    assert {layer.profile for layer in built.layers} == {0, 1}
    gemms = [layer for layer in built.layers if layer.type == "gemm"]
    assert [(gemm.profile, gemm.precision, gemm.tactic) for gemm in gemms] == [
        (0, "Half", "__myelin_CASK_STUB"),
        (1, "Half", "__myelin_CASK_STUB"),
    ]
    assert all(gemm.name.startswith("project") and "profile" not in gemm.name for gemm in gemms)
    assert built.versions == TensorRtRtxBackend().versions()
    assert built.versions["tensorrt-rtx"].startswith("1.")
    assert built.seconds > 0
    assert steps[0].step == "Parsing the model"
    assert Progress("Building engine", 6, 6) in steps
    assert list(temporary_files_in.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_finds_external_data_beside_the_model_whatever_the_current_folder(
    save_model: SaveModel, make_request: MakeRequest
) -> None:
    model = save_model(TensorProto.FLOAT, external=True)

    built = TensorRtRtxBackend().build(make_request(model, 8), ignore)

    assert [layer.precision for layer in built.layers if layer.type == "gemm"] == ["Float"]


def test_says_that_sparse_weights_are_ignored(save_model: SaveModel, make_request: MakeRequest) -> None:
    built = TensorRtRtxBackend().build(make_request(save_model(), 8, sparse=True), ignore)

    assert "runs dense" in built.sparse_tactics
    assert "no speedup is claimed" in built.sparse_tactics


@pytest.mark.parametrize(
    ("second", "weight", "says"),
    [
        ("Bogus", None, "has no operator for node 'after' (Bogus) of model.onnx"),
        ("NonZero", None, "has no operator for node 'after' (NonZero) of model.onnx"),
        (
            "Relu",
            TensorProto.FLOAT,
            "refuses node 'project' (MatMul) of model.onnx: API Usage Error: project: IMatrixMultiplyLayer "
            "must have same input types. `A` is of type Half and `B` is of type Float.",
        ),
    ],
)
def test_an_operator_that_is_refused_is_named_with_its_node(
    second: str, weight: int | None, says: str, save_model: SaveModel, make_request: MakeRequest
) -> None:
    with pytest.raises(BuildError) as caught:
        TensorRtRtxBackend().build(make_request(save_model(second=second, weight=weight), 8), ignore)

    assert says in caught.value.message
    assert "cudaError" not in caught.value.message


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, make_request: MakeRequest) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"not a model")

    with pytest.raises(BuildError, match=r"TensorRT-RTX cannot read model\.onnx: "):
        TensorRtRtxBackend().build(make_request(model), ignore)


def test_a_profile_that_does_not_fit_is_refused_and_the_log_is_kept(
    save_model: SaveModel, make_request: MakeRequest, temporary_files_in: Path
) -> None:
    with pytest.raises(BuildError) as caught:
        TensorRtRtxBackend().build(make_request(save_model(), 8, k=32), ignore)

    assert "could not build model.onnx: API Usage Error: Dimension mismatch for tensor x and profile 0" in (
        caught.value.message
    )
    (log,) = temporary_files_in.iterdir()
    assert str(log) in caught.value.hint
    assert "[VERBOSE]" in log.read_text()


def test_a_size_that_is_fixed_inside_is_told_with_the_node_and_the_profile(
    save_model: SaveModel, make_request: MakeRequest
) -> None:
    """As other exporters write a Reshape of the batch that they traced with."""
    path = save_model()
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 64]), "sizes"))
    model.graph.node[1].CopyFrom(helper.make_node("Reshape", ["xw", "sizes"], ["y"], name="fixed"))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    with pytest.raises(BuildError) as caught:
        TensorRtRtxBackend().build(make_request(path, 2, 8), ignore)
    assert "the opt shapes of profile 'to8' (x 4x64) violate" in caught.value.message
    assert "fixed" in caught.value.message
    assert "export it with that axis dynamic, or plan with the one size" in caught.value.hint


def test_dynamic_shapes_need_a_profile(save_model: SaveModel, make_request: MakeRequest) -> None:
    with pytest.raises(BuildError, match="no optimization profile has been defined"):
        TensorRtRtxBackend().build(make_request(save_model()), ignore)


def test_a_profile_for_an_unknown_input_is_refused(save_model: SaveModel, make_request: MakeRequest) -> None:
    with pytest.raises(BuildError, match="Profile 'to8' has no shapes for input 'x'"):
        TensorRtRtxBackend().build(make_request(save_model(), 8, name="z"), ignore)


@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "12.0", "12.1"])
def test_runs_where_one_gpu_is_supported(capability: str) -> None:
    assert why_not_here((gpu("9.0"), gpu(capability))) == ""


@pytest.mark.parametrize("capability", ["7.5", "8.7", "9.0", "10.0"])
def test_other_gpus_are_named(capability: str) -> None:
    reason = why_not_here((gpu(capability),))

    assert f"has compute capability {capability}" in reason
    assert "8.0, 8.6, 8.9, 12.0 and later" in reason


def test_no_gpu_is_said() -> None:
    assert "no NVIDIA GPU" in why_not_here(())


def save_typed(path: Path, nodes: list[onnx.NodeProto], half: str, single: str = "") -> Path:
    """Saves nodes from x to y, FP32 of `batch` rows and 64 columns, with square weights of two types."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((K, K)).astype(np.float16) for name in half.split()}
    weights |= {name: np.full((K, K), 1e6, np.float32) for name in single.split()}  # no FP16 holds it
    graph = helper.make_graph(
        nodes,
        "typed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", K])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def planned(request: BuildRequest, **precisions: Precision) -> BuildRequest:
    """The request with a plan of these layers."""
    layers = tuple(
        PlannedLayer(name=name, kind="other", n=K, k=K, precision=precision, sparsity="dense", reason="")
        for name, precision in precisions.items()
    )
    return replace(request, plan=request.plan.model_copy(update={"layers": layers}))


def test_an_fp16_product_that_is_fused_with_the_cast_behind_it_runs_as_planned(
    tmp_path: Path, make_request: MakeRequest
) -> None:
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], name="cast_in", to=half),
        helper.make_node("MatMul", ["x16", "gate"], ["g"], name="gate_proj"),
        helper.make_node("MatMul", ["x16", "up"], ["u"], name="up_proj"),
        helper.make_node("Sigmoid", ["g"], ["s"], name="sigmoid"),
        helper.make_node("Mul", ["g", "s"], ["silu"], name="silu"),
        helper.make_node("Mul", ["silu", "u"], ["h"], name="product"),
        helper.make_node("MatMul", ["h", "down"], ["y16"], name="down_proj"),
        helper.make_node("Cast", ["y16"], ["y"], name="cast_out", to=single),
    ]
    request = make_request(save_typed(tmp_path / "gated.onnx", nodes, "gate up down"), 8, 64)
    fp16 = planned(request, gate_proj="fp16", up_proj="fp16", down_proj="fp16")

    built = TensorRtRtxBackend().build(fp16, ignore)

    fused = {o.engine_layer for o in built.outcomes if o.layer == "down_proj"}
    assert all("Cast" in layer for layer in fused), "else this tests nothing"
    assert {(o.layer, o.precision) for o in built.outcomes} == {
        ("gate_proj", "Half"), ("up_proj", "Half"), ("down_proj", "Half->Float"),
    }  # fmt: skip
    with pytest.raises(EvidenceError) as caught:
        TensorRtRtxBackend().build(planned(request, up_proj="fp16", down_proj="fp32"), ignore)
    assert caught.value.message == (
        "the engine does not run as planned: 'down_proj' is planned fp32 and runs in Half->Float (profile "
        "'to8'). 'down_proj' is planned fp32 and runs in Half->Float (profile 'to64')."
    )
    assert caught.value.exit_code == EXIT_EVIDENCE_DIFFERS


def test_an_fp32_product_that_is_made_fp16_between_casts_is_refused(
    tmp_path: Path, make_request: MakeRequest
) -> None:
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], name="cast_in", to=half),
        helper.make_node("MatMul", ["x16", "a"], ["h"], name="first"),
        helper.make_node("Cast", ["h"], ["h32"], name="up", to=single),
        helper.make_node("MatMul", ["h32", "b"], ["m"], name="middle"),
        helper.make_node("Cast", ["m"], ["m16"], name="down", to=half),
        helper.make_node("MatMul", ["m16", "c"], ["y16"], name="last"),
        helper.make_node("Cast", ["y16"], ["y"], name="cast_out", to=single),
    ]
    model = save_typed(tmp_path / "chain.onnx", nodes, "a c", single="b")

    with pytest.raises(EvidenceError, match="'middle' is planned fp32 and runs in Half") as caught:
        TensorRtRtxBackend().build(
            planned(make_request(model, 8), first="fp16", middle="fp32", last="fp16"), ignore
        )

    assert "'first'" not in caught.value.message
    assert "build with another backend" in caught.value.hint
