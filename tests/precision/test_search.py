"""The search for precisions, on models that FP16 cannot hold in one place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.building.artifact_validation import ValidationOptions, input_sets
from sparseflow_trt.building.plan_options import PlanOptions, plan_for, read, settle
from sparseflow_trt.errors import PlanError
from sparseflow_trt.plans.plan import DEFAULT_ISLANDS, Plan, plan_from_yaml, yaml_from_plan
from sparseflow_trt.plans.precision_record import PrecisionSearch
from sparseflow_trt.validation.tolerances import DEFAULTS, Tolerances, parse_tolerances
from tests.troubled import save_transformer

if TYPE_CHECKING:
    from tests.conftest import Models

AUTO = PlanOptions(precision="auto", axes={"batch": (1, 2, 2), "seq": (4, 8, 16)})
Search = Callable[..., tuple[Plan, PrecisionSearch]]


@pytest.fixture
def search() -> Search:
    """Plans a model with precisions that are searched for."""

    def run(
        path: Path, options: PlanOptions = AUTO, bf16: bool = True, tolerances: tuple[str, ...] = ()
    ) -> tuple[Plan, PrecisionSearch]:
        model, layers = read(path)
        validation = ValidationOptions(tolerances=parse_tolerances(tolerances))
        base = plan_for(model, layers, options, "")
        inputs = input_sets(model, base, validation)
        plan = settle(model, layers, base, options, inputs, validation, bf16)
        assert plan.search is not None
        return plan, plan.search

    return run


def _given(plan: Plan) -> dict[str, str]:
    return {layer.name: layer.precision for layer in plan.layers if layer.precision != "fp16"}


def _islands(plan: Plan) -> set[str]:
    return set(plan.islands) - set(DEFAULT_ISLANDS)


def test_what_fp16_holds_stays_in_fp16_after_one_run(search: Search, models: Models) -> None:
    plan, found = search(save_transformer(models, ""))
    assert (_given(plan), _islands(plan)) == ({}, set())
    assert [(run.what, run.passed) for run in found.runs] == [("everything in FP16", True)]
    assert (found.work, found.cost, found.irreducible, found.layers) == ({"fp16": 1.0}, 1.0, True, 18)


def test_an_attention_score_of_1e5_is_the_only_island(search: Search, models: Models) -> None:
    plan, found = search(save_transformer(models, "score"))
    assert (_given(plan), _islands(plan)) == ({}, {"b1.scores", "b1.scale"})
    assert len(found.runs) < found.layers / 3
    assert not found.runs[0].passed
    assert found.irreducible
    by_name = {row.node: row for row in found.sensitivities}
    score = by_name["b1.scores"]
    assert (score.precision, score.fp16_error) == ("fp32", None)
    assert "reaches 1.0" in score.why
    assert (score.largest or 0) > 65504
    assert by_name["b0.scores"].precision == "fp16"
    assert (by_name["b0.scores"].fp16_error or 1) < 1e-3


def test_a_layer_before_a_normalisation_goes_to_bf16_where_there_is_bf16(
    search: Search, models: Models
) -> None:
    path = save_transformer(models, "norm")
    plan, found = search(path)
    assert _given(plan) == {"b1.down": "bf16"}
    assert _islands(plan) == {"b1.down.bias", "b1.add2"}
    assert found.work["bf16"] > 0
    assert found.cost == 1
    plan, found = search(path, bf16=False)
    assert _given(plan) == {"b1.down": "fp32"}
    assert found.cost > 1


def test_scores_that_fp16_holds_in_steps_of_16_are_found_by_their_softmax(
    search: Search, models: Models
) -> None:
    plan, found = search(save_transformer(models, "rounding"), bf16=False)
    assert not found.runs[0].passed
    assert {"b1.scores", "b1.scale"} <= _islands(plan)
    assert len(found.runs) < found.layers
    assert any("softmax" in row.why for row in found.sensitivities)
    assert found.work["fp16"] > 0.8


def test_the_same_question_has_the_same_answer(search: Search, models: Models) -> None:
    path = save_transformer(models, "score")
    first, second = (yaml_from_plan(search(path)[0]) for _ in range(2))
    assert first == second


def test_a_searched_plan_is_read_back_and_held_to_fp16(search: Search, models: Models) -> None:
    plan, _ = search(save_transformer(models, "norm"))
    text = yaml_from_plan(plan)
    again = plan_from_yaml(text)
    assert again == plan
    assert sum("- {node: " in line for line in text.splitlines()) == len(plan.search.sensitivities)  # type: ignore[union-attr]
    assert Tolerances().for_plan(again).default == DEFAULTS["fp16"]  # though a layer is in BF16
    edited = again.model_copy(update={"search": None})
    assert Tolerances().for_plan(edited).default == DEFAULTS["bf16"]


def test_a_model_with_no_node_to_choose_for_is_left_as_it_is(search: Search, models: Models) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((64, 32))}
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="double")
    path = models.save(models.model([node], weights, dtype=TensorProto.DOUBLE))
    plan, found = search(path, PlanOptions(precision="auto", axes={"batch": (1, 4, 8)}))
    assert (_islands(plan), found.groups, [run.passed for run in found.runs]) == (set(), 0, [True])


def _with_int8(models: Models) -> Path:
    """A product of INT8 values, then one whose values FP16 cannot hold."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="q"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], name="dqw"),
        helper.make_node("MatMul", ["xd", "wd"], ["a"], name="quantized"),
        helper.make_node("MatMul", ["a", "v"], ["b"], name="large"),
        helper.make_node("Mul", ["b", "small"], ["y"], name="shrunk"),
    ]
    weights = {
        "w": rng.integers(-127, 127, (64, 64)).astype(np.int8),
        "s": np.asarray(np.float32(0.02)),
        "z": np.asarray(np.int8(0)),
        "v": (1e4 * rng.standard_normal((64, 64))).astype(np.float32),
        "small": np.asarray(np.float32(2.0**-14)),
    }
    return models.save(models.model(nodes, weights))


def test_int8_layers_stay_int8(search: Search, models: Models) -> None:
    options = PlanOptions(precision="auto", axes={"batch": (1, 4, 8)})
    plan, found = search(_with_int8(models), options, bf16=False)
    assert _given(plan) == {"quantized": "int8", "large": "fp32"}
    assert found.held_to == "int8"
    assert found.work == {"int8": 0.5, "fp32": 0.5}


def test_where_the_quantized_layers_themselves_are_not_within_tolerance_fp32_is_named(
    search: Search, models: Models
) -> None:
    """Their scales are FP16 in every trial, which --precision fp32 leaves in FP32."""
    options = PlanOptions(precision="auto", axes={"batch": (1, 4, 8)})
    with pytest.raises(PlanError, match="no precision of what is not quantized keeps") as caught:
        search(_with_int8(models), options, tolerances=("atol=0,rtol=0,cosine=1",))
    assert caught.value.hint.startswith("--precision fp32 ")


def test_a_model_that_is_large_everywhere_goes_to_bf16(search: Search, models: Models) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "v"], ["y"], name="second"),
    ]
    weights = {name: (1e3 * rng.standard_normal((64, 64))).astype(np.float32) for name in "wv"}
    path = models.save(models.model(nodes, weights))
    options = PlanOptions(precision="auto", axes={"batch": (1, 4, 8)})
    plan, found = search(path, options)
    assert set(_given(plan).values()) == {"bf16"}
    assert found.cost == 1
    plan, found = search(path, options, bf16=False)
    assert _given(plan) == {"second": "fp32"}


@pytest.mark.parametrize(("opset", "wide"), [(11, "fp32"), (17, "fp32"), (22, "bf16")])
def test_layers_that_the_opset_has_not_in_bf16_go_to_fp32(
    search: Search, models: Models, opset: int, wide: str
) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["small"], name="first"),
        helper.make_node("Conv", ["small", "b"], ["large"], name="second"),
        helper.make_node("Conv", ["large", "c"], ["y"], name="third"),
    ]
    weights = {
        name: (size * rng.standard_normal((16, 16, 3, 3))).astype(np.float32)
        for name, size in (("a", 10), ("b", 1e3), ("c", 1e-6))
    }
    inputs = {"x": (1, 16, 12, 12)}
    path = models.save(models.model(nodes, weights, inputs, opset=opset))
    plan, found = search(path, PlanOptions(precision="auto"))
    assert _given(plan) == {"second": wide, "third": wide}
    assert any(run.passed for run in found.runs)


def test_an_opset_too_old_to_be_measured_is_an_error(search: Search, models: Models) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    path = models.save(models.model([node], {"w": np.ones((64, 64), np.float32)}, {"x": (4, 64)}, opset=8))
    with pytest.raises(PlanError, match="is written in opset 8"):
        search(path, PlanOptions(precision="auto"))


def test_a_tolerance_that_nothing_keeps_is_an_error(search: Search, models: Models) -> None:
    with pytest.raises(PlanError, match="not even FP32"):
        search(save_transformer(models, ""), tolerances=("atol=0,rtol=0,cosine=1",))


def test_nodes_without_names_and_half_precision_models(search: Search, models: Models) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "small"], ["y"]),
    ]
    weights = {"w": np.full((64, 32), 1e4, np.float16), "small": np.asarray(np.float16(2.0**-12))}
    path = models.save(models.model(nodes, weights, dtype=TensorProto.FLOAT16))
    plan, _ = search(path, PlanOptions(precision="auto", axes={"batch": (8, 8, 8)}), bf16=False)
    assert _given(plan) == {"MatMul:a": "fp32"}
    assert _islands(plan) == {"Mul:y"}
