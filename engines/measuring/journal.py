"""The journal of a run that measures: each answer is a line of JSON, written as it comes; none is lost."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import ValidationError, model_validator

from sparseflow_trt._schema import Record, describe
from sparseflow_trt.engines.machine.gpu_state import ClockState
from sparseflow_trt.engines.measuring.curves import Curve, Measured, Request
from sparseflow_trt.errors import PolicyError
from sparseflow_trt.policies.between import MULTIPROCESSORS, wave_of
from sparseflow_trt.policies.policy import Dtype, Pair, Point, SparseKernel
from sparseflow_trt.policies.presets import Product

SUFFIX = ".points.jsonl"

_KEEP_APART = (
    "A journal holds one GPU, one set of libraries and one set of types: keep each in a file of its own. "
    "`autotune --add` puts policies of one GPU together."
)
_HEAD = b'{"journal": '  # what every journal begins with


class Identity(Record):
    """What a journal's figures hold for; those of another are never added to them.

    A journal from before multiprocessors were recorded tells none: its wave is that of an H100 or H200.
    """

    device: str
    compute_capability: str
    multiprocessors: int | None = None
    libraries: dict[str, str]
    dtypes: tuple[Dtype, ...]

    @property
    def wave(self) -> int:
        """Elements of y that count as computed at once (`between.wave_of`)."""
        return wave_of(self.multiprocessors or MULTIPROCESSORS)


class Run(Record):
    """One run that added to a journal.

    Attributes:
        command: The command that made it.
        date: The day, YYYY-MM-DD.
        driver: The version of the NVIDIA driver, "" where it is not known.
        products: What it was asked to measure: (kind, N, K).
        grid: The M that it was to measure each at; none in journals from before that was recorded.
    """

    command: str
    date: str
    driver: str = ""
    products: tuple[tuple[str, int, int], ...] = ()
    grid: tuple[int, ...] = ()


class _Line(Record):
    """One line: exactly one of these."""

    journal: Identity | None = None
    run: Run | None = None
    points: tuple[Point, Point] | None = None
    seconds: float = 0.0
    how: str = ""
    clock: ClockState | None = None

    @model_validator(mode="after")
    def _one_thing(self) -> _Line:
        if sum(part is not None for part in (self.journal, self.run, self.points)) != 1:
            raise ValueError("a line is a journal's head, a run or a pair of points")
        if self.points is not None:
            dense, sparse = self.points
            shared = ("kind", "n", "k", "m", "dtype", "library")
            if dense.kernel != "dense" or sparse.kernel == "dense":
                raise ValueError("a pair is a dense point and a sparse one")
            if any(getattr(dense, name) != getattr(sparse, name) for name in shared):
                raise ValueError("a pair is of one product")
        return self


@dataclass(frozen=True)
class Journal:
    """What a journal holds.

    Attributes:
        identity: What the figures hold for.
        runs: The runs that made it, oldest first.
        measured: Every answer.
    """

    identity: Identity
    runs: tuple[Run, ...]
    measured: tuple[Measured, ...]

    @property
    def pairs(self) -> dict[Request, Pair]:
        """The points as they count, by what was asked."""
        return {answer.request: answer.counted for answer in self.measured}

    @property
    def products(self) -> tuple[Product, ...]:
        """All that any run was asked to measure, each once."""
        return tuple(dict.fromkeys(Product(*product) for run in self.runs for product in run.products))

    @property
    def unfinished(self) -> frozenset[Curve]:
        """Curves of which no run that asked for them has all its M: of some M alone no threshold can be told.

        Runs whose M were not recorded are believed to have finished, unless a later one asked for the same.
        """
        sizes: dict[Curve, set[int]] = {}
        for answer in self.measured:
            sizes.setdefault(answer.request.curve, set()).add(answer.request.m)
        grids: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        for run in self.runs:
            for n, k in {(n, k) for _, n, k in run.products if run.grid}:
                grids.setdefault((n, k), []).append(run.grid)
        return frozenset(
            curve
            for curve, measured in sizes.items()
            if (asked := grids.get((curve.n, curve.k)))
            and not any(measured.issuperset(grid) for grid in asked)
        )


def journal_beside(policy: Path) -> Path:
    """Where the journal of a policy file lies."""
    return policy.with_name(policy.name + SUFFIX)


class Appender:
    """Adds lines to a journal that is open."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def add_run(self, run: Run) -> None:
        """Notes that a run begins."""
        self._write(_Line(run=run))

    def add(self, answer: Measured) -> None:
        """Writes an answer, down to the disk."""
        pair = (answer.pair.dense, answer.pair.sparse)
        seconds = round(answer.seconds, 3)
        self._write(_Line(points=pair, seconds=seconds, how=answer.how, clock=answer.clock))

    def _write(self, line: _Line) -> None:
        text = json.dumps(line.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)
        self._stream.write(text.encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


@contextmanager
def open_journal(path: Path, identity: Identity) -> Iterator[tuple[Journal, Appender]]:
    """Opens a journal to add to it, or begins one. What a killed run left of its last line is cut off.

    Args:
        path: The file.
        identity: What will be added to it holds for.

    Raises:
        PolicyError: It cannot be written or locked, is no journal, holds for another GPU, other library
            versions or other dtypes, or another run is writing it.
    """
    try:
        stream = path.open("a+b")
    except OSError as error:
        raise PolicyError(
            f"{path} cannot be written: {error.strerror}.", "Choose another place: -o."
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PolicyError(
                f"another run is writing {path}.", "Wait for it, or choose another -o."
            ) from None
        except OSError as error:
            raise PolicyError(
                f"{path} cannot be locked against a second run that writes to it: {error.strerror}.",
                "Choose a place on a file system that has locks: -o.",
            ) from error
        stream.seek(0)
        data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        appender = Appender(stream)
        if whole:
            journal = _read(whole, path)
            _check_identity(journal.identity, identity, path, "here", _begin_anew(path))
        else:
            if data[: len(_HEAD)] != _HEAD[: len(data)]:  # no head that a run was killed over
                raise PolicyError(f"{path} is not a journal of measurements.", _begin_anew(path))
            journal = Journal(identity, (), ())
        if len(whole) < len(data):
            stream.truncate(len(whole))
        if not whole:
            appender._write(_Line(journal=identity))
        yield journal, appender


def read_journal(path: Path) -> Journal:
    """What a journal holds, but for what a killed run left of its last line.

    Raises:
        PolicyError: It cannot be read or is no journal.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    return _read(data[: data.rfind(b"\n") + 1], path)


def _read(data: bytes, path: Path) -> Journal:
    lines = []
    for number, text in enumerate(data.splitlines(), 1):
        try:
            lines.append(_Line.model_validate_json(text))
        except ValidationError as error:
            raise PolicyError(
                f"{path}, line {number}: {describe(error)}", _without_line(path, number)
            ) from error
    if not lines or lines[0].journal is None:
        raise PolicyError(f"{path} is not a journal of measurements.", _begin_anew(path))
    for number, line in enumerate(lines, 1):  # a file that was put together of several has several heads
        if line.journal is not None:
            _check_identity(lines[0].journal, line.journal, path, f"in line {number}", _KEEP_APART)
    answers = tuple(_measured(line, *line.points) for line in lines if line.points is not None)
    return Journal(lines[0].journal, tuple(line.run for line in lines if line.run is not None), answers)


def _measured(line: _Line, dense: Point, sparse: Point) -> Measured:
    kernel: SparseKernel = "plugin" if sparse.kernel == "plugin" else "sparse"
    curve = Curve(dense.library, dense.dtype, dense.n, dense.k, dense.kind, kernel)
    return Measured(Request(curve, dense.m), Pair(dense, sparse), line.seconds, line.how, line.clock)


def _check_identity(found: Identity, given: Identity, path: Path, where: str, hint: str) -> None:
    differ = []
    for name in Identity.model_fields:
        before, now = getattr(found, name), getattr(given, name)
        if before != now and before is not None:
            differ.append(f"{name.replace('_', ' ')} {_shown(before)}, and {where} it is {_shown(now)}")
    if differ:
        raise PolicyError(f"{path} holds measurements of {'; of '.join(differ)}.", hint)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items()) or "no libraries"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _without_line(path: Path, number: int) -> str:
    if number == 1:
        return _begin_anew(path)
    return (
        f"Delete that line to continue with the others: sed -i {number}d {shlex.quote(str(path))}. What it "
        "held is measured again."
    )


def _begin_anew(path: Path) -> str:
    policy = path.name.removesuffix(SUFFIX)
    return (
        f"Write to another file with -o, or remove {path.name} (and {policy}, if it is there) to measure "
        "everything anew."
    )
