"""Reads weights once, memory-mapped and in pieces, and says what their 2:4 pattern is."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from sparseflow_trt.model import pattern
from sparseflow_trt.model.pattern import Array
from sparseflow_trt.model.weights import TracedWeight

if TYPE_CHECKING:
    from types import TracebackType

    import onnx_ir as ir

PIECE_ELEMENTS = 1 << 20  # scanned at a time; a core's share of cache holds it. Part of the mask hash.


@dataclass(frozen=True)
class PatternScan:
    """What one pass over a weight's bytes found, or one that ended at the first groups that are not 2:4.

    Attributes:
        groups: How many groups of four along K were read.
        violating: How many of them hold more than two non-zeros.
        zeros: How many elements are zero.
        first: Where the first of those begins, as an index into the stored array; None where the
            stored array has no such index (its layout is not a permutation of the operand's).
        mask_hash: SHA-256 over the packed non-zero positions in memory order, per piece; "" of a weight
            that was not read to its end.
        nan: How many elements are NaN; they count as non-zeros.
    """

    groups: int
    violating: int
    zeros: int
    first: tuple[int, ...] | None
    mask_hash: str
    nan: int

    @property
    def whole(self) -> bool:
        """Whether the weight was read to its end."""
        return bool(self.mask_hash)


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


def scan_pattern(
    reader: WeightReader, weight: TracedWeight, k_axis: int, state_only: bool = False
) -> PatternScan:
    """Counts the 2:4 violations of a weight along `k_axis` in one pass over its bytes, on all cores.

    Args:
        reader: Of the model's weights.
        weight: The weight.
        k_axis: An axis of the operand as its node sees it.
        state_only: Whether the pass ends at the first piece that holds violations, which tells that a weight
            is not 2:4; the counts are then of what was read.

    Raises:
        ValueError: K is not a multiple of four.
        TypeError: The dtype has no 2:4 pattern here.
    """
    stored = reader.stored_array(weight.tensor)
    layout = lay_out(stored, weight, k_axis)
    _, k, inner = layout.array.shape
    zero_point = zero_point_like(weight, k_axis, stored)
    itemsize = stored.itemsize

    def scan(piece: Piece) -> tuple[pattern.GroupCount, int, int, bytes]:
        zero = zero_point if isinstance(zero_point, int) else zero_point[piece]
        mask, nan = pattern.nonzero_and_nan(layout.array[piece], zero)
        counted = pattern.count_groups(mask)
        bits = np.packbits(mask.reshape(-1)).tobytes()
        if layout.in_place:
            begin = (piece[0].start * k + piece[1].start) * inner * itemsize
            reader.release(weight.tensor, begin, begin + mask.size * itemsize)
        return counted, mask.size - int(np.count_nonzero(mask)), nan, bits

    digest = hashlib.sha256()
    groups = violating = zeros = nan = 0
    first: int | None = None
    with closing(map_pieces(scan, layout.array, first_alone=state_only)) as results:
        for piece, (counted, none, broken, bits) in results:
            digest.update(bits)
            if first is None and counted.first is not None:
                first = (piece[0].start * k + piece[1].start) * inner + counted.first
            groups += counted.groups
            violating += counted.violating
            zeros += none
            nan += broken
            if violating and state_only:
                break
    where = None
    if first is not None and layout.in_place:
        where = tuple(int(i) for i in np.unravel_index(first, stored.shape))
    mask_hash = "" if violating and state_only else digest.hexdigest()
    return PatternScan(groups, violating, zeros, where, mask_hash, nan)


def grouping(stored: Array, weight: TracedWeight, k_axis: int) -> object:
    """Equal for uses of one stored weight that see the same groups of four in it."""
    layout = lay_out(stored, weight, k_axis)
    # K's stride in the stored array says which elements form a group
    return layout.array.shape[2] if layout.in_place else (weight.steps, k_axis)


def scan_key(weight: TracedWeight, k_axis: int) -> tuple[object, ...]:
    """Equal for weights whose scans are."""
    return id(weight.tensor), weight.steps, k_axis, weight.zero_key


Piece = tuple[slice, slice]
_Result = TypeVar("_Result")


def map_pieces(
    work: Callable[[Piece], _Result], array: Array, first_alone: bool = False
) -> Generator[tuple[Piece, _Result], None, None]:
    """Runs `work` on every piece of an (outer, K, inner) array, on all cores; results come in order.

    With `first_alone` no other piece is begun before the first one's result was taken: it may be enough.
    """

    def tell(piece: Piece) -> tuple[Piece, _Result]:
        return piece, work(piece)

    tasks = (partial(tell, piece) for piece in cut_pieces(array.shape, PIECE_ELEMENTS))
    for task in islice(tasks, int(first_alone)):
        yield task()
    yield from run_in_order(tasks)


def run_in_order(tasks: Iterable[Callable[[], _Result]]) -> Iterator[_Result]:
    """Runs tasks on all cores; gives their results in the order of the tasks.

    Only a few are under way at a time, so that memory does not grow with their number.
    """
    cores = len(os.sched_getaffinity(0))
    under_way: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(cores) as threads:
        for task in tasks:
            under_way.append(threads.submit(task))
            if len(under_way) > 2 * cores:
                yield under_way.popleft().result()
        for future in under_way:
            yield future.result()


def zero_point_like(weight: TracedWeight, k_axis: int, stored: Array) -> Array | int:
    """A weight's zero point: a number, or an array laid out as the weight is."""
    if isinstance(weight.zero_point, int):
        return weight.zero_point
    spread = np.broadcast_to(weight.zero_point, stored.shape)  # per axis: small models only, copied below
    return lay_out(np.ascontiguousarray(spread), weight, k_axis).array


def cut_pieces(shape: tuple[int, ...], elements: int) -> Iterator[Piece]:
    """Cuts (outer, K, inner) into contiguous pieces of whole groups, in memory order.

    A piece has at most `elements` elements, or one row of groups where that has more.
    """
    outer, k, inner = shape
    if k * inner <= elements:
        step = max(1, elements // max(k * inner, 1))
        for begin in range(0, outer, step):
            yield slice(begin, min(begin + step, outer)), slice(0, k)
        return
    step = max(1, elements // (pattern.GROUP * inner)) * pattern.GROUP
    for row in range(outer):
        for begin in range(0, k, step):
            yield slice(row, row + 1), slice(begin, min(begin + step, k))
