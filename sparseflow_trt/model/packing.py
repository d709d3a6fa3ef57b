"""The packed form of 2:4 weights: two values of each group of four, and two bits for where each stood.

This is what an engine keeps of a layer that runs in the plugin (plugins/sparse_linear), 9/16 of the dense
16-bit weight; packed.h there is the same in C++. A pair is always in rising order and never empty: a group
with fewer than two non-zeros keeps its first zeros beside them. So each 2:4 weight has one packed form.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparseflow_trt.model.pattern import GROUP, KEPT, Array, nonzero

GROUPS_A_BYTE = 2
MULTIPLE = 16  # of N and K, in the plugin
ROWS = 8  # cuSPARSELt takes M that are multiples of that: what calls it pads, or splits
_ELEMENTS_AT_ONCE = 1 << 19  # of each thread: what is made of them stays in a core's cache


def why_not_in_plugin(n: int, k: int) -> str:
    """Why a product of N and K cannot run in the plugin, "" where it can: cuSPARSELt takes not every size."""
    if n % MULTIPLE or k % MULTIPLE:
        return f"N={n} and K={k} are not both multiples of {MULTIPLE}"
    return ""


def round_up(m: int) -> int:
    """The next multiple of ROWS that holds m rows."""
    return -(-m // ROWS) * ROWS


@dataclass(frozen=True)
class Packed24:
    """A weight W[N, K], 2:4 along K.

    Attributes:
        values: [N, K/2], of the weight's type: the kept elements in the order of K.
        indices: [N, K/8], uint8: two groups a byte, the first one in the low nibble; in a nibble the
            position of the first kept element is in bits 0 and 1, that of the second in bits 2 and 3.
    """

    values: Array
    indices: npt.NDArray[np.uint8]

    @property
    def n(self) -> int:
        """Rows of the weight."""
        return int(self.values.shape[0])

    @property
    def k(self) -> int:
        """Columns of the weight."""
        return int(self.values.shape[1]) * GROUP // KEPT

    @property
    def nbytes(self) -> int:
        """The bytes of both parts."""
        return self.values.nbytes + self.indices.nbytes


def _pairs_of_masks() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """For each of the 16 ways in which four are zero or not: the pair kept, and whether that is all."""
    pairs, fits = np.zeros((16, KEPT), np.uint8), np.zeros(16, np.bool_)
    for mask in range(16):
        held = [i for i in range(GROUP) if mask >> i & 1]
        free = [i for i in range(GROUP) if not mask >> i & 1]
        pairs[mask] = sorted((held + free)[:KEPT])
        fits[mask] = len(held) <= KEPT
    return pairs, fits


_PAIRS, _FITS = _pairs_of_masks()
_NIBBLES = _PAIRS[:, 0] | _PAIRS[:, 1] << 2
# Four bytes that are 0 or 1, as one little-endian number: this puts them into bits 24 to 27, in their order.
_GATHER = np.uint32(1 << 24 | 1 << 17 | 1 << 10 | 1 << 3)


def pack_2to4(weight: Array) -> Packed24:
    """Packs a weight. What it keeps is kept bit for bit; a zero that is left out comes back as +0.

    Args:
        weight: [N, K], of a floating type or INT8, K a multiple of 8.

    Raises:
        ValueError: It has another shape, or a group holds more than two non-zeros.
        TypeError: A dtype for which zero is not defined here.
    """
    if weight.ndim != 2 or weight.shape[1] % (GROUP * GROUPS_A_BYTE):
        raise ValueError(
            f"a weight of shape {list(weight.shape)} is not packed: [N, K] is, with K a multiple of 8"
        )
    n, k = weight.shape
    values = np.empty((n, k // GROUP * KEPT), weight.dtype)
    indices = np.empty((n, k // (GROUP * GROUPS_A_BYTE)), np.uint8)

    def pack(rows: slice) -> None:
        groups = np.ascontiguousarray(weight[rows]).reshape(-1, GROUP)
        masks = (nonzero(groups).view(np.uint32).reshape(-1) * _GATHER) >> np.uint32(24) & np.uint32(15)
        if not _FITS[masks].all():
            row = rows.start + int(np.argmin(_FITS[masks])) * GROUP // k
            raise ValueError(f"row {row} holds a group with more than {KEPT} non-zeros: it is not 2:4")
        values[rows] = _kept(groups, masks).reshape(-1, values.shape[1])
        nibbles = _NIBBLES[masks].reshape(-1, GROUPS_A_BYTE)
        indices[rows] = (nibbles[:, 0] | nibbles[:, 1] << 4).reshape(-1, indices.shape[1])

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(pack, _row_blocks(n, k)):
            pass
    return Packed24(values, indices)


def _kept(groups: Array, masks: npt.NDArray[np.uint32]) -> Array:
    """The two elements kept of each group [G, 4], as [G, 2]."""
    size = groups.dtype.itemsize
    if GROUP * size > np.dtype(np.uint64).itemsize:
        return np.take_along_axis(groups, _PAIRS[masks].astype(np.intp), 1)
    # a group is one number: shifted, its low bits are the element
    whole = groups.view(f"<u{GROUP * size}").reshape(-1)
    shifts = (_PAIRS.T * np.uint8(8 * size)).astype(whole.dtype)
    bits = np.empty((len(whole), KEPT), f"<u{size}")
    for place in range(KEPT):
        bits[:, place] = whole >> shifts[place][masks]
    return bits.view(groups.dtype)


def unpack_2to4(packed: Packed24) -> Array:
    """The weight [N, K] that was packed.

    Raises:
        ValueError: The parts do not fit each other, or a pair is not in rising order.
    """
    n, k = packed.n, packed.k
    if packed.indices.shape != (n, k // (GROUP * GROUPS_A_BYTE)) or k % (GROUP * GROUPS_A_BYTE):
        raise ValueError(
            f"values {list(packed.values.shape)} and indices {list(packed.indices.shape)} do not fit"
        )
    weight = np.zeros((n, k), packed.values.dtype)
    for rows in _row_blocks(n, k):
        nibbles = np.stack([packed.indices[rows] & 15, packed.indices[rows] >> 4], -1).reshape(-1)
        pairs = np.stack([nibbles & 3, nibbles >> 2], -1)
        if not (pairs[:, 0] < pairs[:, 1]).all():
            raise ValueError("its indices are not in rising order")
        groups = weight[rows].reshape(-1, GROUP)
        np.put_along_axis(groups, pairs.astype(np.intp), packed.values[rows].reshape(-1, KEPT), 1)
    return weight


def _row_blocks(n: int, k: int) -> list[slice]:
    step = max(1, _ELEMENTS_AT_ONCE // max(k, 1))
    return [slice(begin, min(begin + step, n)) for begin in range(0, n, step)]
