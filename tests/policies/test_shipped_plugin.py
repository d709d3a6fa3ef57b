"""What the shipped policies hold of the plugin and estimate of it, as docs/AUTOTUNED_POLICY.md gives it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.plugin_lookup import plugin_known
from sparseflow_trt.policies.policy import Policy, find_policy
from tests.pages import RESULTS, ROOT, prose, result_of
from tests.policies.conftest import pairs_of

PAGE = "docs/AUTOTUNED_POLICY.md"
PROSE = prose(PAGE)


def plugin_cells(folder: str = "") -> list[dict[str, Any]]:
    names = sorted(path.stem for path in (RESULTS / folder).glob("plugin_linear_*.json"))
    found = [cell for name in names for cell in result_of(f"{folder}{name}")["cells"]]
    return [cell for cell in found if cell["m"] % 8 == 0]


def takes_plugin(policy: Policy, cell: dict[str, Any]) -> bool:
    known = plugin_known(policy, Gemm(cell["layer"], cell["n"], cell["k"], "FP16"))
    return known.judge(cell["m"]).sparse


def test_the_h100s_plugin() -> None:
    h100, cells = find_policy("h100"), plugin_cells("h100/")
    taken_at = [cell["speedup"] for cell in cells if takes_plugin(h100, cell)]
    assert len(taken_at) == len(cells)
    assert f"takes it in all {len(cells)}, with a smallest gain of {min(taken_at):.2f} times" in PROSE


def test_no_product_that_the_policy_puts_into_the_plugin_is_slower_there() -> None:
    h200 = find_policy("h200")
    estimates = tuple(point for point in h200.points if point.library == "torch")
    taken_at = [cell["speedup"] for cell in plugin_cells() if takes_plugin(h200, cell)]
    assert min(taken_at) >= 1
    left = [(c["layer"], c["k"], c["m"]) for c in plugin_cells() if not takes_plugin(h200, c)]
    assert left == [("down", 5632, 16), ("down", 5632, 64)]
    assert "in all but TinyLlama's `down` at M=16 and 64" in prose("docs/PLUGIN.md")
    without = h200.model_copy(update={"points": estimates})
    missed = [c["speedup"] for c in plugin_cells() if takes_plugin(h200, c) and not takes_plugin(without, c)]
    alone = sum(takes_plugin(without, cell) for cell in plugin_cells())
    assert f"By cuSPARSELt's times alone it would take {alone} (" in PROSE
    assert "It would miss LLaMA-8B's down at M=256, " in PROSE
    assert f"which gain {min(missed):.2f} to {max(missed):.2f} times." in PROSE
    assert f"{len(taken_at)} of the {len(plugin_cells())} products measured there" in prose("README.md")
    share = f"takes the plugin in {len(taken_at)} of these {len(plugin_cells())} products"
    assert f"{share}, with a smallest gain of {min(taken_at):.2f} times" in PROSE


@pytest.mark.parametrize("name", ["h200", "h100"])
def test_one_row_beyond_the_plugins_points_no_more_is_promised(name: str) -> None:
    policy = find_policy(name)
    layers = {(p.kind, p.n, p.k, p.dtype) for p in policy.points if p.kernel == "plugin"}
    assert len(layers) >= 2
    for layer in layers:
        known = plugin_known(policy, Gemm(*layer))
        low, high = min(known.own.pairs), max(known.own.pairs)
        for last, first in ((low, low - 1), (high, high + 1)):
            found = known.expect(first)
            assert found is not None
            assert found.speedup <= known.own.pairs[last].speedup * (1 + 1e-9)


def test_what_an_estimate_of_the_plugin_is_worth() -> None:
    gains: dict[str, list[float]] = {}
    longer = []
    for name, folder in (("h200", ""), ("h100", "h100/")):
        pairs = pairs_of("FP16", name)
        for cell in plugin_cells(folder):
            timed = pairs[cell["n"], cell["k"]][cell["m"]]
            gains.setdefault(name, []).append(cell["speedup"] / timed.speedup)
            longer += [cell["plugin_us"] / timed.sparse.us] if name == "h200" else []
    h200, h100 = gains["h200"], gains["h100"]
    for words, found in (
        ("the plugin's time over cuSPARSELt's in PyTorch, H200", longer),
        ("the plugin's gain over TensorRT's dense kernel, over what cuBLAS's times say, H200", h200),
        ("the same, H100", h100),
    ):
        assert f"| {words} | {len(found)} | {min(found):.2f} | {max(found):.2f} |" in PROSE
    assert f"**It loses nothing on these {len(h200) + len(h100)} products**" in PROSE
    worst, second, *_ = sorted(h200 + h100)
    assert f"all but one of {len(h200) + len(h100)} estimates were off by at most {1 - second:.0%}" in (
        PROSE.replace(" %", "%")
    )
    estimated = pairs_of("FP16", "h200")[8192, 28672][128].speedup
    cell = next(c for c in plugin_cells() if (c["k"], c["m"]) == (28672, 128))
    assert cell["speedup"] / estimated == worst
    assert f"down at M=128, estimated to gain {estimated:.2f} times, gains {cell['speedup']:.2f}" in PROSE


@pytest.mark.parametrize(("name", "folder"), [("h200", ""), ("h100", "h100/")])
def test_what_is_left_out_of_what_is_known_of_the_plugin_loses_nothing(
    ship: ModuleType, name: str, folder: str
) -> None:
    said, policy = result_of(f"{folder}ship_policy")["the plugin, without"], find_policy(name)
    assert said.keys() == ship.WITHOUT.keys()
    for what, left_out in ship.WITHOUT.items():
        gains = ship.gains_in_plugin(policy, left_out)
        assert ship.summary(gains) == said[what]
        assert min(gain for gain in gains if gain != 1) >= 1.11, "as the page says"
    assert "**It loses nothing on these" in PROSE
    assert "The products that it takes gain at least 1.11 times" in PROSE
    if name == "h200":
        without = [said[what]["taken"] for what in ("TensorRT's points of that M", "the plugin's points")]
        said_of = "{} without TensorRT's times at that M, {} without the plugin's points"
        assert said_of.format(*without) in PROSE


@pytest.mark.parametrize(
    ("m", "state", "layers"),
    [
        (64, "yes", [("gate_up", 28672, 4096, 1), ("down", 4096, 14336, 1)]),
        (2048, "no", [("gate_up", 28672, 4096, 1), ("down", 4096, 14336, 1), ("qkv", 6144, 4096, 1),
                      ("o", 4096, 4096, 1)]),
    ],
)  # fmt: skip
def test_the_estimates_that_the_page_shows(
    m: int, state: str, layers: list[tuple[str, int, int, int]]
) -> None:
    h200, page = find_policy("h200"), (ROOT / PAGE).read_text(encoding="utf-8")
    rows = []
    for kind, n, k, count in layers:
        known = plugin_known(h200, Gemm(kind, n, k, "FP16"))
        times = known.expect(m)
        assert times is not None
        assert (times.basis, times.at) == ("exact", "measured")
        basis = "estimated" if known.at(m).library == "torch" else "measured"
        rows.append((kind, n, k, count, times, basis, "yes" if times.wins else "no"))
    total = sum(count * times.dense_us for _, _, _, count, times, _, _ in rows)
    for kind, n, k, count, times, basis, worth in rows:
        share = count * times.dense_us / total
        cells = [kind, str(n), str(k), str(count), str(m), "FP16", state, f"{times.dense_us:.2f}"]
        cells += [f"{times.sparse_us:.2f}", f"{times.speedup:.2f}×", f"{share:.1%}", basis, worth]
        assert cells in [line.split() for line in page.splitlines()]
