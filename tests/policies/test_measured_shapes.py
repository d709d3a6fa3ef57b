"""What a policy measured of each shape, and at which M a lookup takes sparse there."""

from __future__ import annotations

import pytest

from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import judge
from sparseflow_trt.policies.measured_shapes import MeasuredShape, measured_shapes
from sparseflow_trt.policies.policy import Point, SparseKernel, find_policy
from tests.made_policies import make_points, make_policy


def _of(points: list[Point]) -> tuple[MeasuredShape, ...]:
    return measured_shapes(make_policy(points), points)


def test_ranges_of_m_at_which_sparse_wins() -> None:
    (row,) = _of(make_points("o", 64, 32, {1: 1.5, 8: 1.2, 16: 1.0, 32: 1.3, 64: 0.9, 128: 2.0, 256: 1.9}))
    assert row.wins == ((1, 8), (32, 32), (128, 256))
    assert row.won == 5
    assert row.sizes == (1, 8, 16, 32, 64, 128, 256)
    assert (row.kinds, row.n, row.k, row.library, row.dtype, row.kernel) == (
        ("o",), 64, 32, "tensorrt", "FP16", "sparse",
    )  # fmt: skip
    assert row.best is not None
    assert (row.best.dense.m, row.best.speedup) == (128, 2.0)
    (none,) = _of(make_points("o", 64, 32, {1: 0.5}))
    assert (none.wins, none.won) == ((), 0)


@pytest.mark.parametrize("kernel", ["sparse", "plugin"])
def test_between_measured_m_it_has_to_be_sure(kernel: SparseKernel) -> None:
    points = [
        p.model_copy(update={"kernel": kernel}) if p.kernel == "sparse" else p
        for p in make_points("o", 64, 32, {1: 1.5, 8: 1.5})
    ]
    grown = [p.model_copy(update={"us": 4 * p.us}) if p.m == 8 else p for p in points]
    policy = make_policy(grown).model_copy(update={"wave": None})  # the larger of two counts for all between
    (row,) = measured_shapes(policy, grown)
    assert (row.kernel, row.wins, row.won) == (kernel, ((1, 1), (8, 8)), 2)


def test_rows_are_of_one_shape_type_library_and_kernel() -> None:
    both = [p for kind in ("o", "qkv") for p in make_points(kind, 64, 64, {8: 2.0})]
    plugin = [p.model_copy(update={"kernel": "plugin"}) for p in both[1:2]]
    alone = make_points("adapter", 64, 32, {4: 1.0})[:1]
    others = [
        *make_points("o", 64, 64, {8: 2.0}, "BF16"),
        *make_points("down", 8, 64, {8: 1.0}, "BF16", "torch"),
    ]
    rows = _of([*alone, *both, *plugin, *others])
    assert [(row.kinds, row.library, row.dtype, row.kernel) for row in rows] == [
        (("down",), "torch", "BF16", "sparse"),
        (("qkv", "o"), "tensorrt", "FP16", "sparse"),
        (("qkv", "o"), "tensorrt", "FP16", "plugin"),
        (("o",), "tensorrt", "BF16", "sparse"),
        (("adapter",), "tensorrt", "FP16", None),
    ]
    assert (rows[-1].sizes, rows[-1].wins, rows[-1].won, rows[-1].best) == ((4,), (), 0, None)


def test_the_ranges_are_the_lookups() -> None:
    policy = find_policy("h100")
    rows = [row for row in measured_shapes(policy, policy.points) if row.library == "torch"]
    assert len(rows) == 70
    for row in rows[::9]:
        taken = {m: any(low <= m <= high for low, high in row.wins) for m in (*row.sizes, 150, 790, 2100)}
        assert sum(taken[m] for m in row.sizes) == row.won
        for m, sparse in taken.items():
            assert judge(policy, Gemm(row.kinds[0], row.n, row.k, row.dtype), m, row.library).sparse == sparse
    assert any(low < 2100 < high for row in rows for low, high in row.wins)
