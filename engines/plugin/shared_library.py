"""Whether a file is a whole shared library, and holds a text: read, not loaded, which would run its code."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

# An ELF file's header, of 64 bits and little-endian, as on every machine that CUDA is for.
_HEADER = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_MAGIC = b"\x7fELF"
_64_BITS, _LITTLE_ENDIAN = 2, 1
_SHARED = 3  # ET_DYN


def why_no_library(path: Path, holding: str = "") -> str:
    """Why a file is no shared library with a text in it, "" where it is one.

    A linker writes the table of sections at the end, so that a file that was cut off lacks it.

    Args:
        path: The file.
        holding: A string of the source code that has to be in it.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            size = file.seek(0, os.SEEK_END)
            if trouble := _why_no_header(header, size):
                return trouble
            if not holding:
                return ""
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                found = content.find(holding.encode() + b"\0") >= 0
            return "" if found else f"it holds no {holding}"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _why_no_header(header: bytes, size: int) -> str:
    if not header:
        return "it is empty"
    if not header.startswith(_MAGIC):
        return "it is not an ELF file"
    if len(header) < _HEADER.size:
        return f"it is cut off after {size} bytes"
    _, bits, order, kind, _, _, _, _, sections_at, *_, section_size, sections, _ = _HEADER.unpack(header)
    if (bits, order, kind) != (_64_BITS, _LITTLE_ENDIAN, _SHARED):
        return "it is an ELF file, but not a 64-bit shared library"
    end = sections_at + section_size * sections
    return f"it is cut off after {size} of {end} bytes" if size < end else ""
