"""The blocks of a module: what is calibrated together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparseflow_trt._deps import require
from sparseflow_trt.pytorch.torch_layers import TorchLayer

_NEEDED_FOR = "calibrated pruning"


@dataclass(frozen=True)
class Block:
    """A part of the module whose layers are looked at together.

    Attributes:
        name: Where it stands in the module.
        siblings: The list that it is an element of, "" for a layer by itself.
    """

    name: str
    siblings: str
    layers: tuple[TorchLayer, ...]


def find_blocks(module: Any, layers: Sequence[TorchLayer]) -> list[Block]:
    """The blocks that hold the layers, in the order of the module."""
    torch = require("torch", _NEEDED_FOR)
    parts_of_module = dict(module.named_modules())
    members: dict[tuple[str, str], list[TorchLayer]] = {}
    for layer in layers:
        parts = layer.name.split(".")
        depths = [
            depth
            for kind in (torch.nn.ModuleList, torch.nn.Sequential)
            for depth in range(len(parts))
            if isinstance(parts_of_module[".".join(parts[:depth])], kind)
        ]
        if depths:
            name, siblings = ".".join(parts[: depths[0] + 1]), ".".join(parts[: depths[0]]) or "."
        else:
            name, siblings = layer.name, ""
        members.setdefault((name, siblings), []).append(layer)
    return [Block(name, siblings, tuple(found)) for (name, siblings), found in members.items()]
