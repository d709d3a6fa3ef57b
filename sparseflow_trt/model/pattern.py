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


@dataclass(frozen=True)
class Zeros:
    """How many elements were zero before pruning, and how many it set to zero."""

    before: int = 0
    added: int = 0

    def __add__(self, other: Zeros) -> Zeros:
        return Zeros(self.before + other.before, self.added + other.added)


def magnitude_bits(values: Array, zero_point: Array | int = 0, out: Array | None = None) -> Array:
    """Unsigned integers that order the elements by magnitude and are 0 exactly for zeros.

    Args:
        values: Any shape; float16/32/64, ml_dtypes' bfloat16 and float8 types, int8 or uint8.
        zero_point: For integers, the value that dequantizes to 0; broadcasts against `values`.
        out: Where to put them: unsigned integers as wide as the values, of the same shape.

    Raises:
        TypeError: A dtype that is none of these.
    """
    dtype = values.dtype
    unsigned = _unsigned_like(dtype)
    out = np.empty(values.shape, unsigned) if out is None else out
    if dtype.kind in "iu":
        zero = np.asarray(zero_point, dtype)
        distance = out.view(dtype)
        np.maximum(values, zero, out=distance)
        distance -= np.minimum(values, zero)  # 0 to 255: as int8 it wraps, and its bits are right
        return out
    bits = values.view(unsigned)
    np.bitwise_and(bits, unsigned.type((1 << (8 * dtype.itemsize - 1)) - 1), out=out)
    if dtype.name.endswith("fnuz"):
        out[bits == 0x80] = 0x7F  # no negative zero there: 0x80 is its NaN
    return out


def _unsigned_like(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Unsigned integers as wide as a dtype for which 2:4 is defined."""
    ml_float = dtype.name == "bfloat16" or dtype.name.startswith(("float8_e3", "float8_e4", "float8_e5"))
    if dtype not in (np.int8, np.uint8) and dtype.kind != "f" and not ml_float:
        raise TypeError(f"2:4 is not defined for {dtype}")
    return np.dtype(f"u{dtype.itemsize}")


def nonzero(values: Array, zero_point: Array | int = 0) -> BoolArray:
    """True where an element is not a zero (-0.0 is one). Same shape as `values`."""
    return nonzero_and_nan(values, zero_point)[0]


def nonzero_and_nan(values: Array, zero_point: Array | int = 0) -> tuple[BoolArray, int]:
    """What `nonzero` gives, and how many elements are NaN: these are not zeros."""
    if values.dtype in (np.int8, np.uint8):
        mask: BoolArray = values != np.asarray(zero_point, values.dtype)
        return mask, 0
    bits = magnitude_bits(values)
    # the largest bits say in a tenth of the time whether there can be any
    nan_from = magnitude_bits(np.full(1, np.inf, values.dtype))[0]
    nan = int(np.count_nonzero(np.isnan(values))) if bits.size and bits.max() >= nan_from else 0
    return np.not_equal(bits, 0), nan


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
    pruned = values.copy()
    prune_in_place(pruned, axis, zero_point)
    return pruned


def prune_in_place(
    values: Array, axis: int, zero_point: Array | int = 0, scratch: Array | None = None
) -> Zeros:
    """Does to `values` what `prune_2to4` does to a copy; gives the number of zeros before, and of new ones.

    Args:
        values: As for `prune_2to4`, with any strides.
        axis: Where K lies.
        zero_point: For integers, the value that dequantizes to 0; broadcasts against `values`.
        scratch: `scratch_bytes(values)` of uint8 to work in. In a loop fresh ones, as they are taken by
            default, cost more than the arithmetic.

    Raises:
        ValueError: The axis' size is not a multiple of four.
        TypeError: A dtype for which zero is not defined here.
    """
    size = values.shape[axis]
    if size % GROUP:
        raise ValueError(f"axis {axis} has {size} elements, not a multiple of {GROUP}")
    unsigned = _unsigned_like(values.dtype)
    scratch = np.empty(scratch_bytes(values), np.uint8) if scratch is None else scratch
    members = _members(values, axis)
    keys = scratch[: values.nbytes].view(unsigned).reshape(members.shape)
    flags = scratch[values.nbytes : scratch_bytes(values)].view(np.bool_).reshape(_FLAGS, *keys.shape[1:])
    if not isinstance(zero_point, int):
        zero_point = _members(np.broadcast_to(np.asarray(zero_point, values.dtype), values.shape), axis)
    drop = _to_drop(magnitude_bits(members, zero_point, keys), flags)
    zeros = Zeros(drop.size - int(np.count_nonzero(flags[:GROUP])), int(np.count_nonzero(drop)))
    if isinstance(zero_point, int) and zero_point == 0:
        bits = members.view(unsigned)
        bits *= np.logical_not(drop, out=drop)  # an assignment through a mask takes five times as long
    else:
        np.copyto(members, zero_point, where=drop)
    return zeros


_FLAGS = 11  # for each group of four


def scratch_bytes(values: Array) -> int:
    """How many bytes `prune_in_place` works in."""
    return values.nbytes + values.size // GROUP * _FLAGS


def _to_drop(keys: Array, flags: BoolArray) -> BoolArray:
    """True for the two smallest of each group, the last ones of equals, where they are not 0.

    Args:
        keys: Shape (4, …): the members of each group along the first axis.
        flags: Shape (11, …) of anything, to work in. The result lies in its last four, and in its first four
            what is not 0.
    """
    a, b, c, d = keys
    for won, x, y in zip(flags, (a, a, a, b, b, c), (b, c, d, c, d, d), strict=False):
        np.greater_equal(x, y, out=won)
    ab, ac, ad, bc, bd, cd, wins = flags[:7].view(np.uint8)
    drop = flags[7:]
    # An element stays if it wins two of its three comparisons; who does not win one, loses it.
    np.add(ab, ac, out=wins)
    wins += ad
    np.less(wins, 2, out=drop[0])
    np.add(bc, bd, out=wins)
    np.less_equal(wins, ab, out=drop[1])
    np.add(ac, bc, out=wins)
    np.less(cd, wins, out=drop[2])
    np.add(ad, bd, out=wins)
    wins += cd
    np.greater(wins, 1, out=drop[3])
    drop &= np.not_equal(keys, 0, out=flags[:4])
    return drop


def _members(array: Array, axis: int) -> Array:
    """A view of shape (4, …): the first elements of all groups along `axis`, their second ones, …"""
    axis %= array.ndim
    groups = (*array.shape[:axis], array.shape[axis] // GROUP, GROUP, *array.shape[axis + 1 :])
    return np.moveaxis(array.reshape(groups), axis + 1, 0)


def _as_outer_k_inner(array: Array, axis: int) -> Array:
    shape = array.shape
    axis %= array.ndim
    outer = int(np.prod(shape[:axis], dtype=np.int64))
    inner = int(np.prod(shape[axis + 1 :], dtype=np.int64))
    return array.reshape(outer, shape[axis], inner)
