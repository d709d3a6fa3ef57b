"""The shipped policies' figures, as docs/AUTOTUNED_POLICY.md gives them."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import re
import statistics
from types import ModuleType
from typing import Any

import pytest

from sparseflow_trt.engines.evidence.tactics import accumulator_of_tactic
from sparseflow_trt.engines.measuring.curves import TOOK_DENSE, Curve, Measured, Request
from sparseflow_trt.engines.measuring.journal import read_journal
from sparseflow_trt.engines.measuring.search import find_crossovers
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import judge, known_of, sparse_ranges
from sparseflow_trt.policies.plugin_lookup import plugin_known
from sparseflow_trt.policies.policy import Pair, Policy, find_policy, pairs_by_shape, policy_for_device
from tests.pages import RESULTS, ROOT, prose, result_of

PAGE = "docs/AUTOTUNED_POLICY.md"


PROSE = prose(PAGE)


COLUMNS = (("BF16", 1024), ("BF16", 4096), *(("FP16", m) for m in (16, 64, 256, 1024, 4096)))


MLPS = [(14336, 4096), (28672, 4096), (4096, 14336), (28672, 8192), (57344, 8192), (8192, 28672)]


CARE = ("margin", "wave", "spreads", "spreads_between")


_ROW = re.compile(r"^\| (\d+)→(\d+) \(.+?\) \| (.+) \|$", re.MULTILINE)


@pytest.fixture
def ship(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that makes shipped policies."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("ship_policy")


def pairs_of(dtype: str, name: str = "h200") -> dict[tuple[int, int], dict[int, Pair]]:
    points = find_policy(name).points
    return pairs_by_shape(p for p in points if p.dtype == dtype and p.library == "torch")


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


@pytest.mark.parametrize("kind", ["gate_up", "down", "qkv", "o", "ffn", "conv"])
def test_tensorrt_on_an_h200_is_planned_dense(kind: str) -> None:
    policy = find_policy("h200")
    for n, k in ((11008, 4096), (4096, 14336), (5632, 2048), (768, 768)):
        for m in (1, 64, 1024, 16384):
            assert not judge(policy, Gemm(kind, n, k, "FP16"), m).sparse


def test_what_tensorrts_own_sparse_kernels_gave() -> None:
    pairs: dict[tuple[int, int, int], Pair] = {}
    seconds, itself = {}, []
    for path in sorted(RESULTS.glob("autotune_h200_tensorrt_fp16_*.jsonl")):
        journal = read_journal(path)
        pairs |= {(r.curve.k, r.curve.n, r.m): pair for r, pair in journal.pairs.items()}
        itself += [each for each in journal.measured if TOOK_DENSE in each.pair.sparse.tactic]
        alone_built = itertools.takewhile(  # the runs with one builder are the first
            lambda line: "--builders" not in line.get("run", {}).get("command", ""),
            map(json.loads, path.read_text(encoding="utf-8").splitlines()),
        )
        model = path.stem.removeprefix("autotune_h200_tensorrt_fp16_")
        seconds[model] = [line["seconds"] for line in alone_built if "seconds" in line]
    taken_at = {at: p.speedup for at, p in pairs.items() if TOOK_DENSE not in p.sparse.tactic}
    faster = [at for at, gain in taken_at.items() if gain >= 1.05]
    slower = [at for at, gain in taken_at.items() if gain < 0.98]
    readme = prose("README.md")
    assert f"were measured in {len(pairs)} products" in PROSE
    said = f"takes a sparse tactic in {len(taken_at)} of them: {len(faster)} gain 5 % or more, "
    assert f"{said}{len(slower)} lose more than 2 %" in PROSE
    assert f"Of {len(pairs)} products measured alone it takes a sparse tactic in {len(taken_at)}" in readme
    assert f": {len(faster)} gain 5 % or more from it, {len(slower)} lose more than 2 %." in readme
    assert f"won at that very shape and M ({len(faster)} of {len(pairs)} products; gate" in readme
    bert = [at for at in faster if at[0] == 768]
    pair, qkv = (4096, 28672, 64), (4096, 6144, 1024)
    wider, tiny = (4096, 28672, 128), {m: (2048, 11264, m) for m in (128, 152, 184)}
    gate, joined, shared = (8192, 28672, 64), (8192, 57344, 64), (512, 4096, 256)
    alone, decode = (4096, 14336, 1), {m: (4096, 28672, m) for m in (1, 16)}
    own = {pair, wider, *decode.values(), alone, qkv, gate, joined, tiny[152], tiny[184], shared}
    assert set(faster) - set(bert) == own
    said = (
        f"gate (8192→28672) gains {taken_at[gate]:.2f} times at M=64 and nothing at 128, 256, 1024 and 4096"
    )
    assert f"{said}, its gate and up as one (8192→57344) {taken_at[joined]:.2f} times at M=64" in PROSE
    assert {m for k, n, m in pairs if (k, n) == gate[:2]} == {64, 128, 256, 1024, 4096}
    assert all(taken_at[at] < 1 for at in taken_at if at[:2] == gate[:2] and at != gate)
    assert not [at for at in taken_at if at[:2] == joined[:2] and at != joined]
    gains = f"gain {taken_at[decode[1]]:.2f} times at M=1, {taken_at[decode[16]]:.2f} at M=16"
    gains += f", {taken_at[pair]:.2f} at M=64, {taken_at[wider]:.2f} at M=128"
    assert f"gate and up as one (4096→28672) {gains} and nothing from M=136 on" in PROSE
    assert f"its gate alone gains {taken_at[alone]:.2f} times at M=1" in PROSE
    assert f"512→4096 gains {taken_at[shared]:.2f} times at M=256" in PROSE
    assert f"most of the {len(slower)} that lose are at M up to 64, too" in PROSE
    assert sum(m <= 64 for _, _, m in slower) > len(slower) / 2
    assert not [at for at in taken_at if at[:2] == pair[:2] and at[2] > 128]
    assert min(m for k, n, m in pairs if (k, n) == pair[:2] and m > 128) == 136
    gains = f"gain {taken_at[tiny[152]]:.2f} times at M=152 and {taken_at[tiny[184]]:.2f} at M=184"
    slow = f"and are {taken_at[tiny[128]]:.2f} times as fast at M=128"
    assert f"gate and up as one (2048→11264) {gains}, {slow}" in PROSE
    assert f"LLaMA-8B's 4096→6144 gains {taken_at[qkv]:.2f} times at M=1024" in PROSE
    for k, n, m in ((768, 2304, 1024), (768, 3072, 1024), (768, 768, 4096)):
        assert (k, n, m) in bert
        assert f"{k}→{n} {taken_at[k, n, m]:.2f} times at M={m}" in PROSE
    assert f"it is {min(taken_at.values()):.2f} times as fast at 4096→6144 and M=16" in PROSE
    assert min(taken_at, key=lambda at: taken_at[at]) == (4096, 6144, 16)
    best = "| LLaMA-8B's gate and up as one product alone at M=16, the same | H200 |"
    assert f"{best} {max(taken_at.values()):.2f}× |" in readme
    assert max(taken_at, key=lambda at: taken_at[at]) == decode[16]
    assert f"LLaMA-8B's gate and up as one product gain {taken_at[decode[1]]:.2f} times at M=1" in readme
    worst = "| one of its attention products alone at M=16, the same | H200 |"
    assert f"{worst} {min(taken_at.values()):.2f}× |" in readme
    assert {each.counted.speedup for each in itself} == {1}
    agree = sum(apart(each) < 0.01 for each in itself)
    assert f"loaded and timed twice: {len(itself)} measurements of an engine against itself." in PROSE
    assert f"{agree} of these pairs agree within 1 %." in PROSE
    far = [each for each in itself if apart(each) > 0.03]
    assert sorted(each.request.m for each in far) == [792, 864, 1448]
    assert all(0.045 < apart(each) < 0.065 for each in far), "5 to 6 %"
    assert all(each.clock and each.clock.sm_mhz < 1750 for each in far)
    for point in (p for each in far for p in (each.pair.dense, each.pair.sparse)):
        assert point.low_us and point.high_us and (point.high_us - point.low_us) / point.us < 0.02
    sums = {at: accumulator_of_tactic(p.dense.tactic.split(" ")[0]) for at, p in pairs.items()}
    assert all(accumulator_of_tactic(p.sparse.tactic.split(" ")[0]) == sums[at] for at, p in pairs.items())
    wide = [m for (_, _, m), of in sums.items() if of != "Half"]
    told = f"except {len(wide)} of {sum(m == 1 for _, _, m in pairs)} at M=1"
    assert {*wide} == {1}
    assert "timed alone on an H200 ran such kernels ([policy]" in prose("docs/ACCURACY.md")
    assert told in prose("docs/ACCURACY.md")
    for words, model in (
        ("LLaMA-8B's products took {:.0f} to {:.0f} s each", "llama-8b"),
        ("BERT-base's took {:.0f} to {:.0f} s each", "bert-base"),
        ("LLaMA-70B's shared by 8 GPUs {:.0f} to {:.0f} s", "llama-70b_tensor-parallel-8"),
    ):
        assert words.format(min(seconds[model]), max(seconds[model])) in PROSE


def apart(answer: Measured) -> float:
    """How far the two times of one engine are apart, as a share."""
    return abs(answer.pair.speedup - 1)


def test_a_win_of_tensorrts_own_kernels_at_the_largest_m_alone_is_not_taken_above_it() -> None:
    h200 = find_policy("h200")
    measured = tuple(p for p in h200.points if p.library == "torch" or p.m <= 4096)  # it was once no further
    known = known_of(h200.model_copy(update={"points": measured}), Gemm("o", 768, 768, "FP16"))
    assert [m for m in (1024, 4096, 4097, 16384) if known.judge(m).sparse] == [4096]
    assert "but it does not win at M=2048, the one before" in known.judge(16384).reason


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
        (64, "yes", [("gate_up", 14336, 4096, 2), ("down", 4096, 14336, 1)]),
        (2048, "no", [("gate_up", 14336, 4096, 2), ("down", 4096, 14336, 1), ("qkv", 4096, 4096, 1),
                      ("o", 4096, 4096, 1), ("qkv", 1024, 4096, 2)]),
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
