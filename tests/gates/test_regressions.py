"""What is worse than in a baseline, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.artifacts.verdict import CandidateVerdict, OutputVerdict, Tolerance, Validation, Verdict
from sparseflow_trt.gates.baseline import Baseline, Evidence, Figures, LayerEvidence, Metric
from sparseflow_trt.gates.regressions import (
    Check,
    check_layers,
    check_metric,
    check_outputs,
    check_verdicts,
    figures_of,
)


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
    checks = check_layers(evidence(SPARSE), evidence(now), {"up": "up"})
    failed = [check for check in checks if not check.passed]
    assert {check.name for check in failed} == {f"{aspect}: up" for aspect in lost}
    assert all("layer 'up'" in check.reason for check in failed)
    assert len(checks) == 3, "each aspect is a check, passed or not"


def test_a_layer_is_called_by_its_module_also_of_an_older_baseline() -> None:
    node = SPARSE.model_copy(update={"name": "node_MatMul_1"})
    now = {node.name: "h.0.up"}
    named = node.model_copy(update={"module": "h.0.up"})
    for was, known in ((node, now), (named, now), (named, {})):
        first, *_ = check_layers(evidence(was), evidence(), known)
        word = "not 2:4" if known else "not in the model"
        assert (first.name, first.layer) == ("weights 2:4: h.0.up", "node_MatMul_1")
        assert first.reason == f"layer 'h.0.up': weights 2:4 in the baseline, now {word}."


def test_a_layer_that_is_gone_is_lost_and_a_new_one_is_no_matter() -> None:
    checks = check_layers(evidence(SPARSE), evidence(), {"down": "down"})
    assert {check.now for check in checks} == {"not in the model"}
    assert check_layers(evidence(), evidence(SPARSE), {"up": "up"}) == []
    two = check_layers(evidence(SPARSE), evidence(SPARSE, SPARSE.model_copy(update={"name": "down"})), {})
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
    same, known = evidence(*layers), {layer.name: layer.name for layer in layers}
    assert all(check.passed for check in check_layers(same, same, known))
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


def validation_of(*rows: OutputVerdict) -> Validation:
    candidate = CandidateVerdict(name="engine", file="f", verdict="pass", reason="", outputs=rows)
    return Validation(
        verdict="pass", reason="", reference="r", reference_runtime="", compared_by="", input_sets=(),
        candidates=(candidate,),
    )  # fmt: skip


def errors(before: float | None, *now: float, bound: float = 1.0, passed: bool = True) -> list[Check]:
    """What becomes of one output whose mean error was one number, and is others on as many input sets."""
    allowed = Tolerance(max_abs=bound, max_rel=0.0, min_cosine=0.5)
    validation = validation_of(*(
        OutputVerdict(
            output="y", input_set=f"set{i}", passed=passed, tolerance=allowed, abs_bound=bound, mean_abs=mean,
            cosine=1 - mean, reason="" if passed else f"too far off on set{i}",
        )
        for i, mean in enumerate(now)
    ))  # fmt: skip
    figures = () if before is None else (
        Figures(candidate="engine", output="y", max_abs=1.0, mean_abs=before, cosine=0.9, equal=None),
    )  # fmt: skip
    baseline = Baseline.model_construct(figures=figures, tolerances={"y": allowed}, max_growth=2.0)
    return check_outputs(baseline, validation)


def test_the_worst_errors_are_held_to_what_they_may_grow_by() -> None:
    output, grown = errors(0.1, 0.05, 0.3, 0.1)
    assert (output.kind, output.passed, output.was, output.now, output.limit) == (
        "output", True, "cosine 0.9000000", "cosine 0.7000000", "cosine ≥ 0.5",
    )  # fmt: skip
    assert (grown.kind, grown.passed, grown.limit) == ("error", False, "≤ 2×")
    assert (grown.was, grown.now) == ("0.1", "0.3")
    assert "is 3 times what it was: 0.1 before, 0.3 now." in grown.reason
    assert [check.passed for check in errors(0.1, 0.1, 0.2)] == [True, True], "twice is allowed"


def test_an_error_grows_from_nothing_and_in_the_noise_as_it_likes() -> None:
    assert errors(0.1, 0.3, bound=100.0)[1].passed
    assert not errors(0.1, 0.3, bound=20.0)[1].passed
    for before, limit in ((0.0, "none: it was 0"), (None, "none: it is new")):
        grown = errors(before, 0.3)[1]
        assert (grown.passed, grown.limit) == (True, limit)


def test_a_figure_that_one_set_lacks_is_not_known() -> None:
    """Else a set whose outputs could not be compared would leave the others' as the worst ones."""
    allowed = Tolerance(max_abs=1, max_rel=0, min_cosine=0)
    rows = [
        OutputVerdict(
            output="y", input_set=f"set{i}", passed=True, tolerance=allowed, max_abs=largest,
            mean_abs=0.1 * (i + 1), cosine=0.9 - i / 10,
        )
        for i, largest in enumerate((0.5, None))
    ]  # fmt: skip
    (found,) = figures_of(validation_of(*rows))
    assert (found.max_abs, found.mean_abs, found.cosine, found.equal) == (None, 0.2, 0.8, None)


def test_an_output_out_of_tolerance_fails_with_its_first_reason() -> None:
    output = errors(0.1, 0.1, 0.1, passed=False)[0]
    assert (output.passed, output.reason) == (False, "engine: too far off on set0")


def test_a_metric_may_drop_as_far_as_allowed() -> None:
    metric = Metric(score=0.75, max_drop=0.25)
    assert check_metric("m", "engine", metric, 0.5).passed
    assert check_metric("m", "engine", metric, 2.0).passed
    low = check_metric("m", "engine", metric, 0.25)
    assert not low.passed
    assert "dropped by 0.5, from 0.75 to 0.25" in low.reason
    assert not check_metric("m", "", metric, None).passed, "one that is not scored has not passed"
