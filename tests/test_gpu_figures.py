"""What the pages say of runs on a GPU is what the result files say."""

from __future__ import annotations

import importlib
import re
import statistics
from collections.abc import Mapping
from random import Random
from types import ModuleType
from typing import Any

import pytest

from tests.pages import ROOT, prose, result_of

MODELS = ("llama-8b", "llama-70b", "tinyllama")


def rows(page: str, like: str) -> list[str]:
    """The rows of a page's tables that begin like that."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if re.match(like, line)]


def gain(found: Mapping[str, float]) -> str:
    """A ratio with its extremes."""
    return f"{found['median']:.3f} ({found['low']:.3f}–{found['high']:.3f})"


def cells() -> list[dict[str, Any]]:
    """Every product that the plugin was measured at."""
    return [cell for model in MODELS for cell in result_of(f"plugin_linear_{model}")["cells"]]


def cell_row(cell: Mapping[str, Any]) -> str:
    """One as it stands in docs/PLUGIN.md."""
    errors = [f"{100 * cell[key]:.3f} %" if key in cell else "–" for key in ("dense_error", "plugin_error")]
    times = [f"{cell[key]:.1f}" for key in ("dense_us", "plugin_us", "cusparselt_us")]
    speedup = f"{cell['speedup']:.2f}× ({cell['speedup_low']:.2f}–{cell['speedup_high']:.2f})"
    columns = [f"{cell['layer']}, {cell['k']}→{cell['n']}", str(cell["m"]), *times, speedup, *errors]
    return f"| {' | '.join(columns)} |"


def test_the_products_of_the_plugin() -> None:
    on_h100 = result_of("h100/plugin_linear_llama-8b")["cells"]
    assert rows("docs/PLUGIN.md", r"\| \w+, \d+→") == [cell_row(cell) for cell in [*cells(), *on_h100]]
    page, readme = prose("docs/PLUGIN.md"), prose("README.md")
    gains = [cell["speedup"] for cell in cells()]
    low, high, mean = min(gains), max(gains), statistics.geometric_mean(gains)
    assert low >= 1
    said = f"{len(gains)} products it is {low:.2f} to {high:.2f} times as fast"
    assert f"in {said.replace('products', 'products on the H200')}" in page
    assert f"{mean:.2f} in the geometric mean" in page
    assert f"in {said} as TensorRT's dense kernel, {mean:.2f} in the geometric mean" in readme
    assert f"| {mean:.2f}×, from {low:.2f}× to {high:.2f}× |" in readme
    for model in MODELS:
        own = statistics.geometric_mean(c["speedup"] for c in result_of(f"plugin_linear_{model}")["cells"])
        assert f"{own:.2f}" in page
    over = [cell["plugin_over_cusparselt"] for cell in cells()]
    near = [ratio for ratio in over if ratio <= 1.03]
    assert (
        f"that was so in {len(near)} of {len(over)}, {min(near):.3f} to {max(near):.3f}; in the other" in page
    )
    assert f"other {len(over) - len(near)} it was {min(set(over) - set(near)):.3f} to {max(over):.3f}" in page
    far = {
        (model, cell["layer"], cell["m"]): f"{cell['plugin_over_cusparselt']:.3f}"
        for model in MODELS
        for cell in result_of(f"plugin_linear_{model}")["cells"]
        if cell["plugin_over_cusparselt"] > 1.03
    }
    assert set(far) == {("llama-8b", "gate_up", 8192), ("tinyllama", "gate_up", 4096)}
    assert "LLaMA-8B's `gate_up` at M=8192 ({}) and TinyLlama's at M=4096 ({})".format(*far.values()) in page
    chosen = [
        [
            re.findall(r"\d+", build["searched"][str(m)]["chosen"])[0]
            for build in result_of(f"plugin_linear_{model}")["builds"]
            if build["layer"] == layer
        ]
        for model, layer, m in far
    ]
    fastest = [
        cell["cusparselt_algorithm"][0]
        for model, layer, m in far
        for cell in result_of(f"plugin_linear_{model}")["cells"]
        if (cell["layer"], cell["m"]) == (layer, m)
    ]
    assert (chosen, fastest) == ([["1"], ["27"]], [6, 1])
    earlier = [c["plugin_over_cusparselt"] for c in result_of("plugin_linear_llama-70b")["cells"]]
    assert f'"beats" cuSPARSELt by {100 * (1 - min(earlier)):.0f} % ({min(earlier):.3f})' in page
    worst = min(cells(), key=lambda cell: cell["speedup"])
    assert (worst["layer"], worst["k"], worst["m"]) == ("down", 5632, 16)
    slowest = (
        f"TinyLlama's `down` at M=16: {worst['speedup']:.3f}, and {worst['speedup_low']:.3f} in its slowest"
    )
    assert slowest in page
    assert (
        f"{len(gains)} products (no one slower than TensorRT's dense kernel in the median, {mean:.2f}"
        in prose("CHANGELOG.md")
    )
    assert f"{nearer(cells())} times nearer to FP32" in page


def nearer(found: list[dict[str, Any]]) -> str:
    """How many times nearer to FP32 than TensorRT's dense kernels, from and to."""
    errors = [cell["error_over_dense"] for cell in found if "error_over_dense" in cell]
    return f"{1 / max(errors):.0f} to {1 / min(errors):.0f}"


def test_the_products_of_the_plugin_on_an_h100() -> None:
    found = result_of("h100/plugin_linear_llama-8b")["cells"]
    page, readme = prose("docs/PLUGIN.md"), prose("README.md")
    gains, over = ([cell[key] for cell in found] for key in ("speedup", "plugin_over_cusparselt"))
    mean, said = statistics.geometric_mean(gains), f"{min(gains):.2f} to {max(gains):.2f} times as fast"
    assert f"In LLaMA-8B's {len(gains)} on the H100 it is {said}, {mean:.2f} in the geometric mean" in page
    assert f"in {len(gains)} on an H100 {said}, {mean:.2f} in the geometric mean" in readme
    assert f"| {mean:.2f}×, from {min(gains):.2f}× to {max(gains):.2f}× |" in readme
    assert max(over) <= 1.03
    assert f"it takes {min(over):.3f} to {max(over):.3f} of its time in all {len(over)}" in page
    assert f"({nearer(found)} on the H100)" in page


def test_the_plugins_engines() -> None:
    page = prose("docs/PLUGIN.md")
    for model in ("llama-8b", "tinyllama"):
        result = result_of(f"plugin_linear_{model}")
        dense = [cell["dense_build_s"] for cell in result["cells"]]
        sizes = {round(cell["dense_engine_mb"]) for cell in result["cells"]}
        plugin = {build["plugin_engine_mb"] for build in result["builds"]}
        seconds = [build["plugin_build_s"] for build in result["builds"]]
        assert len(plugin) == len(sizes) == 1
        assert f"{plugin.pop():.0f} MB for {sizes.pop()}" in page
        assert f"{min(seconds):.0f} to {max(seconds):.0f} s for 15 M" in page
        assert f"{min(dense):.0f} to {max(dense):.0f} s for one" in page
        assert {len(build["searched"]) for build in result["builds"]} == {15}
    searched = result_of("plugin_linear_llama-70b")["builds"][0]["searched"]
    slower, larger = (
        (re.findall(r"\d+", found["chosen"])[0], f"{found['us']:.1f}")
        for found in (searched["1536"], searched["2048"])
    )
    assert f"algorithm {slower[0]} at {slower[1]} µs for LLaMA-70B's `gate_up` at M=1536" in page
    assert f"and {larger[0]} at {larger[1]} for 2048" in page
    for trial in (result_of(f"plugin_linear_{model}")["trial"] for model in MODELS):
        assert (trial["claimed"], trial["right"][-1], trial["died_of"]) == (52, "35", "algorithm 36")


def network_row(name: str, row: Mapping[str, Any]) -> str:
    """A network at one M as it stands in docs/PLUGIN.md."""
    times, gains = row["times"], row["dense over it"]
    same = row.get("the same engine", {})
    columns = [name, str(row.get("m", "")) or row["profile"].removeprefix("m")]
    columns.append(f"{times['dense']['p50_ms']:.3f}")
    for side in ("sparse", "plugin", "joined", "policy"):
        columns.append(gain(gains[side]) if side in gains else f"as {same[side]}" if side in same else "–")
    by_share = "" if by_the_formula(row) else " by share"
    columns.append(f"{row['ceiling']['tensor cores']:.3f}{by_share}")
    return f"| {' | '.join(columns)} |"


def layers_counted(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A network's layers by side, with how many ran: older files do not say, but may list all."""
    sides = {side: dict(facts) for side, facts in (row.get("where the time goes") or row["layers"]).items()}
    for facts in sides.values():
        listed = [ms for part in ("products", "others") for ms in facts[part].values() if ms > 0]
        if abs(sum(listed) - facts["all_ms"]) < 1e-4:
            facts.setdefault("layers that run", len(listed))
            facts.setdefault("products that run", len(facts["products"]))
    return sides


def by_the_formula(row: Mapping[str, Any]) -> bool:
    """Whether there is all that benchmarks/engine_layers.py derives a ceiling from."""
    return all("layers that run" in facts for facts in layers_counted(row).values())


def engine_layers() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("engine_layers")


def test_ceilings_are_those_of_the_times_beside_them() -> None:
    formula = engine_layers()
    without = []
    for name in (
        "tensorrt_mlp_tinyllama",
        "tensorrt_mlp_llama-8b",
        "plugin_decoder_prefill",
        "plugin_decoder_decode",
        "h100/tensorrt_mlp_llama-8b",
        "h100/plugin_decoder_decode",
    ):
        for row in result_of(name)["rows"]:
            whole = {side: times["p50_ms"] for side, times in row["times"].items()}
            if by_the_formula(row):
                assert row["ceiling"] == formula.ceilings(layers_counted(row), whole), (name, row["date"])
            else:  # the products' share of the layers' sum
                without.append(name)
                facts = row["layers"]["dense"]
                half = facts["products_ms"] / facts["all_ms"] / formula.TENSOR_CORES
                assert row["ceiling"]["tensor cores"] == pytest.approx(1 / (1 - half), abs=1e-4)
    assert without == ["plugin_decoder_prefill", "plugin_decoder_decode"]
    (counted,) = result_of("h100/plugin_decoder_decode")["rows"]
    counts = {key: counted["layers"]["dense"][key] for key in ("layers that run", "products that run")}
    would = []
    for name in without:
        (row,) = result_of(name)["rows"]
        dense = {"dense": row["layers"]["dense"] | counts}
        would.append(formula.ceilings(dense, {"dense": row["times"]["dense"]["p50_ms"]})["tensor cores"])
    said = f"If {counts['layers that run']} layers ran there, {counts['products that run']} of them products"
    page = prose("docs/PLUGIN.md")
    assert said in page
    assert (
        "they would be {:.3f} and {:.3f}, beside the H100's {:.3f}".format(
            *would, counted["ceiling"]["tensor cores"]
        )
        in page
    )


def test_the_library_of_each_result_is_said() -> None:
    known = {"70deece4": set[str](), "bb16e7f5": set[str](), "7dc686b7": set[str]()}
    for name in (f"{gpu}{kind}_{model}" for gpu in ("", "h100/") for kind, model in (
        ("plugin_linear", "llama-8b"), ("plugin_linear", "llama-70b"), ("plugin_linear", "tinyllama"),
        ("tensorrt_mlp", "llama-8b"), ("tensorrt_mlp", "tinyllama"), ("plugin_decoder", "prefill"),
        ("plugin_decoder", "decode"),
    )):  # fmt: skip
        if not (ROOT / "benchmarks" / "results" / f"{name}.json").exists():
            continue
        result = result_of(name)
        for row in result.get("rows", [{}]):
            earlier = row.get("of an earlier run", {}).get("plugin_sha256")
            given = [side["plugin"]["given"] for side in row.get("built", {}).values() if "plugin" in side]
            (library,) = {sha[:8] for sha in [earlier or result.get("plugin_sha256"), *given] if sha}
            known[library].add(
                f"{name} {row['profile']}" if "llama-8b" in name and "profile" in row else name
            )
    assert known == {
        "70deece4": {"tensorrt_mlp_tinyllama", "tensorrt_mlp_llama-8b m1024", "plugin_decoder_prefill",
                     "plugin_decoder_decode"},
        "bb16e7f5": {"plugin_linear_llama-70b", "tensorrt_mlp_llama-8b m64", "h100/plugin_linear_llama-8b",
                     "h100/tensorrt_mlp_llama-8b m256", "h100/tensorrt_mlp_llama-8b m4096",
                     "h100/plugin_decoder_decode"},
        "7dc686b7": {"plugin_linear_llama-8b", "plugin_linear_tinyllama", "tensorrt_mlp_llama-8b m256"},
    }  # fmt: skip
    said = dict(zip(known, rows("docs/PLUGIN.md", r"\| `[0-9a-f]{8}…`"), strict=True))
    assert all(line.startswith(f"| `{library}…`") for library, line in said.items())
    assert "on the H200: TinyLlama's MLP blocks, LLaMA-8B's at M=1024" in said["70deece4"]
    assert "products of LLaMA-8B and TinyLlama, LLaMA-8B's MLP at M=256" in said["7dc686b7"]
    assert "on the H200: products of LLaMA-70B, LLaMA-8B's MLP at M=64; on the H100:" in said["bb16e7f5"]


def test_whole_networks_with_the_plugin() -> None:
    expected = [network_row("TinyLlama MLP", row) for row in result_of("tensorrt_mlp_tinyllama")["rows"]]
    expected += [network_row("LLaMA-8B MLP", row) for row in result_of("tensorrt_mlp_llama-8b")["rows"]]
    decoders = [result_of(f"plugin_decoder_{case}") for case in ("prefill", "decode")]
    for case, decoder in zip(("prefill", "decode"), decoders, strict=True):
        assert decoder["shape"]["layers"] == 22
        expected += [network_row(f"TinyLlama decoder, {case}", row) for row in decoder["rows"]]
    on_h100 = result_of("h100/plugin_decoder_decode")
    expected += [
        network_row("LLaMA-8B MLP, H100", row) for row in result_of("h100/tensorrt_mlp_llama-8b")["rows"]
    ]
    expected += [network_row("TinyLlama decoder, decode, H100", row) for row in on_h100["rows"]]
    assert rows("docs/PLUGIN.md", r"\| (TinyLlama|LLaMA)") == expected
    page, readme = prose("docs/PLUGIN.md"), prose("README.md")
    blocks = [
        row["dense over it"]["joined"]["median"]
        for name in ("tensorrt_mlp_tinyllama", "tensorrt_mlp_llama-8b", "h100/tensorrt_mlp_llama-8b")
        for row in result_of(name)["rows"]
    ]
    assert f"as one product gain {min(blocks):.2f} to {max(blocks):.2f} times" in readme
    whole = [d["rows"][0]["dense over it"]["joined"]["median"] for d in (*decoders, on_h100)]
    assert (
        "decoder {:.3f} at prefill (1024 tokens) and {:.3f} at decode (64 sequences; {:.3f}".format(*whole)
        in readme
    )
    for decoder in (*decoders, on_h100):
        (row,) = decoder["rows"]
        sizes = [row["built"][side]["engine_mb"] for side in ("dense", "joined")]
        assert f"{sizes[1]:,.0f} MB for {sizes[0]:,.0f}" in page
    for decoder, phase in ((decoders[0], "prefill"), (on_h100, "decode")):
        errors = decoder["rows"][0]["errors"]
        joined, dense = (f"{100 * errors[side]['relative_l2']:.2f} %" for side in ("joined", "dense"))
        assert f"{joined} for {dense} dense at {phase}" in page


def test_no_engine_of_the_policy_is_slower_than_dense_by_more_than_2_percent() -> None:
    for name in ("tensorrt_mlp_tinyllama", "tensorrt_mlp_llama-8b", "h100/tensorrt_mlp_llama-8b"):
        for row in result_of(name)["rows"]:
            assert not row["slower than dense by more than 2 %"]["policy"], row["profile"]
            for side, error in row["error against FP32"].items():
                over = (
                    name.endswith("llama-8b") and side in SUM_UP_IN_FP16 and (name, row["profile"]) != WITHIN
                )
                assert error["y"]["cosine"] >= 0.9999
                assert (error["y"]["relative_l2"] > 5e-3) == over, (
                    "docs/TENSORRT.md names those that are over"
                )


# K = 14336 in TensorRT's own kernels
SUM_UP_IN_FP16 = ("dense", "sparse")
WITHIN = ("tensorrt_mlp_llama-8b", "m256")


def test_the_errors_of_tensorrts_own_kernels() -> None:
    page = prose("docs/TENSORRT.md")
    big = {
        (name, row["profile"], side): 100 * row["error against FP32"][side]["y"]["relative_l2"]
        for name in ("tensorrt_mlp_llama-8b", "h100/tensorrt_mlp_llama-8b")
        for row in result_of(name)["rows"]
        for side in SUM_UP_IN_FP16
    }
    within = {f"{big.pop((*WITHIN, side)):.2f}" for side in SUM_UP_IN_FP16}
    over = f"relative L2 {min(big.values()):.2f} to {max(big.values()):.2f} %, dense and sparse"
    assert f"over what was asked**: {over}" in page
    assert f"but for M=256 on the H200 with {within.pop()} %" in page
    assert not within
    small = [row["error against FP32"] for row in result_of("tensorrt_mlp_tinyllama")["rows"]]
    dense, sparse = ([100 * row[side]["y"]["relative_l2"] for row in small] for side in SUM_UP_IN_FP16)
    told = f"{min(dense):.2f} to {max(dense):.2f} % dense and {min(sparse):.2f} to {max(sparse):.2f} % sparse"
    assert f"TinyLlama: relative L2 {told}" in page
    resnet = [
        100 * error["logits"]["relative_l2"]
        for row in result_of("tensorrt_resnet50")["rows"]
        for error in row["error against FP32"].values()
    ]
    assert f"ResNet-50: relative L2 {min(resnet):.3f} to {max(resnet):.3f} %" in page


def test_ten_minutes_of_load() -> None:
    page, soaks = prose("docs/PLUGIN.md"), [result_of("plugin_soak"), result_of("h100/plugin_soak")]
    grown = []
    for soak in soaks:
        assert soak["passed"]
        assert soak["minutes"] == 10
        assert soak["m_whose_bits_changed"] == []
        assert soak["max_error_first_half"] == soak["max_error_second_half"]
        assert soak["gpu_bytes_grown_after_a_quarter"] <= 0
        grown.append([soak["memory"][i]["rss"] / 1e9 for i in (0, -1)])
    counts = [f"{sum(soak['runs']):,}" for soak in soaks]
    assert f"{counts[0]} runs on the H200 and {counts[1]} on the H100" in page
    assert "The host's did on the H200**, from {:.1f} to {:.1f} GB".format(*grown[0]) in page
    most = soaks[0]["shape"][-1]
    plans = 2 * most // 8  # of two layers, at each multiple of 8
    assert f"{(grown[0][1] - grown[0][0]) * 1000 / plans:.0f} MB for each of {plans} plans" in page
    assert "on the H100 it grew from {:.1f} to {:.1f} GB, and not at all after".format(*grown[1]) in page
    assert soaks[1]["rss_bytes_grown_after_a_quarter"] <= 0
    new = soaks[1]["host_ms_new_m"]
    assert f"{new['median']:.2f} ms in the median, {new['p99']:.0f} at the 99th percentile" in page


def test_the_sanitizer() -> None:
    tools, page = result_of("plugin_sanitizer")["tools"], prose("docs/PLUGIN.md")
    assert {name for name, row in tools.items() if row["clean"]} == {"memcheck", "synccheck"}
    runs = {name: sum(row["runs"]) for name, row in tools.items()}
    assert f"found nothing, in {runs['memcheck']} and {runs['synccheck']} runs" in page
    assert not any(row["failed"] for row in tools.values())
    assert tools["racecheck"]["counted"] == [6]
    named = [line for line in tools["racecheck"]["said"] if "access at" in line]
    assert named
    assert all(re.search(r"access at sm90_xmma_sparse_gemm_\w+_cusparselt\+", line) for line in named)
    assert tools["racecheck"]["outputs right"]
    assert tools["initcheck"]["outputs right"]


def test_racecheck_names_cusparselts_kernels_with_the_plugin_and_without() -> None:
    h200, h100 = (result_of(f"{folder}plugin_sanitizer")["tools"]["racecheck"] for folder in ("", "h100/"))
    alone = [found["cuSPARSELt alone"] for found in (h200, h100)]
    assert [found["counted"] for found in (h200, h100, *alone)] == [[6], [5], [4], [3]]
    assert rows("docs/PLUGIN.md", r"  \| H[12]00 \|") == [
        f"  | {gpu} | {found['counted'][0]} | {of['counted'][0]}, {of['right']} algorithms right "
        "| the engine's, 1024→4096, M=2048 |"
        for gpu, found, of in zip(("H200", "H100"), (h200, h100), alone, strict=True)
    ]
    assert (
        f"in {sum(h200['runs'])} runs on the H200 and {sum(h100['runs'])} on the H100 (no rows dense)"
        in prose("docs/PLUGIN.md")
    )
    assert {found["dense_below_m"] for found in (h200, h100)} == {0}
    with_plugin = {*h200["kernels named"], *h100["kernels named"]}
    assert not with_plugin & {kernel for of in alone for kernel in of["kernels named"]}
    family = re.compile(
        r"sm90_xmma_sparse_gemm_f16f16_f16f32_f32_tn_n_\w+_segment_k_off_kernel_5x_cusparselt"
    )
    for found in (h200, h100, *alone):
        assert found["kernels named"]
        assert all(family.fullmatch(kernel) for kernel in found["kernels named"])
    assert h100["outputs right"]


def test_what_initcheck_counts_is_what_cusparselt_wrote() -> None:
    tools = result_of("plugin_sanitizer")["tools"]
    alone = tools["initcheck"]["cuSPARSELt alone"]
    assert alone["counted"] == [alone["right"] * 64 * 512 * 2 // 32], "each 32 bytes of each output"
    k, _, most = result_of("plugin_soak")["shape"]
    rows_written = 0
    for context, runs in enumerate(tools["initcheck"]["runs"]):
        chosen, copied = Random(context), set[tuple[int, int]]()
        for run in range(runs):
            m = chosen.randint(1, most)
            assert m > 256, "its last rows alone are a product of their own, whose result the plugin copies"
            copied |= {(run % 2, row) for row in range(m - m % 8, m)}
            rows_written += sum((run % 2, row) not in copied for row in range(m))
    assert tools["initcheck"]["counted"] == [rows_written * k * 2 // 32]
    assert f"{tools['initcheck']['counted'][0]:,}" in prose("docs/PLUGIN.md")


def test_the_tactics_of_tensorrt() -> None:
    found = []
    for result, name in (
        ("tensorrt_mlp_tinyllama", "TinyLlama MLP, FP16"),
        ("tensorrt_mlp_llama-8b", "LLaMA-8B MLP, FP16"),
        ("h100/tensorrt_mlp_llama-8b", "LLaMA-8B MLP, FP16, H100"),
    ):
        for i, row in enumerate(result_of(result)["rows"]):
            pair, _, down = row["layers"]["sparse"]
            for layer, words in ((pair, "gate and up, merged"), (down, "down")):
                first = (
                    [name if not i else "", row["profile"].removeprefix("m")] if layer is pair else ["", ""]
                )
                best = [f"{layer[key]:.4f}" for key in ("best_sparse_ms", "best_dense_ms")]
                runs = "**sparse**" if layer["sparse"] else "dense"
                found.append(line_of(*first, words, *best, runs))
    assert rows("docs/TENSORRT.md", r"\| .*\| (gate and up, merged|down) \|") == found


def test_the_tactics_of_int8() -> None:
    up, down = result_of("tensorrt_mlp_tinyllama-int8")["layers"]
    text = (ROOT / "docs" / "TENSORRT.md").read_text(encoding="utf-8")
    best = [f"{up[key]:.4f}" for key in ("best_sparse_ms", "best_dense_ms")]
    assert line_of("TinyLlama up and down, INT8", "1024", "up, Relu (INT8 behind it)", *best, "dense") in text
    assert not up["sparse"]
    assert not down["tried_sparse"]
    assert line_of("", "", "down (FP32 behind it)", "not offered", "–", "dense") in text
    assert f"{up['tried_sparse']} beside {up['tried_dense']} for the INT8 one" in prose("docs/TENSORRT.md")


def line_of(*columns: str) -> str:
    """A table's row."""
    return " ".join(f"| {' | '.join(columns)} |".split())


def engine_rows(name: str, words: str) -> list[str]:
    """A result's engines as they stand in docs/TENSORRT.md."""
    found = []
    for i, row in enumerate(result_of(name)["rows"]):
        times = [f"{row['times'][side]['p50_ms']:.4f}" for side in ("dense", "sparse")]
        at = row["profile"].removeprefix("m").replace("b", "batch ")
        found.append(line_of(words if not i else "", at, *times, gain(row["dense over it"]["sparse"])))
    return found


def test_engines_with_tensorrts_own_sparse_kernels() -> None:
    text = (ROOT / "docs" / "TENSORRT.md").read_text(encoding="utf-8").replace("**", "")
    for name, words in (
        ("tensorrt_mlp_tinyllama", "TinyLlama MLP"),
        ("tensorrt_mlp_llama-8b", "LLaMA-8B MLP"),
        ("h100/tensorrt_mlp_llama-8b", "LLaMA-8B MLP, H100"),
        ("tensorrt_resnet50", "ResNet-50, FP16"),
    ):
        for line in engine_rows(name, words):
            assert line in text
    (int8,) = result_of("tensorrt_mlp_tinyllama-int8")["times"]
    times = [f"{int8[side]['p50_ms']:.4f}" for side in ("dense", "sparse")]
    assert line_of("TinyLlama INT8", str(int8["m"]), *times, gain(int8["dense over sparse"])) in text
    minilm = result_of("tensorrt_minilm")["bench: against is the dense engine"]
    for row, first, at in zip(minilm[1:], ("MiniLM-L6, FP16", ""), ("8×128", "32×256"), strict=True):
        assert f"input_ids {at}," in row["shapes"]
        times = [f"{row[key]:.4f}" for key in ("against_p50_ms", "p50_ms")]
        assert line_of(first, at, *times, gain(row["speedup"])) in text
    resnet, page = result_of("tensorrt_resnet50"), prose("docs/TENSORRT.md")
    tried = {row["built"]["sparse"]["layers tried sparse"] for row in resnet["rows"]}
    ran = [row["built"]["sparse"]["layers that run sparse"] for row in resnet["rows"]]
    assert f"{tried.pop()} of its 54 layers" in page
    assert f"{ran[0]} run sparse at batch 1 and {ran[1]} at 32" in page


def shape_in_resnet50(layer: str) -> tuple[int, ...]:
    """Channels in and out, kernel, stride and the input's height of one of its convolutions."""
    found = re.fullmatch(r"layer(\d)\.(\d)\.(.*)", layer)
    if not found:
        return (7, 1000 if layer == "fc" else 64)
    stage, block, part = int(found[1]), int(found[2]), found[3]
    width, height = 32 << stage, 112 >> stage
    stride = 2 if stage > 1 and not block else 1
    channels = 4 * width if block else 64 if stage == 1 else 2 * width
    return {
        "conv1": (channels, width, 1, 1, stride * height),
        "conv2": (width, width, 3, stride, stride * height),
        "conv3": (width, 4 * width, 1, 1, height),
        "downsample": (channels, 4 * width, 1, stride, stride * height),
    }[part]


def test_resnets_layers_without_times_run_the_tactic_of_the_one_that_is_like_them() -> None:
    for row in result_of("tensorrt_resnet50")["rows"]:
        alike: dict[tuple[object, ...], list[dict[str, Any]]] = {}
        for layer in row["layers"]["sparse"]:
            fused = [part in layer["engine_layer"] for part in (".add", ".relu")]
            alike.setdefault((*shape_in_resnet50(layer["layer"]), *fused), []).append(layer)
        assert sum(not layer["tried_dense"] for group in alike.values() for layer in group) == 29
        for group in alike.values():
            assert [bool(layer["tried_dense"]) for layer in group].count(True) == 1
            assert len({layer["tactic"] for layer in group}) == 1


def test_the_build_time_beside_polygraphys() -> None:
    page = prose("docs/TENSORRT.md")
    same, free = (
        f"ours, the backend's step over polygraphy, {other}"
        for other in ("the same engine", "types left to TensorRT")
    )
    now, earlier, h100 = (result_of(n) for n in ("build_time", "build_time_earlier", "h100/build_time"))
    medians = [
        {what: times["median"] for what, times in found["seconds"].items()} for found in (now, earlier)
    ]
    (step, theirs), (step_before, theirs_before) = (
        (found["ours, the backend's step"], found["polygraphy, the same engine"]) for found in medians
    )
    runs = [f"{run:.3f}" for run in sorted(now["ratios"][same]["runs"])]
    assert f"{runs[0]}, {runs[1]} and {runs[2]} times as long as `convert`" in page
    assert f"(medians {step:.1f} and {theirs:.1f} s; `build_time.json`)" in page
    ratio, before = (
        "{median:.3f} ({min:.3f}–{max:.3f})".format(**earlier["ratios"][key]) for key in (same, free)
    )
    assert f"earlier run {ratio} times ({step_before:.1f} and {theirs_before:.1f} s;" in page
    assert f"on the H100, one round, it was {h100['ratios'][same]['median']:.3f}" in page
    left = "polygraphy, types left to TensorRT"
    assert f"took {medians[0][left]:.1f} s in one round, {medians[1][left]:.1f} earlier" in page
    assert f"the step takes {now['ratios'][free]['median']:.3f} of that, {before} earlier" in page
    whole = "{median:.3f} ({min:.3f}–{max:.3f})".format(
        **now["ratios"]["ours, whole command over polygraphy, the same engine"]
    )
    assert f"on the CPU, took {medians[0]['ours, whole command']:.1f} s, {whole} times as long as" in page
    own = [medians[0][f"{whose}, TensorRT's own build"] for whose in ("ours", "polygraphy")]
    assert f"is {own[0]:.1f} s of ours with the builder's creation" in page
    assert f"and {own[1]:.1f} s of Polygraphy's, which is the engine alone" in page
    added = [
        a - b
        for a, b in zip(
            *(
                now["seconds"][f"ours, {part}"]["runs"]
                for part in ("the backend's step", "TensorRT's own build")
            ),
            strict=True,
        )
    ]
    assert f"is {min(added):.1f} to {max(added):.1f} s of it" in page


def test_a_module_profiled_dense_and_sparse() -> None:
    said, page = result_of("profile_sparsified")["said"], prose("docs/PYTORCH.md")
    dense, sparse = (said[side]["ms"] for side in ("dense", "sparse"))
    assert {name.rpartition(".")[2] for name in said["swapped"]} == {"down_proj"}
    assert f"found down of all {len(said['swapped'])} layers to gain" in page
    ceiling = said["dense"]["ceilings"][0]["ceiling"]
    told = f"{dense:.2f} ms of GPU time dense and {sparse:.2f} ms so: {dense / sparse:.3f} times as fast"
    assert f"{told}, of a ceiling of {ceiling:.3f}" in page


def test_what_the_readme_says_of_ray_is_what_its_result_says() -> None:
    result = result_of("ray_two_gpus")
    assert f"| {result['points a minute, two over one']:.2f}× the points a minute |" in prose("README.md")
    assert result["thresholds agree"]
    page, common = prose("docs/AUTOTUNED_POLICY.md"), result["speedups at common M"]
    ran = f"ran in {result['dtype']} alone, on cuSPARSELt {result['libraries']['cusparselt']}, which is not"
    assert ran in page
    differ = f"differ by {100 * common['median difference']:.1f} % in the median and by"
    assert f"Of {common['common']} products that both measured the speedups {differ}" in page
    assert f"by {100 * common['largest difference']:.1f} % at most" in page
