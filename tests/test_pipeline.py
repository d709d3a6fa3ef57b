"""Whole builds of small models, through both backends: what comes out, and what stays as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparseflow_trt._files import sha256_of
from sparseflow_trt.building.artifact_validation import ValidationOptions, validate_artifact
from sparseflow_trt.building.plan_options import PlanOptions, plan_for, read
from sparseflow_trt.engines.backends.choose import BackendName
from sparseflow_trt.errors import (
    EXIT_NOT_SPARSE,
    BuildError,
    NotSparseError,
    PlanError,
)
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.pipeline import BuildResult
from sparseflow_trt.plans.plan import read_plan
from sparseflow_trt.policies.policy import Point, Policy
from tests.builds import BATCH, BRAIN, FLOAT, HALF, Run, builder_in, dense_weight, make_mlp, sparse_weight

if TYPE_CHECKING:
    from tests.conftest import Models

pytestmark = pytest.mark.usefixtures("one_builder")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return builder_in(tmp_path)


def _attention(models: Models, layers: int = 2) -> onnx.ModelProto:
    """Single-head attention over x (batch, seq, 32): LayerNormalization, Softmax, residuals."""
    nodes, weights = [], {"gain": np.ones(32, np.float32), "root": np.asarray(np.float32(32**-0.5))}
    x = "x"
    for i in range(layers):
        p = f"l{i}_"
        for j, name in enumerate("qkvo"):
            weights[f"{p}{name}_w"] = sparse_weight(32, 32, seed=4 * i + j)
        nodes.append(helper.make_node("LayerNormalization", [x, "gain"], [p + "n"], name=p + "norm"))
        nodes += [
            helper.make_node("MatMul", [p + "n", f"{p}{name}_w"], [p + name], name=f"{p}{name}_proj")
            for name in "qkv"
        ]
        nodes += [
            helper.make_node("Transpose", [p + "k"], [p + "kt"], perm=[0, 2, 1]),
            helper.make_node("MatMul", [p + "q", p + "kt"], [p + "raw"], name=p + "scores"),
            helper.make_node("Mul", [p + "raw", "root"], [p + "scaled"]),
            helper.make_node("Softmax", [p + "scaled"], [p + "p"], name=p + "softmax"),
            helper.make_node("MatMul", [p + "p", p + "v"], [p + "mixed"], name=p + "context"),
            helper.make_node("MatMul", [p + "mixed", p + "o_w"], [p + "o"], name=p + "o_proj"),
            helper.make_node("Add", [x, p + "o"], [p + "x"], name=p + "residual"),
        ]
        x = p + "x"
    nodes.append(helper.make_node("Identity", [x], ["y"]))
    return models.model(nodes, weights, {"x": ("batch", "seq", 32)})


def _convolution(models: Models) -> onnx.ModelProto:
    """x (2, 8, 12, 12) through two convolutions, a batch normalisation and a mean."""
    one, zero = np.ones(16, np.float32), np.zeros(16, np.float32)
    return models.model(
        [
            helper.make_node("Conv", ["x", "c1"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["a", "one", "zero", "zero", "one"], ["b"], name="bn"),
            helper.make_node("Relu", ["b"], ["c"], name="act"),
            helper.make_node("Conv", ["c", "c2"], ["d"], name="conv2", group=2),
            helper.make_node("ReduceMean", ["d", "axes"], ["y"], name="pool"),
        ],
        {"c1": dense_weight(16, 8, 3, 3) / 6, "c2": dense_weight(16, 8, 1, 1), "one": one, "zero": zero,
         "axes": np.array([2, 3])},
        {"x": (2, 8, 12, 12)},
    )  # fmt: skip


def _typed(result: BuildResult) -> dict[str, str]:
    """The type of each named node's first output in the typed graph."""
    model = onnx.shape_inference.infer_shapes(onnx.load(result.artifact / "model.onnx"))
    values = (*model.graph.value_info, *model.graph.output)
    types = {v.name: TensorProto.DataType.Name(v.type.tensor_type.elem_type) for v in values}
    return {node.name: types.get(node.output[0], "") for node in model.graph.node}


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
@pytest.mark.parametrize(
    ("precision", "sparsity", "expected"),
    [
        ("fp32", "policy", "FLOAT"), ("fp16", "force", "FLOAT16"), ("bf16", "off", "BFLOAT16"),
        ("keep", "force", "FLOAT"), (None, "policy", "FLOAT16"),
    ],
)  # fmt: skip
def test_an_mlp_in_each_precision(
    backend: BackendName, precision: Any, sparsity: Any, expected: str, models: Models, run: Run
) -> None:
    plan = replace(BATCH, precision=precision, sparsity=sparsity)
    path = models.save(make_mlp(models))
    if (backend, precision) == ("onnxruntime", "bf16"):
        with pytest.raises(BuildError, match=r"no kernel for node 'up_proj' .*BFLOAT16") as caught:
            run(path, plan, backend)
        assert "Use --precision fp16 or fp32" in caught.value.hint
        assert [f.name for f in models.folder.iterdir()] == ["model.onnx"]
        return
    result = run(path, plan, backend)
    manifest = result.manifest
    assert manifest.status == "pass"
    assert _typed(result)["up_proj"] == _typed(result)["down_proj"] == expected
    asked = "sparse" if sparsity == "force" and precision == "fp16" else "dense"  # FP32 never is
    assert [(layer.sparsity, layer.state) for layer in manifest.layers] == [
        (asked, "sparse"),
        ("dense", "not-sparse"),
    ]
    assert manifest.layers[0].m == {"default": (1, 4, 8)}
    verdicts = {c.name: c.verdict for c in manifest.validation.candidates}
    assert verdicts[f"engine ({backend})"] == ("pass" if backend == "onnxruntime" else "not run")
    if backend == "tensorrt-rtx":
        said = {"FLOAT": "Float", "FLOAT16": "Half", "BFLOAT16": "BFloat16"}[expected]
        gemms = {layer.precision for layer in manifest.engine.layers if layer.type == "gemm"}
        assert gemms == {said}, "the engine's own layers"
        assert "runs dense" in manifest.engine.sparse_tactics


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("asked", "given"), [(None, "fp16"), ("keep", "fp32"), ("fp32", "fp32")])
def test_weights_that_are_stored_in_half_precision_do_not_choose_it(
    backend: BackendName, stored: Any, asked: Any, given: str, models: Models, run: Run
) -> None:
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"], name="fc"),
    ]
    path = models.save(models.model(nodes, {"w": sparse_weight(64, 32).astype(stored)}))
    result = run(path, replace(BATCH, precision=asked, sparsity="force"), backend)
    assert [(layer.precision, layer.sparsity) for layer in result.manifest.layers] == [
        (given, "sparse" if given == "fp16" else "dense")
    ]
    assert _typed(result)["fc"] == {"fp16": "FLOAT16", "fp32": "FLOAT"}[given]
    assert result.manifest.status == "pass"


def test_a_model_that_casts_its_weights_to_half_precision_keeps_it(models: Models, run: Run) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "v"], ["m"], name="fc"),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    result = run(models.save(models.model(nodes, {"w": dense_weight(64, 32)})))
    assert [layer.precision for layer in result.manifest.layers] == ["fp16"]
    assert _typed(result)["fc"] == "FLOAT16"


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
@pytest.mark.parametrize(("quantizes", "precision"), [(False, "fp16"), (True, "int8")])
def test_a_quantized_weight_beside_floats_is_planned_as_what_it_computes_in(
    backend: BackendName, quantizes: bool, precision: str, models: Models, run: Run
) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"]),
        helper.make_node("Conv", ["d" if quantizes else "x", "v"], ["y"], name="conv"),
    ]
    values = np.random.default_rng(0).integers(-90, 90, (32, 16, 3, 3)).astype(np.float32)
    constants = {
        "w": prune_2to4(values, 1).astype(np.int8), "s": np.float32(0.02).reshape(()),
        "z": np.int8(0).reshape(()),
    }  # fmt: skip
    path = models.save(
        models.model(nodes[0 if quantizes else 2 :], constants, {"x": ("batch", 16, 8, 8)}, opset=17)
    )
    result = run(path, replace(BATCH, sparsity="force"), backend)
    assert [(layer.precision, layer.sparsity) for layer in result.manifest.layers] == [(precision, "sparse")]
    assert result.manifest.status == "pass"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_onnx_runtime_multiplies_a_quantized_weight_by_floats(
    precision: Any, models: Models, run: Run
) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["v"], axis=1),
        helper.make_node("MatMul", ["x", "v"], ["y"], name="fc"),
    ]
    weights = {
        "w": np.random.default_rng(0).integers(-90, 90, (64, 32)).astype(np.int8),
        "s": np.full(32, 0.02, np.float32),
    }
    result = run(models.save(models.model(nodes, weights)), replace(BATCH, precision=precision))
    assert result.manifest.status == "pass"
    assert [layer.precision for layer in result.manifest.layers] == [precision]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_products_of_fp8_run_in_the_onnx_runtime(precision: Any, models: Models, run: Run) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], name="fc"),
    ]
    kind = ml_dtypes.float8_e4m3fn
    weights = {
        "w": (dense_weight(64, 32) / 0.01).astype(kind), "s": np.float32(0.01).reshape(()),
        "z": np.float32(0).astype(kind).reshape(()),
    }  # fmt: skip
    result = run(models.save(models.model(nodes, weights)), replace(BATCH, precision=precision))
    assert result.manifest.status == "pass"
    assert [layer.precision for layer in result.manifest.layers] == ["fp8"]


def test_a_dynamically_quantized_model_keeps_the_sums_of_its_integers(models: Models, run: Run) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"], name="integers"),
        helper.make_node("Cast", ["i"], ["c"], to=TensorProto.FLOAT, name="floats"),
        helper.make_node("Mul", ["c", "s"], ["m"], name="by_input"),
        helper.make_node("MatMul", ["m", "v"], ["y"], name="fc"),
    ]
    integers = np.random.default_rng(0).integers(64, 127, (64, 64)).astype(np.int8)
    weights = {"w": integers, "v": dense_weight(64, 32) / 1000}
    result = run(models.save(models.model(nodes, weights)), replace(BATCH, precision="fp16"))
    assert result.manifest.status == "pass"
    assert _typed(result)["floats"] == _typed(result)["by_input"] == "FLOAT"
    assert _typed(result)["fc"] == "FLOAT16"


def test_a_product_of_integers_is_planned_as_what_it_computes_in(models: Models, run: Run) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32),
        helper.make_node("MatMul", ["i", "w"], ["m"], name="integers"),
        helper.make_node("Cast", ["m"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "v"], ["a"], name="halves"),
        helper.make_node("Cast", ["a"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["d", "u"], ["b"], name="doubles"),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
    ]
    weights = {"w": np.eye(64, dtype=np.int32), "v": dense_weight(64, 32), "u": np.eye(32)}
    path = models.save(models.model(nodes, weights))
    result = run(path)
    precisions = {layer.name: layer.precision for layer in result.manifest.layers}
    assert precisions == {"integers": "int32", "halves": "fp16", "doubles": "fp64"}
    plan = read_plan(result.artifact / "plan.yaml")
    edited = tuple(layer.model_copy(update={"precision": "fp16"}) for layer in plan.layers)
    with pytest.raises(PlanError, match="'integers' is planned fp16 but its weights are INT32"):
        run(path, plan.model_copy(update={"layers": edited}))
    searched = run(path, replace(BATCH, precision="auto"))
    assert {layer.name: layer.precision for layer in searched.manifest.layers} == precisions


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_attention_keeps_its_norms_and_softmax_in_fp32(
    backend: BackendName, models: Models, run: Run
) -> None:
    plan = PlanOptions(axes={"batch": (1, 2, 2), "seq": (4, 8, 8)}, sparsity="force")
    result = run(models.save(_attention(models)), plan, backend)
    assert result.manifest.status == "pass"
    types = _typed(result)
    assert {types[f"l{i}_{name}"] for i in (0, 1) for name in ("norm", "softmax")} == {"FLOAT"}
    assert {types[f"l{i}_{name}_proj"] for i in (0, 1) for name in "qkvo"} == {"FLOAT16"}
    assert set(result.manifest.graph.islands) == {"l0_norm", "l0_softmax", "l1_norm", "l1_softmax"}
    weighted = result.manifest.layers
    assert len(weighted) == 8, "products of two activations are not in the manifest"
    assert {layer.m["default"] for layer in weighted} == {(4, 16, 16)}


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_a_static_convolutional_net(backend: BackendName, models: Models, run: Run) -> None:
    result = run(models.save(_convolution(models)), PlanOptions(), backend)
    assert result.manifest.status == "pass"
    assert [layer.kind for layer in result.manifest.layers] == ["conv", "conv"]
    assert {_typed(result)[name] for name in ("bn", "pool")} == {"FLOAT"}
    assert _typed(result)["conv1"] == "FLOAT16"
    assert [s.name for s in result.manifest.validation.input_sets] == ["static#0", "static#1", "static#2"]


def test_a_policy_decides_and_lies_beside_the_plan(models: Models, run: Run) -> None:
    shape: dict[str, Any] = {"kind": "gate_up", "n": 128, "k": 64, "m": 4, "dtype": "FP16"}
    shape["library"] = "tensorrt"
    points = (Point(**shape, kernel="dense", us=2), Point(**shape, kernel="sparse", us=1))
    policy = Policy(
        schema_version=1, name="mine", device="a card", compute_capability="8.0", provenance="measured",
        source="here", points=points,
    )  # fmt: skip
    path = models.save(make_mlp(models))
    result = run(path, replace(BATCH, policy=policy))
    assert "2.00×" in result.manifest.layers[0].reason
    assert result.manifest.layers[0].sparsity == "sparse"
    assert result.manifest.policy is not None
    assert result.manifest.policy.sha256 == sha256_of(result.artifact / "policy.json")
    assert not run(path, replace(BATCH, policy=policy.model_copy(update={"margin": 0.5}))).unchanged


def test_a_plan_is_written_edited_and_built(models: Models, run: Run) -> None:
    path = models.save(make_mlp(models))
    model, layers = read(path)
    plan = plan_for(model, layers, BATCH, sha256_of(path))
    up, down = plan.layers
    edited = plan.model_copy(update={"layers": (up, down.model_copy(update={"precision": "fp32"}))})
    result = run(path, edited, "tensorrt-rtx")
    types = _typed(result)
    assert (types["up_proj"], types["down_proj"]) == ("FLOAT16", "FLOAT")
    evidence = [layer for layer in result.manifest.engine.layers if "down_proj" in layer.nodes]
    assert [(layer.type, layer.precision) for layer in evidence] == [("gemm", "Float")]
    assert result.manifest.status == "pass"


def test_a_plan_that_does_not_fit_is_refused_layer_by_layer(models: Models, run: Run) -> None:
    path = models.save(make_mlp(models))
    plan = plan_for(*read(path), BATCH, "")
    up, down = plan.layers
    wrong = plan.model_copy(
        update={"layers": (up.model_copy(update={"k": 65}), down.model_copy(update={"name": "other"}))}
    )
    with pytest.raises(PlanError) as caught:
        run(path, wrong)
    for name in ("'up_proj'", "'other'", "'down_proj'"):
        assert name in caught.value.message
    sparse = plan.model_copy(update={"layers": (up, down.model_copy(update={"sparsity": "sparse"}))})
    with pytest.raises(NotSparseError, match="'down_proj' is planned sparse but is not-sparse") as refused:
        run(path, sparse)
    assert refused.value.exit_code == EXIT_NOT_SPARSE
    assert [f.name for f in models.folder.iterdir()] == ["model.onnx"]


def test_a_type_that_the_opset_lacks_is_refused(models: Models, run: Run) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    path = models.save(models.model([node], {"w": dense_weight(64, 32)}, opset=11))
    with pytest.raises(PlanError, match="'fc' is planned bf16, and opset 11 has no MatMul of that type"):
        run(path, replace(BATCH, precision="bf16"))


def _norm_in_small_operators(kind: str) -> list[onnx.NodeProto]:
    """x to y, normalised along the last axis, with squares that leave FP16's range."""

    def node(op: str, inputs: list[str], output: str) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], name=output)

    if kind == "layer norm":
        return [
            node("ReduceMean", ["x", "axis"], "mean"), node("Sub", ["x", "mean"], "centred"),
            node("Pow", ["centred", "two"], "square"), node("ReduceMean", ["square", "axis"], "var"),
            node("Add", ["var", "eps"], "var_eps"), node("Sqrt", ["var_eps"], "std"),
            node("Div", ["centred", "std"], "normed"),
        ]  # fmt: skip
    if kind == "rms norm":
        return [
            node("Mul", ["x", "x"], "square"), node("ReduceMean", ["square", "axis"], "var"),
            node("Add", ["var", "eps"], "var_eps"), node("Sqrt", ["var_eps"], "std"),
            node("Reciprocal", ["std"], "inverse"), node("Mul", ["x", "inverse"], "normed"),
        ]  # fmt: skip
    return [
        node("ReduceMax", ["x", "axis"], "top"), node("Sub", ["x", "top"], "shifted"),
        node("Exp", ["shifted"], "exp"), node("ReduceSum", ["exp", "axis"], "total"),
        node("Div", ["exp", "total"], "normed"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["layer norm", "rms norm", "softmax"])
def test_norms_in_small_operators_stay_in_fp32(kind: str, models: Models, run: Run, tmp_path: Path) -> None:
    nodes = [*_norm_in_small_operators(kind), helper.make_node("MatMul", ["normed", "w"], ["y"], name="fc")]
    constants = {
        "axis": np.array([-1]),
        "two": np.float32(2),
        "eps": np.float32(1e-5),
        "w": dense_weight(64, 64),
    }
    used = {name for node in nodes for name in node.input}
    path = models.save(models.model(nodes, {k: np.asarray(v) for k, v in constants.items() if k in used}))
    # squares of 1e6 and sums of 6e7, where FP16 ends at 65504
    np.savez(tmp_path / "x.npz", x=dense_weight(4, 64) * 2000)
    result = run(path, validation=ValidationOptions(inputs=str(tmp_path / "x.npz")))
    assert result.manifest.status == "pass", result.manifest.validation.reason
    types = _typed(result)
    inside = {"square", "var", "var_eps", "std", "inverse", "exp", "total"} & set(types)
    assert {types[name] for name in inside} == {"FLOAT"}
    assert types["fc"] == "FLOAT16"


@pytest.mark.parametrize(
    ("dtype", "backend"), [(np.float16, "onnxruntime"), (ml_dtypes.bfloat16, "tensorrt-rtx")]
)
def test_a_half_precision_model_is_kept_and_compared_with_fp32(
    dtype: Any, backend: BackendName, models: Models, run: Run
) -> None:
    path = models.save(make_mlp(models, dtype))
    result = run(path, backend=backend)
    manifest = result.manifest
    assert manifest.status == "pass", manifest.validation.reason
    name = TensorProto.DataType.Name({"float16": HALF}.get(np.dtype(dtype).name, BRAIN))
    assert _typed(result) == {"up_proj": name, "act": name, "down_proj": name}
    assert manifest.graph.casts == 0
    assert manifest.validation.reference == "reference.onnx"
    output = manifest.validation.candidates[0].outputs[0]
    assert output.reference_dtype == "float32"
    assert output.max_abs is not None
    assert output.max_abs > 0, "a reference in the model's own type would be equal"
    again = validate_artifact(result.artifact, path, ValidationOptions())
    assert again.candidates[0].outputs == manifest.validation.candidates[0].outputs


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_an_if_and_a_loop(backend: BackendName, models: Models, run: Run) -> None:
    def output(name: str, dtype: int = FLOAT, shape: Any = ("batch", 64)) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, shape)

    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"], name="in_if")], "then", [], [output("t")]
    )
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "else", [], [output("e")])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["state", "w"], ["scaled"], name="in_loop"),
            helper.make_node("Tanh", ["scaled"], ["next"]),
        ],
        "body",
        [output("i", TensorProto.INT64, []), output("go", TensorProto.BOOL, []), output("state")],
        [output("go_on", TensorProto.BOOL, []), output("next")],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["cond"]),
        helper.make_node("If", ["cond"], ["b"], then_branch=then, else_branch=other),
        helper.make_node("Loop", ["trips", "always", "b"], ["y"], body=body),
    ]
    constants = {"w": dense_weight(64, 64), "zero": np.asarray(np.float32(0)), "trips": np.asarray(3),
                 "always": np.asarray(True)}  # fmt: skip
    result = run(models.save(models.model(nodes, constants)), backend=backend)
    assert result.manifest.status == "pass", result.manifest.validation.reason
    assert [layer.name.rpartition("/")[2] for layer in result.manifest.layers] == ["in_if", "in_loop"]
    assert {layer.precision for layer in result.manifest.layers} == {"fp16"}


def test_local_functions_are_inlined(models: Models, run: Run) -> None:
    function = helper.make_function(
        "local", "Linear", ["a", "b"], ["c"],
        [helper.make_node("MatMul", ["a", "b"], ["p"], name="mm"), helper.make_node("Relu", ["p"], ["c"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Linear", ["x", "up"], ["h"], name="first", domain="local"),
        helper.make_node("Linear", ["h", "down"], ["y"], name="second", domain="local"),
    ]
    weights = {"up": sparse_weight(64, 128), "down": dense_weight(128, 32)}
    path = models.save(models.model(nodes, weights, functions=[function]))
    result = run(path, replace(BATCH, sparsity="force"))
    assert result.manifest.status == "pass"
    assert [layer.sparsity for layer in result.manifest.layers] == ["sparse", "dense"]
    assert not onnx.load(result.artifact / "model.onnx").functions
    assert validate_artifact(result.artifact, path, ValidationOptions()).verdict == "pass"


def test_a_constant_beyond_fp16_is_said(models: Models, run: Run) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="fc"),
        helper.make_node("Shape", ["a"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["filled"],
                         value=models.tensor("v", np.array([1e6], np.float32))),
        helper.make_node("Min", ["a", "filled", "far"], ["y"]),
    ]  # fmt: skip
    weights = {"w": dense_weight(64, 32), "far": np.array([1e7], np.float32)}
    result = run(models.save(models.model(nodes, weights)))
    assert {(c[1], round(c[2])) for c in result.manifest.graph.clamped} == {(1, 10**6), (1, 10**7)}
    assert result.manifest.status == "pass"


def test_what_the_checker_refused_before_is_not_held_against_the_rewriting(models: Models, run: Run) -> None:
    model = make_mlp(models)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, ["batch", 99]))
    assert run(models.save(model)).manifest.status == "pass"


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_an_empty_cache_is_a_profile_of_min_0(models: Models, run: Run, backend: BackendName) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "k_proj"], ["new"], name="k_proj"),
        helper.make_node("Concat", ["past_key", "new"], ["all"], name="cache", axis=1),
        helper.make_node("MatMul", ["all", "out_proj"], ["y"], name="out_proj"),
    ]
    weights = {"k_proj": sparse_weight(32, 32), "out_proj": sparse_weight(32, 32, seed=1)}
    inputs = {"x": ("batch", "seq", 32), "past_key": ("batch", "past", 32)}
    path = models.save(models.model(nodes, weights, inputs), "cache.onnx")
    axes = {"batch": (1, 2, 4), "seq": (1, 1, 8), "past": (0, 8, 16)}
    result = run(path, PlanOptions(axes=axes, sparsity="force"), backend)
    assert result.manifest.status == "pass"
    shapes = {tuple(given.shapes["past_key"]) for given in result.manifest.validation.input_sets}
    assert (1, 0, 32) in shapes
