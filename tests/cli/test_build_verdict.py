"""sparseflow-trt build --verdict: what is refused, and what is said of sparse against dense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import numpy_helper

from sparseflow_trt.engines.backends.tensorrt_backend import TensorRtBackend
from sparseflow_trt.model.pattern import prune_2to4

if TYPE_CHECKING:
    from tests.commands import Sparseflow
    from tests.conftest import Duels

MakeModel = Callable[..., Path]
Left = Callable[[Path], "list[str]"]

BATCH = ("--dim", "batch=1,4,8", "--sparsity", "force")
NO_GPU = pytest.mark.skipif(not TensorRtBackend().unavailable(), reason="engines can be timed here")


@pytest.mark.parametrize(
    ("backend", "code", "says"),
    [
        ("onnxruntime", 2, "--verdict times sparse kernels against dense ones, and onnxruntime has none."),
        ("tensorrt-rtx", 2, "--verdict times sparse kernels against dense ones, and tensorrt-rtx has none."),
        pytest.param("auto", 6, "--verdict times TensorRT's engines on this machine's GPU. ", marks=NO_GPU),
        pytest.param("tensorrt", 6, "--verdict times TensorRT's engines on this", marks=NO_GPU),
    ],
)
def test_where_nothing_can_be_timed_nothing_is_built(
    backend: str, code: int, says: str, sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path, left: Left
) -> None:
    for options in ((), ("--json",)):
        ended = sparseflow("build", mlp(), *BATCH, "--verdict", "--backend", backend, *options)
        assert ended.code == code
        assert ended.error.startswith(says)
        assert "--backend tensorrt on the machine with the GPU, or without --verdict" in ended.err
    assert left(own_folder) == ["model.onnx"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--margin", "0.1"), "--margin is how much sparse has to win by with --verdict: give both."),
        (("--verdict", "--margin", "-0.1"), "--margin -0.1 is not a share: give one from 0 to below 1"),
        (("--verdict", "--margin", "2"), "--margin 2 is not a share"),
        (("--verdict", "--margin", "nan"), "--margin nan is not a share"),
        (("--verdict", "--margin", "much"), "'much' is not a valid float"),
    ],
)
def test_margins_that_there_are_not(
    options: tuple[str, ...], says: str, sparseflow: Sparseflow, mlp: MakeModel
) -> None:
    ended = sparseflow("build", mlp(), *BATCH, *options)
    assert (ended.code, says in ended.error) == (2, True)


def test_says_why_dense_ships(sparseflow: Sparseflow, mlp: MakeModel, duels: Duels, own_folder: Path) -> None:
    duels.speedups = {"default": 1.01}
    ended = sparseflow("build", mlp(), *BATCH, "--verdict")
    assert (ended.code, ended.err) == (0, "")
    for words in (
        "\nSparse against dense: Dense ships: sparse is 1.010× as fast at 'default' and has to win by 2 %.\n",
        "  GPU times in ms, 15 rounds of 20 CUDA graphs, engines in turn:\n",
        "  In the sparse engine 1 of 2 layers and profiles ran a sparse kernel; duel.sparse_outcomes in",
        "dense ships: sparse was 1.010× as fast at 'default' (measured, 15 rounds)",
    ):
        assert words in ended.out
    rows = [line.split() for line in ended.out.splitlines() if "1.9802" in line or "2.0000–2.0000" in line]
    assert rows == [
        ["default", "x", "4×64", "sparse", "1.9802", "1.9802", "1.9802", "1.9802–1.9802", "1.010×",
         "1.010–1.010"],
        ["dense", "2.0000", "2.0000", "2.0000", "2.0000–2.0000"],
    ]  # fmt: skip
    assert "Dense ships: sparse is 1.010×" in (own_folder / "model.artifact" / "report.html").read_text()


def test_the_margin_is_obeyed_and_json_holds_the_record(
    sparseflow: Sparseflow, mlp: MakeModel, duels: Duels, own_folder: Path
) -> None:
    duels.speedups = {"default": 1.01}
    command = ("build", mlp(), *BATCH, "-o", "out", "--verdict", "--margin", "0.01", "--json")
    built = sparseflow(*command).json
    duel = built["manifest"]["duel"]
    assert (duel["ships"], duel["margin"]) == ("sparse", 0.01)
    assert duel["profiles"][0]["speedup"] == pytest.approx(1.01)
    assert [layer["sparsity"] for layer in built["manifest"]["layers"]] == ["sparse", "dense"]
    assert duel == json.loads((own_folder / "out" / "manifest.json").read_text())["duel"]
    assert sparseflow(*command).json["unchanged"] is True


def test_nothing_to_compare_is_said(sparseflow: Sparseflow, mlp: MakeModel, duels: Duels) -> None:
    ended = sparseflow("build", mlp(), "--dim", "batch=4", "--sparsity", "off", "--verdict")
    assert ended.code == 0
    assert "Sparse against dense: The plan has no sparse layer: there was nothing to compare" in ended.out
    assert "GPU times" not in ended.out


def test_a_dense_layer_that_cannot_be_taken_out_of_sparse_kernels_is_named(
    sparseflow: Sparseflow, mlp: MakeModel, duels: Duels, own_folder: Path
) -> None:
    model = onnx.load(mlp())
    first, last = model.graph.initializer
    last.CopyFrom(numpy_helper.from_array(prune_2to4(numpy_helper.to_array(last).copy(), 0), last.name))
    weight = numpy_helper.to_array(first).copy()
    plan = own_folder / "plan.yaml"
    for ones, named in ((1, True), (2, False)):
        weight[:] = 0
        for i in range(ones):
            weight[i::4] = 0.5
        first.CopyFrom(numpy_helper.from_array(weight, first.name))
        onnx.save(model, own_folder / "ones.onnx")
        assert sparseflow("plan", "ones.onnx", *BATCH, "-o", plan).code == 0
        assert "sparsity: sparse" in plan.read_text()
        plan.write_text(plan.read_text().replace("sparsity: sparse", "sparsity: dense", 1))
        ended = sparseflow("build", "ones.onnx", "--plan", plan)
        assert ended.code == 0
        said = "1 layer(s) planned dense could not be kept out of sparse kernels, the first of them"
        assert (said in ended.out) is named
        assert ("no group of four holds two non-zeros" in ended.out) is named
