"""Thresholds: what is derived from points, and that it promises nothing that was not measured."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import judge
from sparseflow_trt.policies.policy import MARGIN, Point, Threshold
from sparseflow_trt.policies.thresholds import derive_thresholds
from tests.made_policies import make_points, make_policy

_RATIOS = [0.8, 1.0, 1.019, 1.02, 1.3, 2.0]
_speedups = st.dictionaries(st.integers(1, 40), st.sampled_from(_RATIOS), min_size=1, max_size=7)


def _derive(*shapes: dict[int, float]) -> Threshold:
    points = [p for i, speedups in enumerate(shapes) for p in make_points("o", 64 * (i + 1), 64, speedups)]
    (limit,) = derive_thresholds(points, MARGIN)
    return limit


@given(st.lists(_speedups, min_size=1, max_size=4), st.integers(1, 60))
def test_a_threshold_takes_sparse_only_where_every_shape_does(shapes: list[dict[int, float]], m: int) -> None:
    limit = _derive(*shapes)
    assert limit.shapes == tuple((64 * (i + 1), 64) for i in range(len(shapes)))
    if not limit.holds(m):
        return
    for i, speedups in enumerate(shapes):
        assert speedups.get(m, MARGIN + 1) >= 1 + MARGIN
        if m >= min(speedups):
            policy = make_policy(make_points("o", 64 * (i + 1), 64, speedups))
            assert judge(policy, Gemm("o", 64 * (i + 1), 64, "FP16"), m).sparse


_rising = st.dictionaries(
    st.integers(1, 60), st.tuples(st.floats(0.9, 2), st.floats(1, 3)), min_size=1, max_size=6
)


@given(st.lists(_rising, min_size=1, max_size=3), st.integers(0, 5000), st.integers(1, 90))
def test_where_a_threshold_holds_each_shape_is_sure_to_win(
    shapes: list[dict[int, tuple[float, float]]], wave: int, m: int
) -> None:
    points = []
    for i, measured in enumerate(shapes):
        for point in make_points("o", 64 * (i + 1), 64, {size: gain for size, (gain, _) in measured.items()}):
            points.append(point.model_copy(update={"us": point.us * point.m * measured[point.m][1]}))
    (limit,) = derive_thresholds(points, MARGIN, wave)
    policy = make_policy(points).model_copy(update={"wave": wave})
    for i, measured in enumerate(shapes):
        if limit.holds(m) and m >= min(measured):
            assert judge(policy, Gemm("o", 64 * (i + 1), 64, "FP16"), m).sparse


@given(st.lists(st.integers(1, 10**5), min_size=1, max_size=9, unique=True), st.integers(0, 9))
def test_of_one_monotone_shape_it_is_the_crossover(sizes: list[int], losing: int) -> None:
    ordered = sorted(sizes)
    limit = _derive({m: 1.5 if i >= losing else 0.9 for i, m in enumerate(ordered)})
    crossover = ordered[losing] if losing < len(ordered) else None
    alone = len(ordered) > 1 and losing == len(ordered) - 1  # the largest, where the one before loses
    assert (limit.min_m, limit.max_m) == (crossover, crossover if alone else None)


@given(st.lists(_speedups, min_size=1, max_size=4))
def test_of_the_ranges_that_win_none_spans_more_octaves(shapes: list[dict[int, float]]) -> None:
    limit = _derive(*shapes)
    sizes = sorted({m for speedups in shapes for m in speedups})
    policies = [
        (64 * (i + 1), make_policy(make_points("o", 64 * (i + 1), 64, s)), min(s))
        for i, s in enumerate(shapes)
    ]
    won = [
        all(m < low or judge(policy, Gemm("o", n, 64, "FP16"), m).sparse for n, policy, low in policies)
        for m in sizes
    ]
    holds = all(judge(policy, Gemm("o", n, 64, "FP16"), sizes[-1] + 1).sparse for n, policy, _ in policies)
    ends = [*sizes[:-1], sizes[-1] * (2 if holds else 1)]  # what wins above the largest spans an octave more
    spans = [
        ends[j] / sizes[i] for i in range(len(sizes)) for j in range(i, len(sizes)) if all(won[i : j + 1])
    ]
    if limit.min_m is None:
        assert not spans
    else:
        assert (limit.max_m or ends[-1]) / limit.min_m == max(spans)


def test_of_two_equal_ranges_the_later_is_taken() -> None:
    limit = _derive({1: 2.0, 2: 2.0, 4: 1.0, 8: 2.0, 16: 2.0, 32: 1.0})
    assert (limit.min_m, limit.max_m) == (8, 16)


def test_a_short_range_does_not_hide_that_sparse_wins_at_the_largest() -> None:
    limit = _derive({1000: 2.0, 1100: 2.0, 2000: 1.0, 3800: 2.0, 4000: 2.0})
    assert (limit.min_m, limit.max_m) == (3800, None)


def test_one_win_at_the_largest_m_holds_there_alone() -> None:
    limit = _derive({1000: 1.0, 4000: 2.0})
    assert (limit.min_m, limit.max_m) == (4000, 4000)


def test_it_has_an_end_where_sparse_stops_winning() -> None:
    limit = _derive({64: 0.9, 128: 1.3, 1024: 1.3, 2048: 1.0})
    assert (limit.min_m, limit.max_m) == (128, 1024)


def test_above_its_largest_m_a_shape_says_what_it_said_there() -> None:
    loses = {8: 2.0, 64: 1.0}
    limit = _derive(loses, {8: 2.0, 16: 2.0, 128: 2.0})
    assert (limit.min_m, limit.max_m) == (8, 8)


def test_each_kind_library_and_type_has_its_own() -> None:
    points = [
        *make_points("o", 64, 64, {8: 2.0}),
        *make_points("o", 64, 64, {8: 2.0}, "BF16"),
        *make_points("o", 64, 64, {8: 1.0}, library="torch"),
        *make_points("down", 64, 64, {4: 2.0}),
    ]
    limits = {(t.kind, t.library, t.dtype): t.min_m for t in derive_thresholds(points, MARGIN)}
    assert limits == {
        ("o", "tensorrt", "FP16"): 8,
        ("o", "tensorrt", "BF16"): 8,
        ("o", "torch", "FP16"): None,
        ("down", "tensorrt", "FP16"): 4,
    }


def test_what_lacks_its_partner_is_left_out() -> None:
    alone = [p for p in make_points("o", 64, 64, {8: 2.0}) if p.kernel == "dense"]
    assert derive_thresholds(alone, MARGIN) == ()
    points = [*alone, *make_points("o", 128, 64, {16: 2.0})]
    (limit,) = derive_thresholds(points, MARGIN)
    assert (limit.min_m, limit.shapes) == (16, ((128, 64),))


def test_the_margin_counts() -> None:
    points: list[Point] = make_points("o", 64, 64, {8: 1.05, 16: 1.2})
    assert [derive_thresholds(points, margin)[0].min_m for margin in (0.0, 0.05, 0.1, 0.3)] == [
        8,
        8,
        16,
        None,
    ]
