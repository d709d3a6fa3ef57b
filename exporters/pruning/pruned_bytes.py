"""The bytes of weights, pruned: in memory, or on their way from one file to another.

All cores share the work. Whichever comes to a piece of a file reads it, prunes it and writes it where it
belongs, so that reading, pruning and writing go on at once and memory does not grow with the model.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparseflow_trt.errors import ModelError
from sparseflow_trt.model.pattern import Array, Zeros, prune_in_place, scratch_bytes
from sparseflow_trt.model.scan import WeightReader, cut_pieces, lay_out, run_in_order, zero_point_like
from sparseflow_trt.model.weights import TracedWeight

_PRUNED_ELEMENTS = 1 << 18  # at a time: large enough for cores not to wait for each other
_COPIED_BYTES = 1 << 20


class Target(NamedTuple):
    """A weight to prune, the axis of its operand that is K, and where in its file its bytes begin."""

    weight: TracedWeight
    k_axis: int
    begin: int = 0


@dataclass(frozen=True)
class _Piece:
    """A range of bytes, and what prunes it in place: nothing where it belongs to no weight.

    `prune` takes the bytes and `scratch` bytes to work in, both uint8, and gives the number of zeros
    before, and of new ones.
    """

    begin: int
    size: int
    prune: Callable[[Array, Array], Zeros] | None = None
    scratch: int = 0


class _Memory(threading.local):
    """What a thread works in, kept from piece to piece: fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self.data = self.scratch = np.empty(0, np.uint8)

    def hold(self, piece: _Piece) -> tuple[Array, Array]:
        """Room for a piece's bytes, and for what pruning it needs."""
        if self.data.size < piece.size:
            self.data = np.empty(piece.size, np.uint8)
        if self.scratch.size < piece.scratch:
            self.scratch = np.empty(piece.scratch, np.uint8)
        return self.data[: piece.size], self.scratch[: piece.scratch]


def prune_tensor(reader: WeightReader, target: Target, written: Callable[[int], None]) -> tuple[bytes, Zeros]:
    """The bytes of a weight, pruned 2:4 along K, and the number of its zeros before, and of new ones.

    Args:
        reader: Reads the weight.
        target: The weight; it is not changed.
        written: Called with the number of bytes after each piece.

    Raises:
        ValueError: K is not a multiple of four.
        TypeError: The dtype has no 2:4 pattern here.
    """
    data = np.array(reader.stored_array(target.weight.tensor), order="C").reshape(-1).view(np.uint8)
    memory = _Memory()

    def prune(piece: _Piece) -> tuple[int, Zeros]:
        assert piece.prune is not None
        _, scratch = memory.hold(piece)
        return piece.size, piece.prune(data[piece.begin : piece.begin + piece.size], scratch)

    zeros = Zeros()
    for size, found in run_in_order(partial(prune, piece) for piece in _weight_pieces(reader, target)):
        zeros += found
        written(size)
    return data.tobytes(), zeros


def prune_file(
    reader: WeightReader,
    source: Path,
    output: Path,
    targets: Sequence[Target],
    written: Callable[[int], None],
) -> list[Zeros]:
    """Writes `source` to `output` with some of the weights in it pruned 2:4 along K.

    Args:
        reader: Reads the weights.
        source: The file that holds them.
        output: Is written over.
        targets: The weights in the file's order; no two of them overlap.
        written: Called with the number of bytes after each piece.

    Returns:
        For each weight how many of its elements were zero before, and how many were set to zero.

    Raises:
        ModelError: The source became shorter meanwhile.
        OSError: The source cannot be read or the output cannot be written.
        ValueError: K is not a multiple of four.
        TypeError: The dtype has no 2:4 pattern here.
    """
    memory = _Memory()
    zeros = [Zeros()] * (len(targets) + 1)  # the last is of what belongs to no weight
    with source.open("rb") as old, output.open("wb") as new:

        def rewrite(index: int, piece: _Piece) -> tuple[int, Zeros, int]:
            data, scratch = memory.hold(piece)
            _read(old.fileno(), data.data, piece.begin, source)
            found = piece.prune(data, scratch) if piece.prune else Zeros()
            _write(new.fileno(), data.data, piece.begin)
            return index, found, piece.size

        pieces = _file_pieces(reader, targets, os.fstat(old.fileno()).st_size)
        for index, found, size in run_in_order(partial(rewrite, *piece) for piece in pieces):
            zeros[index] += found
            written(size)
    return zeros[:-1]


def _file_pieces(reader: WeightReader, targets: Sequence[Target], size: int) -> Iterator[tuple[int, _Piece]]:
    """A file from its first byte to its last, each piece with the index of its weight, or -1."""
    at = 0
    for index, target in enumerate(targets):
        yield from _copied_pieces(at, target.begin)
        at = target.begin
        for piece in _weight_pieces(reader, target):
            yield index, replace(piece, begin=at)
            at += piece.size
    yield from _copied_pieces(at, size)


def _copied_pieces(begin: int, end: int) -> Iterator[tuple[int, _Piece]]:
    for at in range(begin, end, _COPIED_BYTES):
        yield -1, _Piece(at, min(_COPIED_BYTES, end - at))


def _weight_pieces(reader: WeightReader, target: Target) -> Iterator[_Piece]:
    """A weight's stored bytes from its first to its last."""
    weight, k_axis, _ = target
    stored = reader.stored_array(weight.tensor)
    layout = lay_out(stored, weight, k_axis)
    if not layout.in_place:  # a Reshape behind a Transpose: no piece of it is contiguous in the file
        prune = partial(_prune_whole, weight, k_axis, stored.dtype, stored.shape)
        yield _Piece(0, stored.nbytes, prune, scratch_bytes(stored))
        return
    zero_point = zero_point_like(weight, k_axis, stored)
    begin = 0
    for at in cut_pieces(layout.array.shape, _PRUNED_ELEMENTS):
        values = layout.array[at]
        zero = zero_point if isinstance(zero_point, int) else zero_point[at]
        prune = partial(_prune_piece, values.dtype, values.shape, zero)
        yield _Piece(begin, values.nbytes, prune, scratch_bytes(values))
        begin += values.nbytes


def _prune_piece(
    dtype: np.dtype[Any], shape: tuple[int, ...], zero: Array | int, data: Array, scratch: Array
) -> Zeros:
    return prune_in_place(data.view(dtype).reshape(shape), 1, zero, scratch)


def _prune_whole(
    weight: TracedWeight,
    k_axis: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    data: Array,
    scratch: Array,
) -> Zeros:
    stored = data.view(dtype).reshape(shape)
    operand = weight.operand(stored).copy()
    zero = weight.zero_point
    spread = zero if isinstance(zero, int) else weight.operand(np.broadcast_to(zero, shape))
    zeros = prune_in_place(operand, k_axis, spread, scratch)
    stored[...] = weight.stored(operand)
    return zeros


def _read(file: int, data: memoryview, at: int, path: Path) -> None:
    while data:
        got = os.preadv(file, [data], at)
        if not got:
            raise ModelError(f"{path} became shorter while it was read.", "Run it again.")
        data, at = data[got:], at + got


def _write(file: int, data: memoryview, at: int) -> None:
    while data:
        put = os.pwrite(file, data, at)
        data, at = data[put:], at + put
