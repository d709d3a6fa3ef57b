"""The types and shapes of what is served, and which of them each route takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.errors import DeployError
from sparseflow_trt.pipeline import BuildOptions, build
from sparseflow_trt.plans.profile_specs import parse_profile
from sparseflow_trt.serving.deploying import deploy
from sparseflow_trt.serving.deployment import DeployOptions
from sparseflow_trt.serving.served_artifact import choose_route, read_artifact
from sparseflow_trt.serving.verify import VerifyOptions, verify
from tests.serving.conftest import (
    PROFILES,
    write_model_of_ids,
    write_model_of_many_types,
)

pytestmark = pytest.mark.usefixtures("tritonserver")
AsTensorrt = Callable[..., Path]


def test_scalars_and_types_that_tensorrt_lacks_are_served_with_the_onnx_runtime(tmp_path: Path) -> None:
    model = write_model_of_many_types(tmp_path / "types.onnx")
    plan = PlanOptions(axes={"rows": (1, 4, 8)})
    artifact = build(model, BuildOptions(tmp_path / "types", plan, "onnxruntime")).artifact
    (deployed,) = deploy(artifact, DeployOptions(tmp_path / "repository"))
    assert deployed.batching.max_batch_size == 0
    assert "'scale' is a scalar" in deployed.batching.why[0]
    found = verify(artifact, VerifyOptions(tmp_path / "repository", concurrencies=(2,), seconds=0.3))
    assert [c.verdict for c in found.validation.candidates] == ["pass", "pass"]
    outputs = {output.output: output.shape for output in found.validation.candidates[0].outputs}
    assert {name: len(shape or ()) for name, shape in outputs.items()} == {"y": 2, "k": 1, "total": 0}
    assert found.load[0].failed == 0 and found.load[0].requests > 1


@pytest.mark.parametrize(
    ("drop", "says"),
    [((), "'x' is FP64; TensorRT's engines have"), (("x", "y", "n", "k"), "'scale' is a scalar")],
)
def test_tensorrts_engines_have_neither(
    drop: tuple[str, ...], says: str, as_tensorrt: AsTensorrt, tmp_path: Path
) -> None:
    model = write_model_of_many_types(tmp_path / "types.onnx")
    plan = PlanOptions(axes={"rows": (1, 4, 8)})
    built = build(model, BuildOptions(tmp_path / "types", plan, "onnxruntime")).artifact
    artifact = read_artifact(as_tensorrt(built, tmp_path / "theirs"))
    inputs, outputs = (
        tuple(tensor for tensor in tensors if tensor.name not in drop)
        for tensors in (artifact.ends.inputs, artifact.ends.outputs)
    )
    ends = replace(artifact.ends, inputs=inputs, outputs=outputs)
    with pytest.raises(DeployError, match=re.escape(says)):
        choose_route(replace(artifact, ends=ends), "auto")


@pytest.mark.parametrize(("tensorrt", "kind"), [("8.6.1", "INT32"), ("10.16.1.11", "INT64")])
def test_integers_are_those_of_the_engine(
    as_tensorrt: AsTensorrt, tmp_path: Path, tensorrt: str, kind: str
) -> None:
    """TensorRT 8.6 makes INT32 of the model's INT64, and Triton refuses a configuration of another type."""
    model = write_model_of_ids(tmp_path / "ids.onnx")
    plan = PlanOptions(profiles=tuple(map(parse_profile, PROFILES)), precision="fp32")
    built = build(model, BuildOptions(tmp_path / "built", plan, "onnxruntime"))
    artifact = as_tensorrt(built.artifact, tmp_path / "artifact", "ids", versions={"tensorrt": tensorrt})
    (deployed,) = deploy(artifact, DeployOptions(tmp_path / "repository"))
    config = (tmp_path / "repository" / "ids" / "config.pbtxt").read_text(encoding="utf-8")
    found = re.findall(r'name: "(\w+)"\n  data_type: TYPE_(\w+)', config)
    assert found == [("ids", kind), ("y", "FP32"), ("best", kind)]
    assert deployed.batching.max_batch_size == 16
    options = VerifyOptions(tmp_path / "repository", concurrencies=(2,), seconds=0.2)
    for reference in (None, model):
        verified = verify(artifact, replace(options, reference=reference))
        assert [c.verdict for c in verified.validation.candidates] == ["pass", "pass", "pass", "not run"]
        assert {o.output for o in verified.validation.candidates[0].outputs} == {"y", "best"}
        assert verified.load[0].requests and not verified.load[0].failed
