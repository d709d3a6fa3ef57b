"""What the pages say of the plugin on a GPU is what the result files say."""

from __future__ import annotations

import importlib
import re
import statistics
from collections.abc import Mapping
from random import Random
from types import ModuleType
from typing import Any

import pytest

from sparseflow_trt.policies.policy import find_policy
from tests.made_plans import plan_gate_and_up
from tests.pages import ROOT, gain, prose, result_of, rows

MODELS = ("llama-8b", "llama-70b", "tinyllama")


def cells(others: bool = False) -> list[dict[str, Any]]:
    """Every product that the plugin was measured at, of an M that is a multiple of 8; or the others."""
    measured = [cell for model in MODELS for cell in result_of(f"plugin_linear_{model}")["cells"]]
    return [cell for cell in measured if (cell["m"] % 8 != 0) == others]


def cell_row(cell: Mapping[str, Any]) -> str:
    """One as it stands in docs/PLUGIN.md."""
    errors = [f"{100 * cell[key]:.3f} %" if key in cell else "–" for key in ("dense_error", "plugin_error")]
    times = [f"{cell[key]:.1f}" for key in ("dense_us", "plugin_us", "cusparselt_us")]
    speedup = f"{cell['speedup']:.2f}× ({cell['speedup_low']:.2f}–{cell['speedup_high']:.2f})"
    columns = [f"{cell['layer']}, {cell['k']}→{cell['n']}", str(cell["m"]), *times, speedup, *errors]
    return f"| {' | '.join(columns)} |"


def test_the_products_of_the_plugin() -> None:
    on_h100 = result_of("h100/plugin_linear_llama-8b")["cells"]
    shown = [*cells(), *on_h100, *cells(others=True)]
    assert rows("docs/PLUGIN.md", r"\| \w+, \d+→.*(%|–) \|$") == [cell_row(cell) for cell in shown]
    page, readme = prose("docs/PLUGIN.md"), prose("README.md")
    gains = [cell["speedup"] for cell in cells()]
    low, high, mean = min(gains), max(gains), statistics.geometric_mean(gains)
    assert low >= 1
    on_h100 = [cell["speedup"] for cell in result_of("h100/plugin_linear_llama-8b")["cells"]]
    h100 = f"{min(on_h100):.2f} to {max(on_h100):.2f}"
    assert (
        f"| plugin over dense | {low:.2f} to {high:.2f} times as fast | {h100} times as fast |"
        f" | geometric mean | {mean:.2f} | {statistics.geometric_mean(on_h100):.2f} |" in page
    )
    of = f"{len(gains)}, of LLaMA-8B, LLaMA-70B and TinyLlama | {len(on_h100)}, of LLaMA-8B"
    assert f"| | H200 | H100 | |---|---|---| | products | {of} |" in page
    sizes = [cell["m"] for cell in cells()]
    assert (
        f"| {len(gains)} MLP products of LLaMA-8B, LLaMA-70B and TinyLlama in the plugin, M = {min(sizes)} "
        f"to {max(sizes)}, geometric mean | H200 | {mean:.2f}×, from {low:.2f}× to {high:.2f}× |" in readme
    )
    assert f"In the {len(gains)} products it is {nearer(cells())} times nearer to FP32" in readme
    for model, name in zip(MODELS, ("LLaMA-8B", "LLaMA-70B", "TinyLlama"), strict=True):
        result = result_of(f"plugin_linear_{model}")
        own = statistics.geometric_mean(c["speedup"] for c in result["cells"] if c["m"] % 8 == 0)
        assert own == pytest.approx(result["geometric_mean"], abs=6e-4)
        assert f"{name} {own:.2f}" in page
    over = [cell["plugin_over_cusparselt"] for cell in cells()]
    near = [ratio for ratio in over if ratio <= 1.03]
    (far,) = (cell for cell in cells() if cell["plugin_over_cusparselt"] > 1.03)
    times = f"{min(near):.3f} to {max(near):.3f} in {len(near)}, {far['plugin_over_cusparselt']:.3f} in one"
    assert f"own call | {times} |" in page
    assert f"except for one of the {len(over)} products on the H200" in page
    result = result_of("plugin_linear_llama-8b")
    before = sorted(
        cell["plugin_over_cusparselt"]
        for cell in result["measured before"]
        if (cell["layer"], cell["m"]) == ("down", 64)
    )
    ratios = "({:.3f}; {:.3f} and {:.3f} before".format(far["plugin_over_cusparselt"], *before)
    assert f"LLaMA-8B's `down` at M=64 {ratios}" in page
    (down,) = (build for build in result["builds"] if build["layer"] == "down")
    assert down["searched"]["64"]["chosen"].startswith("algorithm 16,")
    assert far["cusparselt_algorithm"] == [22, 1, 0]
    (best,) = (cell for cell in cells() if cell["plugin_over_cusparselt"] == min(over))
    assert (best["layer"], best["k"], best["m"]) == ("gate_up", 4096, 1024)
    assert f'"beats" cuSPARSELt by {100 * (1 - min(over)):.0f} % ({min(over):.3f})' in page
    worst = min(cells(), key=lambda cell: cell["speedup"])
    assert (worst["layer"], worst["k"], worst["m"]) == ("down", 5632, 16)
    slowest = (
        f"TinyLlama's `down` at M=16: {worst['speedup']:.3f}, and {worst['speedup_low']:.3f} in its slowest"
    )
    assert slowest in page
    assert (
        f"{len(gains)} products (none slower than TensorRT's dense kernel in the median, {mean:.2f}"
        in prose("CHANGELOG.md")
    )
    assert f"| nearer to FP32 than dense | {nearer(cells())} times |" in page


def test_engines_that_were_built_at_once() -> None:
    page = prose("docs/PLUGIN.md")
    (cell,) = (c for c in result_of("plugin_linear_llama-70b")["cells"] if "built alone, earlier" in c)
    assert (cell["layer"], cell["m"], cell["dense_engines_built_at_once"]) == ("down", 1024, 5)
    alone = cell["built alone, earlier"]
    times = [f"{side[key]:.2f}" for key in ("dense_us", "plugin_us") for side in (alone, cell)]
    assert "dense took {} µs then and {} now, the plugin {} and {}".format(*times) in page
    assert f"a gain of {alone['speedup']:.3f} and {cell['speedup']:.3f}." in page
    ratios = []
    for model in MODELS:
        result = result_of(f"plugin_linear_{model}")
        now = {(c["layer"], c["m"]): c["speedup"] for c in result["cells"] if c["m"] % 8 == 0}
        then = [c for c in result["measured before"] if c["m"] % 8 == 0]
        ratios += [now[c["layer"], c["m"]] / c["speedup"] for c in then]
    low, high = min(ratios), max(ratios)
    assert f"the gains of now are {low:.2f} to {high:.2f} times those {len(ratios)}" in page
    blocks = result_of("tensorrt_mlp_llama-8b")["rows"]
    for name, words in (("tinyllama", "TinyLlama's dense took"), ("llama-8b", "LLaMA-8B's dense took")):
        rows_of = result_of(f"tensorrt_mlp_{name}")["rows"]
        assert {row["artifacts built at once"] for row in rows_of} == {10}
        before = [row["built one at a time, earlier"] for row in rows_of]
        dense = [earlier["p50_ms"]["dense"] for earlier in before]
        assert f"{words} {{:.3f}}, {{:.3f}}, {{:.3f}} and {{:.3f}} ms".format(*dense) in page
        for row, was in zip(rows_of, dense, strict=True):
            assert abs(row["times"]["dense"]["p50_ms"] / was - 1) < 0.05
        gains = [earlier["dense over it"]["plugin"] for earlier in before]
        assert "and the plugin gained {:.2f}, {:.2f}, {:.2f} and {:.2f}.".format(*gains) in page
    (largest,) = (row for row in blocks if row["profile"] == "m4096")
    slower = largest["dense over it"]["plugin"]["median"] / largest["dense over it"]["joined"]["median"]
    assert f"joined is {slower - 1:.0%} slower than not".replace("%", " %") in page
    assert largest["the same engine"] == {"policy": "joined"}


@pytest.mark.parametrize(("name", "hidden", "inner"), [("llama-8b", 4096, 14336), ("tinyllama", 2048, 5632)])
def test_todays_policy_plans_gate_and_up_as_the_page_says(name: str, hidden: int, inner: int) -> None:
    for row in result_of(f"tensorrt_mlp_{name}")["rows"]:
        m = int(row["profile"].removeprefix("m"))
        plan = plan_gate_and_up(find_policy("h200"), hidden, inner, m, library=True)
        assert {layer.sparsity for layer in plan.layers} == {"plugin"}
        (joined,) = {bool(layer.joined) for layer in plan.layers}
        # TinyLlama's down is dense at M=64
        assert joined == (row["the same engine"].get("policy", "joined") == "joined"), m


def nearer(found: list[dict[str, Any]]) -> str:
    """How many times nearer to FP32 than TensorRT's dense kernels, from and to."""
    errors = [cell["error_over_dense"] for cell in found if "error_over_dense" in cell]
    return f"{1 / max(errors):.0f} to {1 / min(errors):.0f}"


def test_the_products_of_the_plugin_on_an_h100() -> None:
    found = result_of("h100/plugin_linear_llama-8b")["cells"]
    page, readme = prose("docs/PLUGIN.md"), prose("README.md")
    gains, over = ([cell[key] for cell in found] for key in ("speedup", "plugin_over_cusparselt"))
    mean = statistics.geometric_mean(gains)
    span = f"{mean:.2f}×, from {min(gains):.2f}× to {max(gains):.2f}×"
    assert f"| LLaMA-8B's {len(gains)} of them | H100 | {span} |" in readme
    assert max(over) <= 1.03
    assert f" | {min(over):.3f} to {max(over):.3f} in {len(over)} | | nearer to FP32 than dense |" in page
    assert f"nearer to FP32 than dense | {nearer(cells())} times | {nearer(found)} times |" in page


def test_the_plugins_engines() -> None:
    page = prose("docs/PLUGIN.md")
    for model in ("llama-8b", "tinyllama"):
        result = result_of(f"plugin_linear_{model}")
        dense: dict[int, list[float]] = {}
        for cell in result["cells"]:
            if cell["m"] % 8 == 0:
                dense.setdefault(cell.get("dense_engines_built_at_once", 1), []).append(cell["dense_build_s"])
        sizes = {round(cell["dense_engine_mb"]) for cell in result["cells"]}
        builds = [build for build in result["builds"] if len(build["searched"]) == 15]
        assert len(builds) >= 2
        plugin = {build["plugin_engine_mb"] for build in builds}
        seconds = [build["plugin_build_s"] for build in builds]
        assert len(plugin) == len(sizes) == 1
        taken = f"{min(seconds):.0f} to {max(seconds):.0f} s for 15 M"
        times = {count: f"{min(each):.0f} to {max(each):.0f} s for" for count, each in dense.items()}
        if model == "llama-8b":
            taken += f" | {times[9]} one, nine at once"
        else:
            taken += f" | {times[1]} one, {times[13]} 13 at once"
        assert f"| {plugin.pop():.0f} MB | {sizes.pop()} MB | {taken} |" in page
    now, before = (
        [build["searched"][m] for m in ("1536", "2048")]
        for build in result_of("plugin_linear_llama-70b")["builds"]
        if build["layer"] == "gate_up"
    )
    for found in (now, before):
        assert [one["chosen"].split(",")[0] for one in found] == ["algorithm 34", "algorithm 6"]
    said = (
        "came out at {:.1f} µs at M=1536, with algorithm 34, and at {:.1f} at 2048, with 6; in another run at"
    )
    assert said.format(*(one["us"] for one in before)) in page
    assert "{:.1f} and {:.1f}.)".format(*(one["us"] for one in now)) in page
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
    columns.append(f"{row['ceiling']['tensor cores']:.3f}")
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


def engine_layers() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("engine_layers")


def test_ceilings_are_those_of_the_times_beside_them() -> None:
    formula = engine_layers()
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
            assert row["ceiling"] == formula.ceilings(layers_counted(row), whole), (name, row["date"])


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
    assert f"as one product | H200, H100 | {min(blocks):.2f}× to {max(blocks):.2f}× |" in readme
    whole = [d["rows"][0]["dense over it"] for d in (*decoders, on_h100)]
    assert [d["rows"][0]["the same engine"] for d in decoders] == [{"policy": "joined"}, {}]
    prefill, decode, decode_h100 = ({side: f"{it['median']:.3f}" for side, it in g.items()} for g in whole)
    for line in (
        "| TinyLlama decoder as the `h200` policy plans it, prefill of 1024 tokens: every product in the "
        f"plugin | H200 | {prefill['joined']}× |",
        f"| the same, decode of 64 sequences: gate and up in the plugin | H200 | {decode['policy']}× |",
        f"| the same decode with every product in the plugin | H200 | {decode['joined']}× |",
        f"| the same | H100 | {decode_h100['joined']}× |",
    ):
        assert line in readme
    assert (
        f"beats the one with every product in the plugin**, {decode['policy']} to {decode['joined']}." in page
    )
    assert f"a policy without times of the plugin gained {decode_h100['policy']}× at decode" in readme
    for decoder, name in zip(
        (*decoders, on_h100), ("prefill, H200", "decode, H200", "decode, H100"), strict=True
    ):
        (row,) = decoder["rows"]
        sides = [row["built"][side] for side in ("joined", "dense")]
        built = [f"{side['engine_mb']:,.0f}" for side in sides] + [f"{side['build_s']:.0f}" for side in sides]
        said = [f"{100 * row['errors'][side]['relative_l2']:.2f} %" for side in ("joined", "dense")]
        assert f"| {name} | {' | '.join(built + said)} |" in page
    joined = [gains["joined"]["median"] for gains in whole]
    assert (
        f"MLP blocks are {min(blocks):.2f} to {max(blocks):.2f} times as fast as dense, a decoder "
        f"{min(joined):.3f} to {max(joined):.3f} times" in page
    )


def test_ten_minutes_of_load() -> None:
    page, soaks = prose("docs/PLUGIN.md"), [result_of("plugin_soak"), result_of("h100/plugin_soak")]
    grown = []
    for soak in soaks:
        assert soak["passed"]
        assert soak["minutes"] == 10
        assert soak["m_whose_bits_changed"] == []
        assert soak["max_error_first_half"] == soak["max_error_second_half"]
        assert soak["gpu_bytes_grown_after_a_quarter"] <= 0
        assert soak["rss_bytes_grown_after_a_quarter"] < 6e6
        grown.append([soak["memory"][i]["rss"] / 1e9 for i in (0, -1)])
    counts = [f"{sum(soak['runs']):,}" for soak in soaks]
    assert f"| runs | {counts[0]} | {counts[1]} |" in page
    said = "first quarter of the time | from {:.1f} to {:.1f} GB | from {:.1f} to {:.1f} GB |"
    assert said.format(*grown[0], *grown[1]) in page
    later = f"{soaks[0]['rss_bytes_grown_after_a_quarter'] / 1e6:.0f} MB more"
    assert f"| the host's memory, then | {later} | did not grow |" in page
    assert soaks[1]["rss_bytes_grown_after_a_quarter"] <= 0
    new = soaks[0]["host_ms_new_m"]
    assert f"{new['median']:.2f} ms in the median, {new['p99']:.0f} at the 99th percentile" in page


def test_the_sanitizer() -> None:
    tools, page = result_of("plugin_sanitizer")["tools"], prose("docs/PLUGIN.md")
    assert {name for name, row in tools.items() if row["clean"]} == {"memcheck", "synccheck"}
    runs = {name: sum(row["runs"]) for name, row in tools.items()}
    assert f"found nothing, in {runs['memcheck']} and {runs['synccheck']} runs" in page
    assert not any(row["failed"] for row in tools.values())
    assert {row["dense_below_m"] for row in tools.values()} == {0}
    assert "No rows ran dense under the tools" in page
    assert tools["racecheck"]["counted"] == [6]
    named = [line for line in tools["racecheck"]["said"] if "access at" in line]
    assert named
    assert all(re.search(r"access at sm90_xmma_sparse_gemm_\w+_cusparselt\+", line) for line in named)
    assert tools["racecheck"]["outputs right"]
    assert tools["initcheck"]["outputs right"]


def test_racecheck_names_cusparselts_kernels_with_the_plugin_and_without() -> None:
    h200, h100 = (result_of(f"{folder}plugin_sanitizer")["tools"]["racecheck"] for folder in ("", "h100/"))
    alone = [found["cuSPARSELt alone"] for found in (h200, h100)]
    assert [found["counted"] for found in (h200, h100, *alone)] == [[6], [5], [3], [3]]
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
    assert alone["ended"]
    shape = alone["shape"]
    places = shape["n"] * shape["m"] * 2 // 32
    assert alone["counted"] == [places * alone["right"]]
    page = prose("docs/PLUGIN.md")
    said = f"its outputs at {shape['n']}×{shape['m']}, by {alone['right']} algorithms, it counts each 32"
    assert f"{said} bytes, too ({alone['counted'][0]:,})" in page
    k, _, most = result_of("plugin_soak")["shape"]
    rows_written = 0
    for context, runs in enumerate(tools["initcheck"]["runs"]):
        chosen, copied = Random(context), set[tuple[int, int]]()
        for run in range(runs):
            m = chosen.randint(1, most)
            if m % 8 and m <= 512:  # its result is the plugin's copy
                copied |= {(run % 2, row) for row in range(m)}
                continue
            rows_written += sum((run % 2, row) not in copied for row in range(m))
    assert tools["initcheck"]["counted"] == [rows_written * k * 2 // 32]
    assert f"initcheck counts {tools['initcheck']['counted'][0]:,} reads" in page
    assert f"none of the {len(copied)} rows that the plugin copied" in page


def times_of(cell: Mapping[str, Any], prefix: str = "") -> str:
    """A gain of a product with its extremes."""
    low, high = (cell[f"{prefix}speedup_{end}"] for end in ("low", "high"))
    return f"{cell[f'{prefix}speedup']:.2f}× ({low:.2f}–{high:.2f})"


def test_the_types_without_tensorrt() -> None:
    result, page = result_of("plugin_layer"), prose("docs/PLUGIN.md")
    by_type = {kind: [c for c in result["cells"] if c["type"] == kind] for kind in ("fp16", "bf16")}
    for fp16, bf16 in zip(by_type["fp16"], by_type["bf16"], strict=False):
        assert [fp16[key] for key in ("model", "layer")] == [bf16[key] for key in ("model", "layer")]
    found = []
    for one in by_type["fp16"]:
        (other,) = (c for c in by_type["bf16"] if all(c[key] == one[key] for key in ("model", "layer", "m")))
        columns = [f"{one['layer']}, {one['k']}→{one['n']}", str(one["m"])]
        for cell in (one, other):
            columns += [f"{cell['dense_us']:.1f}", f"{cell['sparse_us']:.1f}", times_of(cell)]
        found.append(f"| {' | '.join(columns)} |")
    assert len(found) == 20
    text = rows(
        "docs/PLUGIN.md", r"\| \w+, \d+→\d+ \| \d+ \| [\d.]+ \| [\d.]+ \| [\d.]+× \(\S+\) \| [\d.]+ \|"
    )
    assert text == found
    for kind, cells_of in by_type.items():
        worst = max(cell["sparse_error"] for cell in cells_of)
        assert worst == result[kind]["largest_error"] < {"fp16": 2**-11, "bf16": 2**-8}[kind]
        assert worst == pytest.approx(result[kind]["largest_dense_error"], rel=0.01)
        assert f"{100 * worst:.3f} %" in page
    mean = statistics.geometric_mean(cell["speedup"] for cell in by_type["fp16"])
    assert f"the gain over cuBLASLt is {mean:.2f}× in FP16" in page
    lost = [(c["model"], c["layer"], c["m"]) for c in by_type["fp16"] if c["speedup"] < 1]
    assert lost == [("tinyllama", "gate_up", 256), *(("tinyllama", "down", m) for m in (16, 64, 256))]
    assert f"it gains {mean:.2f}× in the mean of twenty products" in prose("README.md")
    assert "loses in four: TinyLlama's `down` up to M=256, and its gate or up at M=256" in prose("README.md")
    small = [c["speedup"] for c in by_type["bf16"] if c["m"] <= 64]
    assert max(small) < 1


def test_dense_copies_below_an_m() -> None:
    result, page = result_of("plugin_dense_below_tinyllama"), prose("docs/PLUGIN.md")
    assert result["timing"]["dense_below_m"] == 16
    for cell in result["cells"]:
        times = [f"{cell[key]:.1f}" for key in ("dense_us", "plugin_us", "with_copies_us")]
        gains = [times_of(cell), times_of(cell, "with_copies_")]
        columns = [f"{cell['layer']}, {cell['k']}→{cell['n']}", str(cell["m"]), *times, *gains]
        assert f"| {' | '.join(columns)} |" in page
        wins = cell["with_copies_us"] < min(cell["dense_us"], cell["plugin_us"])
        if cell["m"] % 8:
            assert cell["with_copies_speedup_low"] > 1
            assert wins
        elif cell["m"] == 16:
            assert cell["with_copies_us"] == pytest.approx(cell["plugin_us"], rel=0.01)
        else:
            assert wins == (cell["layer"] == "down")
