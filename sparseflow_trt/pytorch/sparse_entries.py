"""What a checkpoint's tensors are: plain, or parts of sparse weights; and what it says of them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparseflow_trt._schema import load_json
from sparseflow_trt.errors import ModelError
from sparseflow_trt.pytorch.checkpoint_files import Checkpoint
from sparseflow_trt.pytorch.sparse_formats import (
    decode_bitmask,
    decode_modelopt,
    decode_semi_structured,
    form_of,
)
from sparseflow_trt.pytorch.torch_pattern import Tensor

MASKS = "sparseflow_trt.masks"  # in the metadata of a file of ours: {layer: SHA-256 of its mask}, as JSON
_BITMASK = ("compressed", "bitmask", "shape")
_MASK = "_weight_mask"
_QUANTISED = (".weight_scale", ".weight_packed", ".weight_scale_inv", ".weight_zero_point", ".qweight")
_BROKEN = "Get the checkpoint again from where it was written."


@dataclass(frozen=True)
class Entry:
    """A tensor of the plain state: its name, the form it is kept in ("dense": as is), and how it is made."""

    name: str
    form: str
    make: Callable[[], Tensor]


def read_entries(checkpoint: Checkpoint) -> list[Entry]:
    """The tensors of the plain state that a checkpoint holds in whatever form; none is read yet.

    Raises:
        ModelError: It is quantised too, or a sparse weight lacks one of its parts.
    """
    names = set(checkpoint.names)
    if quantised := next((name for name in checkpoint.names if name.endswith(_QUANTISED)), None):
        raise ModelError(
            f"{checkpoint.path} is also quantized ('{quantised}'): only sparse weights are unpacked.",
            "Take the checkpoint from before it was quantized.",
        )
    entries = []
    for name in checkpoint.names:
        layer, _, part = name.rpartition(".")
        parts = [f"{layer}.{each}" for each in _BITMASK]
        if part == "compressed":
            if lacking := [each for each in parts if each not in names]:
                raise ModelError(f"{checkpoint.path}: '{name}' is there, and '{lacking[0]}' is not.", _BROKEN)
            entries.append(Entry(f"{layer}.weight", "sparse-24-bitmask", _bitmask(checkpoint, layer, parts)))
        elif part in ("bitmask", "shape") and f"{layer}.{_BITMASK[0]}" in names:
            continue
        elif part == "bitmask":
            raise ModelError(f"{checkpoint.path}: '{name}' is there, and '{parts[0]}' is not.", _BROKEN)
        elif part == _MASK:
            if f"{layer}.weight" not in names:
                raise ModelError(f"{checkpoint.path}: '{name}' is there, and its weight is not.", _BROKEN)
        elif part == "weight" and f"{layer}.{_MASK}" in names:
            entries.append(Entry(name, "modelopt", _masked(checkpoint, name, f"{layer}.{_MASK}")))
        else:
            entries.append(_as_kept(checkpoint, name))
    return entries


def read_masks(checkpoint: Checkpoint) -> dict[str, str]:
    """The hash of each pruned layer's mask, in a file of ours; nothing in any other.

    Raises:
        ModelError: They cannot be read.
    """
    text = checkpoint.metadata.get(MASKS)
    if text is None:
        return {}
    masks = load_json(text, f"{checkpoint.path}: its masks", ModelError, _BROKEN)
    if not isinstance(masks, dict) or not all(isinstance(value, str) for value in masks.values()):
        raise ModelError(f"{checkpoint.path}: its masks are not a mapping of layers to hashes.", _BROKEN)
    return masks


def read_claims(config: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether compressed-tensors' configuration says of a Linear layer, by its name, that it is 2:4."""
    said = config.get("quantization_config") or config.get("compression_config") or {}
    sparsity = said.get("sparsity_config") if isinstance(said, dict) else None
    if not isinstance(sparsity, dict) or sparsity.get("sparsity_structure") != "2:4":
        return lambda name: False
    targets, ignored = (_patterns(sparsity.get(key)) for key in ("targets", "ignore"))

    def claims(name: str) -> bool:
        return _named(name, targets or ["Linear"]) and not _named(name, ignored)

    return claims


def _patterns(said: Any) -> list[str]:
    return [each for each in said if isinstance(each, str)] if isinstance(said, list) else []


def _named(name: str, patterns: list[str]) -> bool:
    """As compressed-tensors reads them: a class, a layer's whole name, or "re:" with an expression."""
    for each in patterns:
        expression = each.removeprefix("re:")
        if each in ("Linear", name):
            return True
        with contextlib.suppress(re.error):
            if expression != each and re.match(expression, name):
                return True
    return False


def _bitmask(checkpoint: Checkpoint, layer: str, parts: list[str]) -> Callable[[], Tensor]:
    return lambda: decode_bitmask(f"{layer}.weight", *(checkpoint.read(each) for each in parts))


def _masked(checkpoint: Checkpoint, name: str, mask: str) -> Callable[[], Tensor]:
    return lambda: decode_modelopt(name, checkpoint.read(name), checkpoint.read(mask))


def _as_kept(checkpoint: Checkpoint, name: str) -> Entry:
    if not checkpoint.in_memory:
        return Entry(name, "dense", lambda: checkpoint.read(name))  # safetensors hold plain tensors alone
    tensor = checkpoint.read(name)
    form = form_of(tensor)
    return Entry(name, form or "dense", lambda: decode_semi_structured(name, tensor) if form else tensor)
