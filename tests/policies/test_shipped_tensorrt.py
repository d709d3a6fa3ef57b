"""What the shipped H200 policy holds of TensorRT's own sparse kernels, as the pages give it."""

from __future__ import annotations

import itertools
import json
from types import ModuleType

import pytest

from sparseflow_trt.engines.evidence.tactics import accumulator_of_tactic
from sparseflow_trt.engines.measuring.curves import Measured
from sparseflow_trt.engines.measuring.journal import read_journal
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import judge, known_of
from sparseflow_trt.policies.policy import Pair, find_policy
from sparseflow_trt.policies.tactics import TOOK_DENSE
from tests.pages import RESULTS, prose, result_of

PROSE = prose("docs/AUTOTUNED_POLICY.md")


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
    wider, tiny = (4096, 28672, 128), {m: (2048, 11264, m) for m in (128, 136, 152, 184)}
    gate, joined = ({m: (8192, n, m) for m in (1, 16, 64)} for n in (28672, 57344))
    shared, later = (512, 4096, 256), (8192, 28672, 88)
    alone, decode = (4096, 14336, 1), {m: (4096, 28672, m) for m in (1, 16)}
    own = {pair, wider, *decode.values(), alone, qkv, *gate.values(), later, *joined.values(), shared}
    assert set(faster) - set(bert) - own == {tiny[m] for m in (136, 152, 184)}
    gains = "{:.2f} times at M=1, {:.2f} at M=16, {:.2f} at M=64 and nothing from M=256 on; its gate alone "
    gains += (
        "(8192→28672) gains {:.2f}, {:.2f} and {:.2f} times there, {:.2f} at M=88 and nothing from M=128 on"
    )
    found = [taken_at[at] for at in (*joined.values(), *gate.values(), later)]
    assert f"gate and up as one (8192→57344) gain {gains.format(*found)}" in PROSE
    for n, most, until in ((28672, 88, 128), (57344, 64, 256)):
        sizes = sorted(m for k, other, m in pairs if (k, other) == (8192, n) and m > most)
        assert sizes[0] == until
        assert all(taken_at.get((8192, n, m), 0) < 1 for m in sizes)
    gains = f"gain {taken_at[decode[1]]:.2f} times at M=1, {taken_at[decode[16]]:.2f} at M=16"
    gains += f", {taken_at[pair]:.2f} at M=64, {taken_at[wider]:.2f} at M=128"
    assert f"gate and up as one (4096→28672) {gains} and nothing from M=136 on" in PROSE
    assert f"its gate alone gains {taken_at[alone]:.2f} times at M=1" in PROSE
    assert f"512→4096 gains {taken_at[shared]:.2f} times at M=256" in PROSE
    small = [at for at in slower if at[2] <= 64]
    assert f"But {len(small)} of the {len(slower)} that lose are at M up to 64, too" in PROSE
    assert len(small) > len(slower) / 2
    assert not [at for at in taken_at if at[:2] == pair[:2] and at[2] > 128]
    assert min(m for k, n, m in pairs if (k, n) == pair[:2] and m > 128) == 136
    gains = f"gain {taken_at[tiny[136]]:.2f} times at M=136, {taken_at[tiny[152]]:.2f} at M=152 and "
    gains += f"{taken_at[tiny[184]]:.2f} at M=184"
    slow = f"and are {taken_at[tiny[128]]:.2f} times as fast at M=128"
    assert f"gate and up as one (2048→11264) {gains}, {slow}" in PROSE
    assert f"LLaMA-8B's 4096→6144 gains {taken_at[qkv]:.2f} times at M=1024" in PROSE
    for k, n, m in ((768, 2304, 1024), (768, 3072, 768), (768, 3072, 1024), (768, 768, 4096)):
        assert (k, n, m) in bert
        assert f"{k}→{n} {taken_at[k, n, m]:.2f} times at M={m}" in PROSE
    assert f"it is {min(taken_at.values()):.2f} times as fast at 4096→6144 and M=16" in PROSE
    assert min(taken_at, key=lambda at: taken_at[at]) == (4096, 6144, 16)
    best = "| LLaMA-70B's gate and up as one product alone at M=1, the same | H200 |"
    assert f"{best} {max(taken_at.values()):.2f}× |" in readme
    assert max(taken_at, key=lambda at: taken_at[at]) == joined[1]
    assert (
        f"decode (LLaMA-70B's gate and up as one product: {taken_at[joined[1]]:.2f} times at M=1)" in readme
    )
    worst = "| one of LLaMA-8B's attention products alone at M=16, the same | H200 |"
    assert f"{worst} {min(taken_at.values()):.2f}× |" in readme
    assert {each.counted.speedup for each in itself} == {1}
    agree = sum(apart(each) < 0.01 for each in itself)
    assert f"loaded and timed twice: {len(itself)} measurements of an engine against itself." in PROSE
    assert f"{agree} of these pairs agree within 1 %." in PROSE
    *far, small_one = sorted((e for e in itself if apart(e) > 0.03), key=lambda e: e.request.m)
    assert [each.request.m for each in far] == [792, 864, 1448]
    curve, share = small_one.request.curve, f"{apart(small_one):.1%}".replace("%", " %")
    assert f"({curve.k}→{curve.n}, M={small_one.request.m}) is {share} apart" in PROSE
    assert all(0.045 < apart(each) < 0.065 for each in far), "5 to 6 %"
    assert all(each.clock and each.clock.sm_mhz < 1750 for each in far)
    for point in (p for each in far for p in (each.pair.dense, each.pair.sparse)):
        assert point.low_us and point.high_us and (point.high_us - point.low_us) / point.us < 0.02
    sums = {at: accumulator_of_tactic(p.dense.tactic.split(" ")[0]) for at, p in pairs.items()}
    sparse = {at: accumulator_of_tactic(p.sparse.tactic.split(" ")[0]) for at, p in pairs.items()}
    assert {at for at in pairs if sparse[at] != sums[at]} == {(512, 4096, 1)}
    assert sparse[512, 4096, 1] == "Half", "sparse in FP16, dense a matrix and a vector"
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


def test_what_is_not_measured_of_tensorrts_own_kernels_is_not_lost(ship: ModuleType) -> None:
    said, h200 = result_of("ship_policy")["TensorRT's own kernels, without"], find_policy("h200")
    for what, words in (("that shape", "without its shape"), ("that M", "of an M between others without it")):
        found = said[what]
        assert found["lost"] == 0
        taken = f"{found['taken']} are taken, the worst {found['worst']:.3f}"
        mean = f"the mean is {found['mean']:.3f} of a possible {found['best possible']:.3f}"
        assert f"{found['asked']} products asked {words} {taken}; {mean}" in PROSE
    shapes = [(28672, 4096), (2304, 768)]
    for whole_shape in (True, False):
        gains, best = ship.gains_of_tensorrt(h200, whole_shape, shapes)
        assert len(gains) == len(best) >= 20
        assert min(gains) >= ship.LEAST
        assert any(gain == possible > 1 for gain, possible in zip(gains, best, strict=True))


def apart(answer: Measured) -> float:
    """How far the two times of one engine are apart, as a share."""
    return abs(answer.pair.speedup - 1)


def test_a_win_of_tensorrts_own_kernels_at_the_largest_m_alone_is_not_taken_above_it() -> None:
    h200 = find_policy("h200")
    once = {64, 256, 1024, 2048, 4096}  # those of its M that were measured first
    measured = tuple(p for p in h200.points if p.library == "torch" or p.m in once)
    known = known_of(h200.model_copy(update={"points": measured}), Gemm("o", 768, 768, "FP16"))
    assert [m for m in (1024, 4096, 4097, 16384) if known.judge(m).sparse] == [4096]
    assert "but it does not win at M=2048, the one before" in known.judge(16384).reason
