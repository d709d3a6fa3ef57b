"""Layers that TensorRT makes one product of are judged as that product, where a policy has timed it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sparseflow_trt.model.graph import SparsityState
from sparseflow_trt.plans.decide import PluginLayer, PluginUse
from sparseflow_trt.plans.plan import Plan
from sparseflow_trt.plans.planning import make_plan
from sparseflow_trt.plans.split import Split
from sparseflow_trt.policies.policy import Policy, find_policy
from tests.made_plans import plan_gate_and_up
from tests.made_policies import make_points, make_policy
from tests.plans.test_decide import DIMS, LAYER, K, N, profile

AS_ONE = "as the one product that TensorRT makes of it and the others that read its input: "


def policy_of(alone: dict[int, float], whole: dict[int, float]) -> Policy:
    """TensorRT's own sparse kernels against dense, of one layer and of two as one."""
    return make_policy([*make_points("gate_up", N, K, alone), *make_points("gate_up", 2 * N, K, whole)])


def planned(policy: Policy, m: int, up: PluginLayer | None = None, **changes: Any) -> Plan:
    """gate, and up with some changes; a library of the plugin is not given."""
    layers = (LAYER, replace(LAYER, name="up", **changes))
    use = PluginUse(False, {"gate": PluginLayer("x"), "up": up or PluginLayer("x")})
    return make_plan(layers, (profile(f"p{m}", 1, m, m),), DIMS, policy, "fp16", plugin=use)


def kernels(plan: Plan) -> list[str]:
    return [layer.sparsity for layer in plan.layers]


def test_the_one_product_decides_whatever_each_layer_would_do_by_itself() -> None:
    wins = planned(policy_of({64: 0.6}, {64: 1.4}), 64)
    assert kernels(wins) == ["sparse", "sparse"]
    told = f"profile 'p64': {AS_ONE}sparse wins at M=64: 1.40× measured (512→2048, TensorRT's kernels, GPU X)"
    assert [layer.reason for layer in wins.layers] == [told, told]
    loses = planned(policy_of({64: 1.4}, {64: 0.6}), 64)
    assert kernels(loses) == ["dense", "dense"]
    assert all(f"{AS_ONE}sparse does not win by 2% at M=64: 0.60×" in layer.reason for layer in loses.layers)


def test_each_is_judged_by_itself_where_the_one_product_was_not_timed_with_tensorrts_kernels() -> None:
    alone = make_points("gate_up", N, K, {64: 1.4})
    elsewhere = make_points("gate_up", 2 * N, K, {64: 0.6}, library="torch")
    for policy in (make_policy(alone), make_policy([*alone, *elsewhere])):
        plan = planned(policy, 64)
        assert kernels(plan) == ["sparse", "sparse"]
        assert not any(AS_ONE in layer.reason for layer in plan.layers)


def test_what_tensorrt_cannot_merge_is_judged_by_itself() -> None:
    policy = policy_of({64: 0.6}, {64: 1.4})
    changes: list[dict[str, Any]] = [
        {"up": PluginLayer("y")},
        {"up": PluginLayer("x", "the weight is the left operand")},
        {"up": PluginLayer("x", relu=True)},
        {"state": SparsityState.NOT_SPARSE, "reason": "not pruned"},
        {"kind": "ffn"},
        {"product": "INT8"},
    ]
    for changed in changes:
        plan = planned(policy, 64, **changed)
        assert plan.layers[0].sparsity == "dense"
        assert not any(AS_ONE in layer.reason for layer in plan.layers)
    unknown = make_plan((LAYER, replace(LAYER, name="up")), (profile("p", 1, 64, 64),), DIMS, policy, "fp16")
    assert kernels(unknown) == ["dense", "dense"], "the graph was not looked at"


def test_beside_the_plugin_the_others_run_by_themselves() -> None:
    own, narrow = make_points("gate_up", N, K, {64: 1.2}), make_points("gate_up", N // 2, K, {64: 1.01})
    whole = [
        point.model_copy(update={"us": 4 * point.us})
        for point in make_points("gate_up", N + N // 2, K, {64: 0.6})
    ]
    in_plugin = [
        sparse.model_copy(update={"kernel": "plugin", "us": us})
        for (_, sparse), us in ((own, 20.0), (narrow, 5.0))
    ]
    policy = make_policy([*own, *narrow, *whole, *in_plugin])
    layers = (LAYER, replace(LAYER, name="up", n=N // 2, weight_shape=(K, N // 2)))
    for given, expected in ((True, ["sparse", "plugin"]), (False, ["dense", "dense"])):
        use = PluginUse(given, {"gate": PluginLayer("x"), "up": PluginLayer("x")})
        plan = make_plan(layers, (profile("p", 1, 64, 64),), DIMS, policy, "fp16", plugin=use)
        assert kernels(plan) == expected


def test_profiles_are_cut_where_the_one_product_changes() -> None:
    alone = dict.fromkeys((1, 64, 4096), 0.6)
    policy = policy_of(alone, {1: 1.5, 64: 1.5, 72: 0.7, 4096: 0.7})
    use = PluginUse(False, {"gate": PluginLayer("x"), "up": PluginLayer("x")})
    whole_range = (profile("p", 1, 64, 4096),)
    layers = (LAYER, replace(LAYER, name="up"))
    cut = make_plan(layers, whole_range, DIMS, policy, "fp16", split=Split("batch"), plugin=use)
    assert [p.inputs["x"].min[0] for p in cut.profiles] == [1, 65]
    assert kernels(cut) == ["sparse", "sparse"]
    assert "dense in profile 'batch-65-4096'" in cut.layers[0].reason


def test_llamas_gate_and_up_on_an_h200_run_sparse_at_decode() -> None:
    h200 = find_policy("h200")
    for m, kernel in ((1, "sparse"), (16, "sparse"), (64, "sparse"), (128, "sparse"), (256, "dense")):
        plan = plan_gate_and_up(h200, 4096, 14336, m, library=False)
        assert kernels(plan) == [kernel, kernel]
        assert all(AS_ONE in each.reason for each in plan.layers)


def with_plugin(alone: float, whole: float, plugin: float, whole_us: float, given: bool = True) -> Plan:
    """gate and up at M=64: their gains by TensorRT's sparse kernels and in the plugin, and as one product."""
    one = make_points("gate_up", N, K, {64: alone})
    in_plugin = one[1].model_copy(update={"kernel": "plugin", "us": one[0].us / plugin})
    merged = [
        point.model_copy(update={"us": point.us / 10 * whole_us})
        for point in make_points("gate_up", 2 * N, K, {64: whole})
    ]
    layers = (LAYER, replace(LAYER, name="up"))
    use = PluginUse(given, {"gate": PluginLayer("x"), "up": PluginLayer("x")})
    policy = make_policy([*one, in_plugin, *merged])
    return make_plan(layers, (profile("p", 64, 64, 64),), DIMS, policy, "fp16", plugin=use)


def test_the_plugin_gets_layers_only_where_they_are_faster_so_than_as_one_product() -> None:
    faster = with_plugin(alone=1.0, whole=1.0, plugin=1.5, whole_us=14)
    assert kernels(faster) == ["plugin", "plugin"]
    slower = with_plugin(alone=1.0, whole=1.0, plugin=1.5, whole_us=13)
    assert kernels(slower) == ["dense", "dense"]
    note = "; not in the plugin: with it these layers take 13.33 µs at M=64, and 13.00 µs as one product"
    assert all(layer.reason.endswith(note) for layer in slower.layers)
    hint = with_plugin(alone=1.0, whole=1.0, plugin=1.5, whole_us=13, given=False)
    assert all(layer.reason.endswith(note) for layer in hint.layers), "no library is recommended"
    gains = with_plugin(alone=1.0, whole=1.0, plugin=1.5, whole_us=14, given=False)
    assert all("with --plugin LIB" in layer.reason for layer in gains.layers)


def test_a_win_of_a_product_that_does_not_run_keeps_no_layer_from_the_plugin() -> None:
    plan = with_plugin(alone=1.4, whole=0.6, plugin=1.2, whole_us=40)  # dense 24 µs, in the plugin 23.3
    assert kernels(plan) == ["plugin", "plugin"]


def test_each_is_judged_by_itself_below_the_m_that_the_one_product_was_timed_at() -> None:
    policy = policy_of({16: 1.5, 64: 1.5}, {64: 0.6})
    assert kernels(planned(policy, 16)) == ["sparse", "sparse"]
    assert kernels(planned(policy, 64)) == ["dense", "dense"]


def test_more_layers_or_kinds_than_were_measured_stay_apart() -> None:
    policy = make_policy(
        [*policy_of({64: 1.5}, {64: 0.6}).points, *make_points("gate_up", 5 * N, K, {64: 0.6})]
    )
    cases: list[list[dict[str, Any]]] = [[{}, {}, {}, {}], [{}, {"kind": "qkv"}]]
    for others in cases:
        changed = (replace(LAYER, name=f"l{i}", **other) for i, other in enumerate(others))
        layers = (LAYER, *changed)
        use = PluginUse(False, {layer.name: PluginLayer("x") for layer in layers})
        plan = make_plan(layers, (profile("p", 64, 64, 64),), DIMS, policy, "fp16", plugin=use)
        assert plan.layers[0].sparsity == "sparse"
        assert not any(AS_ONE in layer.reason for layer in plan.layers)


NOT_2TO4 = "TensorRT makes one product of it and 'up', which is not 2:4"
UNPRUNED: dict[str, Any] = {"state": SparsityState.NOT_SPARSE, "reason": "not pruned"}


def test_no_sparse_kernel_is_planned_for_one_product_that_is_not_2to4_as_a_whole() -> None:
    policy = make_policy(make_points("gate_up", N, K, {64: 1.4}))
    gate, up = planned(policy, 64, **UNPRUNED).layers
    assert [gate.sparsity, up.sparsity] == ["dense", "dense"]
    assert gate.reason.startswith(f"profile 'p64': {NOT_2TO4} (by itself sparse wins at M=64: 1.40×")
    assert "weights are not 2:4" in up.reason
    layers = (LAYER, replace(LAYER, name="up", **UNPRUNED))
    use = PluginUse(False, {"gate": PluginLayer("x"), "up": PluginLayer("x")})
    forced = make_plan(layers, (), DIMS, None, "fp16", "force", plugin=use)
    assert [(x.sparsity, x.reason) for x in forced.layers[:1]] == [("dense", NOT_2TO4)]


def test_layers_that_tensorrt_does_not_merge_with_an_unpruned_one_run_sparse() -> None:
    policy = make_policy(make_points("gate_up", N, K, {64: 1.4}))
    for up in (PluginLayer("y"), PluginLayer("x", relu=True)):
        assert kernels(planned(policy, 64, up, **UNPRUNED)) == ["sparse", "dense"]
    for changed in ({"product": "INT8"}, {"op_type": "Conv"}, {"k": 2 * K}, {"batch": 2}):
        assert kernels(planned(policy, 64, **UNPRUNED, **changed)) == ["sparse", "dense"]


def test_the_plugin_takes_a_layer_that_tensorrt_would_merge_with_an_unpruned_one() -> None:
    own = make_points("gate_up", N, K, {64: 1.4})
    in_plugin = own[1].model_copy(update={"kernel": "plugin", "us": 10 * 1.4 / 1.2})
    layers = (LAYER, replace(LAYER, name="up", **UNPRUNED))
    use = PluginUse(True, {"gate": PluginLayer("x"), "up": PluginLayer("x")})
    policy = make_policy([*own, in_plugin])
    plan = make_plan(layers, (profile("p", 64, 64, 64),), DIMS, policy, "fp16", plugin=use)
    assert kernels(plan) == ["plugin", "dense"]
    assert "TensorRT's own sparse kernels" not in plan.layers[0].reason, "they are no choice here"


def test_rows_that_would_run_dense_copies_count_as_dense_in_the_plugin() -> None:
    one = [p.model_copy(update={"us": us}) for (p, us) in zip(
        make_points("gate_up", N, K, {16: 1.0, 64: 1.0}), (10, 10, 15, 15), strict=True)]  # fmt: skip
    in_plugin = [one[1].model_copy(update={"kernel": "plugin", "us": 20.0}),
                 one[3].model_copy(update={"kernel": "plugin", "us": 10.0})]  # fmt: skip
    whole = [p.model_copy(update={"us": us}) for (p, us) in zip(
        make_points("gate_up", 2 * N, K, {16: 1.0, 64: 1.0}), (25, 25, 30, 30), strict=True)]  # fmt: skip
    layers = (LAYER, replace(LAYER, name="up"))
    use = PluginUse(True, {"gate": PluginLayer("x"), "up": PluginLayer("x")})
    profiles = (profile("a", 1, 16, 16), profile("b", 17, 64, 64))
    plan = make_plan(layers, profiles, DIMS, make_policy([*one, *in_plugin, *whole]), "fp16", plugin=use)
    assert kernels(plan) == ["plugin", "plugin"]
    assert [layer.dense_below_m for layer in plan.layers] == [64, 64]


def test_below_the_one_products_m_the_plugin_is_held_against_the_layers_own_sparse_kernels() -> None:
    own = make_points("gate_up", N, K, {16: 1.5, 64: 1.5})
    in_plugin = [
        p.model_copy(update={"kernel": "plugin", "us": 10 * 1.5 / 1.1}) for p in own if p.kernel == "sparse"
    ]
    policy = make_policy([*own, *in_plugin, *make_points("gate_up", 2 * N, K, {64: 0.6})])
    layers = (LAYER, replace(LAYER, name="up"))
    use = PluginUse(True, {"gate": PluginLayer("x"), "up": PluginLayer("x")})
    plan = make_plan(layers, (profile("p", 16, 16, 16),), DIMS, policy, "fp16", plugin=use)
    assert kernels(plan) == ["sparse", "sparse"]
    assert all("the plugin would gain no more: 1.10×" in layer.reason for layer in plan.layers)
