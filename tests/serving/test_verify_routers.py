"""`verify` and what is answered where a router sends batches to one of two models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparseflow_trt.building.artifact_validation import ValidationOptions
from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.engines.triton.server import ServerOptions, start_server
from sparseflow_trt.pipeline import BuildOptions, build
from sparseflow_trt.plans.profile_specs import parse_profile
from sparseflow_trt.serving.deploying import deploy
from sparseflow_trt.serving.deployment import DeployOptions
from sparseflow_trt.serving.deployment_files import plan_server
from sparseflow_trt.serving.verify import VerifyOptions, verify
from tests.serving.conftest import (
    ask,
    client_of,
    write_model_of_columns,
)

pytestmark = pytest.mark.usefixtures("tritonserver")


def test_small_batches_are_routed_to_the_dense_engine(
    ort_artifact: Path, dense_artifact: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    deployed = deploy(ort_artifact, DeployOptions(repository, "m", dense=dense_artifact, delay_us=0))
    assert [model.name for model in deployed] == ["m-sparse", "m-dense", "m"]
    assert plan_server(repository, (), None).models == ["m", "m-dense", "m-sparse"]
    with (
        start_server(repository, ServerOptions(load=["m", "m-dense", "m-sparse"])) as server,
        client_of(server) as client,
    ):
        rng = np.random.default_rng(0)
        for batch in (1, 7, 8, 16):
            x = rng.standard_normal((batch, 32, 64)).astype(np.float32)
            np.testing.assert_array_equal(
                ask(client, "m", x), ask(client, "m-sparse" if batch >= 8 else "m-dense", x)
            )
        ran = {
            name: {
                int(row["batch_size"])
                for row in client.get_inference_statistics(name, as_json=True)["model_stats"][0][
                    "batch_stats"
                ]
            }
            for name in ("m-sparse", "m-dense")
        }
        assert {7, 1} <= ran["m-dense"] and {8, 16} <= ran["m-sparse"]
        with pytest.raises(Exception, match="batch-size must be <= 16"):
            ask(client, "m", np.zeros((17, 32, 64), np.float32))


def test_an_input_that_is_the_batch_alone_is_served_routed_and_verified(tmp_path: Path) -> None:
    """Triton's clients send [batch, 1] for it, and so does the router to its two models."""
    model = write_model_of_columns(tmp_path / "columns.onnx")
    profiles = (parse_profile("p:batch=1,8,16"),)
    sparse, dense = (
        build(model, BuildOptions(tmp_path / name, plan, "onnxruntime")).artifact
        for name, plan in (
            ("sparse", PlanOptions(profiles=profiles, sparsity="force")),
            ("dense", PlanOptions(profiles=profiles, sparsity="off")),
        )
    )
    repository = tmp_path / "repository"
    deployed = deploy(sparse, DeployOptions(repository, "m", dense=dense, sparse_from=8, delay_us=0))
    assert [model.name for model in deployed] == ["m-sparse", "m-dense", "m"]
    for name in ("m", "m-sparse"):
        options = VerifyOptions(repository, name, concurrencies=(2,), seconds=0.2, sparse_from=8)
        found = verify(sparse, options)
        for candidate in found.validation.candidates:
            assert candidate.verdict == "pass", candidate.reason
            assert {(o.output, len(o.shape)) for o in candidate.outputs} == {("k", 1), ("y", 2)}
        assert found.load[0].requests and not found.load[0].failed


def test_a_router_of_two_models_that_fails_is_not_taken_for_one_without_a_batch(
    ort_artifact: Path, other_artifact: Path, tmp_path: Path
) -> None:
    """Whole batches went to the sparse engine and their items to the dense one: batching was to be off."""
    repository = tmp_path / "repository"
    deploy(ort_artifact, DeployOptions(repository, "m", dense=other_artifact))
    np.savez(tmp_path / "large.npz", x=np.ones((16, 32, 64), np.float32))
    options = VerifyOptions(
        repository, "m", validation=ValidationOptions(inputs=str(tmp_path / "large.npz")), concurrencies=()
    )
    found = verify(ort_artifact, options)
    assert [c.verdict for c in found.validation.candidates] == ["pass", "pass", "fail"]
    told = " ".join(found.notes)
    assert "max-batch-size" not in told
    assert "with --name m-sparse and with --name m-dense" in told
    alone = verify(other_artifact, replace(options, name="m-dense"))
    assert alone.validation.verdict == "pass"
