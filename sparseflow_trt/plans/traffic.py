"""Traffic: how often a user's requests make products of which M. Read from CSV or JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseflow_trt._schema import load_json, read_text
from sparseflow_trt.errors import ShapeError

_HINT = (
    "A traffic file is CSV with the header m,weight (or m,count) and a row for each M, or JSON: "
    '{"512": 10, "1024": 3} or [{"m": 512, "weight": 10}].'
)
_WEIGHTS = ("weight", "count")
LARGEST_M = 2**31 - 1  # of a dimension in TensorRT


@dataclass(frozen=True)
class Traffic:
    """A histogram of M, the rows of the products that one run of the model computes.

    Attributes:
        sizes: Each M with its weight, which is above 0; M grows. Weights are relative: counts and shares
            mean the same.
    """

    sizes: tuple[tuple[int, float], ...]

    @property
    def total(self) -> float:
        """The sum of the weights."""
        return sum(weight for _, weight in self.sizes)


def read_traffic(path: Path) -> Traffic:
    """Reads a histogram of M. Rows of one M are added up; rows of weight 0 are left out.

    Args:
        path: A CSV file with the header m,weight or m,count, or a JSON file: {"512": 10} or
            [{"m": 512, "weight": 10}]. Names may be in capitals, and others may stand beside them.

    Raises:
        ShapeError: The file cannot be read, a row is no M and weight, or all weights are 0.
    """
    text = read_text(path, ShapeError, "traffic file").lstrip("\ufeff")
    rows = _json_rows(text, path) if text.lstrip()[:1] in ("{", "[") else _csv_rows(text, path)
    weights: dict[int, float] = {}
    for where, m, weight in rows:
        size, share = _size(m), _weight(weight)
        if size is None or share is None:
            what = "M (a whole number from 1 on)" if size is None else "a weight (a number from 0 on)"
            given = m if size is None else weight
            raise ShapeError(f"{path}, {where}: {_shown(given)} is not {what}.", _HINT)
        weights[size] = weights.get(size, 0.0) + share
    sizes = tuple((m, weight) for m, weight in sorted(weights.items()) if weight > 0)
    if not sizes or not math.isfinite(sum(weight for _, weight in sizes)):
        what = "weights too large to be added up" if sizes else "no M with a weight above 0"
        raise ShapeError(f"{path} holds {what}.", _HINT)
    return Traffic(sizes)


def _csv_rows(text: str, path: Path) -> Iterable[tuple[str, Any, Any]]:
    try:
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise ShapeError(f"{path} is neither CSV nor JSON: {error}.", _HINT) from error
    if not text.strip():
        raise ShapeError(f"{path} is empty.", _HINT)
    header = [cell.strip().lower() for cell in lines[0]] if lines else []
    weight_columns = [name for name in _WEIGHTS if name in header]
    if "m" not in header or len(weight_columns) != 1 or len(set(header)) != len(header):
        raise ShapeError(f"{path} begins with {_shown(','.join(header))} and not with m,weight.", _HINT)
    at_m, at_weight = header.index("m"), header.index(weight_columns[0])
    for number, cells in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise ShapeError(f"{path}, row {number}: {len(cells)} cells under {len(header)} names.", _HINT)
        yield f"row {number}", cells[at_m], cells[at_weight]


def _json_rows(text: str, path: Path) -> Iterable[tuple[str, Any, Any]]:
    data = load_json(text, str(path), ShapeError, _HINT)
    if isinstance(data, dict):
        for m, weight in data.items():
            yield f"M={_shown(m)}", m, weight
        return
    for number, row in enumerate(data, 1):
        where = f"entry {number}"
        names = [name.strip().lower() for name in row] if isinstance(row, dict) else []
        weights = [name for name in _WEIGHTS if name in names]
        if "m" not in names or len(weights) != 1 or len(set(names)) != len(names):
            raise ShapeError(f"{path}, {where}: {_shown(row)} is not one m with one weight.", _HINT)
        cells = list(row.values())
        yield where, cells[names.index("m")], cells[names.index(weights[0])]


def _size(given: Any) -> int | None:
    text = given.strip() if isinstance(given, str) else given
    if isinstance(text, str):
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            return None
        text = int(text)
    whole = isinstance(text, int) and not isinstance(text, bool)
    return text if whole and 1 <= text <= LARGEST_M else None


def _weight(given: Any) -> float | None:
    if isinstance(given, bool) or not isinstance(given, (int, float, str)):
        return None
    try:
        weight = float(given)
    except (ValueError, OverflowError):
        return None
    return weight if math.isfinite(weight) and weight >= 0 else None


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 60 else text[:60] + "…"
