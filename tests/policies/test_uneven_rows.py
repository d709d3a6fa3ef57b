"""What an M that is no multiple of 8 costs in the plugin: counted where not measured, and not too low."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.model.packing import ROWS
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import ranges_of
from sparseflow_trt.policies.plugin_lookup import plugin_known
from sparseflow_trt.policies.policy import find_policy
from sparseflow_trt.policies.uneven_rows import COPIED, COPIED_READINGS, FEW, FEW_US, READINGS
from tests.made_policies import make_policy
from tests.policies.test_plugin_lookup import SHAPE, estimates, plugin_points

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
SPEEDUPS = st.dictionaries(st.sampled_from([8 << i for i in range(12)]), st.floats(0.5, 3), min_size=1)


@given(SPEEDUPS, st.integers(1, 20000))
def test_a_multiple_costs_nothing_and_another_m_promises_less(speedups: dict[int, float], m: int) -> None:
    known = plugin_known(make_policy(plugin_points(speedups)), Gemm(*SHAPE, "FP16"))
    plain = known.of_multiples()
    times, of_multiples = known.expect(m), plain.expect(m)
    assert times is not None
    assert of_multiples is not None
    if m % ROWS == 0:
        assert (times, known.judge(m)) == (of_multiples, plain.judge(m))
        return
    assert times.speedup < of_multiples.speedup
    assert times.dense_us == of_multiples.dense_us
    verdict = known.judge(m)
    assert not verdict.sparse or plain.judge(m).sparse
    if verdict.sparse:
        assert times.wins
        assert verdict.speedup == pytest.approx(times.speedup)
        assert times.dense_us >= times.sparse_us * (1 + known.own.policy.margin)


def test_one_that_was_measured_in_the_plugin_is_as_it_was_measured() -> None:
    known = plugin_known(make_policy(plugin_points({1: 1.5, 4: 1.5, 64: 1.5})), Gemm(*SHAPE, "FP16"))
    assert "1.50× measured" in known.judge(1).reason
    assert known.judge(1).sparse
    of_kernels = plugin_known(make_policy(estimates({1: 1.5, 64: 1.5})), Gemm(*SHAPE, "FP16"))
    assert not of_kernels.judge(1).sparse, "cuSPARSELt's own time has no copy in it"


def test_the_reason_says_what_it_is_and_what_a_multiple_would_gain() -> None:
    known = plugin_known(make_policy(plugin_points({64: 1.6, 1024: 1.8})), Gemm(*SHAPE, "FP16"))
    assert known.judge(100).reason.startswith(
        "the plugin wins at M=100: 1.63× between M=64 and M=1024 (2048→4096, the plugin against "
    )
    assert known.judge(100).reason.endswith("GPU X); M=100 is no multiple of 8, which leaves 1.09×")
    assert known.judge(1023).reason == (
        "the plugin does not win by 2% at M=1023, which is no multiple of 8: 0.82×; of a multiple 1.80× "
        "between M=64 and M=1024 (2048→4096, the plugin against TensorRT's kernels, GPU X); pad M to 1024, "
        "where it wins"
    )


@pytest.mark.parametrize(("gain", "sparse"), [(1.17, False), (1.25, True)])
def test_an_estimate_has_to_win_by_its_own_margin_with_the_cost_too(gain: float, sparse: bool) -> None:
    slow = [point.model_copy(update={"us": 10 * point.us}) for point in estimates({16: gain, 1024: gain})]
    known = plugin_known(make_policy(slow), Gemm(*SHAPE, "FP16"))
    assert known.judge(56).sparse
    verdict = known.judge(63)  # 5 µs of 100 more
    assert verdict.sparse is sparse
    assert verdict.speedup == pytest.approx(gain / 1.05)
    assert ("the plugin does not win by 15% at M=63" in verdict.reason) is not sparse
    measured = [point.model_copy(update={"us": 10 * point.us}) for point in plugin_points({64: 1.1})]
    beyond = plugin_known(make_policy([*slow, *measured]), Gemm(*SHAPE, "FP16"))
    # what was measured holds it to 1.10, which has to win by the policy's margin
    assert beyond.judge(127).sparse is sparse


def test_where_it_would_lose_in_any_case_the_figure_is_that_of_this_m_too() -> None:
    known = plugin_known(make_policy(plugin_points({64: 0.9, 256: 0.9, 1024: 1.3})), Gemm(*SHAPE, "FP16"))
    verdict, times = known.judge(100), known.expect(100)
    assert times is not None
    assert verdict.speedup == pytest.approx(times.speedup)
    assert verdict.reason.endswith(f"no multiple of 8, which leaves {times.speedup:.2f}×"), "as in a table"
    assert known.padded(100) is None


def test_what_padding_gains_is_the_verdict_at_the_next_multiple() -> None:
    known = plugin_known(make_policy(plugin_points({64: 1.6, 1024: 1.8})), Gemm(*SHAPE, "FP16"))
    assert known.padded(1023) == known.judge(1024)
    assert known.padded(1024) is None
    assert known.padded(100) is None, "it wins there as it is"
    assert known.of_multiples().padded(1023) is None


def test_ranges_are_those_of_multiples() -> None:
    known = plugin_known(make_policy(plugin_points({64: 0.9, 256: 1.3, 1024: 1.3})), Gemm(*SHAPE, "FP16"))
    assert ranges_of(known, 64, 1024) == ((64, 255, False), (256, 1024, True))


def test_what_was_measured_of_others_is_no_more_than_is_counted() -> None:
    """The bounds' own source: cuSPARSELt's time of the next multiple, and what is counted beyond it."""
    result = json.loads((RESULTS / "plugin_linear_tinyllama.json").read_text(encoding="utf-8"))
    cells = result["cells"]
    readings = {cell["layer"]: cell["plugin_us"] for cell in cells if cell["m"] == 16}
    others = [cell for cell in cells if cell["m"] % ROWS]
    assert {cell["m"] for cell in others} == {1, 100, 300, 1003}
    for cell in others:
        of_eight = COPIED_READINGS if cell["m"] <= COPIED else READINGS
        counted = FEW_US if cell["m"] <= FEW else of_eight * readings[cell["layer"]]
        more = cell["plugin_us"] - cell["cusparselt_us"]
        assert counted / 3 < more <= counted, (cell["layer"], cell["m"])


@pytest.mark.parametrize("m", [100, 300, 1003])
@pytest.mark.parametrize(("kind", "n", "k"), [("gate_up", 5632, 2048), ("down", 2048, 5632)])
def test_the_shipped_policy_takes_no_such_m_where_it_lost(kind: str, n: int, k: int, m: int) -> None:
    known = plugin_known(find_policy("h200"), Gemm(kind, n, k, "FP16"))
    assert not known.judge(m).sparse
    assert known.judge(1024).sparse
