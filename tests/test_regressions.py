"""What is worse than in a baseline, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.baseline import Evidence, LayerEvidence, Metric
from sparseflow_trt.regressions import check_layers, check_metric, check_verdicts
from sparseflow_trt.verdict import Verdict


def evidence(*layers: LayerEvidence, status: Verdict = "pass", **more: object) -> Evidence:
    return Evidence.model_validate(
        {"status": status, "candidates": {}, "layers": [layer.model_dump() for layer in layers], **more}
    )


SPARSE = LayerEvidence(name="up", pruned=True, planned=True, ran=(0, 1))


@pytest.mark.parametrize(
    ("now", "lost"),
    [
        (SPARSE, set()),
        (SPARSE.model_copy(update={"pruned": False}), {"weights 2:4"}),
        (SPARSE.model_copy(update={"planned": False}), {"planned sparse"}),
        (SPARSE.model_copy(update={"ran": ()}), {"sparse kernels"}),
        (SPARSE.model_copy(update={"ran": (1,)}), {"sparse kernels"}),
        (SPARSE.model_copy(update={"ran": (0, 1, 2)}), set()),
    ],
)
def test_a_layer_that_lost_something_is_named(now: LayerEvidence, lost: set[str]) -> None:
    checks = check_layers(evidence(SPARSE), evidence(now), ["up"])
    failed = [check for check in checks if not check.passed]
    assert {check.name for check in failed} == {f"{aspect}: up" for aspect in lost}
    assert all("layer 'up'" in check.reason for check in failed)
    assert len(checks) == 3, "each aspect is a check, passed or not"


def test_a_layer_that_is_gone_is_lost_and_a_new_one_is_no_matter() -> None:
    checks = check_layers(evidence(SPARSE), evidence(), ["down"])
    assert {check.now for check in checks} == {"not in the model"}
    assert check_layers(evidence(), evidence(SPARSE), ["up"]) == []
    two = check_layers(evidence(SPARSE), evidence(SPARSE, SPARSE.model_copy(update={"name": "down"})), [])
    assert {(check.was, check.now, check.passed) for check in two} == {("1 layer(s)", "2 layer(s)", True)}


PROFILES = st.sets(st.integers(0, 2)).map(lambda found: tuple(sorted(found)))
LAYERS = st.lists(
    st.builds(
        LayerEvidence, name=st.sampled_from("abc"), pruned=st.booleans(), planned=st.booleans(),
        ran=PROFILES,
    ),
    unique_by=lambda layer: layer.name,
)  # fmt: skip


@given(LAYERS)
def test_a_build_never_regresses_from_itself(layers: list[LayerEvidence]) -> None:
    same = evidence(*layers)
    assert all(check.passed for check in check_layers(same, same, [layer.name for layer in layers]))
    assert all(check.passed for check in check_verdicts(same, same, {}))


@pytest.mark.parametrize("was", ["pass", "not run", "fail"])
@pytest.mark.parametrize("now", ["pass", "not run", "fail"])
def test_a_verdict_may_improve_and_not_worsen(was: Verdict, now: Verdict) -> None:
    order = ["fail", "not run", "pass"]
    before = evidence(status=was, candidates={"engine": was})
    after = evidence(status=now, candidates={"engine": now})
    own, engine = check_verdicts(before, after, {"": "so it is.", "engine": "no GPU here."})
    assert own.passed == engine.passed == (order.index(now) >= order.index(was))
    if not engine.passed:
        assert "no GPU here." in engine.reason


def test_a_candidate_that_is_gone_was_not_run() -> None:
    _, engine = check_verdicts(evidence(candidates={"engine": "pass"}), evidence(), {})
    assert (engine.passed, engine.now) == (False, "not run")


def test_the_sparse_engine_has_to_go_on_winning() -> None:
    def ships(was: str, now: str) -> bool:
        return check_verdicts(evidence(ships=was), evidence(ships=now), {})[-1].passed

    assert ships("sparse", "sparse")
    assert ships("dense", "dense")
    assert ships("dense", "")
    assert not ships("sparse", "dense")
    assert not ships("sparse", "")


def test_a_metric_may_drop_as_far_as_allowed() -> None:
    metric = Metric(score=0.75, max_drop=0.25)
    assert check_metric("m", "engine", metric, 0.5).passed
    assert check_metric("m", "engine", metric, 2.0).passed
    low = check_metric("m", "engine", metric, 0.25)
    assert not low.passed
    assert "dropped by 0.5, from 0.75 to 0.25" in low.reason
    assert not check_metric("m", "", metric, None).passed, "one that is not scored has not passed"
