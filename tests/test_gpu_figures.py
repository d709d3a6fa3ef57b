"""What the pages say of runs on a GPU is what the result files say."""

from __future__ import annotations

import pytest

from sparseflow_trt.engines.measuring.journal import read_journal
from tests.pages import ROOT, prose, result_of, rows

RESULTS = ROOT / "benchmarks" / "results"
JOURNAL = "autotune_h200_tensorrt_fp16"


def test_the_library_of_each_result_is_said() -> None:
    libraries = ("bb16e7f5", "dde83e4f", "713aab63", "17c7bc70")
    known = {library: set[str]() for library in libraries}
    for name in (f"{gpu}{kind}_{model}" for gpu in ("", "h100/") for kind, model in (
        ("plugin_linear", "llama-8b"), ("plugin_linear", "llama-70b"), ("plugin_linear", "tinyllama"),
        ("tensorrt_mlp", "llama-8b"), ("tensorrt_mlp", "tinyllama"), ("plugin_decoder", "prefill"),
        ("plugin_decoder", "decode"),
    )):  # fmt: skip
        if not (RESULTS / f"{name}.json").exists():
            continue
        result = result_of(name)
        for row in result.get("rows", [{}]):
            earlier = row.get("of an earlier run", {}).get("plugin_sha256")
            given = [side["plugin"]["given"] for side in row.get("built", {}).values() if "plugin" in side]
            (library,) = {sha[:8] for sha in [earlier or result.get("plugin_sha256"), *given] if sha}
            known[library].add(name)
    assert known == {
        "bb16e7f5": {"h100/plugin_linear_llama-8b", "h100/tensorrt_mlp_llama-8b",
                     "h100/plugin_decoder_decode"},
        "dde83e4f": {"plugin_linear_tinyllama"},
        "713aab63": set(),  # memcheck
        "17c7bc70": {"plugin_linear_llama-8b", "plugin_linear_llama-70b", "tensorrt_mlp_llama-8b",
                     "tensorrt_mlp_tinyllama", "plugin_decoder_prefill", "plugin_decoder_decode"},
    }  # fmt: skip
    said = dict(zip(known, rows("docs/PLUGIN.md", r"\| `[0-9a-f]{8}…`"), strict=True))
    assert all(line.startswith(f"| `{library}…`") for library, line in said.items())
    others = [
        (model, cell["layer"], cell["m"], cell["plugin_sha256"][:8])
        for model in ("llama-8b", "llama-70b", "tinyllama")
        for cell in result_of(f"plugin_linear_{model}")["cells"]
        if "plugin_sha256" in cell
    ]
    assert len(others) == 13
    assert {(model, layer, library) for model, layer, _, library in others} == {
        ("tinyllama", "gate_up", "17c7bc70")
    }
    tools = {name: row["plugin_sha256"][:8] for name, row in result_of("plugin_sanitizer")["tools"].items()}
    assert tools == {
        "memcheck": "713aab63", "synccheck": "dde83e4f", "racecheck": "17c7bc70", "initcheck": "17c7bc70",
    }  # fmt: skip
    assert {result_of(f"plugin_{name}")["plugin_sha256"][:8] for name in ("soak", "linear_tinyllama")} == {
        "dde83e4f"
    }
    assert result_of("plugin_dense_below_tinyllama")["plugin_sha256"].startswith("17c7bc70")
    for library, figures in {
        "bb16e7f5": "on the H100: LLaMA-8B's products and MLP blocks, the decoder at decode |",
        "dde83e4f": "TinyLlama's `down`, ten minutes of load, synccheck,",
        "713aab63": "on the H200: memcheck |",
        "17c7bc70": "on the H200: the products of LLaMA-8B and LLaMA-70B, TinyLlama's `gate_up`, the "
        "MLP blocks, the decoder, dense copies, racecheck, initcheck",
    }.items():
        assert figures in said[library]


def test_a_module_profiled_dense_and_sparse() -> None:
    said, page = result_of("profile_sparsified")["said"], prose("docs/PYTORCH.md")
    dense, sparse = (said[side]["ms"] for side in ("dense", "sparse"))
    assert {name.rpartition(".")[2] for name in said["swapped"]} == {"down_proj"}
    assert f"found down of all {len(said['swapped'])} layers to gain" in page
    ceiling = said["dense"]["ceilings"][0]["ceiling"]
    told = f"{dense:.2f} ms of GPU time dense and {sparse:.2f} ms sparse: {dense / sparse:.3f} times as fast"
    assert f"{told}, of a ceiling of {ceiling:.3f}" in page


def test_what_several_builders_gave() -> None:
    result, page = result_of("builders"), prose("docs/AUTOTUNED_POLICY.md")
    four, one, eight = result["runs"]
    assert [run["builders"] for run in result["runs"]] == [4, 1, 8]
    assert (len(result["products"]), result["preset"], result["m"]) == (12, "tinyllama", [64, 1024])
    said = "products at M=64 and 1024 took {} s, with one builder {}**"
    assert said.format(four["seconds"], one["seconds"]) in page
    assert one["seconds"] / four["seconds"] == pytest.approx(2, abs=0.15), "about half the time with four"
    used = [run["processors in use, in builders"] for run in (one, four)]
    assert "uses {} of a processor on average, four use {}.".format(*used) in page
    assert f"Eight took {eight['seconds']} s" in page
    compared = {tuple(row["builders"]): row for row in result["compared"]}
    same = [compared[pair]["same tactic"] for pair in ((4, 1), (1, 8))]
    both_many = compared[4, 8]["same tactic"]
    assert (
        "took with one in {} of the 12 products, with eight in {}; four and eight agree in {}.".format(
            *same, both_many
        )
        in page
    )
    ratio = "sparse engines, geometric mean of the second's time over the first's"
    said = (
        f"the single builder take {compared[4, 1][ratio]:.2f} times as long as those of four in the geometric"
    )
    assert said in page
    together, alone = (
        [
            answer.seconds
            for answer in read_journal(RESULTS / f"{JOURNAL}_{model}.jsonl").measured
            if answer.request.curve.k == 8192 and answer.request.curve.n in sizes
            if answer.request.m in (64, 256, 1024, 4096)
        ]
        for model, sizes in (("llama-70b", (8192, 10240)), ("llama-70b_tensor-parallel-8", (7168,)))
    )
    assert (len(together), len(alone)) == (8, 4)
    assert f"the eight came in {min(together):.0f} to {max(together):.0f} s" in page
    assert f"took one builder {min(alone):.0f} to {max(alone):.0f} s for each M" in page
    both = [
        {
            request.m: pair.dense.us
            for request, pair in read_journal(RESULTS / f"{JOURNAL}_{model}.jsonl").pairs.items()
            if (request.curve.n, request.curve.k) == (1024, 8192)
        }
        for model in ("llama-70b", "llama-70b_tensor-parallel-8")
    ]
    assert {64, 256, 1024, 4096} < both[0].keys() & both[1].keys()
    assert (
        "at M=256 its dense kernels take {:.1f} and {:.1f} µs".format(*(times[256] for times in both)) in page
    )
    assert all(abs(both[0][m] / both[1][m] - 1) < 0.04 for m in (64, 1024, 4096))


def test_what_the_readme_says_of_ray_is_what_its_result_says() -> None:
    result = result_of("ray_two_gpus")
    assert f"| {result['points a minute, two over one']:.2f}× the points a minute |" in prose("README.md")
    assert result["thresholds agree"]
    page, common = prose("docs/AUTOTUNED_POLICY.md"), result["speedups at common M"]
    ran = (
        f"was run in {result['dtype']} alone, on cuSPARSELt {result['libraries']['cusparselt']}, which is not"
    )
    assert ran in page
    differ = f"differ by {100 * common['median difference']:.1f} % in the median and by"
    assert f"On {common['common']} products that both measured, the speedups {differ}" in page
    assert f"by {100 * common['largest difference']:.1f} % at most" in page
