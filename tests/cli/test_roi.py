"""sparseflow-trt roi."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.commands import Sparseflow

Mlp = Callable[..., Path]


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
