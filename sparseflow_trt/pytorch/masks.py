"""Whether a model file's weights are zero where a module's are: by the hash of their zero positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparseflow_trt.model.graph import SparsityState, WeightedLayer
from sparseflow_trt.model.model_file import OnnxModel
from sparseflow_trt.model.parts import part_of
from sparseflow_trt.model.pattern import Array
from sparseflow_trt.model.scan import WeightReader, scan_pattern
from sparseflow_trt.model.sites import find_sites, why_not_eligible
from sparseflow_trt.model.weights import TracedWeight


@dataclass(frozen=True)
class MaskCheck:
    """What became of a module's zero positions.

    Attributes:
        compared: How many layers' weights are parameters of the module, and were compared.
        sparse: How many of these are 2:4.
        changed: Layers whose zeros lie elsewhere than the module's, by the parameter's name.
        foreign: Layers that multiply by something that is no parameter as the module holds it.
    """

    compared: int
    sparse: int
    changed: tuple[str, ...]
    foreign: tuple[str, ...]


class _ParameterReader(WeightReader):
    """Gives a module's parameter where a weight of that name is asked for."""

    def __init__(self, array: Array) -> None:
        super().__init__()
        self._array = array

    def stored_array(self, tensor: Any) -> Array:
        """The parameter."""
        return self._array


def check_masks(
    model: OnnxModel, layers: Sequence[WeightedLayer], parameters: Mapping[str, Any]
) -> MaskCheck:
    """Compares each eligible layer's zero positions, as read from the file, with the module's.

    Args:
        model: The file as read.
        layers: Its layers, as `read_layers` gave them: the file is not read again.
        parameters: The module's tensors, by the names of the file's weights.
    """
    sites = {site.name: site for site in find_sites(model)}
    compared = sparse = 0
    changed, foreign = [], []
    known: dict[tuple[str, int], str] = {}
    for layer in layers:
        site = sites[layer.name]
        if not isinstance(site.weight, TracedWeight) or why_not_eligible(site):
            continue
        tensor = _parameter_of(site.weight, parameters)
        if tensor is None or tuple(tensor.shape) != layer.weight_shape:
            foreign.append(layer.name)
            continue
        key = (layer.weight, site.k_axis)
        if key not in known:
            reader = _ParameterReader(array_of(tensor))
            known[key] = scan_pattern(reader, site.weight, site.k_axis).mask_hash
        compared += 1
        sparse += layer.state is SparsityState.SPARSE
        if known[key] != layer.mask_hash:
            changed.append(layer.weight)
    return MaskCheck(compared, sparse, tuple(dict.fromkeys(changed)), tuple(foreign))


def _parameter_of(weight: TracedWeight, parameters: Mapping[str, Any]) -> Any:
    """The parameter that a weight is by its name, or the rows of it; None where there is none."""
    part = part_of(weight.tensor)
    if part is None:
        return parameters.get(weight.name)
    whole = parameters.get(part.name)
    if whole is None or tuple(whole.shape) != tuple(part.whole.shape.numpy()):
        return None
    return whole[part.start : part.stop]


def array_of(tensor: Any) -> Array:
    """A view of a PyTorch tensor on the CPU; BF16, which NumPy has not, in ml_dtypes' type."""
    plain = tensor.detach().cpu().contiguous()
    if str(plain.dtype) == "torch.bfloat16":
        import ml_dtypes
        import torch

        bits: Array = plain.view(torch.uint16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: Array = plain.numpy()
    return array
