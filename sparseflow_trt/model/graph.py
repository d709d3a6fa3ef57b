"""A model's weighted layers: what each multiplies, as a GEMM, and what its weight's 2:4 state is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from sparseflow_trt._listing import listed
from sparseflow_trt.model.kinds import kind_from_names
from sparseflow_trt.model.layer_names import may_stay_dense, shown_name
from sparseflow_trt.model.model_file import OnnxModel
from sparseflow_trt.model.operators import QUANTIZED
from sparseflow_trt.model.other_patterns import other_pattern, percent, told_of_nan
from sparseflow_trt.model.runtimes_own import BEFORE_OPTIMISER, operator_of
from sparseflow_trt.model.scan import PatternScan, WeightReader, lay_out, scan_key, scan_pattern
from sparseflow_trt.model.sites import (
    OPS,
    SMALLEST_K,
    LayerSite,
    dtype_name,
    find_sites,
    multiplied_as,
    product_dtype,
    type_name,
    why_not_eligible,
)
from sparseflow_trt.model.storage import Storage, region_of, users_by_region
from sparseflow_trt.model.symbolic import SymbolicM
from sparseflow_trt.model.trace import MASK_APART
from sparseflow_trt.model.weights import TracedWeight, Untraceable

_MOST_NAMED = 3  # layers, in a sentence


class SparsityState(str, Enum):
    """A weight's 2:4 state along K."""

    SPARSE = "sparse"
    NOT_SPARSE = "not-sparse"
    NOT_ELIGIBLE = "not-eligible"


@dataclass(frozen=True)
class WeightedLayer:
    """A node that multiplies by a weight, seen as `batch` GEMMs of M×K by K×N.

    Attributes:
        name: Unique in the model: the node's name, with its subgraph's path before it.
        module: The torch module it came from, where the exporter says; else "".
        kind: gate_up, down, qkv, o, ffn, conv, classifier, adapter or other.
        side: Which operand the weight is: "right", or "left" (W·X).
        dtype: Of the weight as it is multiplied: stored floats behind a QuantizeLinear are INT8, say.
        computed: Whether its weight is constant, and computed of other constants in the graph.
        product: The type that it is multiplied in: a float's where the weight is INT8 and the other operand
            is a float.
        gives: The type of what it gives, as the model types it; "" where that is not known.
        k_axes: The axes of the stored weight that K lies on; for Conv that of the input channels.
        groups, violating: Of what was read of the weight: less than all where only its state was asked for.
        first: Index in the stored weight of the first element of the first violating group.
        otherwise: What the zeros of a weight that is not 2:4 are, where it has many; "" where it has not.
        found: All that is told of such a weight beside its groups: NaN in it, and `otherwise`.
    """

    name: str
    module: str
    op_type: str
    kind: str
    side: str
    weight: str
    weight_shape: tuple[int, ...]
    dtype: str
    m: SymbolicM
    n: int
    k: int
    batch: int
    k_axes: tuple[int, ...]
    state: SparsityState
    reason: str
    groups: int = 0
    violating: int = 0
    first: tuple[int, ...] | None = None
    mask_hash: str = ""
    shared_with: tuple[str, ...] = ()
    computed: bool = False
    product: str = ""
    gives: str = ""
    otherwise: str = ""
    found: str = ""

    @property
    def eligible(self) -> bool:
        """Whether the weight could be 2:4 at all."""
        return self.state is not SparsityState.NOT_ELIGIBLE

    @property
    def has_constant(self) -> bool:
        """Whether it multiplies by something constant, read or not, and not by another activation."""
        return bool(self.weight) or self.computed or self.op_type not in OPS


def read_layers(
    model: OnnxModel, progress: Callable[[int, int], None] | None = None, state_only: bool = False
) -> tuple[WeightedLayer, ...]:
    """Finds every weighted layer and reads each weight once.

    Args:
        model: A model as read.
        progress: Called with (bytes read, bytes to read) after each weight.
        state_only: Whether a weight is read only until it is seen not to be 2:4; of its zeros nothing is
            told then.

    Returns:
        The layers in graph order; a layer in a subgraph follows the layers before its If, Loop or Scan.

    Raises:
        ModelError: A node says something impossible.
    """
    sites = find_sites(model)
    users = _users_by_tensor(sites)
    scans: dict[tuple[object, ...], tuple[PatternScan, str]] = {}
    layers = []
    to_read = {
        scan_key(site.weight, site.k_axis): site.weight.tensor.nbytes
        for site in sites
        if isinstance(site.weight, TracedWeight) and not why_not_eligible(site)
    }
    done, total = 0, sum(to_read.values())
    with WeightReader() as reader:
        for site in sites:
            if isinstance(site.weight, Untraceable):
                layers.append(_describe(site, (), site.weight.reason, None, (), ""))
                continue
            reason = why_not_eligible(site)
            shared = tuple(u.name for u in users[id(site.weight.tensor)] if u is not site)
            axes: tuple[int, ...] = ()
            if dtype_name(site.weight.tensor) in SMALLEST_K:
                axes = lay_out(reader.stored_array(site.weight.tensor), site.weight, site.k_axis).k_axes
            scan, otherwise = None, ""
            if not reason:
                key = scan_key(site.weight, site.k_axis)
                if key not in scans:
                    found = scan_pattern(reader, site.weight, site.k_axis, state_only)
                    told = found.violating and found.whole
                    scans[key] = found, other_pattern(reader, site, found) if told else ""
                    done += site.weight.tensor.nbytes
                    if progress:
                        progress(done, total)
                scan, otherwise = scans[key]
            layers.append(_describe(site, axes, reason, scan, shared, otherwise))
    return _judge_other_uses(model, sites, layers)


def _judge_other_uses(
    model: OnnxModel, sites: Sequence[LayerSite], layers: Sequence[WeightedLayer]
) -> tuple[WeightedLayer, ...]:
    """Layers whose weight is not 2:4 and something else, too, such as an embedding, are not eligible.

    What else it is would be changed by pruning. One that is 2:4 all the same runs sparse.
    """
    if all(layer.state is not SparsityState.NOT_SPARSE for layer in layers):
        return tuple(layers)
    storage, users = Storage(model), users_by_region(sites)
    judged = []
    for site, layer in zip(sites, layers, strict=True):
        if layer.state is SparsityState.NOT_SPARSE and isinstance(site.weight, TracedWeight):
            region = region_of(site.weight.tensor)
            if why := storage.other_readers(region, [user for user, _ in users[region]]):
                reason = f"weight '{site.weight.name}' {why}"
                layer = replace(layer, state=SparsityState.NOT_ELIGIBLE, reason=reason)
        judged.append(layer)
    return tuple(judged)


def all_eligible_sparse(layers: tuple[WeightedLayer, ...]) -> bool:
    """Whether no eligible layer violates 2:4, but for adapters, which are meant to be dense.

    Where a layer's mask is apart from its weight it does: as they are stored the weights run dense.
    """
    violating = (layer for layer in layers if layer.state is SparsityState.NOT_SPARSE)
    violated = not all(may_stay_dense(layer.kind) for layer in violating)
    return not violated and not layers_with_masks_apart(layers)


def layers_with_masks_apart(layers: Iterable[WeightedLayer]) -> tuple[str, ...]:
    """The layers whose masks are still multiplied with their weights, by name."""
    return tuple(layer.name for layer in layers if layer.reason == MASK_APART)


def masks_apart(reasons: Iterable[str]) -> str:
    """What to do with layers whose reasons say that their masks are apart; "" where there are none."""
    apart = sum(reason == MASK_APART for reason in reasons)
    if not apart:
        return ""
    return (
        f"{apart} layer(s) multiply their weight by a mask at each run, so it is not seen as 2:4. "
        "Fold the mask into the weight before the export: torch.nn.utils.prune.remove(module, 'weight'), or "
        "squash_mask() of torch.ao's sparsifier; for a parametrization of your own "
        "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')."
    )


def weights_computed(layers: Iterable[WeightedLayer]) -> str:
    """What to do with layers whose weights the graph computes of constants; "" where there are none."""
    names = [f"'{shown_name(layer)}'" for layer in layers if layer.computed and layer.reason != MASK_APART]
    if not names:
        return ""
    return (
        f"{len(names)} layer(s) have weights that the graph computes from constants, and stay as they "
        f"are: {listed(names, _MOST_NAMED)}. Make each a single parameter before the export, by "
        "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') or nn.Parameter(torch.cat(…)), "
        "or fold the file with ONNX Runtime: optimized_model_filepath at ORT_ENABLE_BASIC."
    )


def left_as_they_are(layers: Iterable[WeightedLayer]) -> tuple[str, ...]:
    """Sentences on layers that no plan is for, since their weights are computed in the graph."""
    layers = tuple(layers)
    others = [layer.op_type for layer in layers if layer.op_type not in OPS]
    kinds = listed(sorted(set(others)), _MOST_NAMED)
    foreign = (
        f"{len(others)} layer(s) multiply by their weights in a way that has no 2:4 path here ({kinds}), and "
        "stay as they are. `sparseflow-trt inspect` lists them."
    )
    if any(op.startswith(QUANTIZED) for op in others):
        foreign += (
            " Prune the float model and quantize it by ONNX Runtime's quantize_static with QuantFormat.QDQ, "
            "which keeps 2:4; quantize_dynamic has no such form."
        )
    if any(layer.reason.endswith(BEFORE_OPTIMISER) for layer in layers):
        foreign += f" Of what is fused, {BEFORE_OPTIMISER}."
    said = (
        masks_apart(layer.reason for layer in layers),
        weights_computed(layers),
        foreign if others else "",
    )
    return tuple(filter(None, said))


def _describe(
    site: LayerSite,
    axes: tuple[int, ...],
    reason: str,
    scan: PatternScan | None,
    shared: tuple[str, ...],
    otherwise: str,
) -> WeightedLayer:
    traced = site.weight if isinstance(site.weight, TracedWeight) else None
    state = SparsityState.NOT_ELIGIBLE
    found = ""
    if scan:
        state = SparsityState.NOT_SPARSE if scan.violating else SparsityState.SPARSE
        if scan.violating:
            share = percent(scan.violating / scan.groups)
            of_all = "" if scan.whole else "the first "
            reason = f"{share} of {of_all}{scan.groups} groups hold more than two non-zeros"
            found = "; ".join(filter(None, (told_of_nan(scan.nan), otherwise)))
            reason += f"; {found}" if found else ""
    return WeightedLayer(
        name=site.name,
        module=site.module,
        op_type=operator_of(site.node),
        kind=kind_of(site),
        side=site.side,
        weight=traced.name if traced else "",
        weight_shape=traced.shapes[0] if traced else (),
        dtype=product_dtype(traced) if traced else "",
        m=site.m,
        n=site.n,
        k=site.k,
        batch=site.batch,
        k_axes=axes,
        state=state,
        reason=reason,
        groups=scan.groups if scan else 0,
        violating=scan.violating if scan else 0,
        first=scan.first if scan else None,
        mask_hash=scan.mask_hash if scan else "",
        shared_with=shared,
        computed=isinstance(site.weight, Untraceable) and site.weight.computed,
        product=multiplied_as(site),
        gives=type_name(site.node.outputs[0].dtype),
        otherwise=otherwise,
        found=found,
    )


def _users_by_tensor(sites: list[LayerSite]) -> dict[int, list[LayerSite]]:
    users: dict[int, list[LayerSite]] = {}
    for site in sites:
        if isinstance(site.weight, TracedWeight):
            users.setdefault(id(site.weight.tensor), []).append(site)
    return users


def kind_of(site: LayerSite) -> str:
    """What a layer is in a network, see `kinds`: by the names of its module, its weight and itself."""
    if site.node.op_type == "Conv":
        return "conv"
    weight = site.weight.name if isinstance(site.weight, TracedWeight) else ""
    shape = (site.n, site.k) if weight else (0, 0)
    return kind_from_names((site.module, weight, site.name), *shape)
