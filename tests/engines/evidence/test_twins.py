"""Whose times a layer has that TensorRT's builder did not time.

The log and the inspector's text are TensorRT 8.6.0's own, of one layer. A second one that is like it is made
by giving a copy of the inspector's entry another name: such a layer has no lines in a log of 8.6.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparseflow_trt.engines.evidence.inspector import layers_from_inspector
from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
from sparseflow_trt.engines.evidence.outcomes import LayerOutcome, join_outcomes
from sparseflow_trt.engines.evidence.timings import LayerTimings
from sparseflow_trt.engines.evidence.twins import find_twins
from tests.engines.evidence.logs import read_timings
from tests.engines.evidence.test_outcomes import make_plan

DATA = Path(__file__).parent.parent / "data"
UP = "w1 + transpose_before_up_proj + up_proj + PWN(relu)"
TIMINGS = read_timings((DATA / "trt86_int8.log").read_text(encoding="utf-8").splitlines())


def entries(*more: dict[str, Any]) -> tuple[LayerEvidence, ...]:
    """The layers of the real engine, and copies of its `up_proj`, with these changes."""
    told = json.loads((DATA / "trt86_int8.json").read_text(encoding="utf-8"), strict=False)
    (up,) = (layer for layer in told["Layers"] if layer["Name"] == UP)
    tensors = {
        key: [{**t, "Name": f"another {t['Name']}"} for t in up[key]] for key in ("Inputs", "Outputs")
    }  # fmt: skip
    told["Layers"] += [
        {**up, **tensors, "Name": "up_2", "Metadata": "[ONNX Layer: up_2]", **changes} for changes in more
    ]
    return layers_from_inspector(json.dumps(told))


def joined(layers: tuple[LayerEvidence, ...], earlier_times: bool = False) -> dict[str, LayerOutcome]:
    plan = make_plan(precision="int8", up_proj=True, up_2=True, down_proj=True)
    return {o.layer: o for o in join_outcomes(plan, layers, TIMINGS, earlier_times)}


def test_a_layer_without_lines_in_the_log_has_the_times_of_the_one_like_it() -> None:
    outcomes = joined(entries({}))

    up, second, down = (outcomes[name] for name in ("up_proj", "up_2", "down_proj"))
    assert (up.timed_as, second.timed_as, down.timed_as) == ("", UP, "")
    assert second == replace(
        up, layer="up_2", engine_layer="up_2", timed_as=UP, why=second.why
    )  # fmt: skip
    assert (second.best_sparse_ms, second.tried_sparse) == (0.0232085, 58)
    assert (
        second.why == f"{up.why}; timed as '{UP}', which is like it: TensorRT times only one of such layers"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"Stride": [2, 2]},
        {"Kernel": [3, 3]},
        {"PrePadding": [1, 1]},
        {"Groups": 2},
        {"OutMaps": 2816},
        {"Weights": {"Type": "Int8", "Count": 5767168}},
        {"HasSparseWeights": 0},
        {"HasResidual": 1},
        {"Activation": "NONE"},
        {"Inputs": [{"Name": "x", "Dimensions": [-1, 2048, 7, 7], "Format/Datatype": "N/A"}]},
        {"Inputs": [{"Name": "x", "Dimensions": [-1, 2048, 1, 1], "Format/Datatype": "Half"}]},
        {"Inputs": None},
        {"Weights": None},
        {"TacticName": "sm80_another"},
        {"TacticValue": "0x1"},
    ],
)
def test_one_that_differs_in_anything_has_none(changes: dict[str, Any]) -> None:
    second = joined(entries(changes))["up_2"]

    assert (second.timed_as, second.best_sparse_ms, second.tried_dense) == ("", None, 0)
    assert "the log has no times for it" in second.why


def test_names_and_formats_make_no_difference() -> None:
    def told(layout: str) -> list[dict[str, Any]]:
        return [{"Name": layout, "Dimensions": [1, 2048, 1, 1], "Format/Datatype": f"Half. {layout} format"}]

    linear, wide = (
        entries({"Inputs": told(layout)})[-1] for layout in ("Row major linear", "Sixteen wide channel")
    )
    assert linear.parameters == wide.parameters
    assert '"Half"' in linear.parameters


def test_with_two_that_were_timed_it_is_not_told_whose_they_are() -> None:
    layers = entries({}, {"Name": "up_3", "Metadata": "[ONNX Layer: up_3]"})
    assert find_twins(layers, TIMINGS) == {("up_2", 0): UP, ("up_3", 0): UP}
    third = LayerTimings("up_3", 0, tried_dense=1)
    assert find_twins(layers, (*TIMINGS, third)) == {}


def test_a_layer_that_the_log_names_without_a_time_has_those_of_its_twin() -> None:
    named = LayerTimings("up_2", 0, without_tactics=("CudaDepthwiseConvolution",))
    assert find_twins(entries({}), (*TIMINGS, named)) == {("up_2", 0): UP}


def test_a_layer_that_nothing_was_offered_for_lends_no_times() -> None:
    layers = entries({})
    assert find_twins(layers, (LayerTimings(UP, 0, without_tactics=("CaskConvolution",)),)) == {}


def test_a_layer_of_another_profile_lends_no_times() -> None:
    layers = entries({"Name": "up_2 [profile 1]"})
    assert layers[-1].profile == 1
    assert find_twins(layers, TIMINGS) == {}


def test_times_of_earlier_builds_may_be_its_own() -> None:
    second = joined(entries({}), earlier_times=True)["up_2"]
    assert (second.timed_as, second.best_dense_ms) == ("", None)
    assert second.why.endswith("(TensorRT reuses those of a layer like it, or of a timing cache)")


def test_a_precision_is_not_told_by_another_layers_times() -> None:
    layers = tuple(replace(e, precision="") if e.name == "up_2" else e for e in entries({}))
    assert joined(layers)["up_2"].precision == ""
