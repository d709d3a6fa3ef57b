"""Reads an ONNX file without copying its weights: tensors inside the file become ranges of it.

Protobuf has no way to leave a bytes field where it is, so parsing a model with its weights inside copies
all of them. Here the file is mapped and walked along the few messages that can hold a large tensor; each
large `raw_data` is replaced by an external-data entry that points back into the file. What is left is a
small, ordinary model that protobuf parses.

Field numbers are those of onnx.proto (ONNX IR); the wire format is
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

LEAST_BYTES = 4096  # smaller tensors stay inline: walking to them would cost more than copying them

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14  # of TensorProto
# Which fields of a message lead to tensors, and the kind of message that each holds.
_LEADS = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}


class _MalformedError(Exception):
    """Not protobuf, or not what is expected here: protobuf itself will say what is wrong."""


def read_skeleton(path: Path) -> bytes | None:
    """The model's bytes with each large tensor's `raw_data` replaced by its place in the file.

    The places are external data whose location is the file's own name.

    Returns:
        The bytes, or None where there is no large tensor inside or the file is not well-formed.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream:
        if stream.seek(0, 2) == 0:
            return None
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                found: list[int] = []
                skeleton = b"".join(_rebuild(data, 0, len(data), "model", path.name.encode(), found))
                return skeleton if found else None
            except (_MalformedError, IndexError):
                return None


def _rebuild(
    data: mmap.mmap, begin: int, end: int, kind: str, name: bytes, found: list[int]
) -> Iterator[bytes]:
    """The message in begin..end, its tensors' data replaced; `found` gathers the offsets of what was."""
    if kind == "tensor":
        yield from _rebuild_tensor(data, begin, end, name, found)
        return
    kept = begin  # what is copied as it stands begins here
    for number, wire, start, value, stop in _fields(data, begin, end):
        lead = _LEADS[kind].get(number)
        if lead is None or wire != _BYTES or stop - value < LEAST_BYTES:
            continue
        yield data[kept:start]
        inner = b"".join(_rebuild(data, value, stop, lead, name, found))
        yield _varint(number << 3 | _BYTES) + _varint(len(inner)) + inner
        kept = stop
    yield data[kept:end]


def _rebuild_tensor(data: mmap.mmap, begin: int, end: int, name: bytes, found: list[int]) -> Iterator[bytes]:
    fields = list(_fields(data, begin, end))
    raw = [f for f in fields if f[0] == _RAW_DATA and f[1] == _BYTES]
    external = any(number == _DATA_LOCATION for number, *_ in fields)
    if len(raw) != 1 or external or raw[0][4] - raw[0][3] < LEAST_BYTES:
        yield data[begin:end]
        return
    _, _, start, value, stop = raw[0]
    found.append(value)
    yield data[begin:start]
    for key, entry in ((b"location", name), (b"offset", b"%d" % value), (b"length", b"%d" % (stop - value))):
        pair = b"\x0a" + _varint(len(key)) + key + b"\x12" + _varint(len(entry)) + entry
        yield _varint(_EXTERNAL_DATA << 3 | _BYTES) + _varint(len(pair)) + pair
    yield _varint(_DATA_LOCATION << 3 | _VARINT) + b"\x01"  # EXTERNAL
    yield data[stop:end]


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Each field of a message: number, wire type, and where it starts, its value starts, and it stops."""
    at = begin
    while at < end:
        start = at
        tag, at = _read_varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value = at
            _, at = _read_varint(data, at, end)
        elif wire == _BYTES:
            length, value = _read_varint(data, at, end)
            at = value + length
        elif wire in (_FIXED64, _FIXED32):
            value = at
            at += 8 if wire == _FIXED64 else 4
        else:
            raise _MalformedError
        if at > end or number == 0:
            raise _MalformedError
        yield number, wire, start, value, at


def _read_varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _MalformedError


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
