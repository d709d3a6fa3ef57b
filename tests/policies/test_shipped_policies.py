"""The shipped policies' figures, as docs/AUTOTUNED_POLICY.md gives them."""

from __future__ import annotations

import math
import re
import statistics
from types import ModuleType

import pytest

from sparseflow_trt.engines.measuring.curves import Curve, Request
from sparseflow_trt.engines.measuring.search import find_crossovers
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import known_of, sparse_ranges
from sparseflow_trt.policies.policy import Policy, find_policy, policy_for_device
from tests.pages import ROOT, prose, result_of, rows
from tests.policies.conftest import pairs_of

PAGE = "docs/AUTOTUNED_POLICY.md"


PROSE = prose(PAGE)


COLUMNS = (("BF16", 1024), ("BF16", 4096), *(("FP16", m) for m in (16, 64, 256, 1024, 4096)))


MLPS = [(14336, 4096), (28672, 4096), (4096, 14336), (28672, 8192), (57344, 8192), (8192, 28672)]


CARE = ("margin", "wave", "spreads", "spreads_between")


_ROW = re.compile(r"^\| (\d+)→(\d+) \(.+?\) \| (.+) \|$", re.MULTILINE)


def test_what_a_search_of_cublaslts_algorithms_changes() -> None:
    cells = result_of("plugin_layer")["cells"]
    said = []
    for dtype in ("FP16", "BF16"):
        pairs = pairs_of(dtype)
        over = [
            pairs[cell["n"], cell["k"]][cell["m"]].speedup / cell["speedup"]
            for cell in cells
            if cell["type"] == dtype.lower()
        ]
        assert len(over) == 20
        said.append(f"{statistics.geometric_mean(over):.2f} times")
        said.append(f"({min(over):.2f} to {max(over):.2f}")
    mean, spread, other, other_spread = said
    assert (
        f"the policy's gains are {mean} what such a search leaves in FP16 {spread}) and {other} in BF16 "
        f"{other_spread}," in PROSE
    )


def test_the_cards_side_by_side() -> None:
    found = []
    for kind, n, k, words in (("gate_up", 14336, 4096, ", gate and up"), ("down", 4096, 14336, ", down")):
        for name, card in (("a100-80gb", "A100"), ("h100", "H100"), ("h200", "H200")):
            pairs = known_of(find_policy(name), Gemm(kind, n, k, "FP16"), "torch").own.pairs
            gains = [f"{pairs[m].speedup:.2f}×" for m in (256, 512, 1024, 2048, 4096)]
            first = f"{k}→{n}{words} " if card == "A100" else ""
            found.append(f"| {first}| {card} | {' | '.join(gains)} |")
    assert rows(PAGE, r"\| (\d+→\d+, (gate and up|down) )?\| [AH][12]00 \|") == found


def taken(policy: Policy, n: int, k: int, dtype: str) -> str:
    """At what share of the octaves of M sparse is taken, and from which M on at each."""
    kind = next((p.kind for p in policy.points if (p.n, p.k) == (n, k)), "")
    if not kind:
        return "–"
    ranges = [r for r in sparse_ranges(policy, Gemm(kind, n, k, dtype), 1, 16383, "torch") if r[2]]
    assert ranges[-1][1] == 16383
    octaves = sum(math.log2((high + 1) / low) for low, high, _ in ranges)
    return f"{octaves / 14:.0%}, {ranges[-1][0]} on".replace("%", " %")


@pytest.mark.parametrize("name", ["h200", "h100"])
def test_the_table_is_what_the_policy_holds(name: str) -> None:
    policy, a100 = find_policy(name), find_policy("a100-80gb")
    beside_the_a100, alone = 10, 9  # columns behind the shape's
    rows = _ROW.findall((ROOT / PAGE).read_text(encoding="utf-8"))
    columns = beside_the_a100 if name == "h200" else alone
    own = [row for row in rows if len(row[2].split(" | ")) == columns]
    assert len(own) == len(rows) / 2 == 10
    for k, n, cells in own:
        shape = int(n), int(k)
        speedups = [f"{pairs_of(dtype, name)[shape][m].speedup:.2f}×" for dtype, m in COLUMNS]
        expected = [
            *([taken(a100, *shape, "FP16")] if name == "h200" else []),
            taken(policy, *shape, "BF16"), *speedups[:2], taken(policy, *shape, "FP16"), *speedups[2:],
        ]  # fmt: skip
        assert cells.split(" | ") == expected


def few_in_readme(gpu: str, said: str) -> None:
    low, _, high = said.partition(" to ")
    assert re.search(rf"(cuBLAS, M = 1 to 64|the same) \| {gpu} \| {low}× to {high}× \|", prose("README.md"))


def test_what_the_page_says_of_mlps() -> None:
    said = {}
    for dtype in ("FP16", "BF16"):
        pairs = pairs_of(dtype)
        few = [p.speedup for s in MLPS for m, p in pairs[s].items() if m <= 64]
        said[dtype] = f"{min(few):.2f} to {max(few):.2f}"
    told = f"run {said['FP16']} times as fast at M=1 to 64. In BF16 they lose there, at {said['BF16']} times"
    assert told in PROSE
    few_in_readme("H200", said["FP16"])
    margin = find_policy("h200").margin
    fp16, bf16 = pairs_of("FP16"), pairs_of("BF16")
    lost = [m for shape in MLPS for m, pair in fp16[shape].items() if not pair.wins(margin)]
    count = sum(len(fp16[shape]) for shape in MLPS)
    assert f"win at all but {len(lost)} of {count} measured M" in PROSE
    highest = max(m for shape in MLPS for m, pair in bf16[shape].items() if not pair.wins(margin))
    assert f"win at every measured M above {highest}" in PROSE


def test_what_the_page_says_of_mlps_on_an_h100() -> None:
    margin = find_policy("h100").margin
    pairs = {
        dtype: [p for s in MLPS for p in pairs_of(dtype, "h100")[s].values()] for dtype in ("FP16", "BF16")
    }
    few = {dtype: [p.speedup for p in found if p.dense.m <= 64] for dtype, found in pairs.items()}
    assert all(pair.wins(margin) for pair in pairs["FP16"])
    assert f"win at all of {len(pairs['FP16'])} measured M**" in PROSE
    told = (
        f"run {min(few['FP16']):.2f} to {max(few['FP16']):.2f} times as fast at M=1 to 64. In BF16 they win"
    )
    assert told in PROSE
    few_in_readme("H100", f"{min(few['FP16']):.2f} to {max(few['FP16']):.2f}")
    highest = max(pair.dense.m for pair in pairs["BF16"] if not pair.wins(margin))
    assert f"win above M={highest}, and at M=1 to 64 are" in PROSE
    assert f"are {min(few['BF16']):.2f} to {max(few['BF16']):.2f} times as fast" in PROSE


def test_one_cards_policy_is_not_the_others() -> None:
    both = []
    for dtype in ("FP16", "BF16"):
        there = pairs_of(dtype)
        for shape, pairs in pairs_of(dtype, "h100").items():
            both += [(h100, there[shape][m]) for m, h100 in pairs.items() if m in there[shape]]
    margin = find_policy("h100").margin
    ratios = [h100.speedup / h200.speedup for h100, h200 in both]
    assert f"On the {len(both):,} products that were measured on both cards" in PROSE
    assert f"the gains differ by {min(ratios):.2f} to {max(ratios):.2f} times" in PROSE
    differ = sum(h100.wins(margin) != h200.wins(margin) for h100, h200 in both)
    lost = sum(h200.wins(margin) and h100.speedup < 0.98 for h100, h200 in both)
    assert f"the verdicts in {differ}: by `h200` an H100 would lose more than 2 % in {lost} of them" in PROSE


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"),
        ("NVIDIA H100 PCIe", ""), ("NVIDIA H100 NVL", ""), ("NVIDIA GH200 480GB", ""),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", ""),
    ],
)  # fmt: skip
def test_a_gpu_has_the_policy_that_was_measured_on_it(device: str, name: str) -> None:
    policy = policy_for_device(device)
    assert (policy.name if policy else "") == name


def test_the_step_that_the_page_shows() -> None:
    pairs = pairs_of("BF16")[28672, 8192]
    sparse, dense = (
        [round(getattr(pairs[m], side).us) for m in (256, 264, 512)] for side in ("sparse", "dense")
    )
    assert f"takes {sparse[0]} µs at M=256, {sparse[1]} at 264 and {sparse[2]} at 512" in PROSE
    assert f"where dense takes {dense[0]}, {dense[1]} and {dense[2]}" in PROSE


def test_what_the_page_says_of_thresholds() -> None:
    given = [t for t in find_policy("h200").thresholds if t.library == "torch"]
    assert {(t.kind, t.min_m) for t in given if t.max_m} == {("o", 16384)}
    begins = {(t.kind, t.dtype): t.min_m for t in given}
    fp16, bf16 = (begins["gate_up", dtype] for dtype in ("FP16", "BF16"))
    assert f"begin at M={fp16} (FP16) and {bf16} (BF16) for gate and up" in PROSE
    fp16, bf16 = (begins["down", dtype] for dtype in ("FP16", "BF16"))
    assert f"at {fp16} (FP16) and {bf16} (BF16) for down" in PROSE
    assert (begins["o", "FP16"], begins["o", "BF16"]) == (16384, 16384)
    assert (begins["qkv", "FP16"], begins["qkv", "BF16"]) == (None, None)


@pytest.mark.parametrize("name", ["h200", "h100"])
def test_the_page_counts_what_the_policy_holds(name: str) -> None:
    counts = {dtype: sum(map(len, pairs_of(dtype, name).values())) for dtype in ("BF16", "FP16")}
    assert f"{counts['BF16']} products in BF16 and {counts['FP16']} in FP16" in PROSE
    shapes = {len(pairs_of(dtype, name)) for dtype in ("BF16", "FP16")}
    assert shapes == {{"h200": 58, "h100": 35}[name]}
    assert "58 shapes in BF16 and 58 in FP16" in PROSE
    assert "its 35 shapes are few to learn from" in PROSE


def crossovers_of(name: str, margin: float) -> tuple[int, int]:
    """How many neighbouring measured M have opposite verdicts, and how many of them could be bisected."""
    measured = {
        Request(Curve("torch", pair.dense.dtype, n, k, pair.dense.kind), m): pair
        for dtype in ("FP16", "BF16")
        for (n, k), pairs in pairs_of(dtype, name).items()
        for m, pair in pairs.items()
    }
    found = find_crossovers(dict.fromkeys(request.curve for request in measured), measured, margin)
    return len(found), sum(crossover.is_open for crossover in found)


@pytest.mark.parametrize("name", ["h200", "h100"])
def test_the_page_counts_the_crossovers_that_are_still_wide(name: str) -> None:
    (all_tuned, wide_tuned), (all_used, wide_used) = (crossovers_of(name, m) for m in (0.02, 0.05))
    assert find_policy(name).margin == 0.05
    if name == "h200":
        assert (
            f"of {all_tuned} neighbouring measured M with opposite verdicts, {wide_tuned} are still" in PROSE
        )
        assert f"a margin that was not bisected: there it is {wide_used} of {all_used}." in PROSE
    else:
        assert f"bisected, {wide_tuned} of {all_tuned} crossovers are still wider than 5 %" in PROSE
        assert f"at the 5 % at which the policy decides, {wide_used} of {all_used}." in PROSE


@pytest.mark.parametrize("name", ["h200", "h100"])
def test_a_shipped_policy_is_what_its_journals_make(ship: ModuleType, name: str) -> None:
    shipped = find_policy(name)
    care = {key: getattr(shipped, key) for key in CARE}
    assert ship.with_care(ship.policy_of_journals(name), care) == shipped


@pytest.mark.parametrize("name", ["h200", "h100"])
def test_a_policy_is_as_careful_as_was_found_enough(name: str) -> None:
    policy, found = find_policy(name), result_of(f"{'h100/' if name == 'h100' else ''}ship_policy")
    assert [found[key] for key in CARE] == [getattr(policy, key) for key in CARE]
    assert (policy.margin, found["points"]) == (0.05, len(policy.points))
    between, apart = found["M left out, by spreads"], found["shapes left out, by spreads"]
    chosen = between[str(policy.spreads_between)], apart[str(policy.spreads)]
    assert [each["lost"] for each in chosen] == [0, 0]
    bolder = [s for s in between if float(s) < policy.spreads_between]
    assert all(between[s]["lost"] for s in bolder)
    assert all(apart[s]["lost"] for s in apart if float(s) < policy.spreads)
    asked = chosen[0]["asked"]
    careful = f"{policy.spreads_between:g} ({between[bolder[-1]]['lost']} with {float(bolder[-1]):g})"
    if name == "h200":
        assert f"of {asked:,} measured M, left out an eighth at a time in both types, none is lost" in PROSE
        assert f"with `spreads_between` {careful}, at a mean gain of {chosen[0]['mean']:.3f} against" in PROSE
        assert f"the least that was tried, and the mean gain is {chosen[1]['mean']:.3f}" in PROSE
        assert min(map(float, apart)) == policy.spreads
    else:
        assert f"Of {asked:,} measured M, left out by eighths, none is lost with" in PROSE
        assert f"`spreads_between` {careful}" in PROSE
        assert f"`spreads` {policy.spreads:g} ({apart['1.5']['lost']} with 1.5)" in PROSE
    assert f"f {chosen[1]['asked']:,} products predicted from the other shapes" in PROSE


@pytest.mark.parametrize("name", ["h200", "h100"])
def test_a_wave_loses_fewer_where_neighbours_alone_speak(ship: ModuleType, name: str) -> None:
    policy, found = find_policy(name), result_of(f"{'h100/' if name == 'h100' else ''}ship_policy")
    said = found["M left out, by the wave alone"]
    for tiles in ("0", "1", "1.5", "2"):
        gains = ship.gains_beside(ship.with_wave(policy, float(tiles)), policy.margin)
        assert ship.summary(gains) == said[tiles]
    tiles = {"h200": "1.5", "h100": "1"}[name]
    assert ship.with_wave(policy, float(tiles)).wave == policy.wave
    assert said[tiles]["lost"] == min(each["lost"] for each in said.values())
    if name == "h200":
        lost = [said[key]["lost"] for key in ("0", "1", "1.5")]
        told = (
            f"each of {said['0']['asked']:,} measured M is predicted from its two neighbours alone, {lost[0]}"
        )
        assert f"{told} are lost when times are treated as smooth" in PROSE
        assert f"{lost[1]} with a `wave` of one tile of 64×128 per multiprocessor, and {lost[2]}" in PROSE
        assert f"against {said['1.5']['mean']:.3f}. This is tested" in PROSE


def test_shapes_are_asked_of_the_others(ship: ModuleType) -> None:
    policy = find_policy("h200")
    few = [(5632, 2048), (4096, 14336), (8192, 8192)]
    apart = ship.asked_apart(policy, few)
    assert {known.gemm.shape for known, _ in apart} == set(few)
    assert all(known.guess.shapes == 57 for known, _ in apart)
    gains = ship.gains_of(apart, policy.margin, policy.spreads)
    assert min(gains) >= ship.LEAST
    assert max(gains) > 1.5


def test_measured_m_are_asked_of_the_others(ship: ModuleType) -> None:
    policy = find_policy("h100")
    asked = ship.asked_between(policy, parts=1)
    count = result_of("h100/ship_policy")["M left out, by spreads"]["1.0"]["asked"]
    assert 0.8 < ship.FOLDS * sum(len(pairs) for _, pairs in asked) / count < 1.2
    assert all(m not in known.pairs for known, pairs in asked for m in pairs)
    gains = ship.gains_of(asked, policy.margin, policy.spreads_between)
    assert min(gains) >= ship.LEAST
    assert max(gains) > 1.5
