"""Profiles split at crossovers: where, how many, what they lose, and what is said of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import combinations, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.errors import ShapeError
from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.plans.axis import Weighted, axis_of, opt_size, place_traffic
from sparseflow_trt.plans.crossovers import LayerShape, Losses, find_crossovers, measure_losses
from sparseflow_trt.plans.shapes import Dims, Profile, ShapeRange
from sparseflow_trt.plans.split import LEAST_GAIN, MOST_PARTS, Split, choose_cuts, split_profile
from sparseflow_trt.plans.traffic import Traffic
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import expect, judge
from sparseflow_trt.policies.policy import MARGIN, Point, Policy, Threshold, find_policy
from sparseflow_trt.policies.tactics import TOOK_DENSE
from tests.made_policies import FIELDS

DIMS: dict[str, Dims] = {"ids": ("batch", "seq"), "mask": ("seq", "batch", 4)}
N = {"gate_up": 128, "down": 64, "qkv": 192, "o": 256, "ffn": 320, "other": 64 * 64}
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
TOKENS = SymbolicM(("batch", "seq"))
LEAST = 1 + MARGIN


def _policy(*points: Point, thresholds: tuple[Threshold, ...] = ()) -> Policy:
    return Policy(**FIELDS, points=points, thresholds=thresholds)


def _points(kind: str, speedup: Callable[[int], float]) -> tuple[Point, ...]:
    """M times N times K nanoseconds dense, at each M of SIZES; sparse is faster as `speedup` says."""
    found = []
    for m in SIZES:
        dense = m * N[kind] * 64 / 1000
        for kernel, us in {"dense": dense, "sparse": dense / speedup(m)}.items():
            shape = {"kind": kind, "n": N[kind], "k": 64, "m": m, "dtype": "FP16", "library": "tensorrt"}
            found.append(Point.model_validate({**shape, "kernel": kernel, "us": us}))
    return tuple(found)


def _from(start: int, faster: float = 1.5) -> Callable[[int], float]:
    return lambda m: faster if m >= start else 1 / faster


def _product(kind: str, m: SymbolicM = TOKENS, choosable: bool = True) -> LayerShape:
    return LayerShape(kind, N[kind], 64, m, "FP16", choosable)


def _profile(batch: tuple[int, int, int], seq: tuple[int, int, int] = (1, 1, 1)) -> Profile:
    shapes = [(b, s) for b, s in zip(batch, seq, strict=True)]
    ids = ShapeRange(min=shapes[0], opt=shapes[1], max=shapes[2])
    low, opt, high = ((s, b, 4) for b, s in shapes)
    return Profile(name="default", inputs={"ids": ids, "mask": ShapeRange(min=low, opt=opt, max=high)})


def _batches(profiles: tuple[Profile, ...]) -> list[tuple[int, int, int]]:
    """Each profile's (min, opt, max) of the axis; checks that both inputs say the same."""
    found = []
    for profile in profiles:
        ids, mask = profile.inputs["ids"], profile.inputs["mask"]
        three = (ids.min[0], ids.opt[0], ids.max[0])
        assert three == (mask.min[1], mask.opt[1], mask.max[1])
        assert (ids.min[1], ids.opt[1], ids.max[1]) == (mask.min[0], mask.opt[0], mask.max[0])
        found.append(three)
    return found


TWO = _policy(*_points("gate_up", _from(16)), *_points("down", _from(256)))
LAYERS = Counter({_product("gate_up"): 2, _product("down"): 1})


def test_a_profile_is_split_where_layers_change() -> None:
    profiles, why = split_profile(_profile((1, 100, 4096)), Split("batch"), DIMS, LAYERS, TWO)
    assert _batches(profiles) == [(1, round(math.sqrt(15)), 15), (16, 100, 255), (256, 1024, 4096)]
    assert [profile.name for profile in profiles] == ["batch-1-15", "batch-16-255", "batch-256-4096"]
    assert why.startswith(
        "axis 'batch' is split where layers change, at 16 (gate_up), 256 (down): one profile would lose "
    )
    # what is left: between two measured M sparse has to win at both, and is interpolated to win sooner
    assert why.endswith("these lose 0.73% (every octave counts alike)")
    assert "assumed" not in why


def test_an_axis_that_may_be_empty_is_split_as_from_1_on() -> None:
    profiles, why = split_profile(_profile((0, 100, 4096)), Split("batch"), DIMS, LAYERS, TWO)
    from_1, why_from_1 = split_profile(_profile((1, 100, 4096)), Split("batch"), DIMS, LAYERS, TWO)
    assert _batches(profiles) == [(0, round(math.sqrt(15)), 15), *_batches(from_1)[1:]]
    assert profiles[0].name == "batch-0-15"
    assert why == why_from_1
    traffic = Traffic(((1, 1.0), (512, 1.0)))
    profiles, _ = split_profile(_profile((0, 100, 4096)), Split("batch", traffic), DIMS, LAYERS, TWO)
    assert _batches(profiles) == [(0, 1, 15), (16, 512, 4096)]


def test_m_may_be_a_product_with_other_axes_at_their_opt() -> None:
    profile = _profile((1, 2, 64), (16, 32, 64))
    profiles, _ = split_profile(profile, Split("batch"), DIMS, LAYERS, TWO)
    assert _batches(profiles) == [(1, 2, 7), (8, round(math.sqrt(8 * 64)), 64)]  # M from 32 to 2048
    for made in profiles:
        assert (made.inputs["ids"].min[1], made.inputs["ids"].opt[1], made.inputs["ids"].max[1]) == (
            16,
            32,
            64,
        )


def test_traffic_gives_the_opt_and_weighs_the_cuts() -> None:
    large = Traffic(((300, 1.0), (1000, 3.0), (2000, 1.0)))
    profiles, why = split_profile(_profile((1, 8, 4096)), Split("batch", large), DIMS, LAYERS, TWO)
    assert _batches(profiles) == [(1, 1000, 4096)]  # no layer changes where there is traffic
    assert [profile.name for profile in profiles] == ["default"]
    assert "is not split: layers change at 16 (gate_up), 256 (down), where one profile loses 0.00%" in why
    both = Traffic(((4, 10_000.0), (5000, 5.0), *large.sizes))
    profiles, why = split_profile(_profile((1, 8, 4096)), Split("batch", both), DIMS, LAYERS, TWO)
    assert [opt for _, opt, _ in _batches(profiles)] == [4, 1000]
    assert why.endswith(
        "(weighed by the traffic, of which 0.0% is left out: no shape of the profile holds it)"
    )


def test_where_sparse_is_not_sure_to_win_dense_loses_next_to_nothing() -> None:
    gains = _policy(*_points("gate_up", lambda m: 1.25 if m >= 512 else 0.8))
    sure, careful = (gains.model_copy(update={"wave": wave}) for wave in (0, 500 * N["gate_up"]))
    layers = Counter({_product("gate_up"): 1})
    assert not judge(careful, Gemm("gate_up", N["gate_up"], 64, "FP16"), 1500).sparse
    _, why = split_profile(_profile((1025, 1500, 2047)), Split("batch"), DIMS, layers, careful)
    assert "no layer changes" in why, "dense is what the policy says at each of these M"
    axis = axis_of(_profile((1025, 1500, 2047)), "batch", DIMS)
    losses = [measure_losses(axis, layers, policy, [1025]).of(1025, 2047, 1500) for policy in (sure, careful)]
    assert losses == [0, 0], "each does as it says"
    axis = axis_of(_profile((1025, 1500, 2048)), "batch", DIMS)
    held = measure_losses(axis, layers, careful, [1025]).of(1025, 2048, 2048)
    assert held > 0, "sparse, which is sure at 2048 alone, may lose below"


def test_many_changes_are_counted_and_not_listed() -> None:
    many = _policy(*_points("gate_up", lambda m: 1.021 if round(math.log2(m)) % 2 else 1.0))
    layers = Counter({_product("gate_up"): 1, _product("other", choosable=False): 1})
    _, why = split_profile(_profile((1, 100, 4096)), Split("batch"), DIMS, layers, many)
    assert "is not split: layers change at 12 sizes from 2 to 2049 (gate_up), where" in why


def test_a_cut_that_gains_little_is_not_made() -> None:
    slight = _policy(*_points("gate_up", _from(16, 1.021)))
    layers = Counter({_product("gate_up"): 1, _product("other", choosable=False): 1})
    profiles, why = split_profile(_profile((1, 100, 4096)), Split("batch"), DIMS, layers, slight)
    assert _batches(profiles) == [(1, 100, 4096)]
    assert "a cut gains less than 0.5% (every octave counts alike)" in why


def test_nothing_to_split() -> None:
    no_change = "axis 'batch' is not split: no layer changes between sparse and dense along it"
    dense = Counter({_product("gate_up", choosable=False): 1})
    for profile, layers, policy, says in (
        (_profile((1, 2, 8)), LAYERS, TWO, no_change),
        (
            _profile((1, 2, 4096)),
            LAYERS,
            None,
            "axis 'batch' is not split: without a policy no layer changes",
        ),
        (_profile((1, 2, 4096)), dense, TWO, no_change),
        (_profile((4, 4, 4)), LAYERS, TWO, "axis 'batch' is not split: it has the one size 4"),
    ):
        profiles, why = split_profile(profile, Split("batch"), DIMS, layers, policy)
        assert profiles == (profile,)
        assert why.startswith(says)
    _, why = split_profile(_profile((4, 4, 4)), Split("batch", Traffic(((99, 1.0),))), DIMS, LAYERS, TWO)
    assert why.endswith("it has the one size 4, so the traffic was not used")


def test_what_cannot_be_split() -> None:
    fixed = Counter({_product("gate_up", m=SymbolicM(("seq",))): 1})
    for axis, layers, says in (
        ("length", LAYERS, "axis 'length' is not in the model, which has: batch, seq."),
        ("batch", fixed, "no layer's M is known to depend on axis 'batch'."),
        ("batch", Counter[LayerShape](), "no layer's M is known to depend on axis 'batch'."),
    ):
        with pytest.raises(ShapeError) as caught:
            split_profile(_profile((1, 2, 4096)), Split(axis), DIMS, layers, TWO)
        assert caught.value.message == says


def test_thresholds_alone_split_too() -> None:
    limits = tuple(
        Threshold(kind=kind, library="tensorrt", dtype="FP16", min_m=m)
        for kind, m in (("qkv", 64), ("o", 64))
    )
    layers = Counter({_product("qkv"): 1, _product("o"): 1})
    profiles, why = split_profile(
        _profile((1, 2, 4096)), Split("batch"), DIMS, layers, _policy(thresholds=limits)
    )
    assert _batches(profiles) == [(1, 2, 63), (64, 512, 4096)]
    assert "at 64 (o, qkv)" in why
    assert "(assumed: the policy has thresholds for these products, and no times)" in why


def test_the_shipped_policy_splits_a_llama_s_layers() -> None:
    layers = Counter(
        {
            LayerShape("gate_up", 14336, 4096, TOKENS, "FP16", True): 64,
            LayerShape("down", 4096, 14336, TOKENS, "FP16", True): 32,
        }
    )
    profiles, why = split_profile(
        _profile((1, 1024, 4096)), Split("batch"), DIMS, layers, find_policy("a100-80gb")
    )
    assert _batches(profiles) == [(1, 16, 255), (256, 1024, 4096)]
    assert "at 256 (gate_up): one profile would lose" in why


# ---- laws


@st.composite
def cases(draw: st.DrawFn) -> tuple[Policy, Counter[LayerShape], Profile, Traffic | None]:
    kinds = draw(st.lists(st.sampled_from(["gate_up", "down", "qkv", "o", "ffn"]), unique=True, max_size=5))
    points: list[Point] = []
    layers: Counter[LayerShape] = Counter({_product("other", choosable=False): 1})
    for kind in kinds:
        speedups = {m: draw(st.sampled_from([0.5, 0.9, 1.01, 1.1, 2.0])) for m in SIZES}
        points += _points(kind, speedups.__getitem__)
        layers[_product(kind)] += draw(st.integers(1, 9))
    batch = sorted(draw(st.tuples(*[st.integers(1, 5000)] * 3)))
    seq = sorted(draw(st.tuples(*[st.integers(1, 4)] * 3)))
    histogram = draw(st.dictionaries(st.integers(1, 20_000), st.floats(0.01, 100), max_size=8))
    served = [m for m in histogram if batch[0] * seq[0] <= m <= batch[2] * seq[2]]
    traffic = Traffic(tuple(sorted(histogram.items()))) if served else None
    return (
        _policy(*points),
        layers,
        _profile((batch[0], batch[1], batch[2]), (seq[0], seq[1], seq[2])),
        traffic,
    )


def _lost(losses: Losses, ranges: list[tuple[int, int, int]]) -> float:
    return sum(losses.of(low, high, opt) for low, opt, high in ranges)


@given(cases())
def test_splitting_covers_the_axis_and_never_loses(
    case: tuple[Policy, Counter[LayerShape], Profile, Traffic | None],
) -> None:
    policy, layers, whole, traffic = case
    profiles, why = split_profile(whole, Split("batch", traffic), DIMS, layers, policy)
    made = _batches(profiles)
    low, _, high = _batches((whole,))[0]
    assert 1 <= len(profiles) <= MOST_PARTS
    assert (made[0][0], made[-1][2]) == (low, high)
    assert all(a[2] + 1 == b[0] for a, b in pairwise(made))
    assert all(a <= opt <= b for a, opt, b in made)
    assert len({profile.name for profile in profiles}) == len(profiles)
    assert all(
        (p.inputs["ids"].min[1], p.inputs["ids"].opt[1], p.inputs["ids"].max[1])
        == (whole.inputs["ids"].min[1], whole.inputs["ids"].opt[1], whole.inputs["ids"].max[1])
        for p in profiles
    )
    assert ("not split" in why) == (len(profiles) == 1)
    if low == high:
        return
    axis = axis_of(whole, "batch", DIMS)
    crossovers = [size for size, _ in find_crossovers(axis, layers, policy)]
    assert {a for a, _, _ in made[1:]} <= set(crossovers)
    if crossovers:
        placed: Weighted = place_traffic(axis, TOKENS, traffic, whole, DIMS)[0] if traffic else ()
        losses = measure_losses(axis, layers, policy, [low, *crossovers], placed)
        one = _lost(losses, [(low, opt_size(axis, low, high, placed), high)])
        gained = one - _lost(losses, made)
        assert gained >= (len(made) - 1) * LEAST_GAIN * losses.total * 0.999


@given(
    st.integers(1, 7),
    st.integers(1, 5),
    st.floats(0, 3),
    st.randoms(use_true_random=False),
)
def test_the_cuts_are_the_best_of_all(segments: int, most: int, price: float, random: Random) -> None:
    table = {(i, j): random.uniform(0, 4) for i in range(segments) for j in range(i, segments)}

    def cost(cuts: tuple[int, ...]) -> float:
        bounds = [0, *cuts, segments]
        return sum(table[a, b - 1] for a, b in pairwise(bounds)) + price * len(cuts)

    every = [cuts for count in range(most) for cuts in combinations(range(1, segments), count)]
    chosen = choose_cuts(segments, lambda i, j: table[i, j], price, most)
    assert chosen in every
    assert cost(chosen) == pytest.approx(min(map(cost, every)))


def test_a_cut_that_gains_nothing_is_not_made_even_for_free() -> None:
    assert choose_cuts(5, lambda i, j: float(j - i + 1), 0.0) == ()


# ---- what a choice loses


def _losses(traffic: Weighted = ()) -> Losses:
    axis = axis_of(_profile((1, 100, 4096)), "batch", DIMS)
    return measure_losses(axis, LAYERS, TWO, [1, 8, 16, 256], traffic)


def test_a_loss_is_the_time_that_the_other_kernel_would_have_saved() -> None:
    traffic = [(8, 3.0), (64, 1.0), (512, 2.0)]
    losses = _losses(traffic)

    def us(kind: str, m: int, sparse: bool) -> float:
        times = expect(TWO, Gemm(kind, N[kind], 64, "FP16"), m)
        assert times
        return times.sparse_us if sparse else times.dense_us

    best = sum(
        weight * (2 * min(us("gate_up", m, True), us("gate_up", m, False))
                  + min(us("down", m, True), us("down", m, False)))
        for m, weight in traffic
    )  # fmt: skip
    assert losses.total == pytest.approx(best)
    # the kernels that win at 64: gate_up sparse, which is wrong at 8; down dense, which is wrong at 512
    wrong = 3 * 2 * (us("gate_up", 8, True) - us("gate_up", 8, False))
    wrong += 2 * (us("down", 512, False) - us("down", 512, True))
    assert losses.of(1, 4096, 64) == pytest.approx(wrong)
    assert losses.of(16, 255, 64) == 0


def test_where_tensorrt_took_a_dense_tactic_a_sparse_one_counts_with_its_own_time() -> None:
    """A profile has one tactic: the sparse one of its opt is not given up at the M where dense is faster."""
    losses = {}
    for told, slower in (("sparse tactic 30.0 µs, best dense tactic 20.0 µs)", 1.5), ("", LEAST)):
        points = [
            p.model_copy(update={"tactic": f"gemm {TOOK_DENSE}; in the builder's log: best {told}"})
            if p.kernel == "sparse" and p.m >= 256
            else p
            for p in _points("gate_up", lambda m: 2 if m < 256 else 1)
        ]
        axis = axis_of(_profile((1, 64, 4096)), "batch", DIMS)
        product = Counter({_product("gate_up"): 1})
        found = measure_losses(axis, product, _policy(*points), [1, 4096], [(64, 1.0), (4096, 1.0)])
        dense = 4096 * N["gate_up"] * 64 / 1000
        losses[slower] = found.of(1, 4096, 64) / dense
    assert losses == {1.5: pytest.approx(0.5), LEAST: pytest.approx(LEAST - 1)}


def test_decode_and_prefill_of_a_llama_on_an_h200_are_split() -> None:
    layers = Counter({LayerShape("gate_up", 28672, 4096, TOKENS, "FP16", True): 1})
    both = Traffic(((64, 60.0), (4096, 40.0)))
    profiles, why = split_profile(
        _profile((1, 64, 4096)), Split("batch", both), DIMS, layers, find_policy("h200")
    )
    (_, decode, until), (begin, prefill, _) = _batches(profiles)
    assert (decode, prefill) == (64, 4096)
    assert 64 <= until < begin <= 256
    assert "one profile would lose" in why


def test_without_traffic_every_octave_counts_alike() -> None:
    losses = _losses()
    assert losses.total == pytest.approx(math.log2(4097))
    # up to 8 both are 1.5 times slower sparse: half as much again in each of 3 octaves
    assert losses.of(1, 7, 4096) == pytest.approx(3 * 0.5)


def test_a_layer_of_unknown_m_and_one_beyond_the_axis_change_nothing() -> None:
    axis = axis_of(_profile((1, 100, 4096)), "batch", DIMS)
    more = Counter({**LAYERS, _product("down", m=SymbolicM((None,))): 5})
    assert find_crossovers(axis, more, TWO) == ((16, ("gate_up",)), (256, ("down",)))
    assert measure_losses(axis, more, TWO, [1, 8, 16, 256]).of(1, 4096, 64) == _losses().of(1, 4096, 64)
    fixed = Counter({_product("gate_up", m=SymbolicM((4096,))): 1, **LAYERS})
    assert find_crossovers(axis, fixed, TWO) == ((16, ("gate_up",)), (256, ("down",)))
