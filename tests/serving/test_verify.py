"""`verify` and the routes, through a real tritonserver's core."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import json_format
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.building.artifact_validation import ValidationOptions
from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.engines.protocol import EngineOptions
from sparseflow_trt.engines.triton.server import Addresses, ServerOptions, start_server
from sparseflow_trt.errors import ArtifactError, DeployError
from sparseflow_trt.exporters.triton.config import parse_config, text_from_config
from sparseflow_trt.exporters.triton.manifests import alive_command, ready_command
from sparseflow_trt.exporters.triton.models import write_stand_in
from sparseflow_trt.pipeline import BuildOptions, build
from sparseflow_trt.plans.profile_specs import parse_profile
from sparseflow_trt.policies.policy import find_policy
from sparseflow_trt.serving.deploying import deploy
from sparseflow_trt.serving.deployment import DeployOptions
from sparseflow_trt.serving.deployment_files import plan_server
from sparseflow_trt.serving.served_artifact import DENSE_ALL_THE_SAME, read_artifact
from sparseflow_trt.serving.verify import VerifyOptions, stage_stand_in, verify
from sparseflow_trt.validation.tolerances import DEFAULTS
from sparseflow_trt.validation.triton_load import find_perf_analyzer
from tests.serving.conftest import (
    PROFILES,
    ask,
    client_of,
    succeeds,
    write_model,
)
from tests.shared_libraries import write_library
from tests.test_plugin_build import StandIn

pytestmark = pytest.mark.usefixtures("tritonserver")
AsTensorrt = Callable[..., Path]


def test_an_artifact_is_verified_over_both_protocols_and_under_load(
    ort_artifact: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    deploy(ort_artifact, DeployOptions(repository))
    reference = ort_artifact.parent / "mlp.onnx"
    options = VerifyOptions(
        repository, reference=reference, concurrencies=(1, 24), seconds=0.4, perf_analyzer=False
    )
    before = sorted(repository.rglob("*"))
    found = verify(ort_artifact, options)
    assert sorted(repository.rglob("*")) == before, "no __pycache__ beside the model.py, for one"
    assert [c.verdict for c in found.validation.candidates] == ["pass", "pass", "pass"]
    assert {len(c.outputs) for c in found.validation.candidates} == {6}  # min, opt and max of two profiles
    assert [c.runtime.rpartition(" ")[2] for c in found.validation.candidates] == ["http", "grpc", "grpc"]
    one, many = found.load
    assert one.batches.keys() == {1} and one.in_sparse == 0
    assert max(many.batches) > 1 and many.per_second > one.per_second
    assert sum(size * count for size, count in many.batches.items()) >= many.requests > 100
    assert (one.failed, many.failed, found.sparse_batch) == (0, 0, 8)
    assert found.validation.attribution is None
    assert [n for n in found.notes if "`sparseflow-trt validate` does" not in n] == [DENSE_ALL_THE_SAME]
    assert 0 < many.p50_ms <= many.p95_ms <= many.p99_ms


@pytest.mark.skipif(find_perf_analyzer() is None, reason="perf_analyzer is not on the PATH")
def test_perf_analyzer_measures_where_it_is_found(ort_artifact: Path, tmp_path: Path) -> None:
    deploy(ort_artifact, DeployOptions(tmp_path / "repository"))
    found = verify(ort_artifact, VerifyOptions(tmp_path / "repository", concurrencies=(4,), seconds=1.0))
    (step,) = found.load
    assert step.by == "perf_analyzer, gRPC" and step.per_second > 0
    assert 0 < step.p50_ms <= step.p95_ms <= step.p99_ms
    assert max(step.batches) > 1


def test_what_may_run_in_tf32_is_held_to_what_its_build_was(tmp_path: Path) -> None:
    plan = PlanOptions(profiles=tuple(map(parse_profile, PROFILES)), precision="fp32")
    engine = EngineOptions(tf32=True)
    model = write_model(tmp_path / "mlp.onnx")
    built = build(model, BuildOptions(tmp_path / "mlp", plan, "onnxruntime", engine=engine))
    deploy(built.artifact, DeployOptions(tmp_path / "repository"))
    found = verify(built.artifact, VerifyOptions(tmp_path / "repository", concurrencies=()))
    validated = {output.tolerance for c in built.manifest.validation.candidates for output in c.outputs}
    assert {output.tolerance for c in found.validation.candidates for output in c.outputs} == validated
    assert validated == {DEFAULTS["fp16"]}  # TF32 rounds as FP16 does


def test_another_build_and_changed_files_are_refused_before_a_server_starts(
    ort_artifact: Path, other_artifact: Path, tmp_path: Path
) -> None:
    repository, other = tmp_path / "repository", other_artifact
    with pytest.raises(DeployError, match="holds no version"):
        verify(ort_artifact, VerifyOptions(repository))
    (model,) = deploy(other, DeployOptions(repository, "mlp"))
    with pytest.raises(ArtifactError, match="serves another build"):
        verify(ort_artifact, VerifyOptions(repository))
    (model.written.folder / "1" / "model.py").write_text("import os", encoding="utf-8")
    with pytest.raises(DeployError, match=r"model\.py is not the file that was deployed"):
        verify(other, VerifyOptions(repository, "mlp"))


def test_a_plan_without_a_gpu_is_verified_through_the_stand_in(
    ort_artifact: Path, as_tensorrt: AsTensorrt, tmp_path: Path
) -> None:
    tmp_path = tmp_path / "its größe"  # the Python backend takes no such path: it is given another one
    artifact = as_tensorrt(ort_artifact, tmp_path)
    deploy(artifact, DeployOptions(tmp_path / "repository"))
    found = verify(artifact, VerifyOptions(tmp_path / "repository", concurrencies=()))
    verdicts = {c.name: c.verdict for c in found.validation.candidates}
    assert verdicts == {
        "Triton over HTTP (stand-in)": "pass",
        "Triton over gRPC (stand-in)": "pass",
        "Triton over gRPC, item by item (stand-in)": "pass",
        "Triton's TensorRT backend": "not run",
    }
    assert "Triton's TensorRT backend was not run" in found.validation.reason
    assert any("The plan was not run" in note for note in found.notes)
    files = {p.name for p in (tmp_path / "repository" / "mlp" / "1").iterdir()}
    assert files == {"model.plan", "sparseflow.json"}  # what stands in is not left behind


def test_a_graph_that_onnx_runtime_crashes_on_at_its_highest_level_is_served(
    as_tensorrt: AsTensorrt, tmp_path: Path
) -> None:
    """What is served is what was validated: the same level of optimisation."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "weight"], ["h"], "fc1"),
        helper.make_node("Add", ["h", "bias"], ["s"]),
        helper.make_node("Transpose", ["s"], ["y"], perm=[1, 0, 2]),
    ]
    rng = np.random.default_rng(0)
    constants = {"weight": rng.standard_normal((64, 64)), "bias": rng.standard_normal(64)}
    weights = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in constants.items()]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "seq", 64]) for n in "xy"]
    graph = helper.make_graph(nodes, "m", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    plan = PlanOptions(profiles=(parse_profile("p:seq=1,4,8:batch=1,2,4"),), precision="fp16")
    artifact = build(tmp_path / "m.onnx", BuildOptions(tmp_path / "m", plan, "onnxruntime")).artifact
    for folder in (artifact, as_tensorrt(artifact, tmp_path / "plans", "m")):
        repository = tmp_path / f"for {folder.parent.name}"
        deploy(folder, DeployOptions(repository))
        found = verify(folder, VerifyOptions(repository, concurrencies=()))
        assert [c.verdict for c in found.validation.candidates][:3] == ["pass", "pass", "pass"]


def build_time_first(folder: Path, first: str, second: str) -> Path:
    """A softmax along the first dimension: requests that Triton puts together change each other."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["h"], "q_proj"),
        helper.make_node("Softmax", ["h"], ["y"], axis=0),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [first, second, 64]) for n in "xy"]
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(nodes, "m", ends[:1], ends[1:], [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, folder / "m.onnx")
    plan = PlanOptions(profiles=(parse_profile(f"p:{first}=1,4,8:{second}=2,2,2"),), precision="fp32")
    return build(folder / "m.onnx", BuildOptions(folder / "m", plan, "onnxruntime")).artifact


def test_a_first_dimension_that_is_no_batch_fails_until_it_is_said_to_be_none(tmp_path: Path) -> None:
    artifact, repository = build_time_first(tmp_path, "s0", "s1"), tmp_path / "repository"
    (deployed,) = deploy(artifact, DeployOptions(repository))
    assert deployed.batching.max_batch_size == 8
    assert any("`--max-batch-size 0` says that it is not" in note for note in deployed.notes)
    options = VerifyOptions(repository, concurrencies=())
    found = verify(artifact, options)
    assert [c.verdict for c in found.validation.candidates] == ["pass", "pass", "fail"]
    assert found.validation.verdict == "fail"
    (note,) = [n for n in found.notes if "the first dimension is not a batch that requests can share" in n]
    assert "`deploy triton --max-batch-size 0`" in note

    (deployed,) = deploy(artifact, DeployOptions(repository, max_batch_size=0))  # clients send the same
    config = deployed.written.config
    assert (deployed.written.version, config.max_batch_size) == (2, 0)
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[-1, -1, 64]] * 2
    assert not config.HasField("dynamic_batching")
    found = verify(artifact, replace(options, concurrencies=(8,), seconds=0.3))
    assert [c.verdict for c in found.validation.candidates] == ["pass", "pass"]
    assert found.load[0].batches.keys() == {1} and not found.load[0].failed
    (deployed,) = deploy(artifact, DeployOptions(repository))
    assert any(
        "shared no batch before; --max-batch-size 0 keeps it that way" in note for note in deployed.notes
    )


@pytest.mark.parametrize("edited", ["delay", "sizes"])
def test_edited_batching_does_not_outlive_the_batch(
    edited: str, ort_artifact: Path, tmp_path: Path, tritonserver: None
) -> None:
    """Triton refuses preferred sizes above the largest batch; a delay it takes without a batch, too."""
    repository = tmp_path / "repository"
    options = DeployOptions(repository, "m")
    path = deploy(ort_artifact, options)[0].written.folder / "config.pbtxt"
    line, now = {
        "delay": ("max_queue_delay_microseconds: 500", "max_queue_delay_microseconds: 900"),
        "sizes": ("preferred_batch_size: 8", "preferred_batch_size: 12"),
    }[edited]
    text = path.read_text(encoding="utf-8")
    assert line in text
    path.write_text(text.replace(line, now), encoding="utf-8")
    written = deploy(ort_artifact, replace(options, max_batch_size=0))[0].written
    assert not written.config.dynamic_batching.preferred_batch_size
    assert written.config.dynamic_batching.max_queue_delay_microseconds == (900 if edited == "delay" else 0)
    assert len(written.differences) == 1
    with start_server(repository, ServerOptions(load=("m",))) as server:
        assert server.is_ready()
    written.config.dynamic_batching.preferred_batch_size.append(8)
    path.write_text(text_from_config(written.config), encoding="utf-8")
    with (
        pytest.raises(DeployError, match="preferred size must be <= max batch size"),
        start_server(repository, ServerOptions(load=("m",))),
    ):
        pass


def test_a_first_dimension_that_is_named_a_sequence_is_no_batch(tmp_path: Path) -> None:
    artifact = build_time_first(tmp_path, "seq", "batch")
    (deployed,) = deploy(artifact, DeployOptions(tmp_path / "repository"))
    assert deployed.batching.max_batch_size == 0
    assert any("is named 'seq', which is a sequence length" in note for note in deployed.notes)
    found = verify(artifact, VerifyOptions(tmp_path / "repository", concurrencies=()))
    assert [c.verdict for c in found.validation.candidates] == ["pass", "pass"]


def test_a_plan_with_plugin_nodes_is_verified_through_the_stand_in(
    as_tensorrt: AsTensorrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ONNX Runtime has no such nodes: they are written out for the stand-in and for the reference."""
    monkeypatch.setattr("sparseflow_trt.pipeline.backend_for", lambda _: (StandIn(), "It stands in."))
    library = write_library(tmp_path / "libsparseflow_linear24.so")
    plan = PlanOptions(profiles=tuple(map(parse_profile, PROFILES)), sparsity="plugin", plugin=True)
    built = build(write_model(tmp_path / "m.onnx"), BuildOptions(tmp_path / "built", plan, plugin=library))
    assert len(built.manifest.graph.plugin) == 2 and built.manifest.engine.plugin
    plugin = built.manifest.engine.plugin.model_dump()
    artifact = as_tensorrt(built.artifact, tmp_path / "artifact", plugin=plugin)
    repository = tmp_path / "repository"
    deploy(artifact, DeployOptions(repository))
    for reference in (None, tmp_path / "m.onnx"):
        found = verify(artifact, VerifyOptions(repository, reference=reference, concurrencies=()))
        candidates = found.validation.candidates
        said = [(c.name, c.reason) for c in candidates]
        assert [c.verdict for c in candidates] == ["pass", "pass", "pass", "not run"], said
    files = {p.name for p in (repository / "mlp" / "1").iterdir()}
    assert files == {"model.plan", library.name, "sparseflow.json"}


def test_restored_weights_and_searched_precisions_are_served_as_built(tmp_path: Path) -> None:
    """Both in one artifact of two profiles."""
    dense = onnx.load(write_model(tmp_path / "m.onnx"))
    rng = np.random.default_rng(5)
    for tensor in dense.graph.initializer:
        unpruned = np.where((w := numpy_helper.to_array(tensor)) == 0, rng.standard_normal(w.shape) / 9, w)
        tensor.CopyFrom(numpy_helper.from_array(unpruned.astype(np.float32), tensor.name))
    onnx.save(dense, tmp_path / "dense.onnx")
    profiles = tuple(map(parse_profile, PROFILES))
    plan = PlanOptions(policy=find_policy("a100-80gb"), profiles=profiles, precision="auto")
    given = ValidationOptions(dense_model=tmp_path / "dense.onnx")
    built = build(tmp_path / "m.onnx", BuildOptions(tmp_path / "m", plan, "onnxruntime", validation=given))
    assert built.manifest.precision_search is not None
    assert {row.route for row in built.manifest.graph.restored} == {"restored"}
    artifact = built.artifact
    repository = tmp_path / "repository"
    deploy(artifact, DeployOptions(repository))
    found = verify(artifact, VerifyOptions(repository, concurrencies=()))
    assert [c.verdict for c in found.validation.candidates] == ["pass", "pass", "pass"]
    options = VerifyOptions(repository, reference=tmp_path / "m.onnx", concurrencies=())
    with pytest.raises(ArtifactError, match=r"have weights of the unpruned model 'dense\.onnx'"):
        verify(artifact, options)
    against_dense = verify(artifact, replace(options, reference=tmp_path / "dense.onnx"))
    assert [len(c.outputs) for c in against_dense.validation.candidates] == [6, 6, 6]


def test_a_running_server_has_to_serve_the_version_that_is_verified(
    ort_artifact: Path, other_artifact: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    deploy(ort_artifact, DeployOptions(repository, "m"))
    with start_server(repository, ServerOptions(load=["m"])) as server, client_of(server) as client:
        options = VerifyOptions(repository, "m", addresses=server.at, concurrencies=())
        assert verify(ort_artifact, options).validation.verdict == "pass"
        deploy(other_artifact, DeployOptions(repository, "m"))
        with pytest.raises(DeployError, match="is not ready with version 2 of 'm'") as caught:
            verify(other_artifact, options)  # it was not told, and version 1 would answer
        assert "/v2/repository/models/m/load" in caught.value.hint
        client.load_model("m")
        assert verify(other_artifact, options).version == 2
        for address in (server.at.grpc, "nonsense"):
            wrong = replace(options, addresses=Addresses(address, server.at.grpc))
            with pytest.raises(DeployError, match="is not ready with version 2"):
                verify(other_artifact, wrong)


def test_the_core_takes_the_plans_configuration_as_it_is(
    ort_artifact: Path, as_tensorrt: AsTensorrt, tmp_path: Path
) -> None:
    """Every field is reported as written; and one group a profile, as is often advised, fails requests."""
    artifact = as_tensorrt(ort_artifact, tmp_path)
    repository = tmp_path / "repository"
    deploy(artifact, DeployOptions(repository))
    read = read_artifact(artifact)
    (tmp_path / "staged").mkdir()
    staged = stage_stand_in(repository / "mlp", read, tmp_path / "staged")
    written = parse_config(
        (staged / "mlp" / "configs" / "cpu.pbtxt").read_text(encoding="utf-8"), "cpu.pbtxt"
    )
    backends = {"tensorrt": write_stand_in(read.plan.profiles)}
    short, long = np.ones((2, 32, 64), np.float32), np.ones((2, 64, 64), np.float32)
    with (
        start_server(staged, ServerOptions(load=["mlp"], config_name="cpu", backends=backends)) as server,
        client_of(server) as client,
    ):
        served = client.get_model_config("mlp").config
        for descriptor, value in written.ListFields():
            got = getattr(served, descriptor.name)
            if descriptor.name == "instance_group":
                assert [list(group.profile) for group in got] == [["0", "1"]]
            elif descriptor.name in ("input", "output", "model_warmup"):
                assert list(got) == list(value), descriptor.name
            elif descriptor.name not in ("optimization", "dynamic_batching"):
                assert got == value, descriptor.name
        assert served.optimization.cuda.graph_spec == written.optimization.cuda.graph_spec
        assert served.dynamic_batching.preferred_batch_size == written.dynamic_batching.preferred_batch_size
        assert all(ask(client, "mlp", x).shape == x.shape for _ in range(20) for x in (short, long))

        del written.instance_group[:]
        for profile in ("0", "1"):
            written.instance_group.add(count=1, kind=2).profile.append(profile)
        written.ClearField("model_warmup")
        client.load_model("mlp", config=json_format.MessageToJson(written, preserving_proto_field_name=True))
        failed = 0
        for x in [short] * 20 + [long] * 20:  # in turn they would meet the instances in turn
            try:
                ask(client, "mlp", x)
            except Exception as error:  # noqa: BLE001 - tritonclient's, whatever its class
                assert "no optimization profile of this instance takes" in str(error)
                failed += 1
        assert failed


def test_the_probes_see_a_stub_that_was_killed(ort_artifact: Path, tmp_path: Path) -> None:
    """The Deployment's probes, as they are written, but for the port; and what Triton itself says."""
    repository = tmp_path / "repository"
    deploy(ort_artifact, DeployOptions(repository))
    plan = plan_server(repository, (), None)

    with start_server(repository, ServerOptions(load=["mlp"])) as server, client_of(server) as client:
        assert succeeds(ready_command(plan), server) and succeeds(alive_command(plan), server)
        # a server that runs is asked, and left running
        found = verify(ort_artifact, VerifyOptions(repository, addresses=server.at, concurrencies=()))
        assert found.validation.verdict == "pass" and server.is_ready()
        for task in Path(f"/proc/{server.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                subprocess.run(["kill", "-9", pid], check=True)
        time.sleep(0.3)
        assert client.is_model_ready("mlp")  # it does not notice
        assert succeeds(ready_command(plan), server) and not succeeds(alive_command(plan), server)


def test_tensorrt_rtx_says_why_it_does_not_load(
    ort_artifact: Path, as_tensorrt: AsTensorrt, tmp_path: Path
) -> None:
    """The generated model.py up to the driver, which this machine lacks; what follows has not been run."""
    import sys

    pytest.importorskip("tensorrt_rtx_libs")
    pytest.importorskip("torch")  # which the generated model.py imports
    from sparseflow_trt.engines.machine.hardware import find_gpus

    if find_gpus():
        pytest.skip("it would load: this machine has a GPU")
    artifact = as_tensorrt(
        ort_artifact, tmp_path, backend="tensorrt-rtx", versions={"tensorrt_rtx_cu13_libs": "1.7.1"}
    )
    (model,) = deploy(artifact, DeployOptions(tmp_path / "repository"))
    assert model.written.config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value == "no"
    folder = model.written.folder
    (tmp_path / "triton_python_backend_utils.py").write_text(
        "class TritonModelException(Exception): pass\n"
        "class Logger:\n    log_error = log_warn = staticmethod(lambda text: None)\n",
        encoding="utf-8",
    )
    arguments = {
        "model_repository": str(folder),
        "model_version": "1",
        "model_instance_device_id": "0",
        "model_config": json.dumps({"max_batch_size": 8}),
    }
    code = f"import model; model.TritonPythonModel().initialize({arguments!r})"
    environment = {"PYTHONPATH": f"{folder / '1'}:{tmp_path}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "TritonModelException: TensorRT-RTX refused model.engine: " in done.stderr, done.stderr
