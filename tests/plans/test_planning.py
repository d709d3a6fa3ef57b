"""Plans: what is decided for each layer, and why."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.errors import NotSparseError, ShapeError
from sparseflow_trt.exporters.pruning.prune import prune_model
from sparseflow_trt.model.graph import SparsityState, WeightedLayer, read_layers
from sparseflow_trt.model.model_file import OnnxModel, read_model
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.model.prunable import pruned_before
from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.plans.plan import (
    ModelPrecision,
    PlannedLayer,
    SparsityMode,
    check_plan,
)
from sparseflow_trt.plans.planning import check_forced, make_plan
from sparseflow_trt.plans.shapes import Profile, ShapeRange
from sparseflow_trt.plans.split import Split
from tests.made_plans import DIMS, PLAN, POLICY, make_layer, profile_at

if TYPE_CHECKING:
    from tests.conftest import Models


PRECISIONS: tuple[ModelPrecision, ...] = ("fp32", "fp16", "keep")
NO_POLICY = "no policy for this device: "


def _decision(layer: WeightedLayer, *opts: int, **options: Any) -> PlannedLayer:
    profiles = tuple(profile_at(f"p{i}", opt) for i, opt in enumerate(opts))
    options = {"policy": POLICY, "precision": "fp16", **options}
    (planned,) = make_plan((layer,), profiles, DIMS, **options).layers
    return planned


def test_the_policy_decides_at_the_opt_shape() -> None:
    sparse = _decision(make_layer("a"), 100)
    assert sparse.sparsity == "sparse"
    assert sparse.reason.startswith("profile 'p0': threshold of kind 'qkv'")
    assert _decision(make_layer("a"), 99).sparsity == "dense"


def test_one_profile_that_wins_is_enough_and_all_that_lose_are_said() -> None:
    assert _decision(make_layer("a"), 1, 100).reason.startswith("profile 'p1'")
    several = _decision(make_layer("a"), 1, 100, 200, 2).reason
    assert several.endswith("; sparse also in profile 'p2'; dense in profile 'p0', profile 'p3'")
    lost = _decision(make_layer("a"), 1, 2)
    assert "profile 'p0'" in lost.reason
    assert "; profile 'p1'" in lost.reason


def test_static_shapes_are_judged_without_profiles() -> None:
    layer = make_layer("a", m=SymbolicM((10, 20)))
    assert _decision(layer).reason.startswith("static shapes: threshold")
    assert _decision(layer).sparsity == "sparse"


def test_an_unknown_m_is_dense() -> None:
    m = SymbolicM((None, "batch"))
    planned = _decision(make_layer("a", m=m), 100)
    assert (planned.sparsity, planned.reason) == ("dense", f"profile 'p0': {m.not_known}")


@pytest.mark.parametrize(
    ("state", "options", "sparsity", "reason"),
    [
        (SparsityState.NOT_ELIGIBLE, {"sparsity": "force"}, "dense", "cannot be 2:4: the reason"),
        (SparsityState.NOT_SPARSE, {"sparsity": "force"}, "dense", "weights are not 2:4: the reason"),
        (SparsityState.SPARSE, {"sparsity": "off"}, "dense", "sparsity is off"),
        (SparsityState.SPARSE, {"sparsity": "force"}, "sparse", "asked for: sparsity is forced"),
        (SparsityState.SPARSE, {"policy": None}, "dense", f"{NO_POLICY}`sparseflow-trt autotune MODEL` meas"),
        (
            SparsityState.SPARSE, {"policy": None, "precision": "bf16"}, "dense",
            f"{NO_POLICY}`sparseflow-trt autotune MODEL --dtype bf16` measures one; or name one with",
        ),
        (SparsityState.SPARSE, {"precision": "fp32"}, "dense", "FP32 runs dense: sparse TF32 instr"),
        (SparsityState.SPARSE, {"precision": "fp32", "sparsity": "force"}, "dense", "FP32 runs dense: sp"),
        (SparsityState.SPARSE, {"precision": "keep", "sparsity": "force"}, "dense", "FP32 runs dense: sp"),
        (SparsityState.SPARSE, {"precision": "bf16"}, "dense", "profile 'p0': no measurement of BF16"),
    ],
)  # fmt: skip
def test_reasons(state: SparsityState, options: dict[str, Any], sparsity: str, reason: str) -> None:
    planned = _decision(make_layer("a", state), 100, **options)
    assert planned.sparsity == sparsity
    assert planned.reason.startswith(reason)


def test_where_no_policy_can_be_measured_none_is_advised() -> None:
    reason = _decision(make_layer("a", dtype="INT8"), 100, policy=None).reason
    assert reason.endswith("name one with --policy, or --sparsity force; `autotune` measures no INT8")


def test_a_product_too_short_for_the_planned_type_is_dense() -> None:
    """K=16 fills a sparse instruction of FP16, K=12 none of any type."""
    found = {
        (k, p): make_plan((make_layer("short", k=k),), (), {}, None, p, "force").layers[0]
        for k in (12, 16)
        for p in PRECISIONS
    }
    assert {layer.sparsity for (k, _), layer in found.items() if k == 12} == {"dense"}
    assert [found[16, p].sparsity for p in PRECISIONS] == ["dense", "sparse", "dense"], "FP32 never is sparse"
    assert found[12, "fp16"].reason == "too small: K=12, a sparse FP16 instruction takes 16"


@pytest.mark.parametrize(
    ("dtype", "precision", "gets"),
    [
        ("FP32", "fp16", "fp16"),
        ("FP16", "fp32", "fp32"),
        ("BF16", "keep", "bf16"),
        ("FP32", "keep", "fp32"),
        ("INT8", "fp16", "int8"),
        ("UINT8", "keep", "int8"),
        ("FP8", "bf16", "fp8"),
        ("FP8-E5M2", "fp16", "fp8"),
    ],
)
def test_precision(dtype: str, precision: str, gets: str) -> None:
    assert _decision(make_layer("a", dtype=dtype), 1, precision=precision).precision == gets


def test_layers_without_a_weight_are_not_planned() -> None:
    dynamic = make_layer("a", SparsityState.NOT_ELIGIBLE, weight="", dtype="", n=0, k=0)
    plan = make_plan(
        (dynamic, make_layer("b")), (profile_at("p", 100),), DIMS, POLICY, "fp16", model="m.onnx"
    )
    assert [layer.name for layer in plan.layers] == ["b"]
    assert (plan.model, plan.policy) == ("m.onnx", "mine (GPU X, measured)")
    check_plan(plan, (dynamic, make_layer("b")))


def test_a_plan_splits_its_profile_where_its_layers_change() -> None:
    """The policy takes qkv sparse from M=100 on, and has no word on down."""
    layers = (
        make_layer("a"),
        make_layer("b", kind="down", n=8),
        make_layer("c", SparsityState.NOT_SPARSE, n=8),
    )
    plan = make_plan(layers, (profile_at("p", 500),), DIMS, POLICY, "fp16", split=Split("batch"))
    assert [(p.name, p.inputs["x"]) for p in plan.profiles] == [
        ("batch-1-99", ShapeRange(min=(1, 64), opt=(10, 64), max=(99, 64))),
        ("batch-100-999", ShapeRange(min=(100, 64), opt=(500, 64), max=(999, 64))),
    ]
    assert plan.split.startswith("axis 'batch' is split where layers change, at 100 (qkv)")
    assert [layer.sparsity for layer in plan.layers] == ["sparse", "dense", "dense"]
    assert plan.layers[0].reason.startswith("profile 'batch-100-999': threshold of kind 'qkv'")
    assert plan.layers[0].reason.endswith("; dense in profile 'batch-1-99'")
    assert all(f"profile '{p.name}': no measurement" in plan.layers[1].reason for p in plan.profiles)


@pytest.mark.parametrize("options", [{"policy": None}, {"sparsity": "off"}, {"sparsity": "force"}])
def test_where_the_policy_does_not_decide_nothing_is_split(options: dict[str, Any]) -> None:
    options = {"policy": POLICY, **options}
    plan = make_plan(
        (make_layer("a"),), (profile_at("p", 500),), DIMS, precision="fp16", split=Split("batch"), **options
    )
    assert plan.profiles == (profile_at("p", 500),)
    assert ("is not split: without a policy no layer changes" in plan.split) == (options["policy"] is None)
    assert "no layer changes between sparse and dense along it" in plan.split


@pytest.mark.parametrize("profiles", [(), (profile_at("a", 1), profile_at("b", 2))])
def test_only_one_profile_can_be_split(profiles: tuple[Profile, ...]) -> None:
    with pytest.raises(ShapeError, match="profiles cannot be split along 'batch': --split takes one"):
        make_plan((make_layer("a"),), profiles, DIMS, POLICY, "fp16", split=Split("batch"))


def _products(models: Models, *names: str, k: int = 64, sparse: str = "") -> OnnxModel:
    """Products one after the other, named, whose weights are not 2:4 but for `sparse`."""
    rng = np.random.default_rng(0)
    chain = ["x", *(f"h_{name}" for name in names[:-1]), "y"]
    nodes = [
        helper.make_node("MatMul", [read, f"{name}.w"], [written], name=name)
        for name, read, written in zip(names, chain, chain[1:], strict=False)
    ]
    nodes = nodes or [helper.make_node("Relu", ["x"], ["y"])]
    weights = {f"{name}.w": rng.standard_normal((k, k)).astype(np.float32) for name in names}
    if sparse:
        weights[f"{sparse}.w"] = np.asarray(prune_2to4(weights[f"{sparse}.w"], 0))
    return read_model(models.save(models.model(nodes, weights, {"x": ("batch", k)}), "m.onnx"))


@pytest.mark.parametrize("sparsity", ["force", "plugin"])
@pytest.mark.parametrize(
    ("names", "k", "said", "options"),
    [
        (("a",), 64, "of layer 'a' 100% of 1024 groups", ""),
        (("a", "b"), 64, "of layer 'a' (the first of 2) 100%", ""),
        (("lm_head", "b"), 64, "of layer 'lm_head' (the first of 2) 100%", ""),
        (("lm_head",), 64, "of layer 'lm_head' 100%", " --include lm_head"),
        (("lm_head", "score"), 64, "of layer 'lm_head' (the", " --include lm_head --include score"),
        (("a",), 6, "layer 'a' cannot be: K=6 is not a multiple of 4", None),
        ((), 64, "it has no weights", None),
    ],
)
def test_sparsity_is_not_forced_where_nothing_is_2to4(
    sparsity: SparsityMode, names: tuple[str, ...], k: int, said: str, options: str | None, models: Models
) -> None:
    model = _products(models, *names, k=k)
    with pytest.raises(NotSparseError) as caught:
        check_forced(read_layers(model), sparsity, model)
    asked = f"--sparsity {sparsity} takes 2:4 weights as they are"
    assert caught.value.message.startswith(f"m.onnx has no weights that are 2:4, and {asked}: {said}")
    (command,) = re.findall("`(sparseflow-trt .*)`", caught.value.hint) or [None]
    assert command == (
        f"sparseflow-trt prune {model.path} -o m.2to4.onnx{options}" if k == 64 and names else None
    )
    named = "`prune` takes a classifier only where --include names it" in caught.value.hint
    assert named == bool(options)
    if command:  # what it says to do does it
        output = models.folder / "pruned.onnx"
        prune_model(model, output, include=tuple((options or "").split()[1::2]))
        pruned = read_model(output)
        check_forced(read_layers(pruned), sparsity, pruned)


def test_masks_that_are_apart_are_told_in_place_of_what_else_could_be_pruned(models: Models) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["w", "mask"], ["masked"]),
        helper.make_node("MatMul", ["x", "masked"], ["h"], name="a"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="b"),
    ]
    weights = {"w": weight, "mask": np.ones_like(weight), "v": weight}
    model = read_model(models.save(models.model(nodes, weights), "m.onnx"))
    with pytest.raises(NotSparseError) as caught:
        check_forced(read_layers(model), "force", model)
    assert caught.value.hint.startswith("1 layer(s) multiply their weight by a mask at each run")
    assert caught.value.hint.endswith(" Or leave it to a policy: --sparsity policy.")
    assert "sparseflow-trt prune" not in caught.value.hint


@pytest.mark.parametrize("along_n", [True, False])
def test_a_model_that_was_pruned_another_way_is_told_as_inspect_tells_it(
    along_n: bool, models: Models
) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    pruned = prune_2to4(weight, 1) if along_n else np.where(abs(weight) > np.median(abs(weight)), weight, 0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="a")]
    model = read_model(models.save(models.model(nodes, {"w": pruned}), "m.onnx"))
    with pytest.raises(NotSparseError) as caught:
        check_forced(read_layers(model), "force", model)
    prune, _, more = caught.value.hint.partition("; or leave it to a policy: --sparsity policy. ")
    assert prune == f"Prune it first: `sparseflow-trt prune {model.path} -o m.2to4.onnx`"
    assert more == pruned_before(read_layers(model))
    assert more.startswith("1 layer(s) seem to have been pruned before: prune the model from before that")


def test_where_masks_are_apart_sparsity_is_not_forced_and_what_to_do_is_said(models: Models) -> None:
    nodes = [
        helper.make_node("Mul", ["w", "mask"], ["masked"]),
        helper.make_node("MatMul", ["x", "masked"], ["y"], name="mm"),
    ]
    weights = {"w": np.ones((64, 64), np.float32), "mask": np.eye(64, dtype=np.float32)}
    model = read_model(models.save(models.model(nodes, weights)))
    with pytest.raises(NotSparseError, match="no layer multiplies by a stored weight") as caught:
        check_forced(read_layers(model), "force", model)
    first, _, last = caught.value.hint.partition(" Fold the mask into the weight before the export: ")
    assert first.startswith("1 layer(s) multiply their weight by a mask")
    assert last.endswith(" Or leave it to a policy, which plans it dense: --sparsity policy.")


def test_where_pruning_takes_nothing_it_is_not_advised(models: Models) -> None:
    weight = np.ones((64, 64), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
        helper.make_node("Add", ["h", "w"], ["y"], name="other"),
    ]
    model = read_model(models.save(models.model(nodes, {"w": weight})))
    with pytest.raises(NotSparseError) as caught:
        check_forced(read_layers(model), "force", model)
    assert caught.value.message.endswith(
        "layer 'a' cannot be: weight 'w' is also read by Add 'other', which pruning would change."
    )
    assert caught.value.hint == "Leave it to a policy, which plans it dense: --sparsity policy."


def test_sparsity_is_forced_where_one_layer_is_2to4_and_asked_of_a_policy_anywhere(models: Models) -> None:
    one = _products(models, "a", "b", sparse="a")
    check_forced(read_layers(one), "force", one)
    none = _products(models, "a", "b")
    for sparsity in ("policy", "off"):
        check_forced(read_layers(none), sparsity, none)


@pytest.mark.parametrize(("kind", "named"), [("classifier", True), ("qkv", False)])
def test_where_a_classifier_is_not_2to4_pruning_is_said_to_want_its_name(kind: str, named: bool) -> None:
    layers = (make_layer("a", SparsityState.NOT_SPARSE, kind=kind), make_layer("b"))
    plan = PLAN.model_copy(update={"layers": tuple(_decision(make_layer(name), 100) for name in "ab")})
    with pytest.raises(NotSparseError) as caught:
        check_plan(plan, layers)
    assert ("takes a classifier only where --include names it" in caught.value.hint) == named
