"""Where an engine's time goes, layer by layer, and the ceiling that follows for its products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparseflow_trt.engines.runner import Engine
from sparseflow_trt.profiling import plain_name

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
        "products": {name: round(times[name], 5) for name in sorted(mine, key=lambda n: -times[n])[:10]},
        "others": {name: round(times[name], 5) for name in others[:10]},
        "planned layers not told": sum(
            name not in times or name.startswith(_REGION) for name in ran_as.values()
        ),
    }


def ceilings(layers: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """What the dense engine's run would gain by its products alone, from layers timed one by one.

    "tensor cores" is Amdahl's bound for products that are twice as fast; the others put a side's products in
    the place of the dense ones, and leave all else as it is in the dense engine. There is none where the time
    of a product is not told, as in a region of TensorRT's compiler.

    Args:
        layers: By each side `products_of` its engine.
    """
    told = {side: facts for side, facts in layers.items() if not facts["planned layers not told"]}
    if "dense" not in told:
        return {}
    whole, products = layers["dense"]["all_ms"], layers["dense"]["products_ms"]
    found = {"tensor cores": whole / (whole - products + products / TENSOR_CORES)}
    for side, facts in told.items():
        if side != "dense":
            found[side] = whole / (whole - products + facts["products_ms"])
    return {side: round(gain, 4) for side, gain in found.items()}
