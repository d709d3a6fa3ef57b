"""What a policy says of the plugin: measured goes before estimated, and an estimate has to win by more."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.policies.between import WAVE
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.known import Known
from sparseflow_trt.policies.lookup import judge
from sparseflow_trt.policies.measurements import ESTIMATE_MARGIN
from sparseflow_trt.policies.plugin_lookup import (
    joined_speedup,
    judge_with_plugin,
    plugin_known,
)
from sparseflow_trt.policies.policy import Point, Policy, Threshold, find_policy
from sparseflow_trt.policies.thresholds import derive_thresholds
from tests.made_policies import make_points, make_policy

SHAPE = ("gate_up", 4096, 2048)


def plugin_points(speedups: dict[int, float], n: int = 4096, k: int = 2048) -> list[Point]:
    """TensorRT's dense kernel against the plugin, which takes 10 µs."""
    points = make_points("gate_up", n, k, speedups)
    return [p if p.kernel == "dense" else p.model_copy(update={"kernel": "plugin"}) for p in points]


def estimates(speedups: dict[int, float]) -> list[Point]:
    """cuBLAS against cuSPARSELt, which takes 10 µs."""
    return make_points(*SHAPE, speedups, library="torch")


def said(policy: Policy, m: int) -> tuple[bool, str]:
    verdict = plugin_known(policy, Gemm(*SHAPE, "FP16")).judge(m)
    return verdict.sparse, verdict.reason


def test_measured_points_name_themselves() -> None:
    wins, reason = said(make_policy(plugin_points({64: 1.5})), 64)
    assert wins
    assert reason == (
        "the plugin wins at M=64: 1.50× measured (2048→4096, the plugin against TensorRT's kernels, GPU X)"
    )


@given(st.floats(0.5, 2), st.floats(0.5, 2))
def test_measured_points_always_go_before_estimates(measured: float, estimated: float) -> None:
    policy = make_policy([*plugin_points({64: measured}), *estimates({64: estimated})])
    alone = make_policy(plugin_points({64: measured}))
    assert said(policy, 64) == said(alone, 64)


def test_an_estimate_of_the_very_shape_goes_before_points_of_one_near_by() -> None:
    near = plugin_points({64: 0.9}, n=4096 - 16)
    wins, reason = said(make_policy([*near, *estimates({64: 2.0})]), 64)
    assert wins
    assert "2048→4096, estimated from cuSPARSELt" in reason
    lost, reason = said(make_policy(near), 64)
    assert not lost
    assert "nearest shape of its kind" in reason
    both = [p.model_copy(update={"n": 4096 - 32}) for p in estimates({64: 2.0})]
    assert not said(make_policy([*near, *both]), 64)[0], "of two near ones the plugin's own points count"


def test_an_estimate_speaks_where_what_was_measured_leaves_it_open() -> None:
    rising = [p.model_copy(update={"us": p.us * p.m}) for p in plugin_points({64: 1.3, 256: 1.3, 1024: 0.9})]
    wins, loses = (
        estimates(dict.fromkeys((64, 128, 2048), 1.3)),
        estimates({64: 1.3, 128: 1.0, 2048: 1.0}),
    )
    found = []
    for others in (wins, loses):
        policy = make_policy([*rising, *others]).model_copy(update={"wave": WAVE})
        found.append([said(policy, m)[0] for m in (64, 128, 256, 304, 1024, 2048)])
    assert found == [[True, True, True, False, False, False], [True, False, True, False, False, False]]


def test_an_estimate_speaks_below_what_was_measured() -> None:
    policy = make_policy([*plugin_points({64: 1.1, 128: 1.1}), *estimates({8: 1.3, 16: 0.9, 64: 1.1})])
    assert [said(policy, m)[0] for m in (4, 8, 9, 16, 56, 64, 96)] == [
        False, True, False, False, False, True, True,
    ]  # fmt: skip
    assert "estimated from cuSPARSELt" in said(policy, 8)[1]
    assert "measured (2048→4096, the plugin" in said(policy, 64)[1]
    known = plugin_known(policy, Gemm(*SHAPE, "FP16"))
    low, high = known.expect(8), known.expect(64)
    assert low is not None
    assert high is not None
    assert low.speedup == pytest.approx(1.1), "an estimate promises no more than the nearest point"
    assert high.speedup == pytest.approx(1.1)


def test_an_estimate_promises_no_more_than_what_was_measured_beside_it() -> None:
    own, others = plugin_points({64: 1.2, 128: 1.3}), {32: 1.5, 64: 1.5, 128: 1.5, 256: 2.0}
    wins, reason = said(make_policy([*own, *estimates(others)]), 136)
    assert wins
    assert reason.startswith(
        "the plugin wins at M=136: 1.30× at most by its own points as at M=128, the largest measured; 1.33×"
        " between M=128 and M=256 (2048→4096, estimated from cuSPARSELt against "
    )
    known = plugin_known(make_policy([*own, *estimates(others)]), Gemm(*SHAPE, "FP16"))
    assert [round(known.judge(m).speedup or 0, 6) for m in (40, 304)] == [1.2, 1.3]
    behind = [(p.library, p.kernel, p.m) for p in known.judge(304).points]
    assert behind[:2] == [("tensorrt", "dense", 128), ("tensorrt", "plugin", 128)]
    assert behind[2:] == [("torch", "dense", 256), ("torch", "sparse", 256)]
    lost, reason = said(make_policy([*plugin_points({128: 1.01}), *estimates(others)]), 256)
    assert not lost, "nor does it win where the nearest point does not"
    assert reason.startswith("the plugin does not win by 2% at M=256: 1.01× at most by its own points as at ")
    less = plugin_known(make_policy([*own, *estimates(others | {256: 1.4})]), Gemm(*SHAPE, "FP16"))
    assert less.judge(256).reason.startswith("the plugin wins at M=256: 1.21× reckoned (")


GAINS = st.dictionaries(st.sampled_from([8 << i for i in range(12)]), st.floats(0.5, 2), min_size=1)


@given(own=GAINS, estimated=GAINS, apart=st.sampled_from([0, 16]))
def test_one_row_beyond_what_was_measured_promises_no_more(
    own: dict[int, float], estimated: dict[int, float], apart: int
) -> None:
    near = [p.model_copy(update={"n": p.n - apart}) for p in estimates(estimated)]  # or of the very shape
    policy = make_policy([*plugin_points(own, n=4096 + apart), *near]).model_copy(update={"wave": WAVE})
    known = plugin_known(policy, Gemm(*SHAPE, "FP16"))
    assert known.otherwise is not None
    for last, first in ((max(own), max(own) + 1), (min(own), min(own) - 1)):
        found, verdict = known.expect(first), known.judge(first)
        assert found is not None
        assert max(found.speedup, verdict.speedup or 0) <= own[last] * (1 + 1e-9)
        if verdict.sparse:
            assert Known(known.otherwise).judge(first).sparse, "it is no less careful than the estimate alone"
            assert own[last] >= (1 + policy.margin) * (1 - 1e-9)
    for low, high in pairwise(sorted(own)):
        between = known.expect(low + 1)
        assert between is not None
        assert between.speedup <= max(own[low], own[high]) * (1 + 1e-9)


def test_cusparselt_stands_for_the_plugin_where_it_wins_by_more() -> None:
    wins, reason = said(make_policy(estimates({64: 1.3})), 64)
    assert wins
    assert "estimated from cuSPARSELt against cuBLAS" in reason
    lost, reason = said(make_policy(estimates({64: 1 + ESTIMATE_MARGIN - 0.01})), 64)
    assert not lost
    assert "does not win by 15%" in reason


def test_an_estimate_is_held_against_tensorrts_dense_time_where_there_is_one() -> None:
    dense = [p.model_copy(update={"us": 12.0}) for p in plugin_points({64: 1.0}) if p.kernel == "dense"]
    wins, reason = said(make_policy([*estimates({64: 1.3}), *dense]), 64)
    assert wins
    assert "1.20× reckoned" in reason
    assert "against TensorRT's kernels" in reason
    slow = [p.model_copy(update={"us": 11.4}) for p in dense]
    assert not said(make_policy([*estimates({64: 1.3}), *slow]), 64)[0]


def test_thresholds_of_cusparselt_say_nothing_of_the_plugin() -> None:
    policy = make_policy([], "torch", {"gate_up": (1, None)})
    assert judge(policy, Gemm(*SHAPE, "FP16"), 64).sparse
    assert not said(policy, 64)[0]


def test_thresholds_are_derived_for_each_kernel() -> None:
    points = plugin_points({64: 0.9, 128: 1.4})
    points += [p.model_copy(update={"kernel": "sparse", "us": 20.0}) for p in points if p.kernel == "plugin"]
    found = {t.kernel: t.min_m for t in derive_thresholds(points, 0.02)}
    assert found == {"sparse": None, "plugin": 128}
    policy = make_policy(points).model_copy(update={"thresholds": derive_thresholds(points, 0.02)})
    far = ("gate_up", 64, 16)
    assert plugin_known(policy, Gemm(*far, "FP16")).judge(128).sparse
    assert not judge(policy, Gemm(*far, "FP16"), 128).sparse


def test_two_thresholds_of_one_kernel_are_refused() -> None:
    limit = Threshold(kind="o", library="tensorrt", dtype="FP16", min_m=1, kernel="plugin")
    policy = make_policy([])
    both = {"thresholds": [limit, limit.model_copy(update={"kernel": "sparse"})]}
    assert Policy.model_validate(policy.model_dump() | both)
    with pytest.raises(ValueError, match="two thresholds for o tensorrt FP16 plugin"):
        Policy.model_validate(policy.model_dump() | {"thresholds": [limit, limit]})


def timed(n: int, us: float, m: int = 64) -> list[Point]:
    """The plugin's time for one N, dense at twice that."""
    return [
        p.model_copy(update={"us": us * (2 if p.kernel == "dense" else 1)}) for p in plugin_points({m: 1}, n)
    ]


def gate_and_up(*ns: int) -> list[Gemm]:
    return [Gemm("gate_up", n, 2048, "FP16") for n in ns]


def test_one_product_of_two_pays_for_its_split() -> None:
    points = [*timed(4096, 10), *timed(8192, 14)]
    policy = make_policy([p.model_copy(update={"kind": "qkv"}) for p in points])
    # Splitting copies 64·8192 elements of 2 bytes, read and written, at the rate of 8192·2048 in 28 µs.
    split = 2 * 64 * 8192 * 2 / (8192 * 2048 * 2 / 28)
    assert joined_speedup(policy, [Gemm("qkv", 4096, 2048, "FP16")] * 2, 64) == pytest.approx(
        20 / (14 + split)
    )
    both = make_policy(points)
    assert joined_speedup(both, gate_and_up(4096, 4096), 64) == pytest.approx(20 / 14)


def test_measured_and_estimated_times_are_not_compared_when_products_are_joined() -> None:
    torch = [p for n, us in ((4096, 20), (8192, 25)) for p in timed(n, us)]
    torch = [
        p.model_copy(update={"library": "torch", "kernel": "dense" if p.kernel == "dense" else "sparse"})
        for p in torch
    ]
    only = joined_speedup(make_policy(torch), gate_and_up(4096, 4096), 64)
    assert only is not None
    assert only > 1
    policy = make_policy([*torch, *timed(4096, 1)])  # one alone was measured in the plugin, too
    assert joined_speedup(policy, gate_and_up(4096, 4096), 64) == only


def test_what_corrects_one_estimate_is_left_out_where_not_all_are_corrected() -> None:
    torch = [p for n in (4096, 8192) for p in make_points("gate_up", n, 2048, {64: 2}, library="torch")]
    dense = [p for p in make_points("gate_up", 4096, 2048, {64: 3}) if p.kernel == "dense"]
    asked = gate_and_up(4096, 4096), 64
    assert (
        joined_speedup(make_policy([*torch, *dense]), *asked)
        == joined_speedup(make_policy(torch), *asked)
        == 2
    )


def test_what_corrects_an_estimate_does_not_speak_for_joining() -> None:
    torch = [
        p.model_copy(update={"us": us * (2 if p.kernel == "dense" else 1), "n": n})
        for n, us in ((4096, 20), (8192, 45))
        for p in estimates({64: 1, 128: 1})
    ]
    own = plugin_points({64: 1.1})  # of one alone, which takes half as long as was estimated
    found = plugin_known(make_policy([*torch, *own]), Gemm(*SHAPE, "FP16")).expect(128)
    assert found is not None
    assert found.sparse_us == pytest.approx(20 / 2)
    assert joined_speedup(make_policy([*torch, *own]), gate_and_up(4096, 4096), 128) == pytest.approx(40 / 45)


def test_each_product_pays_for_an_m_that_is_no_multiple_of_8_when_they_are_joined() -> None:
    torch = [p.model_copy(update={"n": n}) for n in (4096, 8192) for p in estimates({64: 2, 128: 2})]
    own = [*plugin_points({64: 2}), *plugin_points({64: 2, 128: 2}, 8192)]
    policy = make_policy([*torch, *own])
    one, whole = (plugin_known(policy, Gemm("gate_up", n, 2048, "FP16")) for n in (4096, 8192))
    assert one.at(100) is one.otherwise
    assert whole.at(100) is whole.own
    assert joined_speedup(policy, gate_and_up(4096, 4096), 104) == pytest.approx(20 / 10)
    assert joined_speedup(policy, gate_and_up(4096, 4096), 100) == pytest.approx(30 / 15)


def test_what_was_not_measured_is_not_joined() -> None:
    alone = make_policy(timed(4096, 10))
    assert joined_speedup(alone, gate_and_up(4096, 4096), 64) is None
    policy = make_policy([*timed(4096, 10), *timed(8192, 14)])
    assert joined_speedup(policy, gate_and_up(4096, 4096), 32) is None, "below what was measured"
    assert joined_speedup(policy, gate_and_up(4096, 2048), 64) is None


def test_the_plugin_counts_where_tensorrt_has_no_sparse_kernel_that_gains() -> None:
    for name in ("h200", "h100"):
        product = (find_policy(name), Gemm("down", 4096, 14336, "FP16"), 1024)
        assert not judge(*product).sparse
        verdict = judge_with_plugin(*product)
        assert verdict.sparse
        assert verdict.reason.startswith("the plugin wins at M=1024: ")


def test_the_better_of_the_two_is_named() -> None:
    own = make_points("down", 128, 64, {64: 1.3})
    timed = make_points("down", 128, 64, {64: 1.5}, library="torch")
    slower = [point.model_copy(update={"us": 1.1 * point.us}) for point in timed]
    both = judge_with_plugin(make_policy([*own, *slower]), Gemm("down", 128, 64, "FP16"), 64)
    assert both.sparse and both.reason.startswith("sparse wins at M=64: 1.30×")  # the plugin: 13 / 11
    alone = judge_with_plugin(make_policy(timed), Gemm("down", 128, 64, "FP16"), 64)
    assert alone.sparse and alone.reason.startswith("the plugin wins at M=64: 1.50×")


def test_where_neither_gains_both_are_said() -> None:
    points = [
        *make_points("down", 128, 64, {64: 0.9}),
        *make_points("down", 128, 64, {64: 0.8}, library="torch"),
    ]
    verdict = judge_with_plugin(make_policy(points), Gemm("down", 128, 64, "FP16"), 64)
    assert not verdict.sparse
    assert verdict.reason.startswith("sparse does not win by 2% at M=64")
    assert "; the plugin does not win" in verdict.reason


def test_what_the_plugin_cannot_run_it_is_not_asked_for() -> None:
    policy = make_policy(make_points("down", 128, 60, {64: 1.5}, library="torch"))
    assert judge_with_plugin(policy, Gemm("down", 128, 60, "FP16"), 64) == judge(
        policy, Gemm("down", 128, 60, "FP16"), 64
    )
