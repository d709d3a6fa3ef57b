"""The shipped policies' figures, as docs/AUTOTUNED_POLICY.md gives them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparseflow_trt.lookup import judge, sparse_ranges
from sparseflow_trt.policy import find_policy, pairs_by_shape

DOCS = Path(__file__).parent.parent / "docs" / "AUTOTUNED_POLICY.md"
_ROW = re.compile(
    r"^\| (?P<k>\d+)→(?P<n>\d+) \(.+\) \| (?:\d+|–) \| (?P<start>\d+)"
    r" \| (?P<at_1024>[\d.]+)× \| (?P<at_4096>[\d.]+)× \|$",
    re.MULTILINE,
)


def test_the_table_of_the_h200_is_what_its_policy_holds() -> None:
    policy = find_policy("h200")
    pairs = pairs_by_shape([p for p in policy.points if p.dtype == "BF16" and p.library == "torch"])
    rows = list(_ROW.finditer(DOCS.read_text(encoding="utf-8")))
    assert len(rows) == 7
    for row in rows:
        n, k = int(row["n"]), int(row["k"])
        for m, said in ((1024, row["at_1024"]), (4096, row["at_4096"])):
            assert f"{pairs[n, k][m].speedup:.2f}" == said, (k, n, m)
        kind = next(p.kind for p in policy.points if (p.n, p.k) == (n, k))
        *_, last = sparse_ranges(policy, kind, n, k, "BF16", 1, 16384, "torch")
        assert last == (int(row["start"]), 16384, True), (k, n)


@pytest.mark.parametrize("kind", ["gate_up", "down", "qkv", "o", "ffn", "conv"])
def test_tensorrt_on_an_h200_is_planned_dense(kind: str) -> None:
    policy = find_policy("h200")
    for n, k in ((14336, 4096), (4096, 14336), (5632, 2048), (768, 768)):
        for m in (1, 64, 1024, 16384):
            assert not judge(policy, kind, n, k, m, "FP16").sparse
