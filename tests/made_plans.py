"""A layer and what it is planned by, for the tests of plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sparseflow_trt.model.graph import SparsityState, WeightedLayer
from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.plans.decide import PluginLayer, PluginUse
from sparseflow_trt.plans.plan import Plan
from sparseflow_trt.plans.planning import make_plan
from sparseflow_trt.plans.shapes import Profile, ShapeRange
from sparseflow_trt.policies.policy import Policy
from tests.made_policies import make_policy

POLICY = make_policy((), limits={"qkv": (100, None)})


DIMS: dict[str, tuple[int | str | None, ...]] = {"x": ("batch", 64)}


def make_layer(name: str, state: SparsityState = SparsityState.SPARSE, **changes: Any) -> WeightedLayer:
    layer = WeightedLayer(
        name=name,
        module="",
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


def profile_at(name: str, opt: int) -> Profile:
    return Profile(name=name, inputs={"x": ShapeRange(min=(1, 64), opt=(opt, 64), max=(999, 64))})


PLAN = make_plan((make_layer("a"),), (profile_at("p", 100),), DIMS, POLICY, "fp16")


def plan_gate_and_up(policy: Policy, hidden: int, inner: int, m: int, library: bool) -> Plan:
    """Of two 2:4 layers of one input in FP16, at one M, with the plugin's library or without."""
    gate, up = (
        make_layer(name, kind="gate_up", n=inner, k=hidden, weight_shape=(hidden, inner), dtype="FP16")
        for name in ("gate", "up")
    )
    use = PluginUse(library, {"gate": PluginLayer("x"), "up": PluginLayer("x")})
    at = Profile(name="p", inputs={"x": ShapeRange(min=(m, 64), opt=(m, 64), max=(m, 64))})
    return make_plan((gate, up), (at,), DIMS, policy, "fp16", plugin=use)
