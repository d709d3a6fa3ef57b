"""Sparse against dense: the rule, what ships, what is kept of the other, and what is refused before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from sparseflow_trt._files import sha256_of
from sparseflow_trt.artifacts.manifest import DuelRecord, check_files, read_manifest
from sparseflow_trt.building.artifact_validation import ValidationOptions, validate_artifact
from sparseflow_trt.building.duel import MARGIN, MOST_LOSS, check_duel, decide
from sparseflow_trt.building.plan_options import PlanOptions, plan_for, read
from sparseflow_trt.engines.backends.tensorrt_backend import TensorRtBackend
from sparseflow_trt.engines.protocol import EngineOptions, Progress
from sparseflow_trt.errors import BuildError, NotInstalledError
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.pipeline import BuildOptions, BuildResult, build
from sparseflow_trt.plans.plan import Plan, read_plan
from sparseflow_trt.plans.profile_specs import ProfileSpec

if TYPE_CHECKING:
    from tests.conftest import Duels, Models

RATIOS = st.dictionaries(st.text("abcde", min_size=1), st.floats(0.25, 4), min_size=1, max_size=5)
MARGINS = st.floats(0, 0.5)
BATCH = PlanOptions(axes={"batch": (1, 4, 8)}, sparsity="force")
TWO = replace(
    BATCH,
    axes={},
    profiles=(
        ProfileSpec(name="few", axes={"batch": (1, 2, 4)}),
        ProfileSpec(name="many", axes={"batch": (16, 32, 64)}),
    ),
)


@given(RATIOS, MARGINS, st.data(), st.floats(1, 4))
def test_a_faster_sparse_engine_ships_where_a_slower_one_did(
    ratios: dict[str, float], margin: float, data: st.DataObject, times: float
) -> None:
    assume(decide(ratios, margin).ships == "sparse")
    name = data.draw(st.sampled_from(sorted(ratios)))
    assert decide({**ratios, name: ratios[name] * times}, margin).ships == "sparse"


@given(RATIOS, MARGINS, MARGINS)
def test_a_wider_margin_never_lets_sparse_ship(ratios: dict[str, float], one: float, other: float) -> None:
    if decide(ratios, max(one, other)).ships == "sparse":
        assert decide(ratios, min(one, other)).ships == "sparse"


@given(RATIOS, MARGINS)
def test_the_margin_and_the_most_that_may_be_lost_are_kept(ratios: dict[str, float], margin: float) -> None:
    found = decide(ratios, margin)
    product = float(np.prod(list(ratios.values())))
    assert found.speedup == pytest.approx(product ** (1 / len(ratios)))
    if found.ships == "sparse":
        assert product >= (1 + margin) ** len(ratios) * (1 - 1e-9)
        assert min(ratios.values()) >= 1 - MOST_LOSS
    if min(ratios.values()) >= 1 + margin:
        assert found.ships == "sparse", "it wins everywhere"
    if max(ratios.values()) < 1 + margin:
        assert found.ships == "dense", "it wins nowhere"


@given(st.floats(0.25, 4), st.integers(1, 5), MARGINS)
def test_profiles_that_fare_alike_count_as_one(ratio: float, count: int, margin: float) -> None:
    alike = decide({str(i): ratio for i in range(count)}, margin)
    assert (alike.ships, alike.speedup) == (
        decide({"p": ratio}, margin).ships, decide({"p": ratio}, margin).speedup
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ratios", "ships", "why"),
    [
        ({"p": 1.02}, "sparse", "Sparse ships: it is 1.020× as fast at 'p' and had to win by 2 %."),
        ({"p": 1.019}, "dense", "Dense ships: sparse is 1.019× as fast at 'p' and has to win by 2 %."),
        ({"p": 0.973}, "dense", "Dense ships: sparse is 0.973× as fast at 'p' and has to win by 2 %."),
        (
            {"p": 1.21, "q": 1.0},
            "sparse",
            "Sparse ships: it is 1.100× as fast over 2 profiles (1.000× at 'q') and had to win by 2 %.",
        ),
        (
            {"p": 0.95, "q": 1.4},
            "dense",
            "Dense ships: sparse is 1.153× as fast over 2 profiles (0.950× at 'p'), and no profile may lose "
            "more than 2 %.",
        ),
    ],
)
def test_the_rule_in_words(ratios: dict[str, float], ships: str, why: str) -> None:
    found = decide(ratios, MARGIN)
    assert (found.ships, found.why) == (ships, why)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_a_backend_without_sparse_kernels_is_refused(backend: Any) -> None:
    with pytest.raises(BuildError, match=f"and {backend} has none") as caught:
        check_duel(backend, EngineOptions())
    assert "--backend tensorrt" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (EngineOptions(like=Path("a")), "--like fixes one's tactics"),
        (EngineOptions(strip_plan=True), "--strip-plan leaves the weights out"),
    ],
)
def test_options_that_are_not_for_two_engines_to_be_run_are_refused(
    options: EngineOptions, says: str
) -> None:
    with pytest.raises(BuildError, match=says) as caught:
        check_duel("tensorrt", options)
    assert "--plan ARTIFACT/plan.yaml" in caught.value.hint


@pytest.mark.skipif(not TensorRtBackend().unavailable(), reason="engines can be timed here")
@pytest.mark.parametrize("backend", ["auto", "tensorrt"])
def test_a_machine_that_cannot_time_engines_is_refused(backend: Any) -> None:
    with pytest.raises(NotInstalledError, match=r"this machine's GPU\. TensorRT "):
        check_duel(backend, EngineOptions())


def _model(models: Models, batch: str | int = "batch") -> Path:
    """x (batch, 64) through up and gate, both 2:4, to y = up + gate."""
    rng = np.random.default_rng(0)
    weights = {name: prune_2to4(rng.standard_normal((64, 32)).astype(np.float32) / 8, 0) for name in "ug"}
    nodes = [
        helper.make_node("MatMul", ["x", "u"], ["a"], name="up_proj"),
        helper.make_node("MatMul", ["x", "g"], ["b"], name="gate_proj"),
        helper.make_node("Add", ["a", "b"], ["y"], name="sum"),
    ]
    return models.save(models.model(nodes, weights, {"x": (batch, 64)}))


def _run(
    path: Path, plan: Plan | PlanOptions = BATCH, margin: float | None = MARGIN, **options: Any
) -> BuildResult:
    return build(path, BuildOptions(path.parent / "out", plan, margin=margin, **options))


def _half(path: Path) -> Plan:
    """A plan with one layer sparse and one, which is 2:4 as well, dense."""
    plan = plan_for(*read(path), BATCH, sha256_of(path))
    up, gate = plan.layers
    dense = gate.model_copy(update={"sparsity": "dense", "reason": "by hand"})
    return plan.model_copy(update={"layers": (up, dense)})


def _weights(file: Path) -> dict[str, bytes]:
    return {t.name: numpy_helper.to_array(t).tobytes() for t in onnx.load(file).graph.initializer}


def _record(result: BuildResult) -> DuelRecord:
    assert read_manifest(result.artifact) == result.manifest, "the record comes back as it was written"
    check_files(result.manifest, result.artifact)
    assert {f.name for f in result.artifact.iterdir()} == {
        "manifest.json", "model.onnx", "model.onnx.data", "model.ort.onnx", "model.ort.data", "plan.yaml",
        "report.html",
    }  # fmt: skip
    assert result.manifest.status == "pass"
    assert result.manifest.validation.candidates[1].verdict == "pass", "what ships was run"
    assert result.manifest.duel is not None
    return result.manifest.duel


def test_sparse_ships_where_it_wins(models: Models, duels: Duels) -> None:
    path = _model(models)
    duels.speedups = {"default": 1.25}
    result = _run(path, _half(path))
    duel = _record(result)
    assert (duel.ships, duel.speedup, duel.sparse_outcomes) == ("sparse", 1.25, ())
    assert duel.why == "Sparse ships: it is 1.250× as fast at 'default' and had to win by 2 %."
    assert [p.reason for p in read_plan(result.artifact / "plan.yaml").layers] == [
        "asked for: sparsity is forced", "by hand"
    ]  # fmt: skip
    assert [layer.sparsity for layer in result.manifest.layers] == ["sparse", "dense"]
    assert [record.layer for record in result.manifest.graph.opted_out] == ["gate_proj"]
    assert [o.sparse for o in result.manifest.engine.outcomes] == [True, False]
    assert {"rewrite", "backend", "duel", "validate"} <= set(result.manifest.seconds)


def test_dense_ships_where_sparse_does_not_win(models: Models, duels: Duels, tmp_path: Path) -> None:
    path = _model(models)
    duels.speedups = {"default": 0.98}
    result = _run(path, _half(path))
    duel = _record(result)
    assert (duel.ships, duel.margin, duel.rounds) == ("dense", MARGIN, 15)
    reason = "dense ships: sparse was 0.980× as fast at 'default' (measured, 15 rounds)"
    plan = read_plan(result.artifact / "plan.yaml")
    assert [(p.sparsity, p.reason) for p in plan.layers] == [("dense", reason), ("dense", "by hand")]
    assert [layer.reason for layer in result.manifest.layers] == [reason, "by hand"]
    assert [o.sparse for o in duel.sparse_outcomes] == [True, False], "why no sparse kernel can be asked"
    assert [o.sparse for o in result.manifest.engine.outcomes] == [False, False]

    assert result.manifest.graph.opted_out == (), "no weight was touched"
    dense = _run(path, replace(BATCH, sparsity="off"), None, force=True)
    shipped = _weights(result.artifact / "model.onnx")
    assert shipped == _weights(dense.artifact / "model.onnx")
    assert validate_artifact(result.artifact, path, ValidationOptions()).verdict == "pass"
    assert [plan.wants_sparse for plan in duels.plans] == [True, False, False]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "out"]


def test_each_profile_is_timed_at_its_opt(models: Models, duels: Duels) -> None:
    duels.speedups = {"few": 0.95, "many": 1.4}
    duel = _record(_run(_model(models), TWO, engine=EngineOptions(version_compatible=True)))
    assert duel.ships == "dense", "one profile must not pay for another"
    assert [(p.profile, p.shapes) for p in duel.profiles] == [
        ("few", {"x": (2, 64)}),
        ("many", {"x": (32, 64)}),
    ]
    assert [p.speedup for p in duel.profiles] == pytest.approx([0.95, 1.4])
    few = duel.profiles[0]
    assert (few.dense.p50, few.dense.low, few.dense.high) == (2, 2, 2)
    assert few.sparse.p99 == pytest.approx(2 / 0.95)
    ((files, inputs),) = duels.timed
    assert [file.path.parent.name for file in files] == ["sparse", "dense"]
    assert [file.host_code for file in files] == [True, True]
    assert [given.feeds["x"].shape for given in inputs] == [(2, 64), (32, 64)]


def test_a_static_model_has_one_shape(models: Models, duels: Duels) -> None:
    duels.speedups = {"static": 2}
    duel = _record(_run(_model(models, 4), replace(BATCH, axes={})))
    assert [(p.profile, p.shapes, p.speedup) for p in duel.profiles] == [("static", {"x": (4, 64)}, 2)]


def test_nothing_to_compare_is_built_once_and_said(models: Models, duels: Duels) -> None:
    result = _run(_model(models), replace(BATCH, sparsity="off"))
    duel = _record(result)
    assert (duel.ships, duel.speedup, duel.profiles) == ("dense", None, ())
    assert duel.why == "The plan has no sparse layer: there was nothing to compare, and dense ships."
    assert (len(duels.plans), duels.timed) == (1, [])
    assert result.manifest.layers[0].reason == "sparsity is off"


def test_without_a_margin_there_is_no_duel(models: Models, duels: Duels) -> None:
    result = _run(_model(models), margin=None)
    assert result.manifest.duel is None
    assert (len(duels.plans), duels.timed) == (1, [])


def test_the_margin_decides_whether_anything_has_changed(models: Models, duels: Duels) -> None:
    path = _model(models)
    assert not _run(path).unchanged
    again = _run(path)
    assert again.unchanged
    assert again.manifest.duel is not None
    assert not _run(path, margin=0.05).unchanged
    assert not _run(path, margin=None).unchanged
    assert not _run(path).unchanged


def test_progress_says_which_engine_is_being_built(models: Models, duels: Duels, tmp_path: Path) -> None:
    steps: list[Progress] = []
    build(_model(models), BuildOptions(tmp_path / "out", BATCH, margin=0.0), steps.append)
    said = list(dict.fromkeys(step.step for step in steps))
    assert said == [
        "Reading the weights",
        "Rewriting the graph for the plan (sparse engine, 1 of 2)",
        "Optimising the graph (sparse engine, 1 of 2)",
        "Rewriting the graph for the plan (dense engine, 2 of 2)",
        "Optimising the graph (dense engine, 2 of 2)",
        "Timing default",
        "Comparing with the FP32 reference",
    ]


@pytest.mark.parametrize("error", [BuildError("an engine does not load."), KeyboardInterrupt()])
def test_a_duel_that_ends_early_leaves_what_stood(
    error: BaseException, models: Models, duels: Duels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = _model(models)
    good = _run(path, margin=None)

    def fail(files: Any, *_: object) -> None:
        assert len({file.path.parent.parent for file in files}) == 1
        assert files[0].path.parent.parent.name.startswith(".out.building-"), "where the next build clears up"
        raise error

    monkeypatch.setattr("sparseflow_trt.building.duel.time_engines", fail)
    with pytest.raises(type(error)):
        _run(path)
    assert read_manifest(good.artifact) == good.manifest
    check_files(good.manifest, good.artifact)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "out"]
