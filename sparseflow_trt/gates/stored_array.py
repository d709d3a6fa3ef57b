"""Arrays inside a JSON file: compressed, as text, with a hash that is checked before they are handed out."""

from __future__ import annotations

import base64
import hashlib
import math
import zlib
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeInt

from sparseflow_trt._schema import Record
from sparseflow_trt.errors import InputError

if TYPE_CHECKING:
    import numpy as np

_LEVEL = 3  # of zlib: of activations it leaves 4 % more than 9, and takes a sixth of the time
_MOST_BYTES = 1 << 28  # 256 MiB: what a few kilobytes may at most unfold to


class StoredArray(Record):
    """One array.

    Attributes:
        dtype: NumPy's name of it, or ml_dtypes'.
        sha256: Of its bytes in C order.
        data: The bytes, by zlib, in base64.
    """

    dtype: str
    shape: tuple[NonNegativeInt, ...]
    sha256: str
    data: str


def store_array(array: np.ndarray[Any, Any], what: str) -> StoredArray:
    """An array as text.

    Args:
        array: Of numbers or booleans.
        what: What it is, for the error: "output 'logits'".

    Raises:
        InputError: It holds strings or objects.
    """
    import numpy as np

    if array.dtype.hasobject or array.dtype.kind in "SU":
        raise InputError(
            f"{what} holds strings, which are not stored.", "Leave this output out of the model."
        )
    raw = np.ascontiguousarray(array).tobytes()
    return StoredArray(
        dtype=array.dtype.name,
        shape=array.shape,
        sha256=hashlib.sha256(raw).hexdigest(),
        data=base64.b64encode(zlib.compress(raw, _LEVEL)).decode(),
    )


def array_from(stored: StoredArray, where: str) -> np.ndarray[Any, Any]:
    """The array, read-only.

    Args:
        stored: What `store_array` gave.
        where: The file and the array's place in it, for the error.

    Raises:
        InputError: Its type is unknown, its bytes cannot be unpacked, or they are not those that were stored.
    """
    import numpy as np

    try:
        import ml_dtypes  # noqa: F401  (makes its types known to NumPy)

        dtype = np.dtype(stored.dtype)
        size = math.prod(stored.shape) * dtype.itemsize
        if dtype.hasobject or size > _MOST_BYTES:
            raise ValueError(f"{size} bytes of {dtype} are not read")
        raw = zlib.decompressobj().decompress(base64.b64decode(stored.data, validate=True), size + 1)
    except (TypeError, ValueError, zlib.error) as error:
        raise InputError(f"{where} cannot be read: {error}.", "Create the file again.") from error
    if len(raw) != size or hashlib.sha256(raw).hexdigest() != stored.sha256:
        raise InputError(f"{where} is not what was stored: its SHA-256 differs.", "Create the file again.")
    return np.frombuffer(raw, dtype).reshape(stored.shape)
