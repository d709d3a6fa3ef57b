"""Which kernel a layer gets of three, and the words for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.model.graph import SparsityState, WeightedLayer
from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.plans.decide import Decision, PluginLayer, PluginUse, decide
from sparseflow_trt.plans.planning import make_plan
from sparseflow_trt.plans.shapes import Profile, ShapeRange
from sparseflow_trt.plans.split import Split
from sparseflow_trt.policies.policy import Point, Policy
from tests.made_policies import make_points, make_policy

N, K = 1024, 512
LAYER = WeightedLayer(
    name="gate", module="", op_type="MatMul", kind="gate_up", side="right", weight="w", weight_shape=(K, N),
    dtype="FP16", m=SymbolicM(("batch",)), n=N, k=K, batch=1, k_axes=(0,), state=SparsityState.SPARSE,
    reason="",
)  # fmt: skip
DIMS: dict[str, Any] = {"x": ("batch", K)}
GIVEN = PluginUse(True, {"gate": PluginLayer("x")})
RATIOS = st.floats(0.5, 2)


def policy_of(plugin: dict[int, float], sparse: dict[int, float] | None = None) -> Policy:
    """Points of the plugin and of TensorRT's own kernels: 10 µs, dense as many times that."""
    points: list[Point] = list(make_points("gate_up", N, K, sparse or {}))
    for point in make_points("gate_up", N, K, plugin):
        if point.kernel == "sparse":
            points.append(point.model_copy(update={"kernel": "plugin"}))
        elif point.m not in (sparse or {}):
            points.append(point)
    return make_policy(points)


def profile(name: str, low: int, opt: int, high: int) -> Profile:
    return Profile(name=name, inputs={"x": ShapeRange(min=(low, K), opt=(opt, K), max=(high, K))})


def decided(policy: Policy | None, *opts: int, **changes: Any) -> Decision:
    asked: dict[str, Any] = {"mode": "policy", "plugin": GIVEN, "low": 16, "layer": LAYER, **changes}
    profiles = tuple(profile(f"p{m}", min(asked["low"], m), m, m) for m in opts)
    return decide(asked["layer"], "fp16", profiles, DIMS, policy, asked["mode"], asked["plugin"])


def test_the_plugin_is_taken_where_it_wins_and_the_points_are_named() -> None:
    found = decided(policy_of({16: 1.5, 64: 1.5}), 64)
    assert found == Decision(
        "plugin",
        "profile 'p64': the plugin wins at M=64: 1.50× measured (512→1024, the plugin against TensorRT's "
        "kernels, GPU X); but at M=63 1.00×: pad M to a multiple of 8",
    )


def test_what_an_m_beside_the_multiples_of_eight_costs_is_said_where_such_come() -> None:
    policy = policy_of({16: 1.5, 64: 1.5})
    fixed = decided(policy, 64, low=64)
    assert fixed.kernel == "plugin"
    assert "pad M" not in fixed.reason
    assert "pad M" not in decided(policy, 64, layer=replace(LAYER, m=SymbolicM((16, "batch")))).reason
    above = decide(LAYER, "fp16", (profile("p", 64, 64, 128),), DIMS, policy, "policy", GIVEN)
    assert above.reason.endswith("; but at M=65 1.01×: pad M to a multiple of 8"), "63 does not come"


def test_rows_that_run_dense_lose_nothing_beside_the_multiples() -> None:
    found = decided(policy_of({16: 1.5, 32: 0.9, 64: 1.5}), 64)
    assert (found.kernel, found.dense_below_m) == ("plugin", 64)
    assert "pad M" not in found.reason


def test_where_it_loses_for_want_of_a_multiple_of_eight_the_reason_says_to_what_to_pad() -> None:
    policy = policy_of({16: 1.5, 64: 1.5})
    found = decided(policy, 63, low=63)
    assert found.kernel == "dense"
    assert "; the plugin does not win by 2% at M=63, which is no multiple of 8: 1.00×" in found.reason
    assert found.reason.endswith("; pad M to 64, where it wins")
    lacks = decided(policy, 63, low=63, plugin=PluginUse(False, GIVEN.layers))
    assert lacks.reason.endswith("(1.50×), with --plugin LIB, which `sparseflow-trt plugin build` makes")
    never = decided(policy, 63, low=63, plugin=PluginUse(True, {"gate": PluginLayer("x", "no")}))
    assert "padded" not in never.reason
    assert "padded" not in decided(policy_of({16: 1.0, 64: 1.0}), 63, low=63).reason
    several = decided(policy, 16, 63, low=16)
    assert "not in the plugin, which does not win for sure in profile 'p63'" in several.reason
    assert several.reason.endswith("; padded to M=64 the plugin would win (1.50×)")


def test_a_layer_that_is_not_in_the_plugin_says_what_it_would_gain_there() -> None:
    slower = decided(policy_of({64: 1.01}), 64)
    assert slower.kernel == "dense"
    assert slower.reason.endswith(
        "; the plugin does not win by 2% at M=64: 1.01× measured (512→1024, the plugin against TensorRT's "
        "kernels, GPU X)"
    )
    points = policy_of({}, {64: 1.5}).points
    in_plugin = points[1].model_copy(update={"kernel": "plugin", "us": points[0].us / 1.2})
    beaten = decided(make_policy([*points, in_plugin]), 64)
    assert beaten.kernel == "sparse"
    assert beaten.reason.endswith("; the plugin would gain no more: 1.20×")
    for plugin in (PluginUse(False, GIVEN.layers), PluginUse(True, {"gate": PluginLayer("x", "no")})):
        assert "the plugin does" not in decided(policy_of({64: 1.01}), 64, plugin=plugin).reason


@given(RATIOS, RATIOS)
def test_the_fastest_of_three_is_taken(plugin: float, sparse: float) -> None:
    dense = 10 * sparse  # both are held against this one
    points = policy_of({}, {64: sparse}).points
    of_plugin = points[1].model_copy(update={"kernel": "plugin", "us": dense / plugin})
    kernel = decided(make_policy([*points, of_plugin]), 64).kernel
    best = max(plugin, sparse)
    if best < 1.02:
        assert kernel == "dense"
    elif kernel != "dense":
        assert {"plugin": plugin, "sparse": sparse}[kernel] == pytest.approx(best)


def test_what_tensorrts_own_sparse_kernels_would_gain_is_said() -> None:
    points = policy_of({}, {64: 0.9}).points
    policy = make_policy([*points, points[1].model_copy(update={"kernel": "plugin", "us": 6.0})])
    assert "; TensorRT's own sparse kernels 0.90×" in decided(policy, 64).reason


def test_without_a_library_the_reason_says_what_it_would_gain_and_how_to_make_it() -> None:
    found = decided(policy_of({64: 1.5}), 64, plugin=PluginUse(False, GIVEN.layers))
    assert found.kernel == "dense"
    lacks = "; with --plugin LIB, which `sparseflow-trt plugin build` makes, "
    assert f"{lacks}the plugin wins at M=64: 1.50× measured" in found.reason
    several = decided(policy_of({64: 1.5}), 16, 64, plugin=PluginUse(False, GIVEN.layers))
    assert f"{lacks}profile 'p64': the plugin wins at M=64" in several.reason


def test_a_layer_that_cannot_run_in_the_plugin_says_why() -> None:
    use = PluginUse(True, {"gate": PluginLayer("x", "the weight is the left operand")})
    found = decided(policy_of({64: 1.5}), 64, plugin=use)
    assert found.kernel == "dense"
    assert found.reason.endswith("; the plugin cannot run it: the weight is the left operand")
    forced = decided(None, 64, plugin=use, mode="plugin")
    assert (forced.kernel, forced.reason) == (
        "dense", "asked for the plugin, which cannot run it: the weight is the left operand",
    )  # fmt: skip
    assert GIVEN.why_not("gate", "fp32") == "the plugin takes FP16 and BF16, not fp32"
    assert PluginUse(True).why_not("gate", "fp16")


def test_asked_for_it_is_taken_wherever_it_can_run() -> None:
    assert decided(None, 64, mode="plugin").kernel == "plugin"
    assert decided(None, 64, mode="force").kernel == "sparse"
    assert decided(None, 64, mode="off").kernel == "dense"
    dense = replace(LAYER, state=SparsityState.NOT_SPARSE, reason="why")
    assert decided(None, 64, mode="plugin", layer=dense).kernel == "dense"


def test_where_it_loses_at_small_m_it_holds_a_dense_copy() -> None:
    found = decided(policy_of({16: 0.8, 64: 0.9, 128: 1.3, 1024: 1.4}), 1024, low=1)
    assert (found.kernel, found.dense_below_m) == ("plugin", 128)
    assert "; below M=128 its dense copy, which takes 1 MiB more GPU memory" in found.reason


def test_an_estimate_that_wins_by_too_little_is_no_reason_for_a_dense_copy() -> None:
    points = make_points("gate_up", N, K, {16: 0.9, 64: 1.1, 256: 1.3, 1024: 1.3}, library="torch")
    found = decided(make_policy(points, "torch"), 1024, low=1)
    assert (found.kernel, found.dense_below_m) == ("plugin", 64)


def test_an_m_that_nobody_measured_is_no_reason_for_a_dense_copy() -> None:
    assert decided(policy_of({16: 1.3, 1024: 1.4}), 1024, low=1).dense_below_m == 0


def test_profiles_below_run_the_dense_copy_and_profiles_above_forbid_the_plugin() -> None:
    policy = policy_of({16: 0.8, 64: 0.9, 128: 1.3, 512: 1.4, 1024: 0.9})
    below = decided(policy, 16, 512)
    assert (below.kernel, below.dense_below_m) == ("plugin", 128)
    above = decided(policy, 512, 1024)
    assert above.kernel == "dense"
    assert (
        "not in the plugin, which does not win for sure in profile 'p1024', and a graph has" in above.reason
    )


def test_where_the_plugin_cannot_be_taken_the_profile_is_told_in_which_it_would_gain_most() -> None:
    found = decided(policy_of({16: 1.2, 64: 1.6, 512: 1.4, 1024: 0.9}), 16, 64, 512, 1024)
    assert found.kernel == "dense"
    assert "(profile 'p64': the plugin wins at M=64: 1.60× measured" in found.reason


def test_where_it_wins_up_to_some_m_the_largest_opt_decides_and_nothing_is_cut() -> None:
    policy = policy_of({16: 1.5, 512: 1.4, 1024: 0.9, 4096: 0.9})
    for opt, kernel in ((512, "plugin"), (1024, "dense")):
        whole = (profile("p", 16, opt, 4096),)
        plan = make_plan((LAYER,), whole, DIMS, policy, "fp16", split=Split("batch"), plugin=GIVEN)
        assert [layer.sparsity for layer in plan.layers] == [kernel]
        assert [p.name for p in plan.profiles] == ["p"]
    apart = make_plan((LAYER,), (profile("p", 16, 128, 512),), DIMS, policy, "fp16", plugin=GIVEN)
    assert apart.layers[0].sparsity == "plugin"


def test_an_unknown_m_is_not_in_the_plugin() -> None:
    layer = replace(LAYER, m=SymbolicM((None, "batch")))
    found = decided(policy_of({64: 1.5}), 64, layer=layer)
    assert (found.kernel, found.reason) == ("dense", f"profile 'p64': {layer.m.not_known}")


def test_of_two_verdicts_from_cusparselts_times_the_plugins_counts() -> None:
    policy = make_policy(make_points("gate_up", N, K, {64: 1.3}, library="torch"), "torch")
    assert decided(policy, 64).kernel == "plugin"
    assert decided(policy, 64, plugin=PluginUse()).kernel == "sparse"


@pytest.mark.parametrize(("at_256", "told"), [(0.8, True), (1.0, True), (1.3, False)])
def test_a_profile_that_reaches_to_where_sparse_does_not_win_is_told(at_256: float, told: bool) -> None:
    policy = make_policy(make_points("gate_up", N, K, {64: 1.4, 256: at_256}))
    wide, narrow = (
        decide(LAYER, "fp16", (profile("p", 1, 64, high),), DIMS, policy, "policy", PluginUse())
        for high in (256, 64)
    )
    said = "; not at M=256, the profile's largest, which has the same tactic (--split)"
    assert (wide.kernel, wide.reason) == ("sparse", narrow.reason + said * told)
