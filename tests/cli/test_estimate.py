"""sparseflow-trt estimate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.made_policies import make_points, make_policy

if TYPE_CHECKING:
    from tests.commands import Sparseflow
    from tests.conftest import Models

Mlp = Callable[..., Path]


def test_a_shipped_device_and_no_gpu(sparseflow: Sparseflow, mlp: Mlp) -> None:
    ended = sparseflow("estimate", mlp(), "--device", "NVIDIA A100", "--dim", "batch=512")
    assert (ended.code, ended.err) == (0, "")
    assert "model.onnx on A100, by policy 'a100-80gb'" in ended.out
    assert "class threshold (no time)" in ended.out
    assert "only thresholds: they say whether sparse wins (Prune), but not by how much." in ended.out
    assert "gain is not known" not in ended.out
    found = sparseflow("estimate", mlp(), "--device", "a100", "--dim", "batch=512", "--json").json
    names = ("dense_us", "policy_us", "guessed_us", "guessed_share")
    assert {found[name] for name in names} == {None}, "unknown is not 0"
    rows = [line.split() for line in ended.out.splitlines() if line.startswith(("gate_up ", "down "))][:2]
    assert [row[7:11] for row in rows] == [["-"] * 4] * 2


def test_a_table_with_the_ceiling(sparseflow: Sparseflow, mlp: Mlp, policy: Path) -> None:
    lines = sparseflow("estimate", mlp(), "--policy", policy, "--dim", "batch=1,8,16").out.splitlines()
    rows = [line.split() for line in lines if line.startswith(("gate_up", "down "))]
    assert rows[0] == [
        "gate_up", "128", "64", "1", "8", "FP16", "yes", "20.00", "10.00", "2.00×", "66.7%", "measured", "yes"
    ]  # fmt: skip
    assert rows[1][-2:] == ["measured", "no"]
    assert "All products of one run: 30.00 µs dense, 20.00 µs with the policy's choices: 1.500×" in lines
    assert (
        "The whole model, at most: 1.200× with 50%, 1.304× with 70%, 1.408× with 87%, 1.500× with 100%"
        in lines
    )
    assert any(line.startswith("down 128→32: not worth pruning: sparse does not win") for line in lines)
    out = sparseflow("estimate", mlp(), "--policy", policy, "--dim", "batch=8", "--gemm-share", 0.5).out
    assert "The whole model, at most: 1.200×, if these products take 50% of the dense" in out


def test_a_reason_is_given_once_for_all_its_layers(sparseflow: Sparseflow, mlp: Mlp, policy: Path) -> None:
    command = ("estimate", mlp(), "--policy", policy, "--dim", "batch=8")
    lines = sparseflow(*command, "--precision", "bf16").out.splitlines()
    assert "gate_up 64→128, down 128→32: not known: no measurement of BF16 in policy 'mine'" in lines
    points = [*make_points("gate_up", 128, 64, {8: 0.5}), *make_points("down", 32, 128, {8: 1.0})]
    policy.write_text(make_policy(points).model_dump_json())
    lines = sparseflow(*command).out.splitlines()
    assert (
        "down 128→32, gate_up 64→128: not worth pruning: sparse does not win by 2% at M=8: 0.50× to 1.00× "
        "measured (TensorRT's kernels, GPU X)" in lines
    )
    limits: dict[str, tuple[int | None, int | None]] = {"gate_up": (None, None), "down": (None, None)}
    policy.write_text(make_policy([], limits=limits).model_dump_json())
    lines = sparseflow(*command).out.splitlines()
    (said,) = (line for line in lines if "threshold" in line and "not worth" in line)
    assert said.startswith("gate_up 64→128, down 128→32: not worth pruning: threshold of its kind: dense at")
    found = sparseflow(*command, "--json").json
    assert [row["why"].partition(":")[0] for row in found["layers"]] == [
        "threshold of kind 'gate_up'",
        "threshold of kind 'down'",
    ]


def test_where_dense_alone_was_measured_it_is_said(sparseflow: Sparseflow, mlp: Mlp, policy: Path) -> None:
    only = [
        *(p for p in make_points("gate_up", 128, 64, {16: 3.0}) if p.kernel == "dense"),
        *make_points("gate_up", 128, 64, {1: 0.5, 4: 2.0, 8: 2.0}),
        *(p for p in make_points("down", 32, 128, {16: 1.5}) if p.kernel == "dense"),
    ]
    policy.write_text(make_policy(only).model_dump_json())
    command = ("estimate", mlp(), "--policy", policy, "--dim", "batch=16")
    out = sparseflow(*command).out
    assert "30.00      15.00    2.00×  66.7%  extrapolated, dense measured  yes" in out
    assert "15.00          -        -  33.3%  unknown, dense measured       unknown" in out
    assert "45.00 µs dense, 30.00 µs with the policy's choices: 1.500×" in out
    policy.write_text(make_policy([p for p in only if p.kernel == "dense"]).model_dump_json())
    assert "The policy has no sparse time for any of these products: what" in sparseflow(*command).out


def test_traffic(sparseflow: Sparseflow, mlp: Mlp, policy: Path, own_folder: Path) -> None:
    (own_folder / "traffic.csv").write_text("m,count\n1,3\n8,1\n")
    ended = sparseflow("estimate", mlp(), "--policy", policy, "--traffic", "traffic.csv", "--json")
    rows = {row["kind"]: row for row in ended.json["layers"]}
    assert rows["gate_up"]["sizes"] == [[1, 0.75], [8, 0.25]]
    assert rows["gate_up"]["policy_us"] == pytest.approx(0.75 * 5 + 0.25 * 10)
    out = sparseflow("estimate", mlp(), "--policy", policy, "--traffic", "traffic.csv").out
    assert "yes, 25% of runs" in out
    assert "1…8" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "this machine has no GPU, or one with no shipped policy."),
        (("--device", "h2o"), "there is no policy 'h2o'."),
        (("--device", "a100", "--policy", "a100"), "--device and --policy both name a policy"),
        (("--device", "a100"), "input 'x' has dynamic dimensions batch"),
        (("--device", "a100", "--dim", "rows=8"), "axis 'rows' is not in the model"),
        (("--device", "a100", "--dim", "batch"), "'batch' is not a range of an axis"),
        (("--device", "a100", "--traffic", "no.csv"), "no.csv does not exist."),
        (("--device", "a100", "--gemm-share", "nan"), "'nan' is not a number above 0 and up to 1"),
        (("--device", "a100", "--gemm-share", "87"), "'87' is not a number above 0 and up to 1"),
    ],
)
def test_what_is_wrong_is_said(
    sparseflow: Sparseflow, mlp: Mlp, arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparseflow_trt.engines.machine.hardware.find_gpus", list)
    assert says in sparseflow("estimate", mlp(), *arguments).error


def test_a_broken_file_is_told_before_a_machine_with_no_gpu(
    sparseflow: Sparseflow, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparseflow_trt.engines.machine.hardware.find_gpus", list)
    (own_folder / "broken.onnx").write_bytes(b"no model")
    assert "broken.onnx is not an ONNX model" in sparseflow("estimate", "broken.onnx").error


def test_times_of_the_other_library_are_pointed_to(
    sparseflow: Sparseflow, mlp: Mlp, own_folder: Path
) -> None:
    torch = make_points("gate_up", 128, 64, {8: 2.0}, library="torch")
    far = make_points("o", 8192, 8192, {8: 2.0})
    (own_folder / "two.json").write_text(make_policy([*torch, *far]).model_dump_json())
    default = ("estimate", mlp(), "--policy", "two.json", "--dim", "batch=8")
    command = (*default, "--library", "tensorrt")
    note = (
        "The policy holds times of cuSPARSELt against cuBLAS, too: try --library torch, or --plugin, which "
        "runs cuSPARSELt's kernels in TensorRT."
    )
    assert note in sparseflow(*command).out.splitlines()
    assert "too: try" not in sparseflow(*default, "--library", "torch").out
    plugin = sparseflow(*default, "--plugin").out
    assert "Plugin µs" in plugin
    assert "sparse is the 2:4 plugin" not in plugin, "it was asked for"
    assert "which runs cuSPARSELt's kernels: estimated from cuSPARSELt against cuBLAS." in plugin
    refused = sparseflow(*default, "--plugin", "--library", "torch")
    unknown = sparseflow(*default, "--plugin", "--precision", "fp32").out
    assert "None of these products would run sparse" in unknown
    assert "try --library" not in unknown, "--plugin was given, and is judged by both libraries' times"
    assert (refused.code, "leave out --library torch" in refused.error) == (2, True)


def test_a_layer_that_gains_with_m_padded_is_not_called_worthless(
    sparseflow: Sparseflow, mlp: Mlp, policy: Path
) -> None:
    points = make_points("gate_up", 128, 64, {64: 1.4, 1024: 1.4}, library="torch")
    policy.write_text(make_policy(points).model_dump_json())
    said = sparseflow("estimate", mlp(), "--policy", policy, "--plugin", "--dim", "batch=197").out
    (line,) = (line for line in said.splitlines() if line.endswith("; pad M to 200, where it wins"))
    assert line.startswith(
        "gate_up 64→128: worth pruning only with M padded: the plugin does not win by 15% at"
    )


def _conv(models: Models, window: int) -> str:
    weight = np.ones((32, 16, window, window), np.float32)
    weight[:, ::2] = 0
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv1")
    models.save(models.model([node], {"w": weight}, {"x": ("b", 16, 32, 32)}), "conv24.onnx")
    return "conv24.onnx"


@pytest.mark.parametrize("options", [(), ("--library", "torch"), ("--library", "tensorrt")])
def test_nobody_is_sent_to_a_library_that_holds_nothing_either(
    sparseflow: Sparseflow, models: Models, own_folder: Path, options: tuple[str, ...]
) -> None:
    asked = ("--device", "h200", "--dim", "b=8", *options)
    out = sparseflow("estimate", _conv(models, 3), *asked).out
    assert "too: try" not in out
    assert "Whatever the library, the policy holds nothing near 144→32 of kind 'conv'." in out.splitlines()
    assert "`autotune` measures only FP16 and BF16, and no Conv with a window or groups" in out
    assert "`sparseflow-trt autotune conv24.onnx" not in out
    out = sparseflow("estimate", _conv(models, 1), *asked).out  # a plain product
    assert "`sparseflow-trt autotune conv24.onnx --dtype fp16 -o FILE` measures it, on that GPU." in out
    assert "no Conv with a window" not in out


def test_traffic_of_next_to_no_weight_leaves_no_layer_out(
    sparseflow: Sparseflow, mlp: Mlp, own_folder: Path
) -> None:
    known = make_policy(
        make_points("gate_up", 128, 64, {64: 2.0})
    )  # and nothing of down: its time is guessed
    (own_folder / "mine.json").write_text(known.model_dump_json())

    def gained(text: str) -> tuple[float, float]:
        (own_folder / "traffic.csv").write_text(f"m,weight\n{text}")
        asked = ("estimate", mlp(), "--policy", "mine.json", "--traffic", "traffic.csv", "--json")
        said = sparseflow(*asked).json
        return said["gemm_speedup"], said["guessed_us"]

    assert gained("64,1e308\n65,1e-300\n") == pytest.approx(gained("64,1\n"))


def test_below_the_smallest_m_it_is_the_m_that_lacks(
    sparseflow: Sparseflow, models: Models, own_folder: Path
) -> None:
    policy = make_policy(make_points("ffn", 256, 256, {64: 1.5}))
    (own_folder / "mine.json").write_text(policy.model_dump_json())
    weight = np.ones((256, 256), np.float32)
    model = models.matmul(weight)
    lines = sparseflow("estimate", model, "--policy", "mine.json", "--dim", "batch=8").out.splitlines()
    assert any("holds nothing near 256→256" in line and line.endswith("at so small an M.") for line in lines)


def test_of_a_type_that_no_library_has_it_is_said_what_measures_it(
    sparseflow: Sparseflow, mlp: Mlp, policy: Path
) -> None:
    asked = ("estimate", mlp(), "--policy", policy, "--dim", "batch=8", "--precision")
    lines = sparseflow(*asked, "bf16").out.splitlines()
    assert lines[-2] == "Whatever the library, the policy holds nothing of BF16."
    assert "--dtype bf16 -o FILE` measures it, on that GPU." in lines[-1]
    lines = sparseflow(*asked, "fp32").out.splitlines()
    assert any(": not worth pruning: FP32 runs dense: sparse TF32" in line for line in lines)
    assert lines[-1] == "In FP16 and BF16 these products may run sparse: try --precision fp16."
    assert "None of these products would run sparse: 2:4 weights gain nothing here." in lines


def test_the_plugin_stands_in_for_kernels_that_gain_less_or_were_not_measured(
    sparseflow: Sparseflow, mlp: Mlp, own_folder: Path
) -> None:
    torch = make_points("gate_up", 128, 64, {8: 2.0}, library="torch")
    given = make_policy(torch, limits={"gate_up": (None, None)})  # as for the H200: TensorRT's own are dense
    (own_folder / "two.json").write_text(given.model_dump_json())
    command = ("estimate", mlp(), "--policy", "two.json", "--dim", "batch=8")
    lines = sparseflow(*command).out.splitlines()
    said = (
        "Sparse is the 2:4 plugin here (`plan --plugin LIB`), as TensorRT's own sparse kernels gain less "
        "or nothing, or were not measured; --library tensorrt shows them."
    )
    assert lines[2] == said, "above the table"
    (gate,) = (line.split() for line in lines if line.startswith("gate_up"))
    assert gate[-6:] == ["20.00", "10.00", "2.00×", gate[-3], "estimated", "yes"]
    found, asked = sparseflow(*command, "--json").json, sparseflow(*command, "--plugin", "--json").json
    assert (found["kernel"], found["stands_in"], asked["stands_in"]) == ("plugin", True, False)
    assert {**found, "stands_in": False} == asked
    own = sparseflow(*command, "--library", "tensorrt", "--json").json
    assert (own["kernel"], own["stands_in"], own["gemm_speedup"]) == ("sparse", False, None)
    own_gate = make_points("gate_up", 128, 64, {8: 2.0})  # now TensorRT's own were measured, too
    for gain, kernel in ((1.0, "plugin"), (1.5, "sparse")):
        timed = [*torch, *own_gate, *make_points("down", 32, 128, {8: gain})]
        (own_folder / "two.json").write_text(make_policy(timed).model_dump_json())
        assert sparseflow(*command, "--json").json["kernel"] == kernel
    nothing = sparseflow("estimate", mlp(), "--policy", "h200", "--precision", "fp32", "--dim", "batch=8")
    assert "sparse is the 2:4 plugin" not in nothing.out, "the plugin has none either"


def test_where_nothing_gains_one_line_says_so(sparseflow: Sparseflow, mlp: Mlp, own_folder: Path) -> None:
    timed = [*make_points("gate_up", 128, 64, {8: 0.9}), *make_points("down", 32, 128, {8: 1.0})]
    (own_folder / "slow.json").write_text(make_policy(timed).model_dump_json())
    lines = sparseflow("estimate", mlp(), "--policy", "slow.json", "--dim", "batch=8").out.splitlines()
    (said,) = (line for line in lines if line.startswith("All products"))
    assert said.endswith(" µs dense. None of them gains from 2:4 weights.")
    assert not any("whole model" in line for line in lines)


def test_the_plugin_stands_in_by_the_shipped_policy(
    sparseflow: Sparseflow, models: Models, own_folder: Path
) -> None:
    """TensorRT's own kernels were measured on an H200 at k's product of TinyLlama, and gain nothing there."""
    model = models.matmul(np.ones((2048, 256), np.float32), "k_proj.onnx")
    asked = ("estimate", model, "--device", "h200", "--dim", "batch=1024", "--json")
    found = sparseflow(*asked).json
    assert (found["kernel"], found["stands_in"]) == ("plugin", True)
    own = sparseflow(*asked, "--library", "tensorrt").json
    assert (own["kernel"], own["gemm_speedup"]) == ("sparse", 1.0)


@pytest.mark.parametrize("pruned", [False, True])
def test_a_head_tied_to_its_embedding_gains_only_where_it_is_2to4(
    sparseflow: Sparseflow, models: Models, own_folder: Path, pruned: bool
) -> None:
    head = np.ones((128, 64), np.float32)
    head[:, ::2] = 0 if pruned else 1
    nodes = [
        helper.make_node("Gemm", ["x", "wte", ""], ["y"], "/lm_head/Gemm", transB=1),
        helper.make_node("Gather", ["wte", "ids"], ["e"], "embed"),
    ]
    weights = {"wte": head, "ids": np.array([1])}
    models.save(models.model(nodes, weights, {"x": ("m", 64)}, outputs=["y", "e"]), "tied.onnx")
    policy = make_policy(make_points("classifier", 128, 64, {8: 2.0}))
    (own_folder / "own.json").write_text(policy.model_dump_json())
    asked = ("estimate", "tied.onnx", "--policy", "own.json", "--dim", "m=8")
    (row,) = (found := sparseflow(*asked, "--json").json)["layers"]
    assert row["worth"] is pruned
    assert found["gemm_speedup"] == (2 if pruned else 1)
    why = "cannot be pruned: weight 'wte' is also read by Gather 'embed', which pruning would change"
    assert (row["why"] == why) is not pruned
    assert (why in sparseflow(*asked).out) is not pruned
    assert "--include" not in sparseflow(*asked).out
    if not pruned:
        left = "`prune` leaves '/lm_head/Gemm' alone: weight 'wte' is also read by Gather 'embed'"
        assert left in sparseflow("inspect", "tied.onnx").out


def test_a_classifier_that_gains_is_pruned_only_where_it_is_named(
    sparseflow: Sparseflow, own_folder: Path
) -> None:
    weight = numpy_helper.from_array(np.ones((64, 128), np.float32), "head")
    node = helper.make_node("MatMul", ["x", "head"], ["y"], "/lm_head/MatMul")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", size])
        for name, size in (("x", 64), ("y", 128))
    ]
    graph = helper.make_graph([node], "head", ends[:1], ends[1:], [weight])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "head.onnx"
    )
    points = make_points("classifier", 128, 64, {8: 2.0})
    (own_folder / "own.json").write_text(make_policy(points).model_dump_json())
    asked = ("head.onnx", "--policy", "own.json", "--dim", "m=8")
    (row,) = sparseflow("estimate", *asked, "--json").json["layers"]
    assert (row["kind"], row["worth"]) == ("classifier", True)
    assert "`prune` takes a classifier only where --include names it." in sparseflow("estimate", *asked).out
    said = sparseflow("prune", "head.onnx").out
    assert "a classifier, which is taken only where it is named" in said
    told = "; --include /lm_head/MatMul prunes what was left alone."
    assert f"Nothing was pruned: the written model is the same as head.onnx{told}" in said
    assert "1 weight pruned" in sparseflow("prune", "head.onnx", "--include", "/lm_head/MatMul").out
    assert "Nothing was" not in sparseflow("prune", "head.onnx", "--include", "*lm_head*").out
