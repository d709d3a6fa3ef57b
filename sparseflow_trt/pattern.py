"""2:4 arithmetic on arrays: of every aligned group of four elements along K, at most two are non-zero.

Works on bits, not on values, so that one code serves FP32, FP16, BF16, FP8 and INT8: without its sign
bit a float's bits order it by magnitude, and are 0 for +0 and -0 alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

GROUP = 4
KEPT = 2

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class GroupCount:
    """How many groups of four there are, and how many of them hold more than two non-zeros.

    `first` is the flat index (in C order of outer, K, inner) of the first violating group's first
    element, or None.
    """

    groups: int
    violating: int
    first: int | None


def magnitude_bits(values: Array, zero_point: Array | int = 0) -> Array:
    """Unsigned integers that order the elements by magnitude and are 0 exactly for zeros.

    Args:
        values: Any shape; float16/32/64, ml_dtypes' bfloat16 and float8 types, int8 or uint8.
        zero_point: For integers, the value that dequantizes to 0; broadcasts against `values`.

    Raises:
        TypeError: A dtype that is none of these.
    """
    dtype = values.dtype
    if dtype in (np.int8, np.uint8):
        if isinstance(zero_point, int) and zero_point == 0:
            # |-128| does not fit int8, but its bits read as uint8 are 128
            return values if dtype == np.uint8 else np.abs(values).view(np.uint8)
        return np.abs(values.astype(np.int16) - np.asarray(zero_point, np.int16)).astype(np.uint16)
    if dtype.kind != "f" and not _is_ml_float(dtype):
        raise TypeError(f"2:4 is not defined for {dtype}")
    unsigned = np.dtype(f"u{dtype.itemsize}")
    bits = values.view(unsigned)
    mask = unsigned.type((1 << (8 * dtype.itemsize - 1)) - 1)
    magnitude: Array = bits & mask
    if dtype.name.endswith("fnuz"):
        magnitude[bits == 0x80] = 0x7F  # no negative zero there: 0x80 is its NaN
    return magnitude


def _is_ml_float(dtype: np.dtype[Any]) -> bool:
    return dtype.name == "bfloat16" or dtype.name.startswith(("float8_e3", "float8_e4", "float8_e5"))


def nonzero(values: Array, zero_point: Array | int = 0) -> BoolArray:
    """True where an element is not a zero (-0.0 is one). Same shape as `values`."""
    return np.not_equal(magnitude_bits(values, zero_point), 0)


def nonzeros_per_group(mask: BoolArray) -> npt.NDArray[np.uint8]:
    """Counts of non-zeros, shape (outer, K/4, inner), from a mask of shape (outer, K, inner).

    Raises:
        ValueError: K is not a multiple of four.
    """
    outer, k, inner = mask.shape
    if k % GROUP:
        raise ValueError(f"K={k} is not a multiple of {GROUP}")
    flags = np.ascontiguousarray(mask).view(np.uint8)
    if inner == 1:
        # four flags as the bytes of one uint32: a multiplication adds them up in the top byte
        words = flags.reshape(outer, k).view(np.uint32)
        sums = (words * np.uint32(0x01010101)) >> np.uint32(24)
        return sums.astype(np.uint8).reshape(outer, k // GROUP, 1)
    grouped = flags.reshape(outer, k // GROUP, GROUP, inner)
    counts: npt.NDArray[np.uint8] = grouped[:, :, 0] + grouped[:, :, 1]
    counts += grouped[:, :, 2]
    counts += grouped[:, :, 3]
    return counts


def count_groups(mask: BoolArray) -> GroupCount:
    """Counts the violating groups of a mask of shape (outer, K, inner).

    Raises:
        ValueError: K is not a multiple of four.
    """
    violating = nonzeros_per_group(mask) > KEPT
    number = int(np.count_nonzero(violating))
    first = None
    if number:
        outer, group, inner = np.unravel_index(int(violating.argmax()), violating.shape)
        first = int((outer * mask.shape[1] + group * GROUP) * mask.shape[2] + inner)
    return GroupCount(violating.size, number, first)


def is_2to4(values: Array, axis: int, zero_point: Array | int = 0) -> bool:
    """Whether `values` is 2:4 along `axis`.

    Raises:
        ValueError: The axis' size is not a multiple of four.
        TypeError: A dtype for which zero is not defined here.
    """
    return count_groups(_as_outer_k_inner(nonzero(values, zero_point), axis)).violating == 0


def prune_2to4(values: Array, axis: int, zero_point: Array | int = 0) -> Array:
    """A copy in which each violating group keeps its two elements of largest magnitude.

    The first two win a tie. Groups that hold two non-zeros or fewer stay as they are, bit for bit.

    Raises:
        ValueError: The axis' size is not a multiple of four.
        TypeError: A dtype for which zero is not defined here.
    """
    size = values.shape[axis]
    if size % GROUP:
        raise ValueError(f"axis {axis} has {size} elements, not a multiple of {GROUP}")
    if not values.size:
        return values.copy()
    keys = _as_outer_k_inner(magnitude_bits(values, zero_point), axis)
    outer, k, inner = keys.shape
    a, b, c, d = (keys.reshape(outer, k // GROUP, GROUP, inner)[:, :, i] for i in range(GROUP))
    ab, ac, ad, bc, bd, cd = a >= b, a >= c, a >= d, b >= c, b >= d, c >= d
    count = np.uint8
    # how many of the other three beat each element
    rank_a = (~ab).view(count) + (~ac).view(count) + (~ad).view(count)
    rank_b = ab.view(count) + (~bc).view(count) + (~bd).view(count)
    rank_c = ac.view(count) + bc.view(count) + (~cd).view(count)
    rank_d = ad.view(count) + bd.view(count) + cd.view(count)
    drop = np.stack([rank_a, rank_b, rank_c, rank_d], axis=2).reshape(keys.shape) >= KEPT
    drop &= keys != 0
    pruned = values.copy()
    target = pruned if pruned.dtype.kind in "iu" else pruned.view(f"u{pruned.dtype.itemsize}")
    mask = drop.reshape(values.shape)
    zero = np.broadcast_to(np.asarray(zero_point, target.dtype), target.shape)
    np.copyto(target, zero, where=mask)
    return pruned


def _as_outer_k_inner(array: Array, axis: int) -> Array:
    shape = array.shape
    axis %= array.ndim
    outer = int(np.prod(shape[:axis], dtype=np.int64))
    inner = int(np.prod(shape[axis + 1 :], dtype=np.int64))
    return array.reshape(outer, shape[axis], inner)
