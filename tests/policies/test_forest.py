"""What all measured shapes say of another: learned where they are enough, and sure where they agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow_trt.policies.forest import LEAST_SHAPES, Guess, features, guess_of
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import expect, judge, known_of, sparse_ranges
from sparseflow_trt.policies.measurements import ESTIMATE_MARGIN
from sparseflow_trt.policies.plugin_lookup import plugin_known
from sparseflow_trt.policies.policy import Point, Policy, find_policy
from tests.made_policies import make_points, make_policy

H200 = find_policy("h200")  # once: what is learned is kept with its points
SIZES = (512, 1024, 2048, 4096, 8192)
GRID = (1, 8, 64, 256, 1024, 4096)


def speedup_of(m: int, k: int) -> float:
    """Sparse wins from M=256 on, and more with a larger K."""
    return 0.7 if m < 256 else 1.2 + 0.1 * math.log2(k / 512)


def points_of(shapes: list[tuple[int, int]], noise: float = 0.0) -> list[Point]:
    rng = np.random.default_rng(0)
    found: list[Point] = []
    for n, k in shapes:
        gains = {m: speedup_of(m, k) * math.exp(noise * rng.standard_normal()) for m in GRID}
        found += make_points("gate_up", n, k, gains)
    return found


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make_policy(points_of([(n, k) for n in SIZES for k in SIZES]))


def test_a_shape_that_was_not_measured_is_learned_from_all_that_were(policy: Policy) -> None:
    verdict = judge(policy, Gemm("gate_up", 3072, 3072, "FP16"), 1024)
    assert (verdict.sparse, verdict.basis) == (True, "learned")
    assert verdict.speedup == pytest.approx(speedup_of(1024, 3072), rel=0.05)
    assert verdict.points, "those of the nearest shape"
    assert "learned from 25 measured shapes (TensorRT's kernels, GPU X)" in verdict.reason
    assert not judge(policy, Gemm("gate_up", 3072, 3072, "FP16"), 64).sparse


def test_a_learned_answer_is_made_of_the_products_that_it_names(policy: Policy) -> None:
    known = known_of(policy, Gemm("gate_up", 3072, 3072, "FP16"))
    for m in (64, 300, 1024):
        weights = known.learned_from(m)
        shares = [share for share, _ in weights]
        assert sum(shares) == pytest.approx(1)
        assert shares == sorted(shares, reverse=True)
        mean = sum(share * math.log(pair.speedup) for share, pair in weights)
        assert math.exp(mean) == pytest.approx(known.judge(m).speedup)
    heaviest = known.learned_from(1024)[0][1].dense
    assert (heaviest.m, heaviest.n in (2048, 4096), heaviest.k in (2048, 4096)) == (1024, True, True)
    assert known_of(policy, Gemm("gate_up", 1024, 2048, "FP16")).learned_from(1024) == []
    assert known_of(policy, Gemm("down", 3072, 3072, "FP16")).learned_from(1024) == []


def test_above_the_largest_measured_m_a_learned_answer_is_said_to_be_of_it(policy: Policy) -> None:
    known = known_of(policy, Gemm("gate_up", 3072, 3072, "FP16"))
    times, largest = known.expect(10 * GRID[-1]), known.expect(GRID[-1])
    assert times
    assert largest
    assert (times.at, largest.at) == ("above", "between")
    assert times.speedup == pytest.approx(largest.speedup)
    assert "as at M=4096, the largest measured, learned from 25" in known.judge(10 * GRID[-1]).reason
    assert "largest" not in known.judge(GRID[-1]).reason


def test_above_a_shapes_largest_m_the_others_speak_where_they_were_measured_further(policy: Policy) -> None:
    """Sparse loses up to M=64, where this shape ends, and wins from 256 on for all others."""
    kept = [p for p in policy.points if (p.n, p.k) != (1024, 2048) or p.m <= 64]
    short = make_policy(kept).model_copy(update={"wave": None})
    known = known_of(short, Gemm("gate_up", 1024, 2048, "FP16"))
    verdict = known.judge(1024)
    assert (verdict.sparse, verdict.basis) == (True, "learned")
    assert verdict.speedup == pytest.approx(speedup_of(1024, 2048), rel=0.05)
    assert "above M=64, its largest measured, learned from 25 measured shapes" in verdict.reason
    assert known.judge(64).basis == "exact"
    assert "above M=64, its largest measured, as at M=4096, the largest" in known.judge(8192).reason
    times = known.expect(1024)
    assert times
    assert times.at == "above"
    assert times.dense_us == pytest.approx(16 * known.own.pairs[64].dense.us)
    said = {m: known.judge(m).sparse for m in range(1, 2000, 7)}
    spans = sparse_ranges(short, Gemm("gate_up", 1024, 2048, "FP16"), 1, 2000)
    assert all(said[m] == sparse for begin, end, sparse in spans for m in said if begin <= m <= end)
    smooth = judge(make_policy(kept), Gemm("gate_up", 1024, 2048, "FP16"), 1024)
    assert (smooth.sparse, smooth.basis) == (False, "exact")


def test_a_shape_that_was_measured_speaks_for_itself(policy: Policy) -> None:
    assert judge(policy, Gemm("gate_up", 1024, 2048, "FP16"), 1024).basis == "exact"
    assert known_of(policy, Gemm("gate_up", 1024, 2048, "FP16")).own.guess is None, (
        "its times count as smooth"
    )


def test_between_two_measured_m_that_win_all_shapes_have_to_be_sure(policy: Policy) -> None:
    careful = policy.model_copy(update={"wave": None, "spreads_between": 1.0})
    known = known_of(careful, Gemm("gate_up", 1024, 2048, "FP16"))
    assert known.own.guess
    for m in (2048, 256, 1024, 4096):
        assert known.judge(m).sparse, "sure between, and measured"
    assert not known.judge(128).sparse, "one of the two beside it loses"
    verdict = known_of(
        careful.model_copy(update={"spreads_between": 50.0}), Gemm("gate_up", 1024, 2048, "FP16")
    ).judge(2048)
    assert (verdict.sparse, verdict.basis) == (False, "exact")
    assert "sparse is not sure to win at M=2048" in verdict.reason
    assert "× is sure there" in verdict.reason


@given(st.integers(1, 4000), st.integers(0, 300))
@settings(max_examples=25, deadline=None)
def test_ranges_of_a_measured_shape_say_what_is_said_of_each_m(low: int, span: int) -> None:
    ranges = sparse_ranges(H200, Gemm("qkv", 6144, 4096, "FP16"), low, low + span, "torch")
    for begin, end, sparse in ranges:
        for m in range(begin, end + 1):
            assert judge(H200, Gemm("qkv", 6144, 4096, "FP16"), m, "torch").sparse == sparse


@pytest.mark.parametrize("shape", [(1024, 2048), (3072, 3072)])
def test_ranges_tell_each_m_of_less_than_a_tile_of_rows(shape: tuple[int, int]) -> None:
    """cuSPARSELt pads to eight rows; what the trees see of fewer is another thing for each M."""
    finely = {1: 2.0, 2: 0.5, 3: 0.5, 4: 2.0, 5: 2.0, 6: 0.5, 7: 2.0, 8: 2.0, 16: 2.0, 64: 2.0}
    points = []
    for n in SIZES:
        for k in SIZES:
            coarse = {m: finely[m] for m in (1, 8, 64)}
            points += make_points("gate_up", n, k, coarse if (n, k) == (1024, 2048) else finely)
    care = {"wave": None, "spreads": 0.5, "spreads_between": 0.5}
    policy = make_policy(points).model_copy(update=care)
    said = [judge(policy, Gemm("gate_up", *shape, "FP16"), m).sparse for m in range(1, 101)]
    ranges = sparse_ranges(policy, Gemm("gate_up", *shape, "FP16"), 1, 100)
    assert [sparse for begin, end, sparse in ranges for _ in range(begin, end + 1)] == said
    assert len(ranges) > 3, "it changes its mind below eight rows"


def test_of_few_shapes_the_nearest_speaks() -> None:
    shapes = [(n, k) for n in SIZES for k in SIZES][: LEAST_SHAPES - 1]
    assert judge(make_policy(points_of(shapes)), Gemm("gate_up", 3072, 3072, "FP16"), 1024).basis == "nearest"


def test_far_from_all_shapes_and_of_another_type_nothing_is_learned(policy: Policy) -> None:
    assert judge(policy, Gemm("gate_up", 1 << 17, 1 << 17, "FP16"), 1024).basis == "none"
    assert judge(policy, Gemm("gate_up", 3072, 3072, "BF16"), 1024).basis == "none"
    assert judge(policy, Gemm("down", 3072, 3072, "FP16"), 1024).basis == "none"


def test_where_shapes_disagree_it_is_not_sure() -> None:
    noisy = make_policy(points_of([(n, k) for n in SIZES for k in SIZES], noise=0.25))
    bold, careful = (noisy.model_copy(update={"spreads": spreads}) for spreads in (0.0, 5.0))
    assert judge(bold, Gemm("gate_up", 3072, 3072, "FP16"), 4096).sparse
    verdict = judge(careful, Gemm("gate_up", 3072, 3072, "FP16"), 4096)
    assert not verdict.sparse
    assert "is not sure to win at M=4096" in verdict.reason
    assert "but no more than" in verdict.reason


def test_times_are_the_nearest_shapes_with_the_learned_gain(policy: Policy) -> None:
    times = expect(policy, Gemm("gate_up", 2048, 3072, "FP16"), 1024)
    near = expect(policy, Gemm("gate_up", 2048, 4096, "FP16"), 1024)
    assert times is not None
    assert near is not None
    assert times.dense_us == pytest.approx(near.dense_us * 0.75)
    assert times.dense_us / times.sparse_us == pytest.approx(times.speedup)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6000), st.integers(1, 6000))
def test_ranges_say_what_is_said_of_each_m(low: int, high: int) -> None:
    low, high = min(low, high), max(low, high)
    ranges = sparse_ranges(H200, Gemm("gate_up", 12288, 3072, "FP16"), low, high, "torch")
    assert (ranges[0][0], ranges[-1][1]) == (low, high)
    known = known_of(H200, Gemm("gate_up", 12288, 3072, "FP16"), "torch")
    for begin, end, sparse in ranges:
        assert {known.judge(m).sparse for m in {begin, (begin + end) // 2, end}} == {sparse}


def test_the_same_points_give_the_same_answer(policy: Policy) -> None:
    again = make_policy(list(policy.points))
    one, other = (guess_of(p, "tensorrt", Gemm("down", 3072, 3072, "FP16")) for p in (policy, again))
    assert isinstance(one, Guess)
    assert isinstance(other, Guess)
    assert one.forest is not other.forest, "learned anew"
    assert one.gain(300) == other.gain(300) == one.gain(304), "rows are padded to multiples of 8"
    assert one.gain(1 << 20) == one.gain(4096), "above the largest measured M what holds there holds"


def test_trees_that_grow_side_by_side_are_those_that_grow_in_turn(policy: Policy) -> None:
    from sklearn.base import clone

    guess = guess_of(policy, "tensorrt", Gemm("down", 3072, 1536, "FP16"))
    assert guess is not None
    assert guess.forest.n_jobs == -1
    seen = features("FP16", 3072, 1536, range(1, 200))
    gains = [math.sin(m) for m in range(1, 200)]
    one, two = (clone(guess.forest).set_params(n_jobs=jobs).fit(seen, gains) for jobs in (1, 2))
    for alone, beside in zip(one.estimators_, two.estimators_, strict=True):
        assert (alone.tree_.predict(seen) == beside.tree_.predict(seen)).all()


def test_one_m_and_many_are_asked_alike(policy: Policy) -> None:
    one, many = (guess_of(policy, "tensorrt", Gemm("down", 3072, 1536, "FP16")) for _ in range(2))
    assert one is not None
    assert many is not None
    found = dict(zip(range(1, 4097), many.gains(range(1, 4097)), strict=True))
    for m in (1, 8, 24, 1000):
        assert one.gain(m) == pytest.approx(found[m])


def test_a_gain_is_the_mean_of_the_trees_and_the_spread_theirs(policy: Policy) -> None:
    guess = guess_of(policy, "tensorrt", Gemm("down", 3072, 1536, "FP16"))
    assert guess is not None
    rows = features("FP16", 3072, 1536, [64, 304])
    said = np.array([tree.predict(rows) for tree in guess.forest.estimators_])
    assert guess.gains([64, 300]) == list(zip(said.mean(0), said.std(0), strict=True))
    assert [mean for mean, _ in guess.gains([64, 304])] == pytest.approx(list(guess.forest.predict(rows)))


SIZE = st.integers(1, 1 << 16)


@given(st.lists(st.tuples(st.sampled_from(["FP16", "BF16"]), SIZE, SIZE, SIZE), min_size=1))
def test_what_the_trees_see_of_many_products_is_what_they_see_of_each(
    products: list[tuple[str, int, int, int]],
) -> None:
    found = features(*zip(*products, strict=True))
    assert np.isfinite(found).all(), "down to one row"
    for row, (dtype, n, k, m) in zip(found, products, strict=True):
        assert row == pytest.approx(features(dtype, n, k, [m])[0], rel=1e-6)
        logs = [math.log2(size) for size in (n, k, m, m * n, m * n * k)]
        assert row[:7] == pytest.approx(
            [*logs, float(dtype == "FP16"), math.log2((n * k + m * k + m * n) / (m * n * k))],
            rel=1e-6,
            abs=1e-6,
        )
        waves = math.ceil(m / 64) * math.ceil(n / 128) / 132  # of tiles of 64 rows and 128 columns
        assert row[9:11] == pytest.approx([math.log2(waves), math.ceil(waves) / waves], rel=1e-6, abs=1e-6)
        full = [m / (math.ceil(m / 256) * 256), n / (math.ceil(n / 128) * 128)]
        assert [row[23], row[24]] == pytest.approx(full, rel=1e-6)


def test_an_estimate_of_the_plugin_is_learned_too_and_has_to_win_by_more() -> None:
    known = plugin_known(H200, Gemm("qkv", 4096, 5120, "FP16"))
    assert known.own.guess is not None
    assert known.own.margin == ESTIMATE_MARGIN
    assert "learned from 58 timed shapes (estimated from cuSPARSELt" in known.judge(4096).reason
