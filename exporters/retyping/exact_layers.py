"""Which layers half precision leads astray, however well it holds their numbers."""

from __future__ import annotations

from sparseflow_trt.exporters.retyping.positions import nodes_of_positions
from sparseflow_trt.exporters.retyping.routers import nodes_of_routers
from sparseflow_trt.model.model_file import OnnxModel
from sparseflow_trt.model.sites import find_sites


def exact_layers(model: OnnxModel) -> dict[str, str]:
    """The layers that are planned in FP32 whatever is asked for, by name, each with why in words.

    Raises:
        ModelError: A node says something impossible.
    """
    whys = dict.fromkeys(nodes_of_positions(model.ir), "FP32, because it computes positions")
    routing = (
        "FP32, because it makes a choice (of experts, for example) that half precision would make differently"
    )
    whys |= dict.fromkeys(nodes_of_routers(model.ir), routing)
    sites = find_sites(model) if whys else []
    return {site.name: whys[site.node] for site in sites if site.node in whys}
