"""Policies from the files of the system that this one grew from: its JSON of limits, and its CSV of times."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from sparseflow_trt._listing import did_you_mean
from sparseflow_trt._schema import Record, load_json, parse, read_text
from sparseflow_trt.errors import PolicyError
from sparseflow_trt.model.kinds import KINDS, kind_from_names
from sparseflow_trt.policies.policy import MARGIN, Point, Policy, Threshold, fastest_points
from sparseflow_trt.policies.thresholds import derive_thresholds

_HINT = (
    'It takes {"ops": {"gate_proj": {"min_m": 256, "max_m": 2048}, …}} (the mapping alone, too), or a CSV '
    "with the columns op,M,pruned_dense_us,sparse_weight_us."
)
_COLUMNS = ("op", "M", "pruned_dense_us", "sparse_weight_us")
_ROUNDED = 0.01  # a speedup that is given may differ by so much from that of the times, or by half a digit


class _Limits(Record):
    min_m: int = Field(ge=1)
    max_m: int | None = None

    @model_validator(mode="after")
    def _ordered(self) -> _Limits:
        if self.max_m is not None and self.max_m < self.min_m:
            raise ValueError(f"max_m={self.max_m} is below min_m={self.min_m}")
        return self


def import_policy(
    path: Path, name: str, device: str, compute_capability: str, shapes: dict[str, tuple[int, int]]
) -> Policy:
    """A policy from a file of limits, or of times where its name ends with .csv.

    That system measured PyTorch's semi-structured products against its dense ones in FP16, and so the
    policy says. What its thresholds say of a CSV is derived as from points measured here.

    Args:
        path: The file.
        name: The policy's name.
        device: The GPU that it was measured on, as CUDA calls it.
        compute_capability: Of that GPU, such as "8.0".
        shapes: (N, K) of each operation that a CSV names, since it holds none.

    Raises:
        PolicyError: The file cannot be read, a field is wrong, an operation is of no known kind, the shape
            of one is not given or given of one that is not there, or a speedup is not that of the times
            beside it.
    """
    text = read_text(path, PolicyError, "policy").removeprefix("\ufeff")
    points: tuple[Point, ...] = ()
    if path.suffix.lower() == ".csv":
        points = _points_from_csv(text, str(path), shapes)
        thresholds = derive_thresholds(points, MARGIN)
    elif shapes:
        raise PolicyError(
            f"{path} holds limits, which are of no shape: --shape says nothing of them.",
            "Leave --shape out; it is for a CSV of times.",
        )
    else:
        thresholds = _thresholds_from_json(text, str(path))
    fields = {
        "schema_version": 1, "name": name, "device": device, "compute_capability": compute_capability,
        "libraries": {"torch": "not recorded"}, "provenance": "imported",
        "source": f"imported from {path.name}: PyTorch semi-structured against dense, FP16",
        "margin": MARGIN, "thresholds": thresholds, "points": points,
    }  # fmt: skip
    return parse(Policy, fields, f"the policy from {path}", PolicyError, _HINT)


def _thresholds_from_json(text: str, source: str) -> tuple[Threshold, ...]:
    data = load_json(text, source, PolicyError, _HINT)
    operations = data.get("ops", data) if isinstance(data, dict) else data
    if not isinstance(operations, dict) or not operations:
        raise PolicyError(f"{source} holds no operations.", _HINT)
    by_kind: dict[str, list[_Limits]] = {}
    for operation, given in operations.items():
        limits = parse(_Limits, given, f"{source}, operation '{operation}'", PolicyError, _HINT)
        by_kind.setdefault(_kind_of(operation, source), []).append(limits)
    return tuple(_threshold(kind, limits) for kind, limits in sorted(by_kind.items()))


def _threshold(kind: str, limits: list[_Limits]) -> Threshold:
    """What holds for a kind: gate_proj and up_proj are one, and sparse has to win for both."""
    low = max(limit.min_m for limit in limits)
    high = min((limit.max_m for limit in limits if limit.max_m is not None), default=None)
    if high is not None and high < low:
        return Threshold(kind=kind, library="torch", dtype="FP16", min_m=None)
    return Threshold(kind=kind, library="torch", dtype="FP16", min_m=low, max_m=high)


def _points_from_csv(text: str, source: str, shapes: dict[str, tuple[int, int]]) -> tuple[Point, ...]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    points: list[Point] = []
    operations = set[str]()
    try:
        columns = reader.fieldnames or ()
        if not columns:
            raise PolicyError(f"{source} is empty.", _HINT)
        for column in _COLUMNS:
            if columns.count(column) != 1:
                many = "two columns" if column in columns else "no column"
                raise PolicyError(f"{source} has {many} '{column}'.", _HINT)
        for row in reader:
            _check_cells(row, f"{source}, line {reader.line_num}", len(columns))
            points += _points_of_row(row, f"{source}, line {reader.line_num}", shapes)
            operations.add(row["op"].strip())
    except csv.Error as error:
        raise PolicyError(f"{source} is not CSV: {error}.", _HINT) from error
    if not points:
        raise PolicyError(f"{source} holds no measurements.", _HINT)
    if unused := sorted(shapes.keys() - operations):
        there = f"It names {', '.join(sorted(operations))}."
        raise PolicyError(
            f"{source} names no operation '{unused[0]}', whose shape is given.",
            did_you_mean(unused[0], operations, there),
        )
    return tuple(fastest_points(points))  # gate_proj and up_proj are one product, measured twice


def _check_cells(row: dict[Any, Any], where: str, columns: int) -> None:
    """A decimal comma makes a cell too many, and moves all that stand behind it."""
    more = row.get(None, ())
    if more or None in row.values():
        found = columns + len(more) - sum(value is None for value in row.values())
        raise PolicyError(
            f"{where} has {found} cells under {columns} names.",
            "Give each column its cell; numbers have a decimal point, and no comma.",
        )


def _points_of_row(row: dict[str, Any], where: str, shapes: dict[str, tuple[int, int]]) -> list[Point]:
    operation = (row["op"] or "").strip()
    kind = _kind_of(operation, where)
    if operation not in shapes:
        raise PolicyError(
            f"{where} names operation '{operation}', whose N and K are not given.",
            f"Give them: --shape {operation}=N,K (gate_proj of LLaMA-8B: 14336,4096).",
        )
    n, k = shapes[operation]
    product = {"kind": kind, "n": n, "k": k, "m": row["M"], "dtype": "FP16", "library": "torch"}
    points = [
        parse(Point, {**product, "kernel": kernel, "us": row[column]}, where, PolicyError, _HINT)
        for kernel, column in (("dense", "pruned_dense_us"), ("sparse", "sparse_weight_us"))
    ]
    _check_speedup((row.get("speedup") or "").strip(), points[0].us, points[1].us, where)
    return points


def _check_speedup(given: str, dense_us: float, sparse_us: float, where: str) -> None:
    """A row may give its speedup, too: if that is another one, a column is not what it is called."""
    if not given:
        return
    try:
        speedup = float(given)
    except ValueError:
        speedup = math.nan
    half_a_digit = 0.5 * 10.0 ** -len(given.partition(".")[2])
    if not abs(speedup - dense_us / sparse_us) <= max(_ROUNDED * dense_us / sparse_us, half_a_digit):
        raise PolicyError(
            f"{where} gives the speedup {given}, but {dense_us:g} µs dense over {sparse_us:g} µs sparse are "
            f"{dense_us / sparse_us:.3f}.",
            "Correct the row, or leave the column 'speedup' out: it is not needed.",
        )


def _kind_of(operation: str, source: str) -> str:
    if operation in KINDS and operation != "other":
        return operation
    kind = kind_from_names((operation,), 0, 0)
    if kind == "other":
        raise PolicyError(f"{source} names operation '{operation}', which is of no known kind.", _HINT)
    return kind
