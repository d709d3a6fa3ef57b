"""What the pages say of runs on a GPU is what the result files say."""

from __future__ import annotations

from tests.pages import ROOT, prose, result_of, rows


def test_the_library_of_each_result_is_said() -> None:
    known = {library: set[str]() for library in ("70deece4", "bb16e7f5", "7dc686b7", "dde83e4f", "713aab63")}
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
        "7dc686b7": {"tensorrt_mlp_llama-8b m256"},
        "dde83e4f": {"plugin_linear_llama-8b", "plugin_linear_tinyllama"},
        "713aab63": {"tensorrt_mlp_llama-8b m4096"},
    }  # fmt: skip
    said = dict(zip(known, rows("docs/PLUGIN.md", r"\| `[0-9a-f]{8}…`"), strict=True))
    assert all(line.startswith(f"| `{library}…`") for library, line in said.items())
    assert "on the H200: TinyLlama's MLP blocks, LLaMA-8B's at M=1024" in said["70deece4"]
    kept = [cell for cell in result_of("plugin_linear_llama-8b")["cells"] if "plugin_sha256" in cell]
    assert [(cell["layer"], cell["m"], cell["plugin_sha256"][:8]) for cell in kept] == [
        ("down", 128, "713aab63"),
        ("down", 512, "713aab63"),
        ("down", 2048, "7dc686b7"),
    ]
    assert "LLaMA-8B's `down` at M=2048 and its MLP at M=256" in said["7dc686b7"]
    assert "LLaMA-8B's `down` at M=128 and 512 and its MLP at M=4096, memcheck" in said["713aab63"]
    assert result_of("plugin_sanitizer")["tools"]["memcheck"]["plugin_sha256"].startswith("713aab63")
    assert "LLaMA-8B's other products and TinyLlama's, ten minutes of load" in said["dde83e4f"]
    assert {result_of(f"plugin_{name}")["plugin_sha256"][:8] for name in ("soak", "linear_tinyllama")} == {
        "dde83e4f"
    }
    assert "on the H200: products of LLaMA-70B, LLaMA-8B's MLP at M=64; on the H100:" in said["bb16e7f5"]


def test_a_module_profiled_dense_and_sparse() -> None:
    said, page = result_of("profile_sparsified")["said"], prose("docs/PYTORCH.md")
    dense, sparse = (said[side]["ms"] for side in ("dense", "sparse"))
    assert {name.rpartition(".")[2] for name in said["swapped"]} == {"down_proj"}
    assert f"found down of all {len(said['swapped'])} layers to gain" in page
    ceiling = said["dense"]["ceilings"][0]["ceiling"]
    told = f"{dense:.2f} ms of GPU time dense and {sparse:.2f} ms sparse: {dense / sparse:.3f} times as fast"
    assert f"{told}, of a ceiling of {ceiling:.3f}" in page


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
