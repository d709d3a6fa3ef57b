"""What a policy says of a product: in which order it is asked, and that its answers hold together."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import expect, judge, known_of, library_of, sparse_ranges, widest
from sparseflow_trt.policies.near import NEAREST_OCTAVES
from sparseflow_trt.policies.thresholds import derive_thresholds
from tests.made_policies import make_points, make_policy

GATE = make_points("gate_up", 4096, 1024, {64: 0.5, 256: 1.0, 1024: 2.0})


# ---- in this order


def test_the_exact_shape_comes_first() -> None:
    other = make_points("gate_up", 4096, 1152, {64: 3.0, 1024: 3.0})
    policy = make_policy([*GATE, *other], limits={"gate_up": (1, None)})
    wins = judge(policy, Gemm("gate_up", 4096, 1024, "FP16"), 1024)
    assert (wins.sparse, wins.basis, wins.speedup) == (True, "exact", 2.0)
    assert wins.reason == "sparse wins at M=1024: 2.00× measured (1024→4096, TensorRT's kernels, GPU X)"
    assert wins.points == tuple(GATE[4:6])
    loses = judge(policy, Gemm("gate_up", 4096, 1024, "FP16"), 64)
    assert (loses.sparse, loses.basis, loses.speedup) == (False, "exact", 0.5)
    assert loses.reason.startswith("sparse does not win by 2% at M=64: 0.50×")


def test_the_exact_shape_counts_whatever_its_kind() -> None:
    assert judge(make_policy(GATE), Gemm("ffn", 4096, 1024, "FP16"), 1024).basis == "exact"


def test_then_the_nearest_shape_of_the_same_kind() -> None:
    policy = make_policy([*GATE, *make_points("down", 4096, 2048, {1024: 5.0})])
    verdict = judge(policy, Gemm("gate_up", 4096, 2048 + 4, "FP16"), 1024)
    assert (verdict.sparse, verdict.basis, verdict.speedup) == (True, "nearest", 2.0)
    assert "(nearest shape of its kind: 1024→4096, TensorRT's kernels, GPU X)" in verdict.reason
    assert verdict.points == tuple(GATE[4:6])


def test_shapes_farther_than_two_octaves_are_left_to_the_threshold() -> None:
    policy = make_policy(GATE, limits={"gate_up": (512, 2048)})
    assert judge(policy, Gemm("gate_up", 8192, 2048, "FP16"), 1024).basis == "nearest"
    for m, sparse in ((511, False), (512, True), (2048, True), (2049, False)):
        verdict = judge(policy, Gemm("gate_up", 8192, 2048 + 4, "FP16"), m)
        assert (verdict.sparse, verdict.basis, verdict.speedup) == (sparse, "threshold", None)
        assert f"sparse for M ≥ 512 and ≤ 2048, and M={m} (" in verdict.reason
        assert verdict.points == ()  # the threshold was given, not derived
    policy = make_policy(GATE, limits={"gate_up": (512, 512)})
    verdict = judge(policy, Gemm("gate_up", 8192, 2048 + 4, "FP16"), 512)
    assert "sparse for M = 512, and M=512 (" in verdict.reason


def test_a_threshold_names_the_points_it_was_derived_from() -> None:
    gate = [*GATE, *make_points("gate_up", 4096, 1024, {900: 2.0})]
    far = make_points("gate_up", 64, 64, {64: 2.0})
    other = make_points("down", 4096, 1024, {64: 2.0})
    policy = make_policy([*gate, *far, *other])
    policy = policy.model_copy(update={"thresholds": derive_thresholds(policy.points, policy.margin)})
    verdict = judge(policy, Gemm("gate_up", 512, 512, "FP16"), 2048)
    assert (verdict.basis, verdict.sparse) == ("threshold", True)
    assert set(verdict.points) == {*gate, *far}
    largest = max(p.m for p in verdict.points)
    at, beyond = (judge(policy, Gemm("gate_up", 512, 512, "FP16"), m).reason for m in (largest, largest + 1))
    assert f"and M={largest} (" in at
    assert f"and M={largest + 1}, beyond M={largest}, the largest measured (" in beyond
    nowhere = make_policy(make_points("o", 8, 8, {1: 1.0}), limits={"o": (None, None)})
    assert (
        "threshold of kind 'o': dense at every M (" in judge(nowhere, Gemm("o", 999, 999, "FP16"), 7).reason
    )


def test_else_dense_with_the_reason() -> None:
    policy = make_policy(GATE, limits={"qkv": (1, None)})
    verdict = judge(policy, Gemm("conv", 64, 64, "FP16"), 8)
    assert (verdict.sparse, verdict.basis, verdict.points) == (False, "none", ())
    assert verdict.reason == "no measurement near 64→64 of kind 'conv' in policy 'mine'"
    for dtype in ("INT8", "FP32", "FP8"):
        verdict = judge(policy, Gemm("qkv", 64, 64, dtype), 8)
        assert (verdict.sparse, verdict.reason) == (False, f"no measurement of {dtype} in policy 'mine'")
    assert judge(policy, Gemm("gate_up", 0, 1024, "FP16"), 64).basis == "none"  # an empty weight


def test_below_the_smallest_measured_m_a_shape_says_nothing() -> None:
    verdict = judge(make_policy(GATE), Gemm("gate_up", 4096, 1024, "FP16"), 63)
    assert (verdict.basis, verdict.sparse) == ("none", False)
    assert verdict.reason == "no measurement at or below M=63 of 1024→4096 in policy 'mine'"
    assert (
        judge(make_policy(GATE, limits={"gate_up": (1, None)}), Gemm("gate_up", 4096, 1024, "FP16"), 63).basis
        == "threshold"
    )


def test_above_the_largest_measured_m_the_largest_speaks() -> None:
    policy = make_policy([*GATE, *make_points("gate_up", 4096, 1024, {512: 1.5})])
    verdict = judge(policy, Gemm("gate_up", 4096, 1024, "FP16"), 4096)
    assert (verdict.sparse, verdict.speedup) == (True, 2.0)
    assert "as at M=1024, the largest measured" in verdict.reason
    times = expect(policy, Gemm("gate_up", 4096, 1024, "FP16"), 4096)
    assert times is not None
    assert (times.dense_us, times.sparse_us, times.at) == (80.0, 40.0, "above")  # four times the rows


def test_above_the_largest_measured_m_one_win_is_not_enough() -> None:
    verdict = judge(make_policy(GATE), Gemm("gate_up", 4096, 1024, "FP16"), 4096)
    assert verdict.reason.startswith(
        "sparse is not sure to win at M=4096: 2.00× as at M=1024, the largest measured, "
        "but it does not win at M=256, the one before ("
    )
    assert (verdict.sparse, verdict.points) == (False, tuple(GATE[2:]))


def test_between_two_measured_m_both_have_to_win() -> None:
    policy = make_policy(make_points("o", 64, 64, {1: 2.0, 10: 2.0, 100: 1.0, 1000: 2.0}))
    taken = {
        m: judge(policy, Gemm("o", 64, 64, "FP16"), m).sparse for m in (1, 5, 10, 11, 99, 100, 101, 999, 1000)
    }
    assert [m for m, sparse in taken.items() if sparse] == [1, 5, 10, 1000]
    verdict = judge(policy, Gemm("o", 64, 64, "FP16"), 50)
    assert verdict.reason.startswith(
        "sparse is not sure to win at M=50: 1.23× between M=10 and M=100, but it does not win at both ("
    )
    assert judge(policy, Gemm("o", 64, 64, "FP16"), 99).reason.startswith(
        "sparse does not win by 2% at M=99: 1.00×"
    )
    assert {p.m for p in verdict.points} == {10, 100}


def test_a_shape_without_both_times_says_nothing_and_hides_no_other() -> None:
    dense = [p for p in GATE if p.kernel == "dense"]
    assert judge(make_policy(dense), Gemm("gate_up", 4096, 1024, "FP16"), 1024).basis == "none"
    near = make_points("gate_up", 4096, 2048, {1024: 3.0})
    verdict = judge(make_policy([*dense, *near]), Gemm("gate_up", 4096, 1024, "FP16"), 1024)
    assert verdict.basis == "nearest"
    assert verdict.speedup == pytest.approx(3)


def test_dense_times_are_of_the_dense_kernel_wherever_it_was_measured() -> None:
    """Sparse is measured at one M of 4096→1024, dense at four: the speedup alone has to be carried over."""
    alone = [p for p in make_points("o", 1024, 4096, {1: 0.5, 8: 1.0, 512: 2.0}) if p.kernel == "dense"]
    policy = make_policy([*alone, *make_points("o", 1024, 4096, {64: 1.5})])

    def times(m: int) -> tuple[object, ...]:
        found = expect(policy, Gemm("o", 1024, 4096, "FP16"), m)
        assert found is not None
        return found.dense_us, found.speedup, found.at, found.dense_alone

    assert times(64) == (15.0, 1.5, "measured", False)
    assert times(512) == (20.0, pytest.approx(1.5), "above", True)
    assert times(128) == (pytest.approx(15 * (4 / 3) ** (1 / 3)), pytest.approx(1.5), "above", True)
    assert times(1024) == (40.0, pytest.approx(1.5), "above", False)
    assert times(8) == (10.0, pytest.approx(1.5), "below", True)
    for m in (512, 8, 1024):
        found = judge(policy, Gemm("o", 1024, 4096, "FP16"), m)
        without = judge(
            make_policy(make_points("o", 1024, 4096, {64: 1.5})), Gemm("o", 1024, 4096, "FP16"), m
        )
        assert (found.sparse, found.reason) == (without.sparse, without.reason), "it decides nothing"
    other = make_policy([*alone, *make_points("o", 1024, 2048, {512: 1.5})])
    near = expect(other, Gemm("o", 1024, 4096, "FP16"), 512)
    assert near is not None
    assert (near.dense_us, near.basis) == (20.0, "nearest")
    assert near.speedup == pytest.approx(1.5)


# ---- which library and type is asked


def test_a_policy_without_tensorrt_is_asked_for_torch_and_says_so() -> None:
    points = make_points("o", 64, 64, {8: 2.0}, library="torch")
    verdict = judge(make_policy(points), Gemm("o", 64, 64, "FP16"), 8)
    assert (verdict.sparse, verdict.points) == (True, tuple(points))
    assert "cuSPARSELt against cuBLAS" in verdict.reason
    limits = make_policy([], library="torch", limits={"o": (4, None)})
    assert judge(limits, Gemm("o", 64, 64, "FP16"), 8).sparse
    both = make_policy([*points, *make_points("o", 64, 64, {8: 0.9})])
    assert not judge(both, Gemm("o", 64, 64, "FP16"), 8).sparse
    assert judge(both, Gemm("o", 64, 64, "FP16"), 8, "torch").sparse
    only = make_policy(make_points("o", 64, 64, {8: 2.0}))
    assert library_of(only, "torch") == "torch"  # what was not measured is not replaced by what was
    assert judge(only, Gemm("o", 64, 64, "FP16"), 8, "torch").basis == "none"
    apart = make_policy([*points, *make_points("down", 64, 64, {8: 2.0})], limits={})
    assert judge(apart, Gemm("o", 999, 999, "FP16"), 8).reason == (
        "no measurement near 999→999 of kind 'o' in policy 'mine' (TensorRT's kernels)"
    )


def test_no_type_speaks_for_another() -> None:
    for dtype in ("BF16", "FP32", "INT8"):
        verdict = judge(make_policy(GATE), Gemm("gate_up", 4096, 1024, dtype), 1024)
        assert (verdict.sparse, verdict.basis) == (False, "none")
        assert verdict.reason == f"no measurement of {dtype} in policy 'mine'"
    both = make_policy([*GATE, *make_points("gate_up", 4096, 1024, {1024: 0.1}, "BF16")])
    assert judge(both, Gemm("gate_up", 4096, 1024, "FP16"), 1024).sparse
    assert not judge(both, Gemm("gate_up", 4096, 1024, "BF16"), 1024).sparse
    # what another library measured is none of TensorRT's
    torch = make_points("qkv", 8, 8, {1: 9.0}, library="torch")
    other = make_policy([*torch, *make_points("o", 64, 64, {1: 9.0})])
    assert judge(other, Gemm("qkv", 8, 8, "FP16"), 1).basis == "none"


# ---- laws

_speedups = st.dictionaries(
    st.integers(1, 60), st.sampled_from([0.5, 1.0, 1.019, 1.02, 1.5, 3.0]), min_size=1, max_size=6
)
_limits = st.none() | st.tuples(st.integers(1, 30), st.none() | st.integers(30, 70))


@given(st.integers(64, 1024))
def test_between_measured_m_times_lie_on_a_line_of_logarithms(m: int) -> None:
    times = expect(make_policy(GATE), Gemm("gate_up", 4096, 1024, "FP16"), m)
    assert times is not None
    low, begin = (
        (0.5, 64) if m <= 256 else (1.0, 256)
    )  # the dense time doubles while M is four times as large
    assert times.dense_us == pytest.approx(10 * low * math.sqrt(m / begin))
    assert times.sparse_us == pytest.approx(10)
    assert times.speedup == pytest.approx(times.dense_us / 10)


@given(
    st.dictionaries(st.integers(1, 500), st.floats(1, 1e6), min_size=2, max_size=6),
    st.lists(st.integers(1, 700), min_size=2, max_size=9).map(sorted),
)
def test_times_that_grow_with_m_grow_between_measured_m_and_beyond(
    measured: dict[int, float], at: list[int]
) -> None:
    speedups = dict(zip(sorted(measured), sorted(measured.values()), strict=True))
    known = known_of(make_policy(make_points("o", 64, 64, speedups)), Gemm("o", 64, 64, "FP16"))
    times = {m: found.dense_us for m in (*at, *speedups) if (found := known.expect(m))}
    assert all(times[m] == 10 * speedups[m] for m in speedups)
    for one, other in pairwise(sorted(times)):
        assert times[one] <= times[other] * (1 + 1e-9)
    assert all(times[m] == 10 * speedups[min(speedups)] for m in at if m <= min(speedups))


@given(st.integers(1, 4096), st.integers(1, 4096), st.sampled_from([64, 100, 256, 1024]))
def test_the_nearest_shapes_times_are_scaled_by_the_weights_size(n: int, k: int, m: int) -> None:
    octaves = abs(math.log2(n / 4096)) + abs(math.log2(k / 1024))
    assume(abs(octaves - NEAREST_OCTAVES) > 1e-9)
    times = expect(make_policy(GATE), Gemm("gate_up", n, k, "FP16"), m)
    assert (times is not None) == (octaves < NEAREST_OCTAVES)
    if times:
        own = expect(make_policy(GATE), Gemm("gate_up", 4096, 1024, "FP16"), m)
        assert own is not None
        assert times.dense_us == pytest.approx(own.dense_us * n * k / (4096 * 1024))
        assert times.speedup == pytest.approx(own.speedup)
        assert times.basis == ("exact" if (n, k) == (4096, 1024) else "nearest")


@given(_speedups, st.integers(1, 80), st.sampled_from([(64, 64), (64, 128)]), _limits)
def test_a_verdicts_points_are_the_ones_it_speaks_of(
    speedups: dict[int, float], m: int, shape: tuple[int, int], limits: tuple[int, int | None] | None
) -> None:
    policy = make_policy(make_points("o", 64, 64, speedups), limits={"o": limits} if limits else {})
    verdict = judge(policy, Gemm("o", *shape, "FP16"), m)
    assert set(verdict.points) <= set(policy.points)
    if m < min(speedups):
        assert verdict.basis == ("threshold" if limits else "none")
        return
    sizes = {p.m for p in verdict.points}
    assert len(verdict.points) == 2 * len(sizes)
    assert all(f"M={size}" in verdict.reason for size in sizes)
    assert verdict.sparse == all(speedups[size] >= 1.02 for size in sizes)
    *before, last = sorted(size for size in speedups if size <= m)
    assert last in sizes
    above = set(before[-1:]) if m > max(speedups) else set()  # there the two largest speak
    assert all(size >= last for size in sizes - above)


@given(
    _speedups, _limits, st.integers(1, 40), st.integers(0, 50), st.sampled_from([(64, 64), (64, 65), (9, 9)])
)
def test_ranges_agree_with_the_verdict_at_every_m(
    speedups: dict[int, float],
    limits: tuple[int, int | None] | None,
    low: int,
    span: int,
    shape: tuple[int, int],
) -> None:
    far = make_points("o", 10**6, 64, {7: 2.0}, library="torch")
    policy = make_policy([*make_points("o", 64, 64, speedups), *far], limits={"o": limits} if limits else {})
    ranges = sparse_ranges(policy, Gemm("o", *shape, "FP16"), low, low + span)
    assert (ranges[0][0], ranges[-1][1]) == (low, low + span)
    for (_, end, sparse), (begin, _, other) in pairwise(ranges):
        assert begin == end + 1
        assert sparse != other
    for begin, end, sparse in ranges:
        for m in range(begin, end + 1):
            assert judge(policy, Gemm("o", *shape, "FP16"), m).sparse == sparse


def test_what_is_known_of_a_layer_is_found_once_for_each_policy() -> None:
    policy, gemm = make_policy(GATE), Gemm("gate_up", 4096, 1024, "FP16")
    assert known_of(policy, gemm).own is known_of(policy, gemm).own
    bolder = policy.model_copy(update={"margin": 0.0})
    assert judge(policy, Gemm("gate_up", 4096, 1024, "FP16"), 256).sparse is False
    assert judge(bolder, Gemm("gate_up", 4096, 1024, "FP16"), 256).sparse is True
    slower = policy.model_copy(update={"points": tuple(make_points("gate_up", 4096, 1024, {1024: 0.5}))})
    assert [judge(each, gemm, 1024).speedup for each in (policy, slower)] == [2.0, 0.5]
    assert known_of(make_policy(GATE), gemm) == known_of(policy, gemm)


def test_what_a_policy_holds_is_that_of_its_own_points() -> None:
    policy = make_policy(GATE)
    assert policy.held == {("tensorrt", "FP16")}
    other = make_points("gate_up", 4096, 1024, {64: 1.0}, dtype="BF16", library="torch")
    assert policy.model_copy(update={"points": tuple(other)}).held == {("torch", "BF16")}
    limits = make_policy(other, "tensorrt", {"down": (1, None)})
    assert limits.held == {("torch", "BF16"), ("tensorrt", "FP16")}


def test_of_ranges_of_m_those_that_span_most_octaves_are_told() -> None:
    assert widest([(100, 120), (16, 64), (8, 15), (1, 2)], 2) == [(1, 2), (16, 64)]
    assert widest([(8, 15)], 2) == [(8, 15)]
