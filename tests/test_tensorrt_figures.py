"""What the pages say of TensorRT's engines on a GPU is what the result files say."""

from __future__ import annotations

import re
from typing import Any

from sparseflow_trt.policies.policy import find_policy, shipped_policies
from tests.made_plans import plan_gate_and_up
from tests.pages import ROOT, gain, prose, result_of, rows


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


def test_the_policy_without_the_plugin_takes_sparse_in_the_one_block_whose_engine_gains() -> None:
    h200 = find_policy("h200")
    gains: dict[str, list[float]] = {"sparse": [], "dense": []}
    for name in ("tensorrt_mlp_tinyllama", "tensorrt_mlp_llama-8b"):
        result = result_of(name)
        hidden, inner = result["shape"]["hidden"], result["shape"]["intermediate"]
        for row in result["rows"]:
            m = int(row["profile"].removeprefix("m"))
            plan = plan_gate_and_up(h200, hidden, inner, m, library=False)
            (kernel,) = {layer.sparsity for layer in plan.layers}
            gains[kernel].append(row["dense over it"]["sparse"]["median"])
    (taken,) = gains["sparse"]
    left = sorted(gains["dense"])
    assert (
        f"Of these {1 + len(left)} MLP blocks on the H200 it plans gate and up sparse in this one alone "
        f"({taken:.2f}); the engines of the others gain {left[0]:.2f} to {left[-1]:.2f}."
    ) in prose("docs/TENSORRT.md")
    assert taken > left[-1]


def merged_row(case: dict[str, Any]) -> str:
    """A network of products as it stands in docs/TENSORRT.md."""
    if "not built" in case:
        assert "Internal Error" in case["not built"]
        return f"| {case['case']} | TensorRT 8.6 fails with an internal error | – | – |"
    (tried,) = {layer["tried_sparse"] for layer in case["layers"]}
    (sparse,) = {layer["sparse"] for layer in case["layers"]}
    as_one = "yes" if len(case["run as one"]) == 1 else "no"
    return f"| {case['case']} | {as_one} | {tried} | {'**sparse**' if sparse else 'dense'} |"


def test_what_runs_as_one_product() -> None:
    cases = result_of("merged_products")["cases"]
    assert rows("docs/TENSORRT.md", r"\| (two|three|four)\b") == [merged_row(case) for case in cases]
    (trap,) = (case for case in cases if case.get("not 2:4") and case["layers"][0]["sparse"])
    assert trap["case"] == "two with biases, one not 2:4"


# K = 14336 in TensorRT's own kernels
SUM_UP_IN_FP16 = ("dense", "sparse")


WITHIN = ("tensorrt_mlp_llama-8b", "m256")


def test_the_errors_of_tensorrts_own_kernels() -> None:
    page = prose("docs/TENSORRT.md")
    small = result_of("tensorrt_mlp_tinyllama")["rows"]
    big = {
        (name, row["profile"]): row
        for name in ("tensorrt_mlp_llama-8b", "h100/tensorrt_mlp_llama-8b")
        for row in result_of(name)["rows"]
    }
    within = big.pop(WITHIN)
    for words, measured in (
        ("TinyLlama MLP", small),
        ("LLaMA-8B MLP, H200 and H100", list(big.values())),
        ("LLaMA-8B MLP at M=256 on the H200", [within]),
    ):
        errors = [spread_of(measured, "y", side, 2) for side in SUM_UP_IN_FP16]
        found = [row["error against FP32"][side]["y"] for row in measured for side in SUM_UP_IN_FP16]
        cosine = min(error["cosine"] for error in found)
        plugin = spread_of(measured, "y", "plugin", 2)
        assert line_of(words, *errors, f"{cosine:.5f}", plugin) in page
    resnet = result_of("tensorrt_resnet50")["rows"]
    errors = [spread_of(resnet, "logits", side, 3) for side in SUM_UP_IN_FP16]
    assert line_of("ResNet-50", *errors, "–", "–") in page
    minilm = result_of("tensorrt_minilm")["rows"]
    errors = [spread_of(minilm, "sentence_embedding", side, 3) for side in SUM_UP_IN_FP16]
    found = [error["sentence_embedding"] for row in minilm for error in row["error against FP32"].values()]
    cosine = int(1e5 * min(error["cosine"] for error in found)) / 1e5
    assert line_of("MiniLM", *errors, f"{cosine:.5f}", "–") in page
    assert "exceed the 0.5 % that this project set as its limit**, except at M=256 on the H200" in page


def spread_of(measured: list[dict[str, Any]], output: str, side: str, digits: int) -> str:
    """The relative L2 of a side's engines, from and to."""
    errors = [100 * row["error against FP32"][side][output]["relative_l2"] for row in measured]
    low, high = f"{min(errors):.{digits}f}", f"{max(errors):.{digits}f}"
    return f"{high} %" if low == high else f"{low} to {high} %"


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
    (row,) = result_of("tensorrt_mlp_tinyllama-int8")["rows"]
    up, down = row["layers"]["sparse"]
    text = (ROOT / "docs" / "TENSORRT.md").read_text(encoding="utf-8")
    best = [f"{up[key]:.4f}" for key in ("best_sparse_ms", "best_dense_ms")]
    assert line_of("TinyLlama up and down, INT8", "1024", "up, Relu (INT8 behind it)", *best, "dense") in text
    assert not up["sparse"]
    assert not down["tried_sparse"]
    assert line_of("", "", "down (FP32 behind it)", "not offered", "–", "dense") in text
    assert f"{up['tried_sparse']} beside {up['tried_dense']} for the INT8 one" in prose("docs/TENSORRT.md")


def test_a_plan_of_mixed_precisions_runs_as_planned() -> None:
    (row,) = result_of("tensorrt_mlp_tinyllama-mixed")["rows"]
    gate, up, down = row["layers"]["sparse"]
    assert [layer["precision"] for layer in (gate, up, down)] == ["Half", "Half", "Float"]
    assert gate["merged_with"] == ["up_proj"]
    assert set(row["built"]["sparse"]["opted out"]) == {"up_proj", "down_proj"}
    assert (up["sparse"], down["sparse"], down["tried_sparse"]) == (False, False, 0)
    page = prose("docs/TENSORRT.md")
    assert f"was tried in {up['tried_sparse']} sparse tactics all the same" in page
    dense, sparse = (row["times"][side]["p50_ms"] for side in ("dense", "sparse"))
    said = f"{dense:.3f} ms dense and {sparse:.3f} ms with gate planned sparse"
    assert f"{said} ({gain(row['dense over it']['sparse'])})" in page


def line_of(*columns: str) -> str:
    """A table's row."""
    return " ".join(f"| {' | '.join(columns)} |".split())


def engine_rows(name: str, words: str) -> list[str]:
    """A result's engines as they stand in docs/TENSORRT.md."""
    found = []
    for i, row in enumerate(result_of(name)["rows"]):
        times = [f"{row['times'][side]['p50_ms']:.4f}" for side in ("dense", "sparse")]
        at = row["profile"].removeprefix("m").replace("b", "batch ")
        if tokens := re.fullmatch(r"b(\d+)s(\d+)", row["profile"]):
            at = "×".join(tokens.groups())
        found.append(line_of(words if not i else "", at, *times, gain(row["dense over it"]["sparse"])))
    return found


def test_engines_with_tensorrts_own_sparse_kernels() -> None:
    text = (ROOT / "docs" / "TENSORRT.md").read_text(encoding="utf-8").replace("**", "")
    for name, words in (
        ("tensorrt_mlp_tinyllama", "TinyLlama MLP"),
        ("tensorrt_mlp_llama-8b", "LLaMA-8B MLP"),
        ("h100/tensorrt_mlp_llama-8b", "LLaMA-8B MLP, H100"),
        ("tensorrt_resnet50", "ResNet-50, FP16"),
        ("tensorrt_minilm", "MiniLM-L6, FP16"),
        ("tensorrt_mlp_tinyllama-int8", "TinyLlama INT8"),
    ):
        for line in engine_rows(name, words):
            assert line in text
    resnet, page = result_of("tensorrt_resnet50"), prose("docs/TENSORRT.md")
    tried = {row["built"]["sparse"]["layers tried sparse"] for row in resnet["rows"]}
    ran = [row["built"]["sparse"]["layers that run sparse"] for row in resnet["rows"]]
    assert f"{tried.pop()} of its 54 layers" in page
    assert f"{ran[0]} run sparse at batch 1 and {ran[1]} at 32" in page


def test_the_policys_minilm_is_the_dense_engine() -> None:
    rows_of_minilm = result_of("tensorrt_minilm")["rows"]
    assert len(rows_of_minilm) == 2
    for row in rows_of_minilm:
        assert row["the same engine"] == {"policy": "dense"}
        assert row["slower than dense by more than 2 %"] == {"sparse": False, "policy": False}
        built = row["built"]["sparse"]
        assert (built["layers planned sparse"], built["layers tried sparse"]) == (36, 0)


def test_no_shipped_policy_has_times_in_int8() -> None:
    assert len(shipped_policies()) >= 3
    for name in shipped_policies():
        assert "INT8" not in {dtype for _, dtype in find_policy(name).held}


def test_the_readme_gives_the_extremes_of_the_engines() -> None:
    gains = {
        (name, row["profile"]): row["dense over it"]["sparse"]["median"]
        for name in (
            f"tensorrt_{it}"
            for it in ("mlp_tinyllama", "mlp_llama-8b", "resnet50", "minilm", "mlp_tinyllama-int8")
        )
        for row in result_of(name)["rows"]
    }
    exception, readme = gains.pop(("tensorrt_mlp_llama-8b", "m64")), prose("README.md")
    assert f"one of them INT8 | H200 | {min(gains.values()):.2f}× to {max(gains.values()):.2f}× |" in readme
    assert f"| LLaMA-8B's MLP at M=64, the same | H200 | {exception:.2f}× |" in readme


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


def test_resnets_layers_without_times_have_those_of_the_one_that_is_like_them() -> None:
    for row in result_of("tensorrt_resnet50")["rows"]:
        alike: dict[tuple[object, ...], list[dict[str, Any]]] = {}
        for layer in row["layers"]["sparse"]:
            fused = [part in layer["engine_layer"] for part in (".add", ".relu")]
            alike.setdefault((*shape_in_resnet50(layer["layer"]), *fused), []).append(layer)
        twins = [layer for group in alike.values() for layer in group if layer["timed_as"]]
        assert len(twins) == row["built"]["sparse"]["layers with no times of their own"] == 29
        for group in alike.values():
            (timed,) = (layer for layer in group if not layer["timed_as"])
            for layer in group:
                assert layer["timed_as"] in ("", timed["engine_layer"])
                for key in ("tactic", "best_sparse_ms", "best_dense_ms", "tried_sparse", "tried_dense"):
                    assert layer[key] == timed[key]


def test_the_build_time_beside_polygraphys() -> None:
    page = prose("docs/TENSORRT.md")
    same, free = (
        f"ours, the backend's step over polygraphy, {other}"
        for other in ("the same engine", "types left to TensorRT")
    )
    files = ("build_time", "build_time_small_pages", "build_time_earlier", "h100/build_time")
    found = now, before, earlier, h100 = tuple(map(result_of, files))
    medians = [{what: times["median"] for what, times in each["seconds"].items()} for each in found]
    runs = [f"{run:.3f}" for run in sorted(before["ratios"][same]["runs"])]
    (last, _), (first, of_free) = (
        ["{median:.3f} ({min:.3f}–{max:.3f})".format(**each["ratios"][key]) for key in (same, free)]
        for each in (now, earlier)
    )
    assert len(now["ratios"][same]["runs"]) == 5
    assert max(now["ratios"][same]["runs"]) < 1, "the faster one in each"
    of_h100 = f"{h100['ratios'][same]['median']:.3f}"
    assert "| | H200, with large pages | H200, before | H200, an earlier run | H100, one round |" in page
    rounds = f"{runs[0]}, {runs[1]} and {runs[2]}"
    assert line_of("the backend's step over `convert`", last, rounds, first, of_h100) in page
    sides = [
        "{:.1f} and {:.1f} s".format(each["ours, the backend's step"], each["polygraphy, the same engine"])
        for each in medians
    ]
    assert line_of("their medians", *sides) in page
    left = "polygraphy, types left to TensorRT"
    once = [", one round" if len(each["seconds"][left]["runs"]) == 1 else "" for each in found[:3]]
    took = [f"{each[left]:.1f} s" for each in medians]
    said = [f"{text}{rounds}" for text, rounds in zip(took, once, strict=False)]
    assert line_of("`convert --fp16`", *said, took[3]) in page
    over = [f"{each['ratios'][free]['median']:.3f}" for each in (now, before, h100)]
    assert line_of("the step over `convert --fp16`", *over[:2], of_free, over[2]) in page
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
