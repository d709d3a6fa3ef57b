"""2:4 after every step: whichever breaks it is the one that is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from sparseflow_trt.artifacts.graph_record import GraphRecord
from sparseflow_trt.errors import ModelError
from sparseflow_trt.exporters import apply_plan as module
from sparseflow_trt.exporters import mask_guard
from sparseflow_trt.exporters.apply_plan import apply_plan
from sparseflow_trt.exporters.lowering.opt_out import opt_out
from sparseflow_trt.exporters.retyping.retype import retype
from sparseflow_trt.model.graph import read_layers
from sparseflow_trt.model.model_file import OnnxModel, read_model
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.model.scan import scan_pattern
from sparseflow_trt.model.target import GraphNeeds
from sparseflow_trt.plans.plan import Plan
from sparseflow_trt.plans.planning import make_plan

if TYPE_CHECKING:
    from tests.conftest import Models

OPTS_OUT = GraphNeeds(opts_out_dense=True)


@pytest.fixture
def model(models: Models) -> Path:
    """Three 2:4 layers; the weight of the third is stored the other way round."""
    rng = np.random.default_rng(0)
    weights = {name: prune_2to4(rng.standard_normal((64, 64)).astype(np.float32), 0) for name in "abc"}
    weights["c"] = np.ascontiguousarray(weights["c"].T)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="first"),
        helper.make_node("MatMul", ["p", "b"], ["q"], name="second"),
        helper.make_node("Transpose", ["c"], ["ct"], perm=[1, 0]),
        helper.make_node("MatMul", ["q", "ct"], ["y"], name="third"),
    ]
    return models.save(models.model(nodes, weights))


def _plan(path: Path, dense: str = "", precision: Any = "fp16") -> Plan:
    plan = make_plan(read_layers(read_model(path)), (), {}, None, precision, "force")
    layers = [p.model_copy(update={"sparsity": "dense"}) if p.name == dense else p for p in plan.layers]
    return plan.model_copy(update={"layers": tuple(layers)})


def _apply(path: Path, plan: Plan, unpruned: Path | None = None) -> GraphRecord:
    output = path.parent / "typed.onnx"
    dense = read_model(unpruned) if unpruned else None
    return apply_plan(read_model(path), plan, output, OPTS_OUT, dense)


def test_each_step_is_recorded_and_each_weight_read_once(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[str] = []

    def count(reader: Any, weight: Any, k_axis: int, state_only: bool) -> Any:
        scanned.append(weight.name)
        return scan_pattern(reader, weight, k_axis, state_only)

    monkeypatch.setattr(mask_guard, "scan_pattern", count)
    checks = _apply(model, _plan(model, dense="second")).mask_checks
    assert [(c.step, c.touched, c.read, c.planned) for c in checks] == [
        ("Rewriting operators", 0, 0, ()),
        ("Casting to the planned types", 2, 0, ()),
        ("Keeping dense layers out of sparse kernels", 0, 0, ("second",)),
        ("Writing the model", 0, 2, ()),
    ]
    assert sorted(scanned) == ["a", "b", "c"]
    kept = _apply(model, _plan(model, precision="keep")).mask_checks
    assert [c.touched for c in kept] == [0, 0, 0, 0]


def _fill(model: OnnxModel, name: str, value: float = 1.0) -> None:
    """Puts a third non-zero into the group of four that begins a weight's third row of groups."""
    constant = model.ir.graph.initializers[name]
    tensor = constant.const_value
    assert tensor is not None
    values = np.array(tensor.numpy())
    values[8:12, 5] = value
    constant.const_value = ir.Tensor(values, tensor.dtype, name=name)


def _after(step: Callable[..., Any], weight: str) -> Callable[..., Any]:
    """The step, and then an element too many: what a faulty pass would do."""

    def faulty(model: Any, *rest: Any, **options: Any) -> Any:
        done = step(model, *rest, **options)
        wrapped = model if isinstance(model, OnnxModel) else OnnxModel(Path(), None, model)  # type: ignore[arg-type]
        _fill(wrapped, weight)
        return done

    return faulty


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("restore_planned_dense", "Restoring dense weights"),
        ("fold_dequantized", "Rewriting operators"),
        ("retype", "Casting to the planned types"),
        ("opt_out", "Keeping dense layers out of sparse kernels"),
    ],
)
def test_the_step_that_broke_it_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch, function: str, says: str
) -> None:
    monkeypatch.setattr(module, function, _after(getattr(module, function), "a"))
    with pytest.raises(ModelError) as caught:
        _apply(model, _plan(model), unpruned=model)
    assert caught.value.message == (
        f"{says} broke the 2:4 pattern of layer 'first': 1 of 1024 groups of weight 'a' hold more than two "
        "non-zeros, the first at [8, 5]."
    )


def test_the_earliest_step_and_the_number_of_layers_are_told(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "opt_out", _after(opt_out, "a"))
    monkeypatch.setattr(module, "retype", _after(retype, "b"))
    with pytest.raises(ModelError) as caught:
        _apply(model, _plan(model))
    assert caught.value.message.startswith(
        "Casting to the planned types broke the 2:4 pattern of layer 'second'"
    )
    assert caught.value.message.endswith(" The same is true of 1 more.")


def test_the_group_of_a_transposed_weight(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(ir_model: Any, *rest: Any, **options: Any) -> Any:
        done = retype(ir_model, *rest, **options)
        constant = ir_model.graph.initializers["c"]
        values = np.array(constant.const_value.numpy())
        values[5, 8:12] = 1
        constant.const_value = ir.Tensor(values, constant.const_value.dtype, name="c")
        return done

    monkeypatch.setattr(module, "retype", faulty)
    with pytest.raises(ModelError, match=r"layer 'third': 1 of 1024 groups .* the first at \[5, 8\]"):
        _apply(model, _plan(model))


def test_a_pattern_that_a_type_cannot_use_is_kept_all_the_same(models: Models) -> None:
    """A person may plan a layer sparse that is too short for a sparse FP16 instruction."""
    weight = prune_2to4(np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32), 0)
    path = models.matmul(weight)
    plan = _plan(path, precision="fp16")
    assert not plan.wants_sparse
    layers = tuple(p.model_copy(update={"sparsity": "sparse"}) for p in plan.layers)
    assert _apply(path, plan.model_copy(update={"layers": layers})).mask_checks[-1].read == 1


def test_a_layer_that_a_step_lost_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(ir_model: Any, *rest: Any, **options: Any) -> Any:
        done = retype(ir_model, *rest, **options)
        second = next(node for node in ir_model.graph if node.name == "second")
        second.replace_input_with(1, second.inputs[0])
        return done

    monkeypatch.setattr(module, "retype", faulty)
    with pytest.raises(ModelError, match=r"^Casting .* of layer 'second': dynamic weight: computed by"):
        _apply(model, _plan(model))


def test_a_planned_change_is_allowed_and_named(model: Path, models: Models) -> None:
    rng = np.random.default_rng(0)
    pruned = read_model(model).ir.graph.initializers
    weights = {}
    for name in "abc":
        tensor = pruned[name].const_value
        assert tensor is not None
        values = np.array(tensor.numpy())
        weights[name] = np.where(values == 0, rng.standard_normal(values.shape), values).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="first"),
        helper.make_node("MatMul", ["p", "b"], ["q"], name="second"),
        helper.make_node("Transpose", ["c"], ["ct"], perm=[1, 0]),
        helper.make_node("MatMul", ["q", "ct"], ["y"], name="third"),
    ]
    unpruned = models.save(models.model(nodes, weights), "unpruned.onnx")
    applied = _apply(model, _plan(model, dense="second"), unpruned)
    assert [(c.step, c.planned) for c in applied.mask_checks if c.planned] == [
        ("Restoring dense weights", ("second",))
    ]
    assert applied.opted_out == ()  # its unpruned weights take it out of sparse kernels by themselves
    assert [layer.state.value for layer in read_layers(read_model(model.parent / "typed.onnx"))] == [
        "sparse", "not-sparse", "sparse",
    ]  # fmt: skip


def test_a_layer_that_could_not_be_changed_as_planned_is_not_named_as_changed(models: Models) -> None:
    dense = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="first"),
        helper.make_node("MatMul", ["p", "w"], ["y"], name="second"),
    ]
    pruned = models.save(models.model(nodes, {"w": prune_2to4(dense, 0)}))
    unpruned = models.save(models.model(nodes, {"w": dense}), "unpruned.onnx")
    applied = _apply(pruned, _plan(pruned, dense="second"), unpruned)
    assert [record.route for record in applied.restored] == ["kept"]
    assert [record.route for record in applied.opted_out] == ["none"]
    assert [check.planned for check in applied.mask_checks] == [()] * len(applied.mask_checks)
