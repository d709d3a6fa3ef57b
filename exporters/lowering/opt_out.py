"""Takes single layers out of sparse kernels in an engine that allows them, by one element of each weight.

TensorRT's SPARSE_WEIGHTS flag is for the whole builder; what it goes by is the weights. One element that
breaks the 2:4 pattern takes a layer out (on TensorRT 8.6.0 no sparse tactic of it is examined then). So a
pruned zero becomes the smallest number that reaches the builder as one and is lost in rounding:

- FP16: its smallest subnormal, 2^-24. Tensor cores and the builder keep FP16's subnormals.
- FP32: 2^-24, too. FP32's own subnormals are flushed to zero where denormals are off, and a builder that
  may run the layer in FP16 converts the weight: of all that survives that, 2^-24 is the smallest. TF32
  and BF16 have it exactly.
- BF16: its smallest normal number, 2^-126: a BF16 number is the upper half of an FP32 one, and is flushed
  where those are. Where the graph casts the weight to another type, 2^-24.
- FP8 (E4M3, E5M2): the smallest subnormal, 2^-9 and 2^-16, small beside weights scaled to fill the range.
- INT8: there is none. One quantization step is as large anywhere, and twice what rounding costs.

'Lost in rounding' is checked: the element goes where the largest weight of its group, rounded to its
type, is off by as much or more; where there is no such group nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from sparseflow_trt.artifacts.graph_record import OptOutRecord
from sparseflow_trt.errors import ModelError, PlanError
from sparseflow_trt.model.layer_names import shown_name
from sparseflow_trt.model.model_file import OnnxModel
from sparseflow_trt.model.pattern import GROUP, KEPT, Array, magnitude_bits
from sparseflow_trt.model.scan import Piece, WeightReader, grouping, lay_out, map_pieces, scan_pattern
from sparseflow_trt.model.sites import LayerSite, dtype_name, find_sites, why_not_eligible
from sparseflow_trt.model.weights import TracedWeight, replace_weight

if TYPE_CHECKING:
    import onnx_ir as ir

_HALF_STEP = 2.0**-24
# The value for each type, and the unit roundoff that it is held against: FP32's is FP16's, as what runs
# may be that (2^-24 itself is the roundoff of FP32 numbers near one).
_SMALLEST = {
    "FP32": (_HALF_STEP, 2.0**-11),
    "FP16": (_HALF_STEP, 2.0**-11),
    "BF16": (2.0**-126, 2.0**-8),
    "FP8": (2.0**-9, 2.0**-4),
    "FP8-E5M2": (2.0**-16, 2.0**-3),
}


def opt_out(model: OnnxModel, layers: Iterable[str]) -> tuple[OptOutRecord, ...]:
    """Breaks the 2:4 pattern of some layers' weights by one element each, in the graph in memory.

    The file and its data stay as they are: a changed weight is read when the model is saved.

    Args:
        model: A model as read; its graph is changed.
        layers: Names of layers that are planned dense and whose weights pass for 2:4.

    Returns:
        A record for each layer, in the order of the graph. Those that share a weight and its groups have
        one element in common.

    Raises:
        PlanError: A name is no layer of the model.
        ModelError: A node says something impossible.
    """
    wanted = set(layers)
    sites = find_sites(model)
    unknown = sorted(wanted - {site.name for site in sites})
    if unknown:
        raise PlanError(f"no layer is named {', '.join(unknown)}.", "`sparseflow-trt inspect` lists them.")
    users: dict[ir.Value, list[LayerSite]] = {}
    for site in sites:
        if isinstance(site.weight, TracedWeight):
            users.setdefault(site.weight.value, []).append(site)
    records: dict[str, OptOutRecord] = {}
    for site in sites:
        if site.name in wanted:
            with WeightReader() as reader:
                mine = users[site.weight.value] if isinstance(site.weight, TracedWeight) else []
                records[site.name] = _opt_out(reader, site, mine, wanted, records)
    return tuple(records.values())


def begins_2to4(reader: WeightReader, site: LayerSite) -> bool:
    """Whether TensorRT may take a weight that is not 2:4 for it, since its first group of four is.

    TensorRT 8.6 looks at a part of a weight only, so one that is 2:4 but for some of it may run in a sparse
    kernel, which drops what is not. In types that have no small element it cannot be helped: False.
    """
    weight = site.weight
    if not isinstance(weight, TracedWeight) or dtype_name(weight.tensor) not in _SMALLEST:
        return False
    first = lay_out(reader.stored_array(weight.tensor), weight, site.k_axis).array[0, :GROUP, 0]
    return bool(np.count_nonzero(magnitude_bits(first)) <= KEPT)


def put_back(model: OnnxModel, records: Iterable[OptOutRecord]) -> None:
    """Restores what `opt_out` changed, bit for bit, in the graph in memory.

    Args:
        model: The model that was opted out, or that model saved and read again.
        records: What `opt_out` returned.

    Raises:
        ModelError: A layer or its weight is another one now, or the element is not what was written.
    """
    weights = {site.name: site.weight for site in find_sites(model)}
    restored: set[tuple[ir.Value, tuple[int, ...]]] = set()
    for record in records:
        if record.route == "none":
            continue
        weight = weights.get(record.layer)
        if not isinstance(weight, TracedWeight) or dtype_name(weight.tensor) != record.dtype:
            raise _not_as_recorded(record, "is gone")
        if (weight.value, record.index) in restored:  # of a weight that layers share
            continue
        with WeightReader() as reader:
            bits = _bits_at(reader.stored_array(weight.tensor), record)
        if bits != record.new_bits:
            raise _not_as_recorded(
                record, f"holds {bits:#x} at {list(record.index)}, not {record.new_bits:#x}"
            )
        _store(weight, record.index, record.old_bits)
        restored.add((weight.value, record.index))


def _opt_out(
    reader: WeightReader,
    site: LayerSite,
    users: list[LayerSite],
    wanted: set[str],
    records: dict[str, OptOutRecord],
) -> OptOutRecord:
    weight = site.weight
    if not isinstance(weight, TracedWeight):
        return _left_in(site.name, "", "", weight.reason)
    dtype = dtype_name(weight.tensor)
    stored = reader.stored_array(weight.tensor)
    reason = why_not_eligible(site) or _why_lost(site, weight) or _why_shared(reader, users, wanted)
    twin = next((r for u in users if (r := records.get(u.name)) and r.route == "element"), None)
    if not reason and twin is not None:
        twin_site = next(user for user in users if user.name == twin.layer)
        assert isinstance(twin_site.weight, TracedWeight)
        same = grouping(stored, twin_site.weight, twin_site.k_axis)
        if grouping(stored, weight, site.k_axis) == same:
            reason = f"by the element changed for '{shown_name(twin_site)}'"
            return twin.model_copy(update={"layer": site.name, "reason": reason})
        other = shown_name(twin_site)
        reason = f"weight '{weight.name}' was changed for '{other}', whose K lies on another axis"
    if reason:
        return _left_in(site.name, weight.name, dtype, reason)
    value, roundoff = _value_for(site, weight, dtype)
    index, any_full = _find_zero(stored, weight, site.k_axis, value / roundoff)
    if index is None:
        reason = "no group of four holds two non-zeros: two or more elements would have to change"
        if any_full:
            reason = f"the weights are too small for {value:g} to be lost in their rounding"
        return _left_in(site.name, weight.name, dtype, reason)
    old, new = _bits_of(stored[index]), _bits_of(np.asarray(value, stored.dtype))
    _store(weight, index, new)
    return OptOutRecord(
        layer=site.name,
        weight=weight.name,
        dtype=dtype,
        route="element",
        reason=f"a zero of '{weight.name}' became {value:g}",
        index=index,
        old_bits=old,
        new_bits=new,
    )


def _left_in(layer: str, weight: str, dtype: str, reason: str) -> OptOutRecord:
    return OptOutRecord(
        layer=layer, weight=weight, dtype=dtype, route="none", reason=reason, index=(), old_bits=0, new_bits=0
    )


def _why_shared(reader: WeightReader, users: list[LayerSite], wanted: set[str]) -> str:
    """Which layer that stays in sparse kernels would be taken out as well, in words, or ""."""
    for other in users:
        if other.name in wanted or why_not_eligible(other) or not isinstance(other.weight, TracedWeight):
            continue
        if not scan_pattern(reader, other.weight, other.k_axis, state_only=True).violating:
            shared = f"weight '{other.weight.name}' is shared with '{shown_name(other)}'"
            return f"{shared}, which is 2:4 and stays sparse"
    return ""


def _why_lost(site: LayerSite, weight: TracedWeight) -> str:
    """Why no small element of the stored weight reaches the node as one that matters little, or ""."""
    if dtype_name(weight.tensor) not in _SMALLEST:
        return f"{dtype_name(weight.tensor)} weights have no value small enough to be lost in rounding"
    value = site.node.inputs[0 if site.side == "left" else 1]
    while value is not None and value is not weight.value:
        node = value.producer()
        if node is None:
            break
        if node.op_type == "QuantizeLinear":
            return f"weight '{weight.name}' is quantized in the graph, which rounds a small element to zero"
        value = node.inputs[0]
    return ""


def _value_for(site: LayerSite, weight: TracedWeight, dtype: str) -> tuple[float, float]:
    """The value for a weight of a type as its layer sees it, and the roundoff it is held against."""
    value, roundoff = _SMALLEST[dtype]
    operand = site.node.inputs[0 if site.side == "left" else 1]
    cast = dtype == "BF16" and operand is not None and operand.dtype not in (None, weight.tensor.dtype)
    return _HALF_STEP if cast else value, roundoff


def _find_zero(
    stored: Array, weight: TracedWeight, k_axis: int, least: float
) -> tuple[tuple[int, ...] | None, bool]:
    """The index of a zero in a group of two non-zeros, and whether there is any such group.

    It is the first group whose larger weight is at least `least`. TensorRT 8.6 does not look at all of a
    weight: it took no notice of an element in the midst of three, whatever the weights around it, and did of
    one in the first group.
    """
    array = lay_out(stored, weight, k_axis).array

    def search(piece: Piece) -> tuple[tuple[int, int, int] | None, bool]:
        values = array[piece]
        outer, k, inner = values.shape
        grouped = (outer, k // GROUP, GROUP, inner)
        bits = magnitude_bits(values).reshape(grouped)
        finite = np.isfinite(values).reshape(grouped).all(axis=2)
        full = finite & (np.count_nonzero(bits, axis=2) == KEPT)
        magnitudes = np.abs(values.astype(np.float32)).reshape(grouped).max(axis=2)
        fits = full & (magnitudes >= least)
        if not fits.any():
            return None, bool(full.any())
        o, g, i = (int(n) for n in np.unravel_index(int(fits.argmax()), fits.shape))  # the first
        zero = int(np.flatnonzero(bits[o, g, :, i] == 0)[0])
        return (piece[0].start + o, piece[1].start + g * GROUP + zero, i), True

    any_full = False
    for _, (at, full) in map_pieces(search, array):
        any_full = any_full or full
        if at is not None:
            return _stored_index(at, array.shape, stored, weight), True
    return None, any_full


def _stored_index(
    at: tuple[int, int, int], laid_out: tuple[int, ...], stored: Array, weight: TracedWeight
) -> tuple[int, ...]:
    """Where an element of a laid-out weight (scan.lay_out) is in the stored one."""
    operand = weight.operand(stored)
    order = sorted(range(operand.ndim), key=lambda i: -operand.strides[i])
    ordered = np.unravel_index(np.ravel_multi_index(at, laid_out), [operand.shape[i] for i in order])
    index = [0] * operand.ndim
    for axis, position in zip(order, ordered, strict=True):
        index[axis] = int(position)
    shapes = weight.shapes
    for (step, argument), before, after in zip(
        weight.steps[::-1], shapes[-2::-1], shapes[:0:-1], strict=True
    ):
        if step == "transpose":
            index = [index[i] for i in np.argsort(argument)]
        else:
            index = [int(i) for i in np.unravel_index(np.ravel_multi_index(index, after), before)]
    return tuple(index)


def _store(weight: TracedWeight, index: tuple[int, ...], bits: int) -> None:
    """Makes the weight one whose element at `index` is `bits`; the tensor is read when it is written."""

    def changed() -> Array:
        values = np.array(weight.tensor.numpy())
        values.view(f"u{values.dtype.itemsize}")[index] = bits
        return values

    replace_weight(weight, changed)


def _bits_of(element: Array) -> int:
    return int(element.view(f"u{element.dtype.itemsize}"))


def _bits_at(stored: Array, record: OptOutRecord) -> int:
    inside = [i < n for i, n in zip(record.index, stored.shape, strict=False)]
    if len(record.index) != stored.ndim or not all(inside):
        raise _not_as_recorded(record, f"is of shape {list(stored.shape)}")
    return _bits_of(stored[record.index])


def _not_as_recorded(record: OptOutRecord, what: str) -> ModelError:
    return ModelError(
        f"weight '{record.weight}' of layer '{record.layer}' {what}.",
        "Only the model that the record was written for can be restored.",
    )
