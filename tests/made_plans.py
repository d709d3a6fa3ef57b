"""A layer and what it is planned by, for the tests of plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sparseflow_trt.model.graph import SparsityState, WeightedLayer
from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.plans.planning import make_plan
from sparseflow_trt.plans.shapes import Profile, ShapeRange
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
