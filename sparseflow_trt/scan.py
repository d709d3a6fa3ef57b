"""Reads weights once, memory-mapped and in pieces, and says what their 2:4 pattern is."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from sparseflow_trt import pattern
from sparseflow_trt.pattern import Array
from sparseflow_trt.weights import TracedWeight

if TYPE_CHECKING:
    from types import TracebackType

    import onnx_ir as ir

PIECE_ELEMENTS = 1 << 20  # scanned at a time; a core's share of cache holds it. Part of the mask hash.


@dataclass(frozen=True)
class PatternScan:
    """What one pass over a weight's bytes found.

    Attributes:
        groups: How many groups of four along K there are.
        violating: How many of them hold more than two non-zeros.
        first: Where the first of those begins, as an index into the stored array; None where the
            stored array has no such index (its layout is not a permutation of the operand's).
        mask_hash: SHA-256 over the packed non-zero positions in memory order, per piece.
    """

    groups: int
    violating: int
    first: tuple[int, ...] | None
    mask_hash: str


class Layout(NamedTuple):
    """An operand seen as (outer, K, inner) in memory order, so that it is scanned front to back.

    `k_axes` are the axes of the stored array that K lies on; empty where it cannot be said because
    the operand is a copy (`in_place` is False then).
    """

    array: Array
    k_axes: tuple[int, ...]
    in_place: bool


class WeightReader:
    """Maps each external data file once. Use as a context manager; its arrays are read-only."""

    def __init__(self) -> None:
        self._maps: dict[str, mmap.mmap] = {}

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._maps.clear()  # a map closes when the last array on it goes

    def stored_array(self, tensor: ir.TensorProtocol) -> Array:
        """The tensor's values in stored layout; of external data nothing is read yet."""
        import onnx_ir as ir

        shape = tuple(int(d) for d in tensor.shape.numpy())
        if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth < 8 or 0 in shape:
            return tensor.numpy()
        count = int(np.prod(shape, dtype=np.int64))
        mapped = self._map(os.fspath(tensor.path))
        return np.frombuffer(mapped, tensor.dtype.numpy(), count, tensor.offset or 0).reshape(shape)

    def release(self, tensor: ir.TensorProtocol, start: int, stop: int) -> None:
        """Gives the pages of bytes start..stop of an external tensor back to the system."""
        import onnx_ir as ir

        mapped = self._maps.get(os.fspath(tensor.path)) if isinstance(tensor, ir.ExternalTensor) else None
        if mapped is None or not isinstance(tensor, ir.ExternalTensor):
            return
        base = tensor.offset or 0
        begin, end = ((base + at) // mmap.PAGESIZE * mmap.PAGESIZE for at in (start, stop))
        if end > begin:
            mapped.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def _map(self, path: str) -> mmap.mmap:
        if path not in self._maps:
            with Path(path).open("rb") as stream:
                self._maps[path] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[path]


def lay_out(stored: Array, weight: TracedWeight, k_axis: int) -> Layout:
    """Arranges a weight along `k_axis`, an axis of the operand as its node sees it."""
    operand = weight.operand(stored)
    in_place = operand.size > 0 and np.may_share_memory(operand, stored)
    axes: tuple[int, ...] = ()
    if in_place:
        begin = operand.strides[k_axis]
        end = begin * operand.shape[k_axis]
        axes = tuple(
            i
            for i, (size, stride) in enumerate(zip(stored.shape, stored.strides, strict=True))
            if size > 1 and stride < end and begin < stride * size
        )
    order = sorted(range(operand.ndim), key=lambda i: -operand.strides[i])
    ordered = np.ascontiguousarray(operand.transpose(order))
    at = order.index(k_axis)
    outer = int(np.prod(ordered.shape[:at], dtype=np.int64))
    inner = int(np.prod(ordered.shape[at + 1 :], dtype=np.int64))
    return Layout(ordered.reshape(outer, ordered.shape[at], inner), axes, in_place)


def scan_pattern(reader: WeightReader, weight: TracedWeight, k_axis: int) -> PatternScan:
    """Counts the 2:4 violations of a weight along `k_axis` in one pass over its bytes, on all cores.

    Raises:
        ValueError: K is not a multiple of four.
        TypeError: The dtype has no 2:4 pattern here.
    """
    stored = reader.stored_array(weight.tensor)
    layout = lay_out(stored, weight, k_axis)
    _, k, inner = layout.array.shape
    zero_point = _zero_point_like(layout, weight, k_axis, stored)
    itemsize = stored.itemsize

    def scan(piece: Piece) -> tuple[pattern.GroupCount, bytes]:
        zero = zero_point if isinstance(zero_point, int) else zero_point[piece]
        mask = pattern.nonzero(layout.array[piece], zero)
        counted = pattern.count_groups(mask)
        bits = np.packbits(mask.reshape(-1)).tobytes()
        if layout.in_place:
            begin = (piece[0].start * k + piece[1].start) * inner * itemsize
            reader.release(weight.tensor, begin, begin + mask.size * itemsize)
        return counted, bits

    digest = hashlib.sha256()
    groups = violating = 0
    first: int | None = None
    for piece, (counted, bits) in map_pieces(scan, layout.array):
        digest.update(bits)
        if first is None and counted.first is not None:
            first = (piece[0].start * k + piece[1].start) * inner + counted.first
        groups += counted.groups
        violating += counted.violating
    where = None
    if first is not None and layout.in_place:
        where = tuple(int(i) for i in np.unravel_index(first, stored.shape))
    return PatternScan(groups, violating, where, digest.hexdigest())


def prune_pieces(reader: WeightReader, weight: TracedWeight, k_axis: int) -> Iterator[tuple[memoryview, int]]:
    """Prunes a weight 2:4 along `k_axis`; gives its stored bytes in order, piece by piece.

    Yields:
        The bytes of a piece, and how many elements were set to zero in it.

    Raises:
        ValueError: K is not a multiple of four.
        TypeError: The dtype has no 2:4 pattern here.
    """
    stored = reader.stored_array(weight.tensor)
    layout = lay_out(stored, weight, k_axis)
    if not layout.in_place:  # a Reshape behind a Transpose: no piece of it is contiguous in the file
        zero = weight.zero_point
        spread = zero if isinstance(zero, int) else weight.operand(np.broadcast_to(zero, stored.shape))
        before = weight.operand(stored)
        after = pattern.prune_2to4(before, k_axis, spread)
        whole = np.ascontiguousarray(weight.stored(after))
        yield _bytes_of(whole), int(np.count_nonzero(_bits(before) != _bits(after)))
        return
    zero_point = _zero_point_like(layout, weight, k_axis, stored)
    _, k, inner = layout.array.shape

    def prune(piece: Piece) -> tuple[memoryview, int]:
        zero = zero_point if isinstance(zero_point, int) else zero_point[piece]
        before = layout.array[piece]
        after = pattern.prune_2to4(before, 1, zero)
        dropped = int(np.count_nonzero(_bits(before) != _bits(after)))
        begin = (piece[0].start * k + piece[1].start) * inner * stored.itemsize
        reader.release(weight.tensor, begin, begin + after.nbytes)
        return _bytes_of(after), dropped

    for _, result in map_pieces(prune, layout.array, PIECE_ELEMENTS // 4):  # it has more intermediates
        yield result


Piece = tuple[slice, slice]
_Result = TypeVar("_Result")


def map_pieces(
    work: Callable[[Piece], _Result], array: Array, elements: int | None = None
) -> Iterator[tuple[Piece, _Result]]:
    """Runs `work` on every piece of an (outer, K, inner) array, on all cores; results come in order.

    Only a few pieces are under way at a time, so that memory does not grow with the array.
    """
    cores = len(os.sched_getaffinity(0))
    under_way: deque[tuple[Piece, Future[_Result]]] = deque()
    with ThreadPoolExecutor(cores) as threads:
        outer, k, inner = array.shape
        for piece in _pieces(outer, k, inner, elements or PIECE_ELEMENTS):
            under_way.append((piece, threads.submit(work, piece)))
            if len(under_way) > 2 * cores:
                done, result = under_way.popleft()
                yield done, result.result()
        for done, result in under_way:
            yield done, result.result()


def _bits(array: Array) -> Array:
    return array.view(f"u{array.dtype.itemsize}")


def _bytes_of(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _zero_point_like(layout: Layout, weight: TracedWeight, k_axis: int, stored: Array) -> Array | int:
    if isinstance(weight.zero_point, int):
        return weight.zero_point
    spread = np.broadcast_to(weight.zero_point, stored.shape)  # per axis: small models only, copied below
    return lay_out(np.ascontiguousarray(spread), weight, k_axis).array


def _pieces(outer: int, k: int, inner: int, elements: int) -> Iterator[Piece]:
    """Cuts (outer, K, inner) into contiguous pieces of whole groups, in memory order."""
    if k * inner <= elements:
        step = max(1, elements // max(k * inner, 1))
        for begin in range(0, outer, step):
            yield slice(begin, min(begin + step, outer)), slice(0, k)
        return
    step = max(1, elements // (pattern.GROUP * inner)) * pattern.GROUP
    for row in range(outer):
        for begin in range(0, k, step):
            yield slice(row, row + 1), slice(begin, min(begin + step, k))
