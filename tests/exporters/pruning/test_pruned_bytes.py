"""A weight's bytes, pruned in pieces: the same wherever it is cut, and whoever comes to a piece first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from sparseflow_trt.errors import ModelError
from sparseflow_trt.exporters.pruning import pruned_bytes
from sparseflow_trt.exporters.pruning.pruned_bytes import Target, prune_file, prune_tensor
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.pattern import Zeros, prune_2to4
from sparseflow_trt.model.scan import WeightReader, lay_out
from sparseflow_trt.model.sites import find_sites
from sparseflow_trt.model.weights import TracedWeight

if TYPE_CHECKING:
    from tests.conftest import Array, Models, Naive

_BEHIND_A_CHAIN = [
    helper.make_node("Transpose", ["w"], ["t"]),
    helper.make_node("Reshape", ["t", "shape"], ["v"]),
    helper.make_node("MatMul", ["x", "v"], ["y"]),
]


def _weight(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(3).normal(size=shape).astype(dtype)


def _targets(path: Path) -> list[Target]:
    targets = []
    for site in find_sites(read_model(path)):
        assert isinstance(site.weight, TracedWeight)
        tensor = site.weight.tensor
        begin = (tensor.offset or 0) if isinstance(tensor, ir.ExternalTensor) else 0
        targets.append(Target(site.weight, site.k_axis, begin))
    return targets


def _prune_tensor(path: Path, sizes: list[int] | None = None) -> tuple[bytes, Zeros]:
    (target,) = _targets(path)
    with WeightReader() as reader:
        return prune_tensor(reader, target, (sizes if sizes is not None else []).append)


@pytest.fixture(params=[4, 12, 64, 1000, 1 << 18])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many elements are pruned at a time, and bytes copied."""
    monkeypatch.setattr(pruned_bytes, "_PRUNED_ELEMENTS", request.param)
    monkeypatch.setattr(pruned_bytes, "_COPIED_BYTES", request.param)
    return int(request.param)


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_pieces_add_up(models: Models, cut: int, op: str) -> None:
    axis = 0 if op == "MatMul" else 1
    weight = _weight(64, 40) if axis == 0 else _weight(40, 64)
    attributes: dict[str, Any] = {} if axis == 0 else {"transB": 1}
    path = models.save(models.model([helper.make_node(op, ["x", "w"], ["y"], **attributes)], {"w": weight}))
    sizes: list[int] = []
    data, zeros = _prune_tensor(path, sizes)
    assert data == prune_2to4(weight, axis).tobytes()
    assert zeros == Zeros(0, weight.size // 2)
    assert sum(sizes) == weight.nbytes
    assert max(sizes) <= max(cut, 4 * (40 if axis == 0 else 1)) * weight.itemsize


def test_a_file_keeps_every_other_byte(models: Models, cut: int) -> None:
    weights = {
        "a": _weight(64, 24),
        "b": _weight(64, 24, dtype=np.float16),
        "c": prune_2to4(_weight(64, 24, dtype=ml_dtypes.bfloat16), 0),
        "d": np.random.default_rng(0).integers(-100, 100, (64, 24)).astype(np.int8),
    }
    nodes = [helper.make_node("Cast", [name], [f"{name}v"], to=1) for name in weights]
    nodes += [helper.make_node("MatMul", ["x", f"{name}v"], [f"y{name}"]) for name in weights]
    model = models.model(nodes, weights, outputs=[f"y{name}" for name in weights])
    models.externalize(model, dict.fromkeys(weights, "w.bin"), padding=7)  # so that nothing is aligned
    source, output = models.folder / "w.bin", models.folder / "out.bin"
    with source.open("ab") as stream:
        stream.write(b"the end")
    output.write_bytes(bytes(1 << 20))  # longer than what is written over it
    targets = _targets(models.save(model))
    sizes: list[int] = []
    with WeightReader() as reader:
        zeros = prune_file(reader, source, output, targets, sizes.append)
    expected = b"".join(b"\xa5" * 7 + prune_2to4(weight, 0).tobytes() for weight in weights.values())
    assert output.read_bytes() == expected + b"the end"
    assert sum(sizes) == len(expected) + 7
    for weight, found in zip(weights.values(), zeros, strict=True):
        assert found.before == np.count_nonzero(weight == 0)
        assert found.added == np.count_nonzero(weight) - np.count_nonzero(prune_2to4(weight, 0))
    assert zeros[2] == Zeros(32 * 24, 0)


def test_a_file_without_weights_is_copied(models: Models) -> None:
    source, output = models.folder / "source", models.folder / "output"
    for data in (b"", b"0123456789" * 1000):
        source.write_bytes(data)
        with WeightReader() as reader:
            assert prune_file(reader, source, output, [], lambda size: None) == []
        assert output.read_bytes() == data


def test_zero_points_are_cut_with_their_weight(models: Models, naive: Naive, cut: int) -> None:
    weight = np.random.default_rng(0).integers(0, 256, (64, 24), np.uint8)
    zero = np.random.default_rng(1).integers(0, 256, 24, np.uint8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"], axis=1),
        helper.make_node("MatMul", ["x", "v"], ["y"]),
    ]
    path = models.save(models.model(nodes, {"w": weight, "s": np.ones(24, np.float32), "z": zero}))
    data, zeros = _prune_tensor(path)
    expected = naive.prune(weight, 0, zero[None, :])
    assert data == expected.tobytes()
    assert zeros.before == np.count_nonzero(weight == zero)
    assert zeros.added == np.count_nonzero(weight != expected)


@pytest.mark.parametrize("external", [False, True])
def test_a_weight_that_cannot_be_cut_is_pruned_whole(
    models: Models, naive: Naive, cut: int, external: bool
) -> None:
    weight = _weight(16, 128)
    model = models.model(_BEHIND_A_CHAIN, {"w": weight, "shape": np.array([64, 32], np.int64)})
    if external:
        models.externalize(model, {"w": "w.bin"}, padding=5)
    (target,) = targets = _targets(models.save(model))
    output = models.folder / "out.bin"
    with WeightReader() as reader:
        assert not lay_out(reader.stored_array(target.weight.tensor), target.weight, target.k_axis).in_place
        if external:
            (zeros,) = prune_file(reader, models.folder / "w.bin", output, targets, lambda size: None)
            data = output.read_bytes()[5:]
        else:
            data, zeros = prune_tensor(reader, target, lambda size: None)
    operand = weight.T.reshape(64, 32)
    expected = naive.prune(operand, 0).reshape(128, 16).T
    assert (data, zeros) == (np.ascontiguousarray(expected).tobytes(), Zeros(0, weight.size // 2))


def test_nan_that_stays_is_not_counted(models: Models) -> None:
    weight = np.zeros((16, 128), np.float32)
    weight[3, 5] = np.nan
    path = models.save(models.model(_BEHIND_A_CHAIN, {"w": weight, "shape": np.array([64, 32], np.int64)}))
    assert _prune_tensor(path) == (weight.tobytes(), Zeros(weight.size - 1, 0))


def test_short_reads_and_writes_are_gone_on_with(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a network's file system may make them."""
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda file, data, at: read(file, [data[0][:999]], at))
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:777], at))
    weight = _weight(64, 40)
    path = models.matmul(weight)
    output = models.folder / "out.onnx"
    with WeightReader() as reader:
        prune_file(reader, path, output, _targets(path), lambda size: None)
    assert output.read_bytes() == path.read_bytes().replace(weight.tobytes(), prune_2to4(weight, 0).tobytes())


def test_a_source_that_shrinks_is_an_error(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruned_bytes, "_COPIED_BYTES", 10)
    source = models.folder / "source"
    source.write_bytes(bytes(100_000))

    def shrink(size: int) -> None:
        with source.open("r+b") as stream:
            stream.truncate(10)

    with WeightReader() as reader, pytest.raises(ModelError, match="source became shorter while it was read"):
        prune_file(reader, source, models.folder / "output", [], shrink)


def test_an_output_without_room_is_an_error(models: Models) -> None:
    source = models.folder / "source"
    source.write_bytes(bytes(100_000))
    with WeightReader() as reader, pytest.raises(OSError, match="No space left"):
        prune_file(reader, source, Path("/dev/full"), [], lambda size: None)
