"""Plans: what is decided, why, and what happens to one that was edited."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from sparseflow_trt.errors import EXIT_NOT_SPARSE, NotSparseError, PlanError, ShapeError
from sparseflow_trt.exporters.prune import prune_model
from sparseflow_trt.graph import SparsityState, WeightedLayer, read_layers
from sparseflow_trt.model_file import OnnxModel, read_model
from sparseflow_trt.pattern import prune_2to4
from sparseflow_trt.plan import (
    ModelPrecision,
    Plan,
    PlannedLayer,
    SparsityMode,
    check_plan,
    plan_from_yaml,
    read_plan,
    yaml_from_plan,
)
from sparseflow_trt.planning import check_forced, make_plan
from sparseflow_trt.policy import Policy, Threshold
from sparseflow_trt.shapes import Profile, ShapeRange
from sparseflow_trt.split import Split
from sparseflow_trt.symbolic import SymbolicM

if TYPE_CHECKING:
    from tests.conftest import Models

POLICY = Policy(
    schema_version=1,
    name="mine",
    device="GPU X",
    compute_capability="9.0",
    provenance="measured",
    source="a test",
    thresholds=(Threshold(kind="qkv", library="tensorrt", dtype="FP16", min_m=100),),
)
PRECISIONS: tuple[ModelPrecision, ...] = ("fp32", "fp16", "keep")
DIMS: dict[str, tuple[int | str | None, ...]] = {"x": ("batch", 64)}


def _layer(name: str, state: SparsityState = SparsityState.SPARSE, **changes: Any) -> WeightedLayer:
    layer = WeightedLayer(
        name=name,
        module="m",
        op_type="MatMul",
        kind="qkv",
        side="right",
        weight="w",
        weight_shape=(64, 32),
        dtype="FP32",
        m=SymbolicM(("batch",)),
        n=32,
        k=64,
        batch=1,
        k_axes=(0,),
        state=state,
        reason="" if state is SparsityState.SPARSE else "the reason",
    )
    return replace(layer, **changes)


def _profile(name: str, opt: int) -> Profile:
    return Profile(name=name, inputs={"x": ShapeRange(min=(1, 64), opt=(opt, 64), max=(999, 64))})


def _decision(layer: WeightedLayer, *opts: int, **options: Any) -> PlannedLayer:
    profiles = tuple(_profile(f"p{i}", opt) for i, opt in enumerate(opts))
    options = {"policy": POLICY, "precision": "fp16", **options}
    (planned,) = make_plan((layer,), profiles, DIMS, **options).layers
    return planned


# ---- decisions


def test_the_policy_decides_at_the_opt_shape() -> None:
    sparse = _decision(_layer("a"), 100)
    assert sparse.sparsity == "sparse"
    assert sparse.reason.startswith("profile 'p0': threshold of kind 'qkv'")
    assert _decision(_layer("a"), 99).sparsity == "dense"


def test_one_profile_that_wins_is_enough_and_all_that_lose_are_said() -> None:
    assert _decision(_layer("a"), 1, 100).reason.startswith("profile 'p1'")
    several = _decision(_layer("a"), 1, 100, 200, 2).reason
    assert several.endswith("; sparse also in profile 'p2'; dense in profile 'p0', profile 'p3'")
    lost = _decision(_layer("a"), 1, 2)
    assert "profile 'p0'" in lost.reason
    assert "; profile 'p1'" in lost.reason


def test_static_shapes_are_judged_without_profiles() -> None:
    layer = _layer("a", m=SymbolicM((10, 20)))
    assert _decision(layer).reason.startswith("static shapes: threshold")
    assert _decision(layer).sparsity == "sparse"


def test_an_unknown_m_is_dense() -> None:
    planned = _decision(_layer("a", m=SymbolicM((None, "batch"))), 100)
    assert (planned.sparsity, planned.reason) == ("dense", "profile 'p0': M=?*batch is not known")


@pytest.mark.parametrize(
    ("state", "options", "sparsity", "reason"),
    [
        (SparsityState.NOT_ELIGIBLE, {"sparsity": "force"}, "dense", "cannot be 2:4: the reason"),
        (SparsityState.NOT_SPARSE, {"sparsity": "force"}, "dense", "weights are not 2:4: the reason"),
        (SparsityState.SPARSE, {"sparsity": "off"}, "dense", "sparsity is off"),
        (SparsityState.SPARSE, {"sparsity": "force"}, "sparse", "asked for: sparsity is forced"),
        (SparsityState.SPARSE, {"policy": None}, "dense", "no policy for this device: "),
        (SparsityState.SPARSE, {"precision": "fp32"}, "dense", "profile 'p0': no measurement of FP32"),
        (SparsityState.SPARSE, {"precision": "bf16"}, "dense", "profile 'p0': no measurement of BF16"),
    ],
)
def test_reasons(state: SparsityState, options: dict[str, Any], sparsity: str, reason: str) -> None:
    planned = _decision(_layer("a", state), 100, **options)
    assert planned.sparsity == sparsity
    assert planned.reason.startswith(reason)


def test_a_product_too_short_for_the_planned_type_is_dense() -> None:
    """K=12 fills a sparse instruction of FP32 (TF32), and none of FP16."""
    layers = (_layer("short", k=12),)
    found = {p: make_plan(layers, (), {}, None, p, "force").layers[0] for p in PRECISIONS}
    assert {p: layer.sparsity for p, layer in found.items()} == {
        "fp32": "sparse", "fp16": "dense", "keep": "sparse",
    }  # fmt: skip
    assert found["fp16"].reason == "too small: K=12, a sparse FP16 instruction takes 16"


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
    assert _decision(_layer("a", dtype=dtype), 1, precision=precision).precision == gets


def test_layers_without_a_weight_are_not_planned() -> None:
    dynamic = _layer("a", SparsityState.NOT_ELIGIBLE, weight="", dtype="", n=0, k=0)
    plan = make_plan((dynamic, _layer("b")), (_profile("p", 100),), DIMS, POLICY, "fp16", model="m.onnx")
    assert [layer.name for layer in plan.layers] == ["b"]
    assert (plan.model, plan.policy) == ("m.onnx", "mine (GPU X, measured)")
    check_plan(plan, (dynamic, _layer("b")))


def test_a_plan_splits_its_profile_where_its_layers_change() -> None:
    """The policy takes qkv sparse from M=100 on, and has no word on down."""
    layers = (_layer("a"), _layer("b", kind="down", n=8), _layer("c", SparsityState.NOT_SPARSE, n=8))
    plan = make_plan(layers, (_profile("p", 500),), DIMS, POLICY, "fp16", split=Split("batch"))
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
        (_layer("a"),), (_profile("p", 500),), DIMS, precision="fp16", split=Split("batch"), **options
    )
    assert plan.profiles == (_profile("p", 500),)
    assert "is not split: no layer changes" in plan.split


@pytest.mark.parametrize("profiles", [(), (_profile("a", 1), _profile("b", 2))])
def test_only_one_profile_can_be_split(profiles: tuple[Profile, ...]) -> None:
    with pytest.raises(ShapeError, match="profiles cannot be split along 'batch': it takes one"):
        make_plan((_layer("a"),), profiles, DIMS, POLICY, "fp16", split=Split("batch"))


# ---- YAML

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_sizes = st.lists(st.integers(1, 10**9), min_size=0, max_size=4)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    def ranges() -> ShapeRange:
        three = [tuple(draw(st.lists(st.integers(1, 99), min_size=2, max_size=2))) for _ in range(3)]
        low, opt, high = (
            tuple(dims) for dims in zip(*(sorted(d) for d in zip(*three, strict=True)), strict=True)
        )
        return ShapeRange(min=low, opt=opt, max=high)

    names = draw(st.lists(_text, unique=True, max_size=5))
    profiles = draw(st.lists(_text, unique=True, max_size=3))
    return Plan(
        model=draw(_text),
        precision=draw(st.sampled_from(["fp32", "fp16", "bf16", "keep"])),
        islands=tuple(draw(st.lists(_text, max_size=3))),
        policy=draw(_text),
        profiles=tuple(Profile(name=name, inputs={draw(_text): ranges()}) for name in profiles),
        layers=tuple(
            PlannedLayer(
                name=name,
                module=draw(_text),
                kind=draw(_text),
                n=draw(st.integers(0)),
                k=draw(st.integers(0)),
                precision=draw(st.sampled_from(["fp32", "fp16", "bf16", "int8", "fp8"])),
                sparsity=draw(st.sampled_from(["sparse", "dense"])),
                reason=draw(_text),
            )
            for name in names
        ),
    )


@given(plans())
def test_a_plan_goes_round(plan: Plan) -> None:
    assert plan_from_yaml(yaml_from_plan(plan)) == plan


def test_the_yaml_reads_well() -> None:
    text = yaml_from_plan(make_plan((_layer("größe"),), (_profile("p", 100),), DIMS, POLICY, "fp16"))
    assert text.startswith("# What each layer gets.")
    assert "name: größe" in text
    assert "sparsity: sparse" in text
    assert list(yaml.safe_load(text)) == list(Plan.model_fields)


def test_an_edited_plan_is_taken_back(tmp_path: Path) -> None:
    layers = (_layer("a"), _layer("b"))
    plan = make_plan(layers, (_profile("p", 100),), DIMS, POLICY, "fp16")
    data = yaml.safe_load(yaml_from_plan(plan))
    data["layers"][0] |= {"precision": "fp32", "sparsity": "dense", "reason": "because I say so"}
    data["islands"] = ["Softmax"]
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    edited = read_plan(path)
    check_plan(edited, layers)
    assert (edited.layers[0].precision, edited.layers[0].reason) == ("fp32", "because I say so")
    assert edited.layers[1] == plan.layers[1]
    assert edited.islands == ("Softmax",)


@pytest.mark.parametrize("kernel", ["dense", "plugin"])
def test_a_kernel_edited_beside_its_old_reason_is_told(kernel: str) -> None:
    plan = make_plan((_layer("a"), _layer("b")), (_profile("p", 100),), DIMS, POLICY, "fp16")
    data = yaml.safe_load(yaml_from_plan(plan))
    data["layers"][0]["sparsity"] = kernel
    edited = plan_from_yaml(yaml.safe_dump(data))
    said = f"edited by hand; the plan said sparse: {plan.layers[0].reason}"
    assert (edited.layers[0].sparsity, edited.layers[0].reason) == (kernel, said)
    assert edited.layers[1] == plan.layers[1]
    assert plan_from_yaml(yaml_from_plan(edited)) == edited  # an artifact's plan says it once
    for layer in data["layers"]:
        del layer["decided"]
    assert plan_from_yaml(yaml.safe_dump(data)).layers[0].reason == plan.layers[0].reason


PLAN = make_plan((_layer("a"),), (_profile("p", 100),), DIMS, POLICY, "fp16")


def _wrong(change: Any) -> str:
    data = yaml.safe_load(yaml_from_plan(PLAN))
    change(data)
    with pytest.raises(PlanError) as caught:
        plan_from_yaml(yaml.safe_dump(data), "plan.yaml")
    assert caught.value.message.startswith("plan.yaml: ")
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(precision="fp15"), "precision: Input should be 'fp32', 'fp16', 'bf16' or 'keep'"),
        (
            lambda d: d["layers"][0].update(sparsity="very"),
            "layers.0.sparsity: Input should be 'dense', 'sparse' or 'plugin'",
        ),
        (lambda d: d["layers"][0].update(colour="red"), "layers.0.colour: Extra inputs are not permitted"),
        (lambda d: d["layers"][0].pop("n"), "layers.0.n: Field required"),
        (lambda d: d["layers"][0].update(n="many"), "layers.0.n: "),
        (lambda d: d["layers"].append(d["layers"][0]), "layers named twice: a"),
        (lambda d: d["profiles"].append(d["profiles"][0]), "profiles named twice: p"),
        (
            lambda d: d["profiles"][0]["inputs"]["x"].update(min=[9, 64], max=[1, 64]),
            "not 0 ≤ min ≤ opt ≤ max",
        ),
        (
            lambda d: d.update(profiles=[{**d["profiles"][0], "name": str(i)} for i in range(17)]),
            "profiles: ",
        ),
        (lambda d: d.update(layers=None), "layers: "),
        (lambda d: d.update(schema_version=9), "schema_version: "),
        (lambda d: d.update({3: 4}), "3"),
    ],
)
def test_wrong_fields_are_named(change: Any, says: str) -> None:
    assert says in _wrong(change)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no mapping"),
        ("- 1", "holds no mapping"),
        ("just words", "holds no mapping"),
        ("a: [", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("\t", "is not YAML"),
        ("a: !!python/name:os", "is not YAML"),
        ("a: 2020-99-99", "is not YAML"),
        ("a: !!int ''", "is not YAML"),
        ("a: !!bool maybe", "is not YAML"),
        ("a: !!timestamp soon", "is not YAML"),
        ("{[1]: 2}", "is not YAML"),
        ("[" * 3000, "is not YAML"),
        ("a: \x07", "is not YAML"),
        ("*a", "is not YAML"),
    ],
)
def test_a_text_that_is_no_plan(text: str, says: str) -> None:
    with pytest.raises(PlanError, match=says) as caught:
        plan_from_yaml(text)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def _planned(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "kind": "o", "n": 32, "k": 64, "precision": "fp16", "reason": "", **changes}


_LAYERS = st.lists(
    st.builds(
        lambda kernel, below, joined: (kernel, below if kernel == "plugin" else 0, joined),
        st.sampled_from(["dense", "sparse", "plugin"]), st.sampled_from([0, 64]), st.booleans(),
    ), max_size=8,
)  # fmt: skip


@given(_LAYERS)
def test_a_plan_with_three_kernels_comes_back_from_yaml(drawn: list[tuple[str, int, bool]]) -> None:
    first: dict[int, str] = {}
    layers = []
    for number, (kernel, below, joined) in enumerate(drawn):
        name = f"layer {number}"
        group = first.setdefault(below, name) if joined and kernel == "plugin" else ""
        layers.append(_planned(name, sparsity=kernel, dense_below_m=below, joined=group))
    plan = Plan.model_validate({"precision": "fp16", "policy": "none", "profiles": (), "layers": layers})
    again = plan_from_yaml(yaml_from_plan(plan))
    assert again == plan
    assert again.schema_version == 2
    assert sum(map(len, again.plugin_products)) == sum(kernel == "plugin" for kernel, _, _ in drawn)


def test_a_plan_of_version_1_is_read() -> None:
    data = yaml.safe_load(yaml_from_plan(PLAN))
    for layer in data["layers"]:
        del layer["dense_below_m"], layer["joined"]
    assert plan_from_yaml(yaml.safe_dump({**data, "schema_version": 1})) == PLAN


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([_planned("a", sparsity="sparse", dense_below_m=8)], "are for the plugin's layers alone"),
        ([_planned("a", sparsity="plugin", dense_below_m=-1)], "dense_below_m: "),
        ([_planned("a", sparsity="plugin", joined="b")], "'a' is joined to 'b', which is no layer before it"),
        (
            [
                _planned("a", sparsity="plugin", joined="a"),
                _planned("b", sparsity="plugin", joined="a", precision="bf16"),
            ],
            "'b' and 'a' are joined and differ",
        ),
    ],
)
def test_what_the_plugin_cannot_do_is_refused(layers: list[dict[str, Any]], says: str) -> None:
    assert says in _wrong(lambda d: d.update(layers=layers))


def test_a_layer_that_is_not_2to4_cannot_be_planned_for_the_plugin() -> None:
    plan = Plan.model_validate(
        {"precision": "fp16", "policy": "", "profiles": (), "layers": [_planned("a", sparsity="plugin")]}
    )
    with pytest.raises(NotSparseError, match="'a' is planned plugin and is not-sparse"):
        check_plan(plan, (_layer("a", SparsityState.NOT_SPARSE),))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(PlanError):
        plan_from_yaml(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="does not exist"):
        read_plan(tmp_path / "none.yaml")
    with pytest.raises(PlanError, match="cannot be read: Is a directory"):
        read_plan(tmp_path)


# ---- does it fit


def test_every_layer_that_does_not_fit_is_named() -> None:
    planned = make_plan(
        (_layer("gone"), _layer("resized"), _layer("dense"), _layer("typed"), _layer("fine")),
        (_profile("p", 100),),
        DIMS,
        POLICY,
        "fp16",
    )
    model = (
        _layer("resized", n=48),
        _layer("dense", SparsityState.NOT_SPARSE),
        _layer("typed", dtype="INT8"),
        _layer("fine"),
        _layer("new"),
        _layer("dynamic", SparsityState.NOT_ELIGIBLE, weight=""),
    )
    with pytest.raises(PlanError) as caught:
        check_plan(planned, model, "plan.yaml")
    assert caught.value.message == (
        "plan.yaml does not fit the model in 5 layer(s): 'gone' is no layer of the model; "
        "'resized' is planned with N=32, K=64 and has N=48, K=64; "
        "'dense' is planned sparse and is not-sparse: the reason; "
        "'typed' is planned fp16 and its weights are INT8; 'new' is not in the plan."
    )
    assert caught.value.hint


def test_a_plan_that_is_wrong_of_2to4_alone_has_an_error_of_its_own() -> None:
    planned = make_plan((_layer("a"), _layer("b")), (_profile("p", 100),), DIMS, POLICY, "fp16")
    with pytest.raises(NotSparseError, match="does not fit the model in 1 layer") as caught:
        check_plan(planned, (_layer("a"), _layer("b", SparsityState.NOT_SPARSE)))
    assert caught.value.exit_code == EXIT_NOT_SPARSE


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
    named = "`prune` takes a classifier only where it is named" in caught.value.hint
    assert named == bool(options)
    if command:  # what it says to do does it
        output = models.folder / "pruned.onnx"
        prune_model(model, output, include=tuple((options or "").split()[1::2]))
        pruned = read_model(output)
        check_forced(read_layers(pruned), sparsity, pruned)


def test_where_pruning_takes_nothing_it_is_not_advised(models: Models) -> None:
    weight = np.ones((64, 64), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
        helper.make_node("Add", ["h", "w"], ["y"], name="other"),
    ]
    model = read_model(models.save(models.model(nodes, {"w": weight})))
    with pytest.raises(NotSparseError) as caught:
        check_forced(read_layers(model), "force", model)
    assert caught.value.hint == (
        "`prune` cannot make it so: weight 'w' is also read by Add 'other', which pruning would change. "
        "So leave it to a policy: --sparsity policy."
    )


def test_sparsity_is_forced_where_one_layer_is_2to4_and_asked_of_a_policy_anywhere(models: Models) -> None:
    one = _products(models, "a", "b", sparse="a")
    check_forced(read_layers(one), "force", one)
    none = _products(models, "a", "b")
    for sparsity in ("policy", "off"):
        check_forced(read_layers(none), sparsity, none)


@pytest.mark.parametrize(("kind", "named"), [("classifier", True), ("qkv", False)])
def test_where_a_classifier_is_not_2to4_pruning_is_said_to_want_its_name(kind: str, named: bool) -> None:
    layers = (_layer("a", SparsityState.NOT_SPARSE, kind=kind), _layer("b"))
    plan = PLAN.model_copy(update={"layers": tuple(_decision(_layer(name), 100) for name in "ab")})
    with pytest.raises(NotSparseError) as caught:
        check_plan(plan, layers)
    assert ("takes a classifier only where --include names it" in caught.value.hint) == named


def test_a_layer_that_is_not_quantized_cannot_be_planned_so() -> None:
    data = yaml.safe_load(yaml_from_plan(PLAN))
    data["layers"][0]["precision"] = "int8"
    with pytest.raises(PlanError, match="'a' is planned int8 and its weights are FP32"):
        check_plan(plan_from_yaml(yaml.safe_dump(data)), (_layer("a"),))
