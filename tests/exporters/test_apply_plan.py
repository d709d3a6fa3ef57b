"""One typed model that means a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.artifacts.graph_record import GraphRecord
from sparseflow_trt.errors import ModelError, PlanError
from sparseflow_trt.exporters import apply_plan as module
from sparseflow_trt.exporters.apply_plan import apply_plan
from sparseflow_trt.exporters.fp32_reference import needs_fp32_reference
from sparseflow_trt.exporters.saving import INLINE_BYTES, IR_VERSION, save_model
from sparseflow_trt.model.graph import read_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.model.target import GraphNeeds
from sparseflow_trt.plans.plan import ModelPrecision, Plan
from sparseflow_trt.plans.planning import make_plan
from tests.conftest import set_external

if TYPE_CHECKING:
    from tests.conftest import Array, Models

X = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)


def _weight(*shape: int) -> Array:
    return (np.random.default_rng(0).standard_normal(shape) / 8).astype(np.float32)


def _plan(path: Path, precision: ModelPrecision = "fp16", **changes: Any) -> Plan:
    layers = read_layers(read_model(path))
    return make_plan(layers, (), {}, None, precision, "force").model_copy(update=changes)


def _typed(path: Path) -> Path:
    return path.parent / "typed" / "model.onnx"


def _apply(path: Path, plan: Plan) -> tuple[GraphRecord, onnx.ModelProto]:
    output = _typed(path)
    output.parent.mkdir(exist_ok=True)
    return apply_plan(read_model(path), plan, output), onnx.load(output)


def _types(model: onnx.ModelProto) -> dict[str, str]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    return {
        node.name: TensorProto.DataType.Name(types[node.output[0]])
        for node in graph.node
        if node.output[0] in types
    }


def _run(path: Path, **feeds: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: Array = session.run(None, feeds)[0]
    return result


@pytest.fixture
def mlp(models: Models) -> Path:
    """Two layers with a Softmax between them; the first weight is 2:4."""
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], name="first"),
        helper.make_node("Softmax", ["a"], ["b"], name="softmax"),
        helper.make_node("MatMul", ["b", "down"], ["y"], name="second"),
    ]
    model = models.model(nodes, {"up": prune_2to4(_weight(64, 128), 0), "down": _weight(128, 32)})
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32]))
    return models.save(model)


def test_types_and_islands(mlp: Path) -> None:
    applied, typed = _apply(mlp, _plan(mlp))
    types = _types(typed)
    assert (types["first"], types["softmax"], types["second"]) == ("FLOAT16", "FLOAT", "FLOAT16")
    assert applied.islands == ("softmax",)
    assert applied.casts == sum(node.op_type == "Cast" for node in typed.graph.node) == 4
    assert applied.nodes_retyped == 2
    assert [t.name for t in typed.graph.initializer] == ["up", "down"]
    assert [v.name for v in (*typed.graph.input, *typed.graph.output)] == ["x", "y"]
    assert typed.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    np.testing.assert_allclose(_run(_typed(mlp), x=X), _run(mlp, x=X), atol=2e-3)


def test_islands_are_the_plans_to_choose(mlp: Path) -> None:
    applied, typed = _apply(mlp, _plan(mlp, islands=()))
    assert _types(typed)["softmax"] == "FLOAT16"
    assert applied.islands == ()
    applied, typed = _apply(mlp, _plan(mlp, islands=("softmax",)))
    assert _types(typed)["softmax"] == "FLOAT", "a node's name does as well as an operator"


def test_keep_leaves_all_as_it_is_but_the_layers_that_say_otherwise(mlp: Path) -> None:
    plan = _plan(mlp, "keep")
    applied, typed = _apply(mlp, plan)
    assert (applied.casts, applied.nodes_retyped, applied.islands) == (0, 0, ())
    first, second = plan.layers
    edited = plan.model_copy(update={"layers": (first.model_copy(update={"precision": "bf16"}), second)})
    _, typed = _apply(mlp, edited)
    types = _types(typed)
    assert (types["first"], types["softmax"], types["second"]) == ("BFLOAT16", "FLOAT", "FLOAT")


def test_a_weight_that_does_not_fit_is_told_once_however_often_it_is_read(models: Models) -> None:
    first, second = prune_2to4(_weight(64, 64), 0), prune_2to4(_weight(64, 64), 0)
    second.flat[np.flatnonzero(second)[0]] = 1e6
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "second"], ["y"], name="second"),
    ]
    path = models.save(models.model(nodes, {"first": first, "second": second}))
    plan = _plan(path)
    dense = plan.layers[1].model_copy(update={"sparsity": "dense"})
    plan = plan.model_copy(update={"layers": (plan.layers[0], dense)})
    needs = GraphNeeds(opts_out_dense=True)
    applied = apply_plan(read_model(path), plan, path.with_name("typed.onnx"), needs)
    assert [record.route for record in applied.opted_out] == ["element"]
    assert applied.clamped == (("second", 1, 1e6),)


def test_a_dense_layer_that_is_2to4_but_for_some_groups_is_kept_out_of_sparse_kernels(models: Models) -> None:
    """TensorRT 8.6 looks at a part of a weight only."""
    first, broken, full = (prune_2to4(_weight(64, 64), 0) for _ in range(3))
    broken[8:12, 3] = 1.0
    full[:4, 0] = 1.0
    names = ("first", "broken", "full")
    nodes = [
        helper.make_node("MatMul", [x, name], [y], name=name)
        for x, name, y in zip(("x", "a", "b"), names, ("a", "b", "y"), strict=True)
    ]
    path = models.save(models.model(nodes, dict(zip(names, (first, broken, full), strict=True))))
    plan = _plan(path)
    assert [layer.sparsity for layer in plan.layers] == ["sparse", "dense", "dense"]
    needs = GraphNeeds(opts_out_dense=True)
    applied = apply_plan(read_model(path), plan, path.with_name("typed.onnx"), needs)
    assert [(record.layer, record.route) for record in applied.opted_out] == [("broken", "element")]


def test_large_constants_lie_beside_the_file(mlp: Path) -> None:
    _apply(mlp, _plan(mlp))
    typed = _typed(mlp)
    model = onnx.load(typed, load_external_data=False)
    assert {t.data_location for t in model.graph.initializer} == {TensorProto.EXTERNAL}
    assert (typed.parent / "model.onnx.data").stat().st_size >= 2 * (64 * 128 + 128 * 32)
    assert typed.stat().st_size < 2 * INLINE_BYTES


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("precision", ["fp16", "keep"])
def test_large_constant_nodes_lie_there_too(
    models: Models, precision: ModelPrecision, external: bool
) -> None:
    mask, out = np.tril(np.ones((64, 64), bool)), np.ones((64, 32), np.float32)

    def constant(name: str, values: Array) -> onnx.NodeProto:
        tensor = models.tensor("", values)
        if external:
            (models.folder / f"{name}.bin").write_bytes(tensor.raw_data)
            set_external(tensor, f"{name}.bin")
        return helper.make_node("Constant", [], [name], value=tensor)

    nodes = [
        constant("mask", mask),
        constant("w", _weight(64, 32)),
        constant("out", out),
        helper.make_node("Where", ["mask", "x", "zero"], ["masked"], name="where"),
        helper.make_node("MatMul", ["masked", "w"], ["y"], name="product"),
    ]
    model = models.model(nodes, {"zero": np.zeros((), np.float32)}, {"x": (64, 64)}, ("y", "out"))
    path = models.save(model)
    _, typed = _apply(path, _plan(path, precision))
    assert not any(node.op_type == "Constant" and node.output[0] != "out" for node in typed.graph.node)
    x = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(_typed(path)), providers=["CPUExecutionProvider"])
    y, given = session.run(None, {"x": x})
    np.testing.assert_allclose(y, np.where(mask, x, 0) @ _weight(64, 32), rtol=2e-2, atol=2e-2)
    np.testing.assert_array_equal(given, out)


def test_layers_in_nameless_bodies_get_what_is_planned(models: Models) -> None:
    def body(name: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["batch", 64])
        node = helper.make_node("MatMul", ["x", name], [f"{name}_out"])
        return helper.make_graph([node], name, [], [output])

    nodes = [
        helper.make_node("If", ["always"], ["a"], then_branch=body("v"), else_branch=body("w")),
        helper.make_node("Add", ["a", "x"], ["y"]),
    ]
    weights = {name: prune_2to4(_weight(64, 64), 0) for name in "vw"}
    path = models.save(models.model(nodes, {**weights, "always": np.array(True)}))
    plan = _plan(path)
    first, second = (layer.name for layer in plan.layers)
    assert (first, second) == ("If:a/else_branch/MatMul:w_out", "If:a/then_branch/MatMul:v_out")
    wide = plan.layers[1].model_copy(update={"precision": "fp32"})
    applied, _ = _apply(path, plan.model_copy(update={"layers": (plan.layers[0], wide)}))
    assert applied.mask_checks[-1].read == 2
    written = {layer.name: layer for layer in read_layers(read_model(_typed(path)))}
    assert {name: layer.dtype for name, layer in written.items()} == {first: "FP16", second: "FP32"}


def test_names_that_are_taken_are_not_given_again(models: Models) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="fc"),
        helper.make_node("Add", ["a", "w_as_f16"], ["b"]),
        helper.make_node("Add", ["b", "x_as_f16"], ["y"]),
    ]
    weights = {"w": _weight(64, 64), "w_as_f16": _weight(1, 64)}
    path = models.save(models.model(nodes, weights, {"x": (4, 64), "x_as_f16": (4, 64)}))
    _apply(path, _plan(path))
    feeds = {"x": X, "x_as_f16": X[::-1].copy()}
    np.testing.assert_allclose(_run(_typed(path), **feeds), _run(path, **feeds), atol=5e-3)


def test_a_layer_that_cannot_have_its_type_is_refused(models: Models) -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="fc")
    path = models.save(models.model([node], {"w": _weight(64, 32)}, opset=11))
    assert _types(_apply(path, _plan(path))[1])["fc"] == "FLOAT16"
    with pytest.raises(PlanError, match="'fc' is planned bf16, and opset 11 has no Gemm of that type"):
        _apply(path, _plan(path, "bf16"))


def test_a_product_of_integers_keeps_its_type(models: Models) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32),
        helper.make_node("MatMul", ["i", "w"], ["y"], name="integers"),
    ]
    model = models.model(nodes, {"w": np.ones((64, 64), np.int32)}, {"x": (4, 64)})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    path = models.save(model)
    assert _types(_apply(path, _plan(path))[1])["integers"] == "INT32"


def test_a_broken_rewriting_is_noticed(mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(mlp)

    def save_dense(model: Any, output: Path) -> None:
        model.graph.initializers["up"].const_value = ir.Tensor(np.ones((64, 128), np.float16), name="up")
        save_model(model, output)

    monkeypatch.setattr(module, "save_model", save_dense)
    with pytest.raises(
        ModelError, match=r"^Writing the model broke the 2:4 pattern of layer .first.: 2048 of"
    ):
        _apply(mlp, plan)

    def save_invalid(model: Any, output: Path) -> None:
        next(node for node in model.graph if node.op_type == "Softmax").op_type = "Nonsense"
        save_model(model, output)

    monkeypatch.setattr(module, "save_model", save_invalid)
    with pytest.raises(ModelError, match="not valid ONNX: No Op registered for Nonsense") as caught:
        _apply(mlp, plan)
    assert "bug in the rewriting" in caught.value.hint
    before = onnx.load(mlp)
    before.graph.output[0].type.tensor_type.ClearField(
        "shape"
    )  # to which the checker objects, and which runs
    onnx.save(before, mlp)
    with pytest.raises(ModelError, match=r"model\.onnx is not valid ONNX: .* No Op registered for Nonsense"):
        _apply(mlp, plan)


def test_ir_versions_that_backends_do_not_read_yet_are_lowered(mlp: Path) -> None:
    model = onnx.load(mlp)
    model.ir_version = 13
    onnx.save(model, mlp)
    assert needs_fp32_reference(read_model(mlp))
    assert _apply(mlp, _plan(mlp))[1].ir_version == IR_VERSION
