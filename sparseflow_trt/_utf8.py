"""Names of files that are no text: Linux takes any bytes, and most libraries take UTF-8 only."""

from __future__ import annotations

import os
from pathlib import Path

from sparseflow_trt.errors import SparseflowError


def check_utf8(path: Path, error: type[SparseflowError]) -> None:
    """Refuses a path that ONNX, runtimes and JSON cannot hold.

    Raises:
        SparseflowError: Of the given class: a part of it is not UTF-8.
    """
    name = os.fsencode(path)
    try:
        name.decode()
    except UnicodeDecodeError:
        shown = name.decode(errors="backslashreplace")
        raise error(
            f"the name of {shown} is not UTF-8, and ONNX and its runtimes take no other.",
            "Rename the file or its folder, or choose another name.",
        ) from None
