"""Real TensorRT-RTX builds of tiny models, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto

from sparseflow_trt.engines.hardware import Gpu
from sparseflow_trt.engines.protocol import BuildRequest, Progress
from sparseflow_trt.engines.tensorrt_rtx import TensorRtRtxBackend, why_not_here
from sparseflow_trt.errors import BuildError

SaveModel = Callable[..., Path]
MakeRequest = Callable[..., BuildRequest]


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
