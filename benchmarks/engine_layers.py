"""Where an engine's time goes, layer by layer, and the ceiling that follows for its products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparseflow_trt.engines.running.runner import Engine
from sparseflow_trt.gains.profiling import plain_name

PROFILED = 20  # runs
TENSOR_CORES = 2.0  # by how much 2:4 tensor cores are faster on paper
_REGION = "{ForeignNode["


def layer_ms(engine: Engine, feeds: Mapping[str, Any]) -> dict[str, float]:
    """Each engine layer's time, by its plain name."""
    return {plain_name(layer.name): layer.ms for layer in engine.profile_layers(feeds, PROFILED)}


def products_of(times: Mapping[str, float], ran_as: Mapping[str, str]) -> dict[str, Any]:
    """The sum of all layers' times, of those that are planned layers' products, and the slowest others.

    Args:
        times: Of `layer_ms`.
        ran_as: By each planned layer's name that of the engine's layer.
    """
    mine = {name for name in ran_as.values() if name in times}
    others = sorted((name for name in times if name not in mine), key=lambda name: -times[name])
    return {
        "all_ms": round(sum(times.values()), 5),
        "products_ms": round(sum(times[name] for name in mine), 5),
        "layers that run": sum(ms > 0 for ms in times.values()),
        "products that run": len(mine),
        "products": {name: round(times[name], 5) for name in sorted(mine, key=lambda n: -times[n])[:10]},
        "others": {name: round(times[name], 5) for name in others[:10]},
        "planned layers not told": sum(
            name not in times or name.startswith(_REGION) for name in ran_as.values()
        ),
    }


def ceilings(layers: Mapping[str, dict[str, Any]], whole_ms: Mapping[str, float]) -> dict[str, float]:
    """What the dense engine's run would gain by its products alone.

    "tensor cores" is Amdahl's bound for products that are twice as fast; the others put a side's products
    in the place of the dense ones, and leave all else as it is in the dense engine (a side whose other layers
    change, too, may gain more). Timed one by one layers take longer than in a run: what their sum is longer
    is taken from each in equal parts. There is none where the time of a product is not told, as in a region
    of TensorRT's compiler.

    Args:
        layers: By each side `products_of` its engine.
        whole_ms: What its run takes.
    """
    told = {side: facts for side, facts in layers.items() if not facts["planned layers not told"]}
    if "dense" not in told:
        return {}
    products = {}
    for side, facts in told.items():
        more = max(0.0, facts["all_ms"] - whole_ms[side]) / max(facts["layers that run"], 1)
        alone = facts["products_ms"] - more * facts["products that run"]
        products[side] = min(max(alone, 0.0), whole_ms[side])
    whole, dense = whole_ms["dense"], products["dense"]
    found = {"tensor cores": whole / (whole - dense + dense / TENSOR_CORES)}
    found |= {side: whole / (whole - dense + ms) for side, ms in products.items() if side != "dense"}
    return {side: round(gain, 4) for side, gain in found.items()}
