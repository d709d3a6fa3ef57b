"""Prunes a file and reads what came of it, for the tests of `prune`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from sparseflow_trt.exporters.pruning.prune import PruneReport, prune_model
from sparseflow_trt.model.model_file import read_model

if TYPE_CHECKING:
    from tests.conftest import Array


def random_weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def prune(path: Path, **options: Any) -> tuple[PruneReport, onnx.ModelProto]:
    """Prunes a file; checks that it and its data files stay as they were."""
    before = hashes_of(path.parent)
    output = path.parent / "out" / "pruned.onnx"
    output.parent.mkdir(exist_ok=True)
    report = prune_model(read_model(path), output, **options)
    assert hashes_of(path.parent) == before
    proto = onnx.ModelProto()
    proto.ParseFromString(output.read_bytes())
    return report, proto


def hashes_of(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir() if f.is_file()}


def values_in(proto: onnx.ModelProto, folder: Path, like: Mapping[str, Array]) -> dict[str, Array]:
    """Each initializer's values, read by hand."""
    found = {}
    for tensor in proto.graph.initializer:
        data = tensor.raw_data
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            begin = int(entries.get("offset", 0))
            size = like[tensor.name].nbytes
            data = (folder / entries["location"]).read_bytes()[begin : begin + size]
        if tensor.name in like:
            found[tensor.name] = np.frombuffer(data, like[tensor.name].dtype).reshape(tensor.dims)
    return found


def check_same(a: Array, b: Array) -> None:
    assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, np.ascontiguousarray(b).tobytes())


MATMUL = [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")]
