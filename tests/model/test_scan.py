"""Reading weights: in pieces, from files, without holding them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from sparseflow_trt.model import scan
from sparseflow_trt.model.graph import WeightedLayer, read_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.scan import WeightReader, lay_out, map_pieces, run_in_order, scan_pattern
from sparseflow_trt.model.sites import LayerSite, find_sites
from sparseflow_trt.model.weights import TracedWeight

if TYPE_CHECKING:
    from tests.conftest import Array, Models, Naive


def _weight(*shape: int, zeros: float = 0.5, dtype: str = "float32") -> Array:
    random = np.random.default_rng(3)
    values = random.normal(size=shape) * (random.random(shape) >= zeros)
    return values.astype(dtype)


def _site(path: Path) -> tuple[LayerSite, TracedWeight]:
    (site,) = find_sites(read_model(path))
    assert isinstance(site.weight, TracedWeight)
    return site, site.weight


def _read(path: Path) -> WeightedLayer:
    (layer,) = read_layers(read_model(path))
    return layer


@pytest.mark.parametrize("piece", [4, 12, 64, 1000, 1 << 20])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_pieces_add_up(
    models: Models, naive: Naive, monkeypatch: pytest.MonkeyPatch, piece: int, op: str
) -> None:
    monkeypatch.setattr(scan, "PIECE_ELEMENTS", piece)
    axis = 0 if op == "MatMul" else 1
    weight = _weight(64, 40) if axis == 0 else _weight(40, 64)
    attributes: dict[str, Any] = {} if axis == 0 else {"transB": 1}
    path = models.save(models.model([helper.make_node(op, ["x", "w"], ["y"], **attributes)], {"w": weight}))
    layer = _read(path)
    violating = naive.violating(weight, axis)
    assert (layer.groups, layer.violating) == (len(violating), sum(violating))
    outer, group = divmod(violating.index(True), 40 if axis == 0 else 16)
    assert layer.first == ((4 * outer, group) if axis == 0 else (outer, 4 * group))


@pytest.mark.parametrize("padding", [0, 1, 4096])
def test_a_mask_has_one_hash_wherever_it_lies(models: Models, padding: int) -> None:
    weight = _weight(256, 128, dtype="float16")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    inline = _read(models.save(models.model([node], {"w": weight})))
    model = models.model([node], {"w": weight})
    models.externalize(model, {"w": "w.bin"}, padding)
    external = _read(models.save(model))
    assert external == inline
    other = np.where(weight == 0, 0, 7).astype(np.float16)  # other values in the same places
    assert _read(models.matmul(other)).mask_hash == inline.mask_hash
    other[0, 0] = 0 if other[0, 0] else 1
    assert _read(models.matmul(other)).mask_hash != inline.mask_hash
    assert len(inline.mask_hash) == 64


@given(outer=st.integers(0, 5), groups=st.integers(0, 5), inner=st.integers(0, 5), size=st.integers(1, 50))
def test_pieces_cover_an_array_once_in_order(outer: int, groups: int, inner: int, size: int) -> None:
    array = np.arange(outer * groups * 4 * inner).reshape(outer, groups * 4, inner)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "PIECE_ELEMENTS", size)
        results = list(map_pieces(lambda piece: array[piece].copy(), array))
    flat = [result.reshape(-1) for _, result in results]
    np.testing.assert_array_equal(np.concatenate(flat) if flat else [], array.reshape(-1))
    assert all(result.shape[1] % 4 == 0 for _, result in results)
    assert all(result.size <= max(size, 4 * inner) for _, result in results)


def test_an_error_in_a_piece_arrives() -> None:
    def fail(piece: scan.Piece) -> None:
        raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        list(map_pieces(fail, np.zeros((3, 4, 1))))


def test_results_come_in_order_and_tasks_are_not_taken_far_ahead() -> None:
    cores = len(os.sched_getaffinity(0))
    taken = 0

    def tasks() -> Iterator[Callable[[], int]]:
        nonlocal taken
        for i in range(20 * cores):
            taken += 1
            yield partial(wait, i)

    def wait(i: int) -> int:
        time.sleep(0.002 if i % 2 else 0)  # every other one is overtaken
        return i

    for i, result in enumerate(run_in_order(tasks())):
        assert result == i
        assert taken <= i + 2 * cores + 1
    assert taken == 20 * cores


def test_no_thread_stays_behind_an_early_end() -> None:
    before = threading.active_count()
    results = run_in_order(partial(int, i) for i in range(100))
    assert isinstance(results, Generator)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before


def _scan_begin(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[scan.PatternScan, list[int]]:
    """A scan for the state alone, and where the pieces that it read began."""
    read: list[int] = []
    real = WeightReader.release

    def release(reader: WeightReader, tensor: Any, start: int, stop: int) -> None:
        read.append(start)
        real(reader, tensor, start, stop)

    monkeypatch.setattr(WeightReader, "release", release)
    site, traced = _site(path)
    with WeightReader() as reader:
        return scan_pattern(reader, traced, site.k_axis, state_only=True), sorted(read)


def test_a_dense_weight_is_read_only_at_its_beginning_for_its_state(
    models: Models, naive: Naive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "PIECE_ELEMENTS", 64)
    weight = _weight(64, 40, zeros=0.0)
    found, read = _scan_begin(models.matmul(weight), monkeypatch)
    assert read == [0]
    assert (found.violating, found.groups, found.whole, found.first) == (40, 40, False, (0, 0))


def test_a_2to4_weight_is_read_whole_for_its_state(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "PIECE_ELEMENTS", 64)
    weight = _weight(64, 40, zeros=0.0)
    weight.reshape(16, 4, 40)[:, 1:3] = 0
    site, traced = _site(path := models.matmul(weight))
    with WeightReader() as reader:
        whole = scan_pattern(reader, traced, site.k_axis)
    found, read = _scan_begin(path, monkeypatch)
    assert found == whole
    assert len(read) == 16
    weight[-1, -2:] = weight[-2, -2:] = weight[-3, -2:] = 1  # at its very end
    found, read = _scan_begin(models.matmul(weight), monkeypatch)
    assert (found.violating, found.whole, found.first) == (2, False, (60, 38))


def test_external_weights_are_maps_of_the_file(models: Models) -> None:
    weight = _weight(64, 32)
    model = models.model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight})
    models.externalize(model, {"w": "w.bin"}, padding=3)  # not even aligned
    _, traced = _site(models.save(model))
    with WeightReader() as reader:
        array = reader.stored_array(traced.tensor)
        np.testing.assert_array_equal(array, weight)
        assert not array.flags.writeable
        assert not array.flags.owndata
        reader.release(traced.tensor, 0, array.nbytes)
        np.testing.assert_array_equal(array, weight)


def test_a_weight_that_is_transposed_is_not_copied(models: Models) -> None:
    nodes = [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    site, traced = _site(models.save(models.model(nodes, {"w": _weight(32, 64)})))
    with WeightReader() as reader:
        stored = reader.stored_array(traced.tensor)
        layout = lay_out(stored, traced, site.k_axis)
        assert (layout.in_place, layout.array.shape, layout.k_axes) == (True, (32, 64, 1), (1,))
        assert np.shares_memory(layout.array, stored)


def test_a_pattern_needs_a_k_and_a_type(models: Models) -> None:
    for weight, error in ((_weight(66, 32), ValueError), (np.ones((64, 32), np.int32), TypeError)):
        site, traced = _site(models.matmul(weight))
        with WeightReader() as reader, pytest.raises(error):
            scan_pattern(reader, traced, site.k_axis)


_MEASURE = """
import os
import sys
from pathlib import Path
from sparseflow_trt.exporters.pruning.prune import prune_model
from sparseflow_trt.model.graph import read_layers
from sparseflow_trt.model.model_file import read_model

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # each core holds a few pieces
small, large, output = map(Path, sys.argv[1:])
prune_model(read_model(small), output)  # imports everything
read_layers(read_model(small))
before = peak()
(layer,) = read_layers(read_model(large))
read = peak() - before
assert layer.groups == layer.k * layer.n // 4, layer
if large.name == "both.onnx":
    prune_model(read_model(large), output)
print(read, peak() - before)
"""


@pytest.mark.parametrize(("name", "rows"), [("read.onnx", 1 << 15), ("both.onnx", 1 << 13)])
def test_memory_does_not_grow_with_the_weights(models: Models, name: str, rows: int) -> None:
    small = models.matmul(_weight(64, 32), "small.onnx")
    columns = 8192
    model = models.model([helper.make_node("MatMul", ["x", "w"], ["y"])], {})
    size = rows * columns * 2
    with (models.folder / "w.bin").open("wb") as stream:
        stream.truncate(size)  # a hole as long: 512 MiB take no room on the disk
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT16, dims=[rows, columns])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    model.graph.initializer.append(tensor)
    large = models.save(model, name)
    command = [sys.executable, "-c", _MEASURE, str(small), str(large), str(models.folder / "out.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    read, both = map(float, done.stdout.split())
    assert read < 80, f"reading {size >> 20} MiB took {read:.0f} MiB"
    assert both < 100, f"pruning {size >> 20} MiB took {both:.0f} MiB"
