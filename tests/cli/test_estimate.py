"""sparseflow-trt estimate and roi."""

from __future__ import annotations

import json
import re
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


@pytest.fixture
def policy(own_folder: Path) -> Path:
    """A file with times for the layers of `mlp`."""
    points = [
        *make_points("gate_up", 128, 64, {1: 0.5, 8: 2.0, 64: 2.0}),
        *make_points("down", 32, 128, {1: 0.5, 8: 1.0, 64: 1.0}),
    ]
    path = own_folder / "policy.json"
    path.write_text(make_policy(points).model_dump_json())
    return path


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


# ---- roi


def test_roi_from_a_measured_speedup(sparseflow: Sparseflow) -> None:
    command = ("roi", "--gpus", 10, "--cost-per-gpu-hour", 2, "--speedup", 1.25, "--one-off", 2920)
    ended = sparseflow(*command)
    assert (ended.code, ended.err) == (0, "")
    rows = [line.split() for line in ended.out.splitlines()[1:3]]
    assert rows == [["dense", "10", "70%", "14,600.00"], ["sparse", "8", "70%", "11,680.00"]]
    assert "Saved per month: 2,920.00 (20.0%)" in ended.out
    assert "The 2,920.00 that pruning costs once are saved after 1.0 months." in ended.out
    soon = sparseflow(*command[:-1], 100).out
    assert "The 100.00 that pruning costs once are saved after less than 0.1 months." in soon
    found = sparseflow(*command, "--json").json
    assert (found["saved_per_month"], found["break_even_months"]) == (2920.0, 1.0)
    (said,) = (line for line in found["assumptions"] if line.startswith("The speedup, 1.250×, "))
    assert said.startswith("The speedup, 1.250×, is taken as given: as measured end to end")


def test_roi_from_requests(sparseflow: Sparseflow) -> None:
    month = 730 * 3600
    options = ("--throughput", 1, "--busy", 0.5, "--cost-per-gpu-hour", 1, "--speedup", 1, "--json")
    by_month = sparseflow("roi", "--requests-per-month", 10 * month, *options).json
    by_second = sparseflow("roi", "--requests-per-second", 10, *options).json
    assert by_month["dense"] == by_second["dense"] == by_second["sparse"]
    assert by_second["dense"] == {
        "gpus": 20, "utilisation": 0.5, "cost_per_month": 14600.0,
        "cost_per_million_requests": pytest.approx(1e6 * 14600 / (10 * month)),
    }  # fmt: skip
    assert by_month["requests_per_month"] == by_second["requests_per_month"] == 10 * month
    peak = sparseflow("roi", "--requests-per-second", 10, "--peak", 3, *options).json
    assert peak["dense"]["gpus"] == 60
    assert any("3 times as many in the busiest hour" in line for line in peak["assumptions"])
    assert peak["dense"]["cost_per_million_requests"] == 3 * by_second["dense"]["cost_per_million_requests"]


def test_roi_says_what_a_million_requests_cost(sparseflow: Sparseflow) -> None:
    options = ("--throughput", 1, "--busy", 0.5, "--speedup", 1.25)
    out = sparseflow("roi", "--requests-per-second", 10, "--cost-per-gpu-hour", 2, *options).out
    assert "Either serves 26,280,000 requests per month." in out.splitlines()
    head, *rows = (line.split() for line in out.splitlines()[:3])
    assert head[-3:] == ["Per", "million", "requests"]
    assert [row[-1] for row in rows] == ["1,111.11", "888.89"]
    little = sparseflow("roi", "--requests-per-second", 10, "--cost-per-gpu-hour", 1e-6, *options).out
    assert [line.split()[-1] for line in little.splitlines()[1:3]] == ["0.000556", "0.000444"]
    page = (Path(__file__).parents[2] / "docs" / "AUTOTUNED_POLICY.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^\$ sparseflow-trt (roi --requests.*)$", page, re.MULTILINE)
    assert sparseflow(*command.split()).out.partition("\n\nAssumed:")[0] in page
    none = sparseflow("roi", "--gpus", 8, "--cost-per-gpu-hour", 2, "--speedup", 1.25)
    assert "requests per month" not in none.out
    assert "million" not in none.out


@pytest.mark.parametrize(
    ("speedup", "says"),
    [
        (1, "Nothing is saved: both need the same number of whole GPUs."),
        (0.5, "Sparse costs 730.00 more per month (100.0%)."),
        (1.001, "Nothing is saved"),
    ],
)
def test_roi_says_what_is_not_saved(sparseflow: Sparseflow, speedup: float, says: str) -> None:
    out = sparseflow("roi", "--gpus", 1, "--cost-per-gpu-hour", 1, "--speedup", speedup, "--one-off", 5).out
    assert says in out
    assert "The 5.00 that pruning costs once are never saved." in out


def test_roi_from_an_estimate_takes_a_part_of_the_ceiling(
    sparseflow: Sparseflow, mlp: Mlp, policy: Path, own_folder: Path
) -> None:
    estimate = sparseflow("estimate", mlp(), "--policy", policy, "--dim", "batch=8", "--json")
    (own_folder / "estimate.json").write_text(estimate.out)
    command = ("roi", "--gpus", 100, "--cost-per-gpu-hour", 1, "--estimate", "estimate.json", "--json")
    assert "the estimate has no share of the GPU's time" in sparseflow(*command).error
    half = sparseflow(*command, "--gemm-share", 0.5).json
    assert half["speedup"] == pytest.approx(1 / (1 - 0.5 * (1 - 1 / 1.2)))  # the ceiling is 1.2
    whole = sparseflow(*command, "--gemm-share", 0.5, "--realised", 1).json
    assert whole["speedup"] == pytest.approx(1.2)
    assert any("is not measured: 50% of what the ceiling, 1.200×" in line for line in half["assumptions"])
    assert not any("plugin" in line for line in whole["assumptions"])
    with_plugin = {**json.loads(estimate.out), "kernel": "plugin"}
    (own_folder / "estimate.json").write_text(json.dumps(with_plugin))
    said = sparseflow(*command, "--gemm-share", 0.5).json["assumptions"][0]
    assert "times as fast with the 2:4 plugin and take 50%" in said.replace("× as", " times as")
    assert "guessed" not in said
    (own_folder / "estimate.json").write_text(json.dumps({**with_plugin, "guessed_share": 0.25}))
    said = sparseflow(*command, "--gemm-share", 0.5).json["assumptions"][0]
    assert "with the 2:4 plugin (25% of their time is guessed) and take 50%" in said
    unknown = {**json.loads(estimate.out), "gemm_speedup": None}
    (own_folder / "estimate.json").write_text(json.dumps(unknown))
    assert "estimate.json holds no speedup" in sparseflow(*command, "--gemm-share", 0.5).error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--speedup", 1.2), "give one of --gpus, --requests-per-month and --requests-per-second"),
        (("--gpus", 1, "--requests-per-second", 1, "--speedup", 1.2), "give one of --gpus"),
        (("--gpus", 1), "give one of --speedup and --estimate"),
        (("--gpus", 1, "--speedup", 1, "--estimate", "x"), "give one of --speedup and --estimate"),
        (("--gpus", 1, "--speedup", 1, "--throughput", 3), "--throughput and --peak go with requests"),
        (("--requests-per-second", 1, "--speedup", 1), "requests need --throughput"),
        (("--requests-per-second", 1, "--throughput", 1, "--peak", 0.5, "--speedup", 1), "--peak is below 1"),
        (("--gpus", 1, "--speedup", 1, "--realised", 0.9), "--gemm-share and --realised go with --estimate"),
        (("--gpus", 1, "--speedup", 1, "--gemm-share", 0.9), "--gemm-share and --realised go with"),
        (("--gpus", 1, "--speedup", "inf"), "'inf' is not a number above 0"),
        (("--gpus", 1, "--speedup", 0), "'0' is not a number above 0"),
        (
            ("--gpus", 1, "--speedup", 1, "--one-off", 1e300),
            "'1e+300' is not a number from 0 on and up to 1e+15",
        ),
        (
            ("--requests-per-month", 1e-300, "--speedup", 1),
            "'1e-300' is not a number from 1e-15 on and up to 1e+15",
        ),
        (("--gpus", 1, "--speedup", "fast"), "'fast' is not a number above 0"),
        (("--gpus", 1, "--speedup", 1, "--busy", 1.1), "'1.1' is not a number above 0 and up to 1"),
        (("--gpus", 1, "--speedup", 1, "--one-off", -1), "'-1' is not a number from 0 on"),
        (("--gpus", 1, "--estimate", "no.json"), "no.json does not exist."),
    ],
)
def test_what_roi_does_not_take(
    sparseflow: Sparseflow, arguments: tuple[str | float, ...], says: str
) -> None:
    ended = sparseflow("roi", "--cost-per-gpu-hour", 1, *arguments)
    assert says in ended.error


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (("--gpus", 1), "The load takes 1 GPU today, dense, which is busy 70% of its time."),
        (("--gpus", 2000), "The load takes 2,000 GPUs today, dense, which are busy 70% of their time."),
        (
            ("--requests-per-second", 1000, "--throughput", 1250.5),
            "1,000 requests per second arrive evenly; a GPU that is always busy serves 1,250.5, dense.",
        ),
        (
            ("--requests-per-second", 1, "--throughput", 1e6),
            "1 request per second arrives evenly; a GPU that is always busy serves 1,000,000, dense.",
        ),
        (
            ("--requests-per-month", 730 * 3.6, "--throughput", 0.00004, "--peak", 1000),
            "0.001 requests per second arrive with 1,000 times as many in the busiest hour, which is counted;"
            " a GPU that is always busy serves 0.00004, dense.",
        ),
    ],
)
def test_roi_says_numbers_plainly(sparseflow: Sparseflow, load: tuple[str | float, ...], says: str) -> None:
    out = sparseflow("roi", *load, "--cost-per-gpu-hour", 1, "--speedup", 1.5).out
    assert says in [line.strip() for line in out.splitlines()]


def test_roi_takes_the_largest_figures(sparseflow: Sparseflow) -> None:
    ended = sparseflow(
        "roi", "--requests-per-second", 1e15, "--throughput", 1e-14, "--busy", 1e-14, "--peak", 1000,
        "--cost-per-gpu-hour", 1e15, "--speedup", 1e-14, "--json",
    )  # fmt: skip
    assert ended.code == 0
    assert ended.json["saved_per_month"] < 0


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
