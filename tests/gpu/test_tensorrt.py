"""The real TensorRT on a real GPU: what is planned and what runs, and what a stopped build leaves."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt.artifacts.manifest import Manifest, OutcomeRecord
from sparseflow_trt.building.plan_options import PlanOptions, plan_for, read
from sparseflow_trt.building.timing import time_artifacts
from sparseflow_trt.engines.backends.tensorrt_backend import TensorRtBackend
from sparseflow_trt.engines.machine.hardware import find_gpus
from sparseflow_trt.engines.protocol import BuildRequest
from sparseflow_trt.engines.running.runner import Engine
from sparseflow_trt.engines.tensorrt.api import load_flavour, version_of
from sparseflow_trt.errors import (
    EXIT_EVIDENCE_DIFFERS,
    EXIT_INTERRUPTED,
    EXIT_NOT_SPARSE,
    EvidenceError,
    InputError,
    NotSparseError,
)
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.pipeline import BuildOptions, BuildResult, build
from sparseflow_trt.plans.plan import Plan, SparsityMode
from sparseflow_trt.plans.shapes import ShapeRange

BACKEND = "tensorrt"
COMMAND = (sys.executable, "-m", "sparseflow_trt.cli.main")
HIDDEN, INTERMEDIATE = 256, 512
WAIT_SECONDS = 120.0

WriteMlp = Callable[..., Path]
BuildVariant = Callable[..., BuildResult]

# From 10 on a builder's log is read by what NVIDIA's sample prints of it: none was seen yet.
needs_times = pytest.mark.skipif(
    not (version_of(BACKEND) or "8.").startswith("8."),
    reason="the times in the log were checked with TensorRT 8.6 alone",
)


def options_for(mode: SparsityMode) -> PlanOptions:
    """FP16, and one profile: the smaller the build, the sooner it is done."""
    shapes = ShapeRange(min=(1, HIDDEN), opt=(128, HIDDEN), max=(128, HIDDEN))
    return PlanOptions(shapes={"x": shapes}, precision="fp16", sparsity=mode)


def plan_with(model: Path, mode: SparsityMode = "force", **changes: dict[str, str]) -> Plan:
    """A model's plan with changes to single layers, by their names: what a person edits."""
    plan = plan_for(*read(model), options_for(mode), "")
    layers = tuple(layer.model_copy(update=changes.get(layer.name, {})) for layer in plan.layers)
    return plan.model_copy(update={"layers": layers})


@pytest.fixture
def build_variant(tmp_path: Path) -> BuildVariant:
    """Builds `model` as planned, into this test's folder."""

    def make(model: Path, plan: Plan | PlanOptions, margin: float | None = None) -> BuildResult:
        artifact = tmp_path / "variant.artifact"
        return build(model, BuildOptions(artifact, plan, backend="tensorrt", margin=margin))

    return make


def outcomes(manifest: Manifest) -> dict[str, OutcomeRecord]:
    """What became of each layer, for a build with one profile."""
    found = {outcome.layer: outcome for outcome in manifest.engine.outcomes}
    assert len(found) == len(manifest.engine.outcomes)
    return found


def engine_verdict(manifest: Manifest) -> tuple[str, str]:
    """The verdict on the engine itself, and its reason."""
    (engine,) = (c for c in manifest.validation.candidates if c.name == f"engine ({BACKEND})")
    return engine.verdict, engine.reason


def run(artifact: Path, rows: int) -> tuple[np.ndarray[Any, Any], int]:
    """The engine's output for seeded inputs, and the profile that it ran in."""
    feeds = {"x": np.random.default_rng(rows).standard_normal((rows, HIDDEN)).astype(np.float32)}
    with Engine(load_flavour(BACKEND), artifact / "model.engine") as engine:
        return engine.run(feeds)["y"], engine.profile


# What is built is what is planned


def test_the_engine_passes_validation_in_every_profile(mlp_build: BuildResult) -> None:
    manifest = mlp_build.manifest

    assert engine_verdict(manifest) == ("pass", "All 1 output(s) are within tolerance on all 6 input set(s).")
    assert manifest.status == "pass"
    assert manifest.engine.versions == {BACKEND: version_of(BACKEND)}
    assert manifest.engine.multiprocessors == find_gpus()[0].multiprocessors
    assert manifest.engine.runs_here == manifest.engine.sparse_tactics == ""


@needs_times
def test_each_layer_has_its_tactic_and_both_times_in_each_profile(mlp_build: BuildResult) -> None:
    found = mlp_build.manifest.engine.outcomes

    assert [(o.layer, o.profile) for o in found] == [
        ("up_proj", 0),
        ("up_proj", 1),
        ("down_proj", 0),
        ("down_proj", 1),
    ]
    for outcome in found:
        assert outcome.tactic
        assert outcome.best_sparse_ms is not None
        assert outcome.best_dense_ms is not None
        assert min(outcome.best_sparse_ms, outcome.best_dense_ms) > 0
        assert min(outcome.tried_sparse, outcome.tried_dense) > 0
        assert outcome.precision.partition("->")[0] == "Half"


def test_nothing_is_built_where_nothing_has_changed(
    mlp_build: BuildResult, mlp_model: Path, mlp_options: BuildOptions
) -> None:
    again = build(mlp_model, mlp_options)

    assert again.unchanged
    assert again.manifest == mlp_build.manifest


@needs_times
def test_a_layer_planned_dense_beside_a_sparse_one_is_not_tried_sparse(
    mlp_model: Path, build_variant: BuildVariant
) -> None:
    built = build_variant(mlp_model, plan_with(mlp_model, down_proj={"sparsity": "dense"}))

    found = outcomes(built.manifest)
    assert [(o.layer, o.route) for o in built.manifest.graph.opted_out] == [("down_proj", "element")]
    assert (found["down_proj"].tried_sparse, found["down_proj"].sparse) == (0, False)
    assert found["down_proj"].tried_dense > 0
    assert found["up_proj"].tried_sparse > 0
    assert engine_verdict(built.manifest)[0] == "pass"


@needs_times
def test_forced_sparsity_leaves_a_layer_dense_that_is_not_2to4(
    write_mlp: WriteMlp, tmp_path: Path, build_variant: BuildVariant
) -> None:
    model = write_mlp(tmp_path / "half.onnx", dense=("down_proj",))

    built = build_variant(model, options_for("force"))

    planned = {layer.name: layer for layer in built.manifest.layers}
    found = outcomes(built.manifest)
    assert (planned["up_proj"].sparsity, planned["down_proj"].sparsity) == ("sparse", "dense")
    assert "weights are not 2:4" in planned["down_proj"].reason
    assert built.manifest.graph.opted_out == (), "TensorRT sees by itself that they are not"
    assert found["up_proj"].tried_sparse > 0
    assert (found["down_proj"].tried_sparse, found["down_proj"].sparse) == (0, False)


def test_sparsity_that_is_forced_on_a_dense_model_is_refused(
    write_mlp: WriteMlp, tmp_path: Path, build_variant: BuildVariant
) -> None:
    model = write_mlp(tmp_path / "dense.onnx", dense=("up_proj", "down_proj"))

    with pytest.raises(NotSparseError, match=r"dense\.onnx has no weights that are 2:4") as caught:
        build_variant(model, options_for("force"))

    assert caught.value.exit_code == EXIT_NOT_SPARSE
    assert not (tmp_path / "variant.artifact").exists()


def test_a_dense_model_builds_a_dense_engine(
    write_mlp: WriteMlp, tmp_path: Path, build_variant: BuildVariant
) -> None:
    model = write_mlp(tmp_path / "dense.onnx", dense=("up_proj", "down_proj"))

    built = build_variant(model, options_for("policy"))

    assert {layer.sparsity for layer in built.manifest.layers} == {"dense"}
    assert built.manifest.engine.sparse_tactics == "Sparse weights were not enabled: the plan is dense."
    assert [o.tried_sparse for o in built.manifest.engine.outcomes] == [0, 0]
    assert engine_verdict(built.manifest)[0] == "pass"


def test_the_engine_without_sparse_weights_computes_the_same(
    mlp_artifact: Path, mlp_model: Path, build_variant: BuildVariant
) -> None:
    built = build_variant(mlp_model, options_for("off"))

    assert engine_verdict(built.manifest)[0] == "pass"
    assert not any(o.sparse or o.tried_sparse for o in built.manifest.engine.outcomes)
    (dense, _), (sparse, _) = run(built.artifact, 128), run(mlp_artifact, 128)
    assert np.linalg.norm(sparse - dense) < 0.01 * np.linalg.norm(dense)


def test_mixed_precision_runs_as_planned(mlp_model: Path, build_variant: BuildVariant) -> None:
    changes = {"precision": "fp32", "sparsity": "dense"}

    built = build_variant(mlp_model, plan_with(mlp_model, down_proj=changes))

    found = outcomes(built.manifest)
    assert found["up_proj"].precision.partition("->")[0] == "Half"
    assert found["down_proj"].precision.partition("->")[0] == "Float"
    assert engine_verdict(built.manifest)[0] == "pass"


@pytest.mark.parametrize("margin", [0.0, 9.0], ids=["nothing", "ten times"])
def test_sparse_ships_where_it_wins_by_the_margin(
    margin: float, mlp_model: Path, build_variant: BuildVariant
) -> None:
    manifest = build_variant(mlp_model, plan_with(mlp_model), margin).manifest

    duel = manifest.duel
    assert duel is not None
    (row,) = duel.profiles
    assert duel.ships == ("sparse" if row.speedup >= 1 + margin else "dense"), duel.why
    assert {layer.sparsity for layer in manifest.layers} == {duel.ships}
    assert bool(duel.sparse_outcomes) == (duel.ships == "dense")
    assert engine_verdict(manifest)[0] == "pass"


def test_an_engine_that_does_not_run_as_planned_is_refused(
    mlp_artifact: Path, mlp_model: Path, tmp_path: Path
) -> None:
    # The typed graph means FP16 for both layers; this plan says something else of one.
    plan = plan_with(mlp_model, down_proj={"precision": "fp32"})
    request = BuildRequest(mlp_artifact / "model.onnx", plan, tmp_path, sparse=True)

    with pytest.raises(EvidenceError) as caught:
        TensorRtBackend().build(request, lambda progress: None)

    assert "'down_proj' is planned fp32 and runs in Half" in caught.value.message
    assert "up_proj" not in caught.value.message
    assert caught.value.exit_code == EXIT_EVIDENCE_DIFFERS


@needs_times
def test_int8_is_offered_sparse_tactics_where_its_output_stays_int8(
    tmp_path: Path, build_variant: BuildVariant
) -> None:
    model = write_int8(tmp_path / "int8.onnx")

    built = build_variant(model, options_for("force"))

    found = outcomes(built.manifest)
    assert {layer.precision for layer in built.manifest.layers} == {"int8"}
    assert found["up_proj"].tried_sparse > 0
    assert found["up_proj"].precision == "Int8"
    assert found["down_proj"].tried_sparse == 0
    assert found["down_proj"].precision.startswith("Int8->")
    assert "sparse INT8 kernels need one that stays INT8" in found["down_proj"].why
    assert engine_verdict(built.manifest)[0] == "pass"


def write_int8(path: Path) -> Path:
    """x·up, Relu, ·down with 2:4 INT8 weights and INT8 activations; behind up's Relu there is a Q node."""
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {"step": np.float32(0.03), "zero": np.int8(0)}
    for name, shape in {"up": (HIDDEN, INTERMEDIATE), "down": (INTERMEDIATE, HIDDEN)}.items():
        weight = prune_2to4((rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32), 0)
        constants[f"{name}_step"] = np.float32(np.abs(weight).max() / 127)
        constants[name] = np.round(weight / constants[f"{name}_step"]).astype(np.int8)
    nodes = []
    for value, name, product in (("x", "up", "a"), ("r", "down", "y")):
        nodes += [
            helper.make_node("QuantizeLinear", [value, "step", "zero"], [f"{value}_q"], f"q_{value}"),
            helper.make_node(
                "DequantizeLinear", [f"{value}_q", "step", "zero"], [f"{value}_d"], f"d_{value}"
            ),
            helper.make_node("DequantizeLinear", [name, f"{name}_step", "zero"], [f"{name}_d"], f"d_{name}"),
            helper.make_node("MatMul", [f"{value}_d", f"{name}_d"], [product], f"{name}_proj"),
        ]
    nodes.insert(4, helper.make_node("Relu", ["a"], ["r"], "relu"))
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", HIDDEN]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "int8", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


# The engine runs


@pytest.mark.parametrize(("rows", "profile"), [(1, 0), (64, 0), (65, 1), (512, 1)])
def test_the_profile_that_holds_the_shapes_is_taken(mlp_artifact: Path, rows: int, profile: int) -> None:
    output, ran_in = run(mlp_artifact, rows)

    assert ran_in == profile
    assert output.shape == (rows, HIDDEN)
    assert np.isfinite(output).all()


def test_shapes_that_no_profile_holds_are_refused(mlp_artifact: Path) -> None:
    with pytest.raises(InputError, match=r"the shapes x \[513, 256\] fit no profile of the engine"):
        run(mlp_artifact, 513)


def test_artifacts_are_timed_in_turn(mlp_artifact: Path) -> None:
    rows = time_artifacts(mlp_artifact, mlp_artifact, rounds=2, launches=3)

    assert [row.shapes.partition(":")[0] for row in rows] == ["small", "small", "small", *["large"] * 3]
    for row in rows:
        assert row.timing.launches == 6
        assert 0 < row.timing.p50 <= row.timing.p99
        assert row.speedup is not None
        assert math.isfinite(row.speedup.median)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_damaged_engine_is_an_error_in_words(mlp_artifact: Path, tmp_path: Path, keep: float) -> None:
    whole = (mlp_artifact / "model.engine").read_bytes()
    engine = tmp_path / "cut.engine"
    engine.write_bytes(whole[: int(len(whole) * keep)] or b"not an engine")
    # In a process of its own: if TensorRT crashes on it, the other tests go on.
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from sparseflow_trt.engines.running.runner import Engine\n"
        "from sparseflow_trt.engines.tensorrt.api import load_flavour\n"
        "from sparseflow_trt.errors import BuildError\n"
        "try:\n"
        f"    Engine(load_flavour('{BACKEND}'), Path(sys.argv[1]))\n"
        "except BuildError as error:\n"
        "    print(error.message, error.hint, sep='\\n')\n"
    )

    done = subprocess.run(
        (sys.executable, "-c", script, str(engine)), capture_output=True, text=True, check=False, cwd=tmp_path
    )

    assert done.returncode == 0, done.stderr
    assert re.search(r"^TensorRT \S+ does not load \S*cut\.engine: ", done.stdout), done.stdout
    assert "Use the TensorRT release and the kind of GPU that it was built for." in done.stdout


# A build that is stopped leaves nothing


@pytest.fixture
def building(mlp_model: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The build command at work in its own process: its child is timing tactics."""
    logs = tmp_path / "logs"
    logs.mkdir()
    folder = tmp_path / "here"
    folder.mkdir()
    # A shell starts its background jobs with SIGINT ignored, and children inherit that.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*COMMAND, "build", str(mlp_model), "-o", "out", "--backend", BACKEND, "--sparsity", "force",
             "--dim", "m=1,2048,4096"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
            env={**os.environ, "TMPDIR": str(logs)},
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, heard)
    try:
        wait_until(lambda: process.poll() is not None or "Timing Runner" in text_of(logs))
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


def text_of(folder: Path) -> str:
    """All that lies in a folder's logs."""
    return "".join(log.read_text(errors="replace") for log in folder.glob("*.log"))


def wait_until(true: Callable[[], bool]) -> None:
    """Waits until something is true; fails where it does not become so."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def child_of(process: subprocess.Popen[str]) -> int:
    """The build's child process."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


def is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_killed_build_is_an_error_and_leaves_nothing(
    building: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.kill(child_of(building), signal.SIGKILL)
    _, said = building.communicate(timeout=WAIT_SECONDS)

    assert building.returncode == 1
    assert "error: the TensorRT builder was killed (SIGKILL), most likely because memory ran out" in said
    assert list((tmp_path / "here").iterdir()) == []
    (log,) = (tmp_path / "logs").iterdir()
    assert log.name in said


def test_ctrl_c_ends_the_build_and_leaves_nothing(building: subprocess.Popen[str], tmp_path: Path) -> None:
    child = child_of(building)
    building.send_signal(signal.SIGINT)
    _, said = building.communicate(timeout=WAIT_SECONDS)

    assert building.returncode == EXIT_INTERRUPTED
    assert said.splitlines()[-1] == "error: interrupted; nothing unfinished was written."
    assert not is_running(child)
    assert list((tmp_path / "here").iterdir()) == list((tmp_path / "logs").iterdir()) == []


def test_a_killed_command_takes_its_build_with_it(building: subprocess.Popen[str]) -> None:
    child = child_of(building)
    building.kill()
    building.communicate(timeout=WAIT_SECONDS)

    wait_until(lambda: not is_running(child))
