"""The shipped policies' figures, as docs/AUTOTUNED_POLICY.md gives them."""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import Any

import pytest

from sparseflow_trt.lookup import judge, sparse_ranges
from sparseflow_trt.plugin_lookup import plugin_known
from sparseflow_trt.policy import Pair, Policy, find_policy, pairs_by_shape
from tests.pages import RESULTS, ROOT, prose, result_of

PAGE = "docs/AUTOTUNED_POLICY.md"
PROSE = prose(PAGE)
COLUMNS = (("BF16", 1024), ("BF16", 4096), *(("FP16", m) for m in (16, 64, 256, 1024, 4096)))
MLPS = [(14336, 4096), (28672, 4096), (4096, 14336), (28672, 8192), (57344, 8192), (8192, 28672)]
_ROW = re.compile(r"^\| (\d+)→(\d+) \(.+?\) \| (.+) \|$", re.MULTILINE)


@pytest.fixture
def ship(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that makes shipped policies."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("ship_policy")


def pairs_of(dtype: str) -> dict[tuple[int, int], dict[int, Pair]]:
    points = find_policy("h200").points
    return pairs_by_shape(p for p in points if p.dtype == dtype and p.library == "torch")


def taken(policy: Policy, n: int, k: int, dtype: str) -> str:
    """The M at which sparse is taken, as the table has it: the last range has no end."""
    kind = next((p.kind for p in policy.points if (p.n, p.k) == (n, k)), "")
    if not kind:
        return "–"
    ranges = [r for r in sparse_ranges(policy, kind, n, k, dtype, 1, 16384, "torch") if r[2]]
    assert ranges[-1][1] == 16384
    words = [f"{low} to {high}" if low < high else str(low) for low, high, _ in ranges[:-1]]
    return ", ".join([*words, f"{ranges[-1][0]} on"])


def test_the_table_of_the_h200_is_what_its_policy_holds() -> None:
    h200, a100 = find_policy("h200"), find_policy("a100-80gb")
    rows = _ROW.findall((ROOT / PAGE).read_text(encoding="utf-8"))
    assert len(rows) == 10
    for k, n, cells in rows:
        shape = int(n), int(k)
        speedups = [f"{pairs_of(dtype)[shape][m].speedup:.2f}×" for dtype, m in COLUMNS]
        expected = [
            taken(a100, *shape, "FP16"), taken(h200, *shape, "BF16"), *speedups[:2],
            taken(h200, *shape, "FP16"), *speedups[2:],
        ]  # fmt: skip
        assert cells.split(" | ") == expected


def test_what_the_page_says_of_mlps() -> None:
    said = {}
    for dtype in ("FP16", "BF16"):
        pairs = pairs_of(dtype)
        few = [p.speedup for s in MLPS for m, p in pairs[s].items() if m <= 64]
        said[dtype] = f"{min(few):.2f} to {max(few):.2f}"
    assert f"at M=1 to 64 by {said['FP16']} times. In BF16 they lose there, at {said['BF16']} times" in PROSE
    margin = find_policy("h200").margin
    fp16, bf16 = pairs_of("FP16"), pairs_of("BF16")
    lost = [m for shape in MLPS for m, pair in fp16[shape].items() if not pair.wins(margin)]
    count = sum(len(fp16[shape]) for shape in MLPS)
    assert f"win at all but {len(lost)} of {count} measured M" in PROSE
    highest = max(m for shape in MLPS for m, pair in bf16[shape].items() if not pair.wins(margin))
    assert f"win at every measured M above {highest}" in PROSE


def test_the_step_that_the_page_shows() -> None:
    pairs = pairs_of("BF16")[28672, 8192]
    sparse, dense = (
        [round(getattr(pairs[m], side).us) for m in (256, 264, 512)] for side in ("sparse", "dense")
    )
    assert f"takes {sparse[0]} µs at M=256, {sparse[1]} at 264 and {sparse[2]} at 512" in PROSE
    assert f"where dense takes {dense[0]}, {dense[1]} and {dense[2]}" in PROSE


def test_what_the_page_says_of_thresholds() -> None:
    given = [t for t in find_policy("h200").thresholds if t.library == "torch"]
    assert all(t.max_m is None for t in given)
    begins = {(t.kind, t.dtype): t.min_m for t in given}
    fp16, bf16 = (begins["gate_up", dtype] for dtype in ("FP16", "BF16"))
    assert f"begin at M={fp16} (FP16) and {bf16} (BF16) for gate and up" in PROSE
    fp16, bf16 = (begins["down", dtype] for dtype in ("FP16", "BF16"))
    assert f"at {fp16} (FP16) and {bf16} (BF16) for down" in PROSE
    assert (begins["o", "FP16"], begins["o", "BF16"]) == (16384, 16384)
    assert (begins["qkv", "FP16"], begins["qkv", "BF16"]) == (None, None)


def test_the_page_counts_what_the_policy_holds() -> None:
    counts = {dtype: sum(map(len, pairs_of(dtype).values())) for dtype in ("BF16", "FP16")}
    assert f"{counts['BF16']} products in BF16 and {counts['FP16']} in FP16, 35 shapes in each" in PROSE
    assert len(pairs_of("BF16")) == len(pairs_of("FP16")) == 35


def test_the_h200s_policy_is_what_the_journals_make(ship: ModuleType) -> None:
    assert ship.policy_to_ship("h200") == find_policy("h200")


def test_the_margin_is_the_least_that_loses_next_to_nothing_left_out(ship: ModuleType) -> None:
    h200 = find_policy("h200")
    gains = {m: ship.gains_left_out(h200, m) for m in (0.02, h200.margin)}
    lost = {m: sum(gain < ship.LEAST for gain in found) for m, found in gains.items()}
    assert ship.share_lost(gains[h200.margin]) < ship.MOST_LOST <= ship.share_lost(gains[0.02])
    apart = ship.gains_apart(h200, h200.margin)
    assert f"{lost[h200.margin]} of {len(gains[0.02]):,} at 5 %, {lost[0.02]} at 2 %;" in PROSE
    count = sum(gain < ship.LEAST for gain in apart)
    assert f"of {len(apart):,} products that are asked of the other shapes alone {count} are lost" in PROSE
    assert h200.wave == 132 * 64 * 128


def row_of(found: dict[str, Any]) -> str:
    return " | ".join(
        [str(found["cases"]), str(found["taken sparse"]), f"{found['worst dense/policy']:.3f}",
         str(found["below 0.98"]), f"{found['mean dense/policy']:.3f}", f"{found['mean oracle/policy']:.3f}"]
    )  # fmt: skip


def test_the_held_out_figures_are_those_of_the_result() -> None:
    result = result_of("policy_holdout")
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    for name, found in (
        ("all", result),
        ("tuned shapes, other M", result["by basis"]["exact"]),
        ("other shapes", result["by basis"]["nearest"]),
        ("with a margin of 2 %", result["by margin"]["0.02"]),
    ):
        assert f"| {name} | {row_of(found)} |" in text


@pytest.mark.parametrize("kind", ["gate_up", "down", "qkv", "o", "ffn", "conv"])
def test_tensorrt_on_an_h200_is_planned_dense(kind: str) -> None:
    policy = find_policy("h200")
    for n, k in ((14336, 4096), (4096, 14336), (5632, 2048), (768, 768)):
        for m in (1, 64, 1024, 16384):
            assert not judge(policy, kind, n, k, m, "FP16").sparse


def plugin_cells() -> list[dict[str, Any]]:
    names = sorted(path.stem for path in RESULTS.glob("plugin_linear_*.json"))
    return [cell for name in names for cell in result_of(name)["cells"]]


def test_no_product_that_the_policy_puts_into_the_plugin_is_slower_there() -> None:
    h200 = find_policy("h200")
    estimates = tuple(point for point in h200.points if point.library == "torch")

    def takes(policy: Policy, cell: dict[str, Any]) -> bool:
        known = plugin_known(policy, cell["layer"], cell["n"], cell["k"], "FP16")
        return known.judge(cell["m"]).sparse

    taken_at = [cell["speedup"] for cell in plugin_cells() if takes(h200, cell)]
    assert min(taken_at) >= 1
    without = h200.model_copy(update={"points": estimates})
    missed = [c["speedup"] for c in plugin_cells() if takes(h200, c) and not takes(without, c)]
    assert f"By estimates alone it would take {sum(takes(without, c) for c in plugin_cells())}:" in PROSE
    assert f"which gain {min(missed):.2f} to {max(missed):.2f} times, would not be among them" in PROSE
    share = f"takes the plugin in {len(taken_at)} of these {len(plugin_cells())} products"
    assert f"{share}, the least gain {min(taken_at):.2f} times" in PROSE


def test_what_an_estimate_of_the_plugin_is_worth() -> None:
    pairs = pairs_of("FP16")
    off = [c["speedup"] / pairs[c["n"], c["k"]][c["m"]].speedup for c in plugin_cells()]
    assert f"was {min(off):.2f} to {max(off):.2f} times what the estimate said" in PROSE
