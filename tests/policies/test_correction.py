"""What TensorRT's points of a shape say of PyTorch's, from M to M."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.policies.correction import correction_of
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import known_of
from sparseflow_trt.policies.plugin_lookup import plugin_known
from sparseflow_trt.policies.policy import Pair, Point, find_policy, pairs_by_m
from tests.made_policies import make_points, make_policy

SHAPE = ("gate_up", 4096, 2048)
SIZES = st.sampled_from([8 << i for i in range(10)])
TIMES = st.dictionaries(SIZES, st.tuples(st.floats(5, 500), st.floats(5, 500)), min_size=1)


def in_torch(times: dict[int, tuple[float, float]]) -> list[Point]:
    """cuBLAS's and cuSPARSELt's, in microseconds, by M."""
    both = make_points(*SHAPE, dict.fromkeys(times, 1.0), library="torch")
    return [p.model_copy(update={"us": times[p.m][p.kernel != "dense"]}) for p in both]


def in_tensorrt(times: dict[int, tuple[float, float]], plugin: bool = True) -> list[Point]:
    """The dense kernel's and the plugin's."""
    points = [p.model_copy(update={"library": "tensorrt"}) for p in in_torch(times)]
    kept = [p if p.kernel == "dense" else p.model_copy(update={"kernel": "plugin"}) for p in points]
    return [p for p in kept if plugin or p.kernel == "dense"]


def corrected(points: list[Point], m: int) -> Pair:
    correction = correction_of(points)
    assert correction is not None
    return correction.pair(m, pairs_by_m(p for p in points if p.library == "torch")[m])


@given(TIMES, TIMES)
def test_where_both_were_timed_it_is_tensorrts_time(
    torch: dict[int, tuple[float, float]], there: dict[int, tuple[float, float]]
) -> None:
    points = [*in_torch(torch), *in_tensorrt(there)]
    if not torch.keys() & there.keys():
        assert correction_of(points) is None
        return
    for m in torch.keys() & there.keys():
        pair = corrected(points, m)
        assert (pair.dense.us, pair.sparse.us) == pytest.approx(there[m])


@given(TIMES, TIMES, SIZES)
def test_elsewhere_it_is_off_by_no_more_than_beside_it(
    torch: dict[int, tuple[float, float]], there: dict[int, tuple[float, float]], m: int
) -> None:
    correction = correction_of([*in_torch(torch), *in_tensorrt(there)])
    if correction is None:
        return
    ratios = [there[at][0] / torch[at][0] for at in torch.keys() & there.keys()]
    pair = correction.pair(m, Pair(*in_torch({m: (10.0, 10.0)})))
    assert min(ratios) * (1 - 1e-9) <= pair.dense.us / 10 <= max(ratios) * (1 + 1e-9)
    assert correction.gain(m) == pytest.approx(pair.speedup)


def test_between_two_it_lies_on_the_line_log_over_log_and_beyond_the_ends_it_stays() -> None:
    torch = dict.fromkeys((64, 128, 256, 512), (10.0, 10.0))
    points = [*in_torch(torch), *in_tensorrt({128: (11.0, 10.0), 256: (12.0, 10.0)})]
    found = {m: corrected(points, m).speedup for m in torch}
    assert found == pytest.approx({64: 1.1, 128: 1.1, 256: 1.2, 512: 1.2})
    correction = correction_of(points)
    assert correction is not None
    assert correction.gain(181) == pytest.approx(math.sqrt(1.1 * 1.2), rel=1e-3)
    assert [(p.kernel, p.m) for p in correction.behind(181)] == [
        ("dense", 128), ("dense", 256), ("plugin", 128), ("plugin", 256),
    ]  # fmt: skip
    assert [(p.kernel, p.m) for p in correction.behind(512)] == [("dense", 256), ("plugin", 256)]


def test_without_the_plugins_points_cusparselt_counts_as_it_was_timed() -> None:
    torch = dict.fromkeys((64, 128), (10.0, 10.0))
    points = [*in_torch(torch), *in_tensorrt({64: (13.0, 1.0)}, plugin=False)]
    pair = corrected(points, 128)
    assert (pair.dense.us, pair.sparse.us) == pytest.approx((13.0, 10.0))
    verdict = plugin_known(make_policy(points), Gemm(*SHAPE, "FP16")).judge(128)
    assert verdict.sparse
    assert verdict.reason.startswith(
        "the plugin wins at M=128: 1.30× reckoned (2048→4096, estimated from cuSPARSELt against TensorRT's"
    )
    shown = [(p.library, p.kernel, p.m, p.us) for p in verdict.points]
    assert shown == [
        ("torch", "dense", 128, 10.0), ("torch", "sparse", 128, 10.0), ("tensorrt", "dense", 64, 13.0),
    ], "points are shown as they were measured"  # fmt: skip


def test_tensorrts_own_sparse_kernels_are_no_measure_of_the_plugin() -> None:
    torch = in_torch(dict.fromkeys((64, 128), (10.0, 10.0)))
    own = [p.model_copy(update={"library": "tensorrt"}) for p in in_torch({64: (10.0, 30.0)})]
    assert corrected([*torch, *own], 128).sparse.us == 10.0


def test_what_was_learned_between_measured_rows_is_corrected_as_they_are() -> None:
    policy = find_policy("h200")  # of whose TensorRT products 2048→2560 is one with no point of the plugin
    in_pytorch = known_of(policy, Gemm("qkv", 2560, 2048, "FP16"), "torch")
    known = plugin_known(policy, Gemm("qkv", 2560, 2048, "FP16"))
    assert known.own.guess is not None and known.own.correction is not None
    assert 1200 not in known.own.pairs
    (sure,), (raw,) = (each.own.sure(known.own.guess, [1200]) for each in (known, in_pytorch))
    assert sure == pytest.approx(raw * known.own.correction.gain(1200))
    verdict = known.judge(1200)
    assert verdict.sparse
    assert not in_pytorch.judge(1200).sparse
