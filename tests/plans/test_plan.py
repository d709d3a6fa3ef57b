"""Plans: what is decided, why, and what happens to one that was edited."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.errors import EXIT_NOT_SPARSE, NotSparseError, PlanError
from sparseflow_trt.model.graph import SparsityState, WeightedLayer
from sparseflow_trt.plans.plan import (
    Plan,
    PlannedLayer,
    check_plan,
    plan_from_yaml,
    read_plan,
    yaml_from_plan,
)
from sparseflow_trt.plans.planning import make_plan
from sparseflow_trt.plans.shapes import Profile, ShapeRange
from tests.made_plans import DIMS, PLAN, POLICY, make_layer, profile_at

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
    text = yaml_from_plan(make_plan((make_layer("größe"),), (profile_at("p", 100),), DIMS, POLICY, "fp16"))
    assert text.startswith("# What each layer gets.")
    assert "name: größe" in text
    assert "sparsity: sparse" in text
    assert list(yaml.safe_load(text)) == list(Plan.model_fields)


def test_an_edited_plan_is_taken_back(tmp_path: Path) -> None:
    layers = (make_layer("a"), make_layer("b"))
    plan = make_plan(layers, (profile_at("p", 100),), DIMS, POLICY, "fp16")
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
    plan = make_plan((make_layer("a"), make_layer("b")), (profile_at("p", 100),), DIMS, POLICY, "fp16")
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
            "sparsity 'very' of layer 'a' is none that a plan may ask for (dense, sparse, plugin).",
        ),
        (
            lambda d: d.update(layers=[{**d["layers"][0], "precision": "fp61", "module": "m.0"}] * 2),
            "precision 'fp61' of layer 'm.0' and 1 more is none that a plan may ask for (fp32, fp16, bf16).",
        ),
        (lambda d: d["layers"][0].update(precision=61), "layers.0.precision: "),
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
        ("a: 1\nlayers:\n- b: 2\n  b: 3\n", "'b' stands twice in one mapping"),
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
        (
            [_planned("a", sparsity="plugin", joined="b")],
            "'a' is joined to 'b', which is not a layer before it",
        ),
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
    with pytest.raises(NotSparseError, match="'a' is planned plugin but is not-sparse"):
        check_plan(plan, (make_layer("a", SparsityState.NOT_SPARSE),))


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
        (
            make_layer("gone"),
            make_layer("resized"),
            make_layer("dense"),
            make_layer("typed"),
            make_layer("fine"),
        ),
        (profile_at("p", 100),),
        DIMS,
        POLICY,
        "fp16",
    )
    model = (
        make_layer("resized", n=48),
        make_layer("dense", SparsityState.NOT_SPARSE),
        make_layer("typed", dtype="INT8"),
        make_layer("fine"),
        make_layer("new"),
        make_layer("dynamic", SparsityState.NOT_ELIGIBLE, weight=""),
    )
    with pytest.raises(PlanError) as caught:
        check_plan(planned, model, "plan.yaml")
    assert caught.value.message == (
        "plan.yaml does not fit the model in 5 layer(s): 'gone' is not a layer of the model; "
        "'resized' is planned with N=32, K=64 but has N=48, K=64; "
        "'dense' is planned sparse but is not-sparse: the reason; "
        "'typed' is planned fp16 but its weights are INT8; 'new' is not in the plan."
    )
    assert caught.value.hint


def test_layers_that_do_not_fit_are_called_by_their_modules() -> None:
    def made(*layers: WeightedLayer) -> tuple[WeightedLayer, ...]:
        return tuple(dataclasses.replace(layer, module=f"m.{layer.name}") for layer in layers)

    was = made(make_layer("gone"), make_layer("resized"), make_layer("fine"))
    planned = make_plan(was, (profile_at("p", 100),), DIMS, POLICY, "fp16")
    with pytest.raises(PlanError) as caught:
        check_plan(planned, made(make_layer("resized", n=48), make_layer("fine"), make_layer("new")))
    assert caught.value.message == (
        "the plan does not fit the model in 3 layer(s): "
        "'gone' (module 'm.gone') is not a layer of the model; "
        "'m.resized' is planned with N=32, K=64 but has N=48, K=64; 'm.new' is not in the plan."
    )


def test_a_plan_of_another_model_says_whose_it_is() -> None:
    planned = make_plan((make_layer("a"), make_layer("b")), (profile_at("p", 100),), DIMS, POLICY, "fp16")
    planned = planned.model_copy(update={"model": "other.onnx"})
    with pytest.raises(PlanError) as caught:
        check_plan(planned, (make_layer("c"), make_layer("d")), "plan.yaml")
    assert caught.value.message == (
        "plan.yaml was made for other.onnx: this model has none of the layers that it plans."
    )
    assert "Build the other.onnx that it was made for" in caught.value.hint


def test_a_plan_that_is_wrong_of_2to4_alone_has_an_error_of_its_own() -> None:
    planned = make_plan((make_layer("a"), make_layer("b")), (profile_at("p", 100),), DIMS, POLICY, "fp16")
    with pytest.raises(NotSparseError, match="does not fit the model in 1 layer") as caught:
        check_plan(planned, (make_layer("a"), make_layer("b", SparsityState.NOT_SPARSE)))
    assert caught.value.exit_code == EXIT_NOT_SPARSE


def test_of_many_layers_that_do_not_fit_the_first_are_told() -> None:
    layers = tuple(make_layer(f"layers.{i}") for i in range(20))
    planned = make_plan(layers, (profile_at("p", 100),), DIMS, POLICY, "fp16")
    unpruned = tuple(make_layer(layer.name, SparsityState.NOT_SPARSE) for layer in layers)
    with pytest.raises(NotSparseError, match=r"in 20 layer\(s\): .*; and 14 more\.") as caught:
        check_plan(planned, unpruned)
    assert caught.value.message.count("is planned sparse but is not-sparse") == 6


def test_a_layer_that_is_not_quantized_cannot_be_planned_so() -> None:
    data = yaml.safe_load(yaml_from_plan(PLAN))
    data["layers"][0]["precision"] = "int8"
    with pytest.raises(PlanError, match="'a' is planned int8 but its weights are FP32"):
        check_plan(plan_from_yaml(yaml.safe_dump(data)), (make_layer("a"),))


def test_a_layer_that_is_edited_to_fp32_is_edited_to_dense_too() -> None:
    data = yaml.safe_load(yaml_from_plan(PLAN))
    data["layers"][0]["precision"] = "fp32"
    with pytest.raises(PlanError, match="'a' is planned sparse in fp32, but FP32 runs dense") as caught:
        check_plan(plan_from_yaml(yaml.safe_dump(data)), (make_layer("a"),))
    assert caught.value.hint == "Plan them dense, or in fp16 or bf16."
    data["layers"][0]["sparsity"] = "dense"
    check_plan(plan_from_yaml(yaml.safe_dump(data)), (make_layer("a"),))
