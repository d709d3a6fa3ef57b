"""Layers that read one value, and the one product that TensorRT makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from sparseflow_trt.model.graph import SparsityState, WeightedLayer
from sparseflow_trt.model.layer_names import shown_name
from sparseflow_trt.plans.decide import PluginUse
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import is_timed
from sparseflow_trt.policies.policy import Policy

MOST_MERGED = 4  # layers of one product, of more none was built
_PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True)
class Merge:
    """Layers by name, in the order of the graph, and their one product: their N added up."""

    layers: tuple[str, ...]
    gemm: Gemm


def as_run(layers: Iterable[WeightedLayer], merges: Iterable[Merge]) -> Iterator[tuple[WeightedLayer, int]]:
    """The products that run, each with its N: of layers that are merged the first stands for all."""
    wholes = {merge.layers[0]: merge.gemm.n for merge in merges}
    others = {name for merge in merges for name in merge.layers[1:]}
    return ((x, wholes.get(x.name, x.n)) for x in layers if x.name not in others)


def siblings(
    layers: Iterable[tuple[WeightedLayer, Hashable]], plugin: PluginUse
) -> list[tuple[WeightedLayer, ...]]:
    """Groups of two layers or more that read one value, such as gate and up.

    Args:
        layers: In the order of the graph, each with what it has to have in common with the others, beside K.
        plugin: What the graph says of the layers.
    """
    groups: dict[Hashable, list[WeightedLayer]] = {}
    for layer, common in layers:
        if layer.name in plugin.layers:
            key = (plugin.layers[layer.name].reads, layer.k, common)
            groups.setdefault(key, []).append(layer)
    return [tuple(members) for members in groups.values() if len(members) > 1]


def find_merges(
    layers: Collection[WeightedLayer],
    able: Container[str],
    precisions: Mapping[str, str],
    policy: Policy,
    plugin: PluginUse,
) -> tuple[Merge, ...]:
    """Finds layers of one input of which the policy has timed the one product, with TensorRT's kernels.

    TensorRT 8.6 ran them as one in every engine that was measured: MLP blocks' gate and up, a decoder's q, k
    and v, two to four layers of one input with biases and without, unless a ReLU was behind one of them
    (results/tensorrt_mlp_*.json, plugin_decoder_*.json, merged_products.json). It then runs sparse or dense
    as a whole, so what it would do with each by itself says nothing. Of more layers, or of several kinds or
    types, none was measured: they are judged each by itself.

    Args:
        layers: In the order of the graph.
        able: Names of those that are 2:4, or are taken for it.
        precisions: What each is planned in, by name.
        policy: The times.
        plugin: What the graph says of the layers.
    """
    found = []
    readers = Counter(plugin.layers[x.name].reads for x in layers if x.name in plugin.layers)
    alike_in = ((layer, (layer.kind, precisions[layer.name])) for layer in layers)
    for members in siblings(alike_in, plugin):
        first = members[0]
        alike = len(members) == readers[plugin.layers[first.name].reads] <= MOST_MERGED
        # what was measured multiplies by weights that the plugin takes, too
        of_plugin = [plugin.layers[x.name] for x in members]
        if not alike or any(x.why_not or x.relu for x in of_plugin):
            continue
        if any(x.name not in able for x in members):
            continue
        if len({layer.state for layer in members}) > 1:
            continue
        n = sum(layer.n for layer in members)
        whole = Gemm(first.kind, n, first.k, precisions[first.name].upper())
        if is_timed(policy, whole):
            found.append(Merge(tuple(layer.name for layer in members), whole))
    return tuple(found)


def find_mixed(
    layers: Iterable[WeightedLayer], precisions: Mapping[str, str], plugin: PluginUse
) -> dict[str, str]:
    """Finds 2:4 layers of which TensorRT makes one product with a layer that is not 2:4, and says so of each.

    That product is not 2:4. TensorRT 8.6, which looks at a part of a weight only, took it for it all the
    same: it timed sparse kernels for such products and ran one of two in one (results/merged_products.json),
    which multiplies by two of the other layer's four weights. With these layers planned dense none is timed,
    see `exporters.lowering.opt_out`.

    Args:
        layers: The model's.
        precisions: What each is planned in, by name.
        plugin: What the graph says of the layers.
    """
    alone = {name for name, layer in plugin.layers.items() if layer.relu}
    merged = (
        (x, precisions[x.name])
        for x in layers
        if x.name not in alone and x.op_type in _PRODUCTS and x.batch == 1
    )
    found: dict[str, str] = {}
    for members in siblings(merged, plugin):
        others = [x for x in members if x.state is not SparsityState.SPARSE]
        if others:
            why = f"TensorRT makes one product of it and '{shown_name(others[0])}', which is not 2:4"
            found |= {x.name: why for x in members if x.state is SparsityState.SPARSE}
    return found
