"""docs/PREFILL_BREAKDOWN.md says what the results of the end-to-end benchmark hold."""

from __future__ import annotations

import importlib
import importlib.util
import re
from types import ModuleType
from typing import Any

import pytest

from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import judge
from sparseflow_trt.policies.policy import find_policy
from tests.pages import ROOT, prose, result_of

PAGE = (ROOT / "docs" / "PREFILL_BREAKDOWN.md").read_text(encoding="utf-8")
PROSE, SUMMARY = prose("docs/PREFILL_BREAKDOWN.md"), prose("README.md")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prefill", ROOT / "benchmarks" / "prefill_breakdown.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bf16(script: ModuleType) -> dict[str, Any]:
    result: dict[str, Any] = script.read_results()["bf16"]
    return result


def test_the_tables_are_what_the_script_writes(script: ModuleType) -> None:
    results = script.read_results()
    between = PAGE.split(script.BEGIN)[1].split(script.END)[0]
    assert between == script.tables(results)
    assert all((ROOT / "docs" / "images" / script.image_of(dtype)).is_file() for dtype in results)


def test_a_type_that_was_not_measured_is_said_to_be_so(script: ModuleType, bf16: dict[str, Any]) -> None:
    assert "## FP16\n\nNot measured end to end yet" in script.tables({"bf16": bf16})
    both = script.tables({"bf16": bf16, "fp16": bf16})
    assert "Not measured" not in both
    assert "images/prefill-fp16.png" in both


def test_a_ceiling_is_amdahls_law_of_the_products(bf16: dict[str, Any]) -> None:
    swapped = {"mlp": {"gate_up", "down"}, "mlp+attention": {"gate_up", "down", "qkv", "o"}}
    gemm, dense = bf16["dense"]["classes"]["gemm"]["ms"], bf16["dense"]
    for variant in bf16["variants"]:
        before = sum(p["count"] * p["dense us"] for p in bf16["products"])
        after = sum(
            p["count"] * p["sparse us" if p["kind"] in swapped[variant["name"]] else "dense us"]
            for p in bf16["products"]
        )
        for of, ms in (("kernel time", dense["kernel ms"]), ("the pass", dense["graph ms"]["median"])):
            share = gemm / ms
            ceiling = 1 / (1 - share + share * after / before)
            assert ceiling == pytest.approx(variant[of]["ceiling"], abs=2e-4)


@pytest.mark.parametrize(
    "name", [f"{folder}end_to_end_torch_{dtype}" for folder in ("", "h100/") for dtype in ("bf16", "fp16")]
)
def test_the_ceilings_of_a_result_follow_from_its_times(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("end_to_end_torch")
    result = result_of(name)
    for variant in result["variants"]:
        assert benchmark.concluded(result["dense"], variant) == variant
        for of, key in (("kernel time", "kernel ms"), ("the pass", "graph ms")):
            before, after = (
                side[key] if of == "kernel time" else side[key]["median"]
                for side in (result["dense"], variant)
            )
            said = variant[of]
            assert said["speedup"] == round(before / after, 4)
            if said["ceiling"] > 1:
                saved = (1 - after / before) / (1 - 1 / said["ceiling"])
                assert said["of the ceiling's saving"] == pytest.approx(saved, rel=0.1, abs=0.01)
            else:
                assert said["of the ceiling's saving"] is None


def test_in_bf16_sparse_loses_as_the_page_says(bf16: dict[str, Any]) -> None:
    variants = {variant["name"]: variant for variant in bf16["variants"]}
    mlp, both = variants["mlp"], variants["mlp+attention"]
    assert all(v["the pass"]["ceiling"] < 1 and v["the pass"]["speedup"] < 1 for v in variants.values())
    reached = mlp["the pass"]["speedup"], both["the pass"]["speedup"]
    assert f"sparse it is {reached[0]:.3f} times as fast as dense" in PROSE
    assert f"projections beside them {reached[1]:.3f} times" in PROSE
    assert f"| the same in BF16 | H200 | {reached[0]:.3f}× |" in SUMMARY
    assert f"| the same in BF16, attention's projections sparse, too | H200 | {reached[1]:.3f}× |" in SUMMARY
    assert (
        "({speedup:.3f} of the kernels' time, predicted {ceiling:.3f})".format(**mlp["kernel time"]) in PROSE
    )


def test_in_fp16_sparse_wins_as_the_page_says(script: ModuleType) -> None:
    result = script.read_results()["fp16"]
    mlp, both = result["variants"]
    graph, kernels = mlp["the pass"]["speedup"], mlp["kernel time"]["speedup"]
    most, ceiling = mlp["the pass"]["ceiling"], mlp["kernel time"]["ceiling"]
    shares = (100 * mlp[of]["share of the products"] for of in ("the pass", "kernel time"))
    assert f"**In FP16 it is {graph:.3f} times as fast** with the MLPs sparse" in PROSE
    assert f"and {both['the pass']['speedup']:.3f} times with attention's" in PROSE
    assert f"the pass is {graph:.3f} times as fast as dense, with a ceiling of {most:.3f} (g =" in PROSE
    assert f"The kernels alone are {kernels:.3f} times as fast, with {ceiling:.3f} predicted (g =" in PROSE
    assert all(f"(g = {share:.1f} %" in PROSE for share in shares)
    assert f"as CUDA graphs, FP16 | H200 | {graph:.3f}×, where {most:.3f}× was predicted |" in SUMMARY
    assert f"kernels alone are {kernels:.3f} times as fast, where {ceiling:.3f} was predicted" in SUMMARY
    found = {(p["kind"], p["n"]): f"{p['speedup']:.2f}×" for p in result["products"]}
    assert f"down wins by itself ({found['down', 2048]})" in PROSE
    assert f"gate and up barely do ({found['gate_up', 5632]})" in PROSE
    assert f"attention's products lose ({found['qkv', 256]} and {found['o', 2048]})" in PROSE
    errors = {v["logits against FP32"]["relative error"] for v in (result["dense"], *result["variants"])}
    assert {f"{100 * e:.1f} %" for e in errors} == {"0.3 %"}
    assert "sparse as dense** (0.3 %)" in PROSE


def test_what_an_h100_gave(script: ModuleType) -> None:
    found = []
    for dtype in script.DTYPES:
        result = result_of(f"h100/end_to_end_torch_{dtype}")
        assert result["libraries"]["cusparselt"] == "0.9.1"
        for v in result["variants"]:
            columns = [v["products"]["speedup"], v["kernel time"]["ceiling"], v["kernel time"]["speedup"]]
            columns.append(v["the pass"]["ceiling"])
            shown = " | ".join(f"{column:.3f}×" for column in columns)
            reached = f"**{v['the pass']['speedup']:.3f}×**"
            found.append(f"| {dtype.upper()} | {v['name']} | {shown} | {reached} |")
        won = {p["kind"] for p in result["products"] if p["speedup"] >= 1.02 and p["kind"] != "classifier"}
        assert won == ({"down"} if dtype == "bf16" else {"down", "gate_up"})
    assert [line for line in PAGE.splitlines() if re.match(r"\| (BF16|FP16) \|", line)] == found


def test_the_figures_in_the_text_are_those_of_the_result(bf16: dict[str, Any]) -> None:
    dense, (mlp, _) = bf16["dense"], bf16["variants"]
    share = {kind: found["share"] for kind, found in dense["classes"].items()}
    assert f"(g = {100 * share['gemm']:.1f} %)" in PROSE
    assert f"kernels together would be {1 / (1 - share['gemm'] / 2):.2f} times as fast" in PROSE
    assert f"alone have {100 * (share['elementwise'] + share['copy']):.1f} %" in PROSE
    found = {(p["kind"], p["n"]): p for p in bf16["products"]}
    blocks = [p["speedup"] for (kind, _), p in found.items() if kind != "classifier"]
    head = found["classifier", 32000]
    assert f"from {min(blocks):.2f}× (K and V" in PROSE
    assert f"to {max(blocks):.2f}× (down)" in PROSE
    assert max(blocks) == found["down", 2048]["speedup"] < 1
    assert f"would win, {head['speedup']:.2f}×" in PROSE
    assert f"{head['dense us']:.0f} of {1000 * dense['kernel ms']:,.0f} µs" in PROSE
    saved = (head["dense us"] - head["sparse us"]) / 1000 / dense["kernel ms"]
    assert f"{100 * saved:.1f} % of the kernels' time is all" in PROSE
    gate = found["gate_up", 5632]
    warm = [next(k["ms"] / 44 * 1000 for k in v["kernels"] if k["launches"] == 44) for v in (dense, mlp)]
    assert f"take {warm[0]:.1f} µs dense, not {gate['dense us']:.1f}" in PROSE
    assert f"and {warm[1]:.1f} µs sparse, not {gate['sparse us']:.1f}" in PROSE
    walls = [v["wall ms, without a graph"] for v in (dense, mlp)]
    assert f"{walls[1]:.1f} ms against {walls[0]:.1f}" in PROSE
    assert f"for {(walls[1] - walls[0]) / mlp['layers swapped']:.1f} ms a layer" in PROSE
    errors = {v["logits against FP32"]["relative error"] for v in (dense, *bf16["variants"])}
    assert [f"({100 * e:.1f} %)" in PROSE for e in errors] == [True]


def test_what_the_page_says_of_the_policy(bf16: dict[str, Any]) -> None:
    policy = find_policy("h200")
    for p in bf16["products"]:
        verdict = judge(policy, Gemm(p["kind"], p["n"], p["k"], "BF16"), p["m"], "torch")
        assert not verdict.sparse, p
        if p["kind"] == "down":
            assert f"has it at {verdict.speedup:.2f}× for M=1024" in PROSE
    asked = judge(policy, Gemm("gate_up", 5632, 2048, "BF16"), 1024, "torch")
    assert f"dense: {asked.reason}\n" in PAGE
    larger = [
        judge(policy, Gemm("gate_up", 5632, 2048, "BF16"), m, "torch").speedup
        for m in (2048, 4096, 8192, 16384)
    ]
    assert f"at {min(s for s in larger if s):.2f}× and more" in PROSE
