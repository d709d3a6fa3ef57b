"""Layers of one input become one product where that was measured to be faster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.plans.decide import PluginLayer, PluginUse
from sparseflow_trt.plans.planning import make_plan
from sparseflow_trt.policies.policy import Policy
from tests.made_policies import make_points, make_policy
from tests.plans.test_decide import LAYER

K = 512


def policy_of(alone_us: float, together_us: float, m: int = 1024) -> Policy:
    """The plugin's times of one product of N=1024 and of two of them; dense takes twice the first."""
    points = []
    for n, us in ((1024, alone_us), (2048, together_us)):
        for point in make_points("gate_up", n, K, {8: 0.2, m: 2 * us / 10}):  # small ones are soon read
            small = {"us": 1.0} if point.m == 8 else {"us": us}
            points.append(
                point if point.kernel == "dense" else point.model_copy(update={"kernel": "plugin", **small})
            )
    return make_policy(points)


def joined(policy: Policy, reads: str = "x", **changes: Any) -> list[tuple[str, str]]:
    m = SymbolicM((1024,))
    layers = (replace(LAYER, m=m), replace(LAYER, name="up", m=m, **changes))
    use = PluginUse(True, {"gate": PluginLayer("x"), "up": PluginLayer(reads)})
    plan = make_plan(layers, (), {}, policy, "fp16", plugin=use)
    assert all("one product" in p.reason for p in plan.layers if p.joined)
    return [(p.sparsity, p.joined) for p in plan.layers]


def test_gate_and_up_become_one_where_that_is_faster() -> None:
    assert joined(policy_of(1000.0, 1200.0)) == [("plugin", "gate"), ("plugin", "gate")]


def test_they_stay_two_where_it_is_not() -> None:
    assert joined(policy_of(1000.0, 2000.0)) == [("plugin", ""), ("plugin", "")]


def test_layers_of_two_inputs_types_or_kinds_stay_apart() -> None:
    fast = policy_of(1000.0, 1200.0)
    assert joined(fast, reads="y") == [("plugin", ""), ("plugin", "")]
    assert joined(fast, dtype="INT8")[1] == ("dense", "")
    assert joined(fast, kind="qkv")[0] == ("plugin", "")
