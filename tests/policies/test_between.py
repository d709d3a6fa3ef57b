"""What holds between two measured M: where sparse wins all the way, and where a step may cost it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.policies.between import WAVE, time_between, wins_at, wins_between
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import judge, sparse_ranges
from sparseflow_trt.policies.near import WITNESSES
from sparseflow_trt.policies.policy import Pair, Point, pairs_by_shape
from tests.made_policies import make_points, make_policy

MARGIN = 0.02


def _pair(m: int, dense_us: float, sparse_us: float, n: int = 4096) -> Pair:
    shape = {"kind": "o", "n": n, "k": 64, "m": m, "dtype": "FP16", "library": "torch"}
    dense, sparse = (
        Point.model_validate({**shape, "kernel": kernel, "us": us})
        for kernel, us in (("dense", dense_us), ("sparse", sparse_us))
    )
    return Pair(dense, sparse)


_times = st.floats(1, 100)
_waves = st.integers(0, 4 * WAVE)


@given(_times, _times, _times, _times, _waves)
def test_it_wins_nowhere_between_if_not_at_both(a: float, b: float, c: float, d: float, wave: int) -> None:
    low, high = _pair(128, a, b), _pair(256, c, d)
    if wins_between(low, high, MARGIN, wave):
        assert low.wins(MARGIN)
        assert high.wins(MARGIN)
    smooth = wins_between(low, high, MARGIN, 0)
    assert smooth == (low.wins(MARGIN) and high.wins(MARGIN))


@given(_times, st.floats(1, 3), st.floats(1, 3), st.floats(1, 3), _waves, _waves)
def test_of_times_that_grow_a_larger_wave_takes_less(
    us: float, gain: float, growth: float, other: float, one: int, two: int
) -> None:
    low, high = _pair(128, us * gain, us), _pair(256, us * other * growth, us * growth)
    if wins_between(low, high, MARGIN, max(one, two)):
        assert wins_between(low, high, MARGIN, min(one, two))
    if wins_between(low, high, MARGIN, None):
        assert wins_between(low, high, MARGIN, one), "a wave that is not known is no smaller than any"


def test_a_step_that_sparse_may_take_ahead_of_dense_counts() -> None:
    # times that double with M; of N=4096 a wave is 264 rows
    low, high = _pair(1024, 100, 80), _pair(2048, 200, 160)
    assert WAVE / 4096 == 264
    at = 80 * (1024 + 264) / 1024  # 100.6 µs: no longer less than dense at 1024
    assert time_between(1024 + 264, [low.sparse, high.sparse]) == pytest.approx(at)
    assert not wins_between(low, high, MARGIN, WAVE)
    assert wins_between(low, high, MARGIN, WAVE // 2)
    narrow = _pair(1024, 100, 80), _pair(1100, 107, 86)  # the larger M is nearer than a wave
    assert wins_between(*narrow, MARGIN, WAVE)


def test_at_measured_m_a_step_is_of_no_interest() -> None:
    pairs = {m: _pair(m, m / 10, m / 12) for m in (64, 128, 256)}
    assert [m for m in (32, 64, 65, 128, 200, 256, 1000) if wins_at(pairs, m, MARGIN, WAVE)] == [
        32, 64, 128, 256, 1000,
    ]  # fmt: skip
    assert all(wins_at(pairs, m, MARGIN, 0) for m in range(1, 300))


def test_above_the_largest_m_both_of_the_two_largest_have_to_win() -> None:
    def taken(*gains: float) -> bool:
        pairs = {64 * 2**i: _pair(64 * 2**i, 10 * gain, 10) for i, gain in enumerate(gains)}
        return wins_at(pairs, 1024, MARGIN, WAVE)

    assert taken(2.0)
    assert taken(0.5, 2.0, 2.0)
    assert not taken(2.0, 1.0, 2.0)
    assert not taken(2.0, 2.0, 1.0)


def test_a_verdict_says_what_speaks_against_it() -> None:
    points = [
        p for m in (128, 256) for p in (_pair(m, m / 10, m / 12).dense, _pair(m, m / 10, m / 12).sparse)
    ]
    policy = make_policy(points).model_copy(update={"wave": WAVE})
    verdict = judge(policy, Gemm("o", 4096, 64, "FP16"), 200, "torch")
    assert not verdict.sparse
    assert verdict.reason.startswith(
        "sparse is not sure to win at M=200: 1.20× between M=128 and M=256, "
        "but one wave of tiles more would cost it ("
    )
    assert judge(policy, Gemm("o", 4096, 64, "FP16"), 256, "torch").sparse


def test_a_shape_that_was_not_measured_is_sparse_where_the_shapes_near_it_agree() -> None:
    near = make_points("o", 4096, 1024, {64: 2.0, 256: 2.0})
    other = make_points("down", 4096, 1536, {256: 1.0})  # of another kind, and no less a product
    far = make_points("o", 64, 1024, {64: 0.5, 256: 0.5})
    small = make_points("down", 4096, 1200, {8: 0.5, 16: 0.5})  # nothing of it was measured around 256
    policy = make_policy([*near, *other, *far, *small])
    assert judge(policy, Gemm("o", 4096, 1024, "FP16"), 256).sparse, "its own shape needs no other"
    asked = judge(policy, Gemm("o", 4096, 1100, "FP16"), 256)
    assert (asked.sparse, asked.basis, asked.speedup) == (False, "nearest", 2.0)
    assert (
        "is not sure to win at M=256: 2.00× measured, but 1536→4096, near it, does not win (nearest"
        in asked.reason
    )
    assert judge(policy, Gemm("o", 4096, 1100, "FP16"), 64).sparse, (
        "what was measured from 256 on says nothing of 64"
    )
    assert judge(make_policy([*near, *far]), Gemm("o", 4096, 1100, "FP16"), 256).sparse


_shapes = st.sampled_from([(64, 64), (64, 96), (96, 64), (128, 64), (64, 65), (100, 70)])
_products = st.tuples(
    _shapes,
    st.sampled_from(["o", "qkv"]),
    st.dictionaries(st.integers(1, 40), st.tuples(_times, _times), min_size=1, max_size=5),
)


@given(
    st.lists(_products, min_size=1, max_size=5),
    _shapes,
    st.integers(0, 20000),
    st.integers(1, 20),
    st.integers(0, 40),
)
def test_ranges_agree_with_the_verdict_at_every_m(
    products: list[tuple[tuple[int, int], str, dict[int, tuple[float, float]]]],
    shape: tuple[int, int],
    wave: int,
    low: int,
    span: int,
) -> None:
    points = []
    for (n, k), kind, times in products:
        for m, (dense, sparse) in times.items():
            fields = {"kind": kind, "n": n, "k": k, "m": m, "dtype": "FP16", "library": "tensorrt"}
            points += [
                Point.model_validate({**fields, "kernel": kernel, "us": us})
                for kernel, us in (("dense", dense), ("sparse", sparse))
            ]
    policy = make_policy(points).model_copy(update={"wave": wave})
    for begin, end, taken in sparse_ranges(policy, Gemm("o", *shape, "FP16"), low, low + span):
        assert all(judge(policy, Gemm("o", *shape, "FP16"), m).sparse == taken for m in range(begin, end + 1))


def test_the_nearest_few_are_heard() -> None:
    agree = [make_points("o", 1024 + 32 * i, 1024, {64: 2.0}) for i in range(WITNESSES + 1)]
    against = make_points("o", 1024 + 320, 1024, {64: 0.5})
    points = [p for shape in agree for p in shape]
    assert len(pairs_by_shape(points)) == WITNESSES + 1
    assert judge(make_policy([*points, *against]), Gemm("o", 1000, 1024, "FP16"), 64).sparse
    assert not judge(make_policy([*points[2:], *against]), Gemm("o", 1000, 1024, "FP16"), 64).sparse
