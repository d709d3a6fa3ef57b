"""What the tests of reading a model's layers share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sparseflow_trt.model.graph import SparsityState, WeightedLayer, read_layers
from sparseflow_trt.model.model_file import read_model

if TYPE_CHECKING:
    import onnx

    from tests.conftest import Array


SPARSE, NOT_SPARSE, NOT_ELIGIBLE = SparsityState.SPARSE, SparsityState.NOT_SPARSE, SparsityState.NOT_ELIGIBLE


def random_weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def in_module(node: onnx.NodeProto, module: str) -> onnx.NodeProto:
    """The node as torch's exporter leaves it: it says in the metadata which module it comes from."""
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=f"['', '{module}', 'linear']")
    return node


def layers_of(path: Path) -> tuple[WeightedLayer, ...]:
    return read_layers(read_model(path))


def only_layer(path: Path) -> WeightedLayer:
    (layer,) = layers_of(path)
    return layer
