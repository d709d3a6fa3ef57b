"""The shipped policies' figures, as docs/AUTOTUNED_POLICY.md gives them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from sparseflow_trt.engines.journal import read_journal
from sparseflow_trt.engines.measured_policy import policy_from_journal
from sparseflow_trt.lookup import judge, sparse_ranges
from sparseflow_trt.policy import Pair, Policy, find_policy, pairs_by_shape

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "AUTOTUNED_POLICY.md"
_ROW = re.compile(
    r"^\| (?P<k>\d+)→(?P<n>\d+) \(.+\) \| (?P<a100>\d+|–)"
    r" \| (?P<bf16>[^|]+) \| (?P<bf16_1024>[\d.]+)× \| (?P<bf16_4096>[\d.]+)×"
    r" \| (?P<fp16>[^|]+) \| (?P<fp16_64>[\d.]+)× \| (?P<fp16_512>[\d.]+)× \| (?P<fp16_4096>[\d.]+)× \|$",
    re.MULTILINE,
)


def pairs_of(dtype: str) -> dict[tuple[int, int], dict[int, Pair]]:
    points = find_policy("h200").points
    return pairs_by_shape(p for p in points if p.dtype == dtype and p.library == "torch")


def taken(policy: Policy, n: int, k: int, dtype: str) -> str:
    """The M at which sparse is taken, as the table has it: the last range has no end."""
    kind = next(p.kind for p in policy.points if (p.n, p.k) == (n, k))
    ranges = [r for r in sparse_ranges(policy, kind, n, k, dtype, 1, 16384, "torch") if r[2]]
    assert ranges[-1][1] == 16384
    return ", ".join([*(f"{low} to {high}" for low, high, _ in ranges[:-1]), str(ranges[-1][0])])


def test_the_table_of_the_h200_is_what_its_policy_holds() -> None:
    policy = find_policy("h200")
    rows = list(_ROW.finditer(DOCS.read_text(encoding="utf-8")))
    assert len(rows) == 7
    for row in rows:
        n, k = int(row["n"]), int(row["k"])
        for column, said in row.groupdict().items():
            dtype, _, m = column.upper().partition("_")
            if m:
                assert f"{pairs_of(dtype)[n, k][int(m)].speedup:.2f}" == said, (k, n, column)
        for dtype in ("BF16", "FP16"):
            assert taken(policy, n, k, dtype) == row[dtype.lower()], (k, n, dtype)
    a100 = find_policy("a100-80gb")
    assert [taken(a100, int(r["n"]), int(r["k"]), "FP16") for r in rows if r["a100"] != "–"] == [
        r["a100"] for r in rows if r["a100"] != "–"
    ]


def test_what_the_page_says_of_small_m() -> None:
    mlps = [(14336, 4096), (28672, 4096), (4096, 14336), (28672, 8192), (57344, 8192), (8192, 28672)]
    said = {}
    for dtype in ("FP16", "BF16"):
        pairs = pairs_of(dtype)
        speedups = [
            p.speedup for s in mlps for m, p in pairs[s].items() if m <= 64 and p.sparse.low_us is not None
        ]
        said[dtype] = f"{min(speedups):.2f} to {max(speedups):.2f}"
    prose = " ".join(DOCS.read_text(encoding="utf-8").split())
    assert (
        f"are {said['FP16']} times as fast as dense at M=1 to 64 in FP16, and {said['BF16']} in BF16" in prose
    )


def test_the_h200s_fp16_points_are_those_of_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    ship = importlib.import_module("ship_h200")
    run = policy_from_journal(read_journal(ship.RUN), "h200")
    shipped = find_policy("h200")
    assert ship.with_sound_points(shipped, run) == shipped
    fp16 = [p for p in shipped.points if p.dtype == "FP16"]
    assert {p.m for p in fp16 if p.low_us} == set(ship.SOUND)
    assert {p for p in fp16 if p.low_us} == {p for p in run.points if p.m in ship.SOUND}
    assert shipped.libraries["cusparselt"] == "0.9.1 (FP16); 0.8.0 (BF16, FP16)"
    products = {(p.n, p.k, p.m, p.dtype, p.low_us is None) for p in shipped.points}
    counts = [
        sum(key[3:] == what for key in products)
        for what in (("BF16", False), ("FP16", False), ("FP16", True))
    ]
    assert counts == [274, 110, 9]


@pytest.mark.parametrize("kind", ["gate_up", "down", "qkv", "o", "ffn", "conv"])
def test_tensorrt_on_an_h200_is_planned_dense(kind: str) -> None:
    policy = find_policy("h200")
    for n, k in ((14336, 4096), (4096, 14336), (5632, 2048), (768, 768)):
        for m in (1, 64, 1024, 16384):
            assert not judge(policy, kind, n, k, m, "FP16").sparse
