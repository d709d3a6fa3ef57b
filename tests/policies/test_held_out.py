"""How the shipped policies judge what was held out of them, as the pages give it."""

from __future__ import annotations

import importlib
import random
import statistics
from typing import Any

import pytest

from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.known import Known
from sparseflow_trt.policies.lookup import known_of
from sparseflow_trt.policies.plugin_lookup import plugin_known
from sparseflow_trt.policies.policy import Policy, find_policy
from tests.pages import ROOT, prose, result_of

PAGE = "docs/AUTOTUNED_POLICY.md"


PROSE = prose(PAGE)


def row_of(found: dict[str, Any]) -> str:
    return " | ".join(
        [str(found["cases"]), str(found["taken sparse"]), f"{found['worst dense/policy']:.3f}",
         str(found["below 0.98"]), f"{found['mean dense/policy']:.3f}", f"{found['mean oracle/policy']:.3f}"]
    )  # fmt: skip


HELD_OUT = ("policy_holdout", "policy_holdout_later", "h100/policy_holdout")


def held_out(name: str) -> tuple[dict[str, Any], str]:
    """The result of a policy's held-out products, and the table of the page that tells of it."""
    before, later = (ROOT / PAGE).read_text(encoding="utf-8").split("\n| later | cases")
    later, h100 = later.split("\n| H100 | cases")
    return result_of(name), dict(zip(HELD_OUT, (before, later, h100), strict=True))[name]


@pytest.mark.parametrize("name", HELD_OUT)
def test_the_held_out_figures_are_those_of_the_result(name: str) -> None:
    result, text = held_out(name)
    for words, found in (
        ("all", result),
        ("tuned shapes, other M", result["by basis"]["exact"]),
        ("other shapes", result["by basis"]["learned"]),
        ("with a margin of 2 %", result["by margin"]["0.02"]),
    ):
        assert f"| {words} | {row_of(found)} |" in text
    assert result["below 0.98"] == 0
    assert result["passed"] == (name != "h100/policy_holdout")


def products_in(result: dict[str, Any]) -> set[tuple[str, int, int, int]]:
    return {(case["dtype"], case["n"], case["k"], case["m"]) for case in result["rows"]}


def off_in(found: dict[str, Any]) -> float:
    """By how many percent the policy is below the oracle."""
    return 100 * (1 - float(found["mean oracle/policy"]))


def means_of(result: dict[str, Any]) -> str:
    """What the page says of a result's means."""
    policy, oracle = (f"{result[key]:.3f}" for key in ("mean dense/policy", "mean dense/oracle"))
    return f"gains {policy} times on average; knowing the better kernel of each case would gain {oracle}"


def test_how_the_h100s_products_were_held_out() -> None:
    result, _ = held_out("h100/policy_holdout")
    products = products_in(result)
    own = {(p.dtype, p.n, p.k, p.m) for p in find_policy("h100").points if p.library == "torch"}
    assert not products & own
    bf16 = sum(product[0] == "BF16" for product in products)
    assert f"{len(products)} products were measured in a random order, {bf16} of them in BF16" in PROSE
    assert result["worst dense/policy"] == 1.0
    assert f"None of {result['cases']:,} cases is below 0.98** on the H100, and none below 1" in PROSE
    assert means_of(result) in PROSE
    off = {basis: off_in(found) for basis, found in result["by basis"].items()}
    assert (
        f"tuned on it is {off['exact']:.1f} % below the oracle, **on others {off['learned']:.1f} %**, where"
        in PROSE
    )


def test_how_the_h200s_products_were_held_out() -> None:
    result, _ = held_out("policy_holdout")
    products = products_in(result)
    assert (
        f"On the H200, {len(products)} products were measured, {sum(p[0] == 'BF16' for p in products)}"
        in PROSE
    )
    assert result["worst dense/policy"] == 1.0
    assert f"None of {result['cases']} cases is below 0.98** on the H200, and none below 1" in PROSE
    assert means_of(result) in PROSE
    exact = off_in(result["by basis"]["exact"])
    assert (
        f"{off_in(result):.2f} % below the oracle, and {exact:.1f} % on shapes that it was tuned on" in PROSE
    )


def test_the_later_models() -> None:
    result, _ = held_out("policy_holdout_later")
    products = products_in(result)
    assert not {p[:3] for p in products} & {p[:3] for p in products_in(result_of("policy_holdout"))}
    bf16 = sum(product[0] == "BF16" for product in products)
    assert f"{len(products)} products in a random order, {bf16} of them in BF16, of 1,362" in PROSE
    assert (
        f"None of {result['cases']} cases is below 0.98**, the worst is {result['worst dense/policy']:.3f}"
        in PROSE
    )
    gain, best = (result[key] for key in ("mean dense/policy", "mean dense/oracle"))
    assert f"the mean gain of {gain:.3f} is {off_in(result):.2f} % below the oracle's {best:.3f}" in PROSE


def test_how_the_later_models_were_judged_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    holdout = importlib.import_module("policy_holdout")
    h200, tuned = find_policy("h200"), holdout.known(find_policy("h200"))
    measured = holdout.pairs_of(holdout.all_journals("policy_holdout_later"))
    pairs = {request: pair for request, pair in measured.items() if request not in tuned}
    alike = h200.model_copy(update={"spreads": 1.0, "spreads_between": 1.0})
    first = holdout.summary(holdout.judge_all(alike, holdout.products_of(True), pairs))
    assert (first["cases"], first["worst dense/policy"], first["passed"]) == (595, 1.0, False)
    off, now = off_in(first), off_in(result_of("policy_holdout_later"))
    assert (
        f"none of the {first['cases']} was below 1, but the mean was {off:.1f} % below the oracle's" in PROSE
    )
    said = f"The mean was first {off:.1f} % below the best possible; after one change of the rule it was"
    assert f"{said} {now:.2f} %." in prose("README.md")


def test_what_of_m_and_of_models_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    holdout = importlib.import_module("policy_holdout")
    assert sum(gpus == 1 for _, gpus in holdout.MODELS) == 11
    assert [name for name, gpus in holdout.MODELS if gpus == 4] == ["llama-8b", "llama-70b"]
    assert "layers of 11 models and of LLaMA-8B and 70B shared by 4 GPUs" in PROSE
    sizes = {product[3] for name in HELD_OUT for product in products_in(result_of(name))}
    assert (min(sizes), {m for m in sizes if m % 8}) == (20, {20})
    assert "nothing is held out below M=20, " in PROSE
    assert "20 is the only M that is not a multiple of 8" in PROSE


def test_what_learning_from_all_shapes_gives() -> None:
    off, lost = {}, []
    for name in HELD_OUT:
        result = result_of(name)
        before, now = result["other shapes, by the nearest one"], result["by basis"]["learned"]
        assert before["cases"] == now["cases"]
        off[name] = off_in(before), off_in(now)
        lost += [found["below 0.98"] for found in (before, now)]
    assert lost == [0, 0, 0, 0, 1, 0]
    (h200, now), (later, now_later), (h100, now_h100) = off.values()
    assert (
        f"{h200:.1f} % below the oracle on the H200, {later:.1f} % on its later models and {h100:.2f} % on"
        in PROSE
    )
    assert f"Learned from all shapes, they are {now:.1f} %, {now_later:.1f} % and {now_h100:.2f} %" in PROSE


def test_how_much_is_asked_for_and_how_much_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    holdout = importlib.import_module("policy_holdout")
    asked = {
        (name, later): holdout.held_out_of(find_policy(name), holdout.products_of(later), ("FP16", "BF16"))
        for name, later in (("h200", False), ("h200", True), ("h100", False))
    }
    assert f"of {len(asked['h100', False]):,} that it asks for" in PROSE
    assert (
        f"of {len(asked['h200', True]):,} that it asks for (`benchmarks/results/policy_holdout_later" in PROSE
    )
    done = holdout.pairs_of(holdout.all_journals("policy_holdout"))
    left = [request for request in asked["h200", False] if request not in done]
    fp16 = sum(request.curve.dtype == "FP16" for request in left)
    count = len(asked["h200", False])
    assert f"Of the {count:,} that it asks for now, {len(left):,} are left, {fp16:,} of them in FP16" in PROSE
    products = {(r["n"], r["k"], r["m"], r["dtype"]) for r in result_of("policy_holdout")["rows"]}
    of_now = {(r.curve.n, r.curve.k, r.m, r.curve.dtype) for r in asked["h200", False]}
    half_way = {m for _, _, m, _ in products - of_now}
    assert f"{len(products - of_now)} are at half-way M that the benchmark asked for at first" in PROSE
    assert {24, 48, 12288} <= half_way
    assert not half_way & set(holdout.SIZES)


def test_the_readme_gives_the_held_out_figures() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = ("`h200`", "`h200`, seven models that nobody had measured before", "`h100`")
    for words, found in zip(names, map(result_of, HELD_OUT), strict=True):
        assert found["below 0.98"] == 0
        means = [f"{found[key]:.3f}×" for key in ("mean dense/policy", "mean dense/oracle")]
        row = [words, f"{found['cases']:,}", str(found["below 0.98"]), *means]
        assert f"\n| {' | '.join(row)} |\n" in readme


def test_the_plugin_is_taken_at_no_held_out_product_where_its_kernels_lose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of shapes that it was not measured at; cuSPARSELt's kernels are its own."""
    gains = plugin_gains()
    assert min(taken for taken in gains if taken is not None) >= 0.98
    count = sum(taken is not None for taken in gains)
    monkeypatch.setattr("sparseflow_trt.policies.measurements.guess_of", lambda *_: None)
    lost = [taken for taken in plugin_gains() if taken is not None and taken < 0.98]
    assert f"Of {len(gains)} held-out FP16 products of other shapes" in PROSE
    assert (
        f"| its points of nearby shapes, as it once did | {len(lost)} ({min(lost):.2f} at worst) | – |"
        in PROSE
    )
    assert f"| what was learned | 0 | {count} |" in PROSE


def plugin_gains() -> list[float | None]:
    """What cuSPARSELt gains over cuBLAS in held-out products, where the plugin is taken; None elsewhere."""
    gains: list[float | None] = []
    for name in HELD_OUT:
        result = result_of(name)
        policy = find_policy(result["policy"]).model_copy()  # one that nothing was asked of before
        layers: dict[tuple[str, int, int], dict[int, float]] = {}
        for row in (row for row in result["rows"] if row["dtype"] == "FP16"):
            by_m = layers.setdefault((row["kind"], row["n"], row["k"]), {})
            by_m[row["m"]] = row["dense_us"] / row["sparse_us"]
        for layer, by_m in layers.items():
            known = plugin_known(policy, Gemm(*layer, "FP16"))
            if known.own.exact:
                continue
            if known.own.guess:
                known.own.guess.ask(by_m)  # of all at once: faster
            gains += [gain if known.judge(m).sparse else None for m, gain in by_m.items()]
    return gains


def test_the_gate_between_the_plugins_points() -> None:
    known = plugin_known(find_policy("h200"), Gemm("gate_up", 5632, 2048, "FP16"))
    assert known.otherwise is not None
    asked = ((known, 128), (known, 256), (known, 192), (Known(known.otherwise), 192))
    gains = [found.judge(m).speedup for found, m in asked]
    below, above, between, estimate = (f"{gain:.2f}" for gain in gains)
    assert (
        "TinyLlama's gate on `h200`: | M | times as fast | |---|---| "
        f"| 128, measured | {below} | | 192 | {between}, though the estimate is {estimate} | "
        f"| 256, measured | {above} |"
    ) in PROSE


@pytest.mark.parametrize("name", ["h200", "h100"])
def test_above_a_shapes_largest_m_what_others_say_is_better(name: str) -> None:
    learned, as_at_largest, best = gains_above(find_policy(name), 256)
    assert min(learned) == 1.0
    lost = [gain for gain in as_at_largest if gain < 0.98]
    means = [f"{statistics.geometric_mean(gains):.3f}" for gains in (as_at_largest, learned, best)]
    row = [f"`{name}`", str(len(best)), f"{means[0]}, {len(lost)} lost ({min(lost):.2f} at worst)"]
    assert f"| {' | '.join(row)} | {means[1]}, none lost | {means[2]} |" in PROSE


def gains_above(policy: Policy, most: int) -> tuple[list[float], list[float], list[float]]:
    """What held-out products above M=`most` gain, had a fifth of the policy's shapes at a time no larger M.

    Returns:
        Of these shapes' products, over dense: by the policy, by what holds at the shape's largest M, and by
        the faster kernel.
    """
    held = {
        (row["kind"], row["n"], row["k"], row["dtype"], row["m"]): row["dense_us"] / row["sparse_us"]
        for result in map(result_of, HELD_OUT)
        if result["policy"] == policy.name
        for row in result["rows"]
        if row["m"] > most
    }
    shapes = sorted({(p.n, p.k) for p in policy.points if p.library == "torch"})
    random.Random(0).shuffle(shapes)
    learned, as_at_largest, best = list[float](), list[float](), list[float]()
    for part in range(5):
        short = set(shapes[part::5])
        kept = tuple(p for p in policy.points if (p.n, p.k) not in short or p.m <= most)
        less = policy.model_copy(update={"points": kept, "thresholds": ()})
        for (kind, n, k, dtype, m), gain in held.items():
            if (n, k) not in short:
                continue
            known = known_of(less, Gemm(kind, n, k, dtype), "torch")
            if known.own.exact:
                learned.append(gain if known.judge(m).sparse else 1.0)
                as_at_largest.append(
                    gain if known.own.pairs[max(known.own.pairs)].wins(known.own.margin) else 1.0
                )
                best.append(max(gain, 1.0))
    return learned, as_at_largest, best
