"""A file of what a builder measured, for the next build on the same machine: a hint, never a reason to fail.

The file is one line of JSON (`_Header`) and TensorRT's own bytes behind it. The header is the key: a cache of
another TensorRT, device or driver is not loaded, and is replaced after the build. A file that does not begin
with such a line is somebody else's: it is neither loaded nor replaced.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from sparseflow_trt._files import write_atomically
from sparseflow_trt._schema import Record
from sparseflow_trt.engines.machine.hardware import driver_of, find_gpus, installed_driver
from sparseflow_trt.engines.protocol import EngineOptions
from sparseflow_trt.engines.tensorrt.log import BuildLog
from sparseflow_trt.errors import ArtifactError

KEPT = "timing.cache"  # beside an engine that an editable cache was built with

_LONGEST_HEADER = 4096


class Machine(Record):
    """What measurements hold for."""

    tensorrt: str
    device: str
    driver: str

    def __str__(self) -> str:
        """In words."""
        return f"TensorRT {self.tensorrt} on {self.device} with driver {self.driver}"


class _Header(Record):
    kind: Literal["sparseflow-trt timing cache"] = "sparseflow-trt timing cache"
    machine: Machine
    sha256: str


class _UnusableError(Exception):
    """Why a file is not loaded, as a sentence."""


def this_machine(tensorrt: str) -> Machine:
    """What a build with that version of TensorRT measures here."""
    gpu = next(iter(find_gpus()), None)
    driver = driver_of(gpu) if gpu else installed_driver() or "unknown"
    return Machine(tensorrt=tensorrt, device=gpu.name if gpu else "no GPU", driver=driver)


def caches_for(
    options: EngineOptions, engine: Path, machine: Machine, editable: bool
) -> tuple[TimingCache | None, tuple[TimingCache, ...]]:
    """The cache that a build starts from, if any, and those that it is saved to.

    Args:
        options: What is asked for; --like starts from the artifact's own cache.
        engine: The engine's file. An editable cache is kept beside it, to be asked for again.
        machine: What is measured here.
        editable: Whether the cache is an editable one. A build that asks for tactics without one has an
            algorithm selector, and TensorRT uses no cache beside that.
    """
    kept = TimingCache(engine.with_name(KEPT), machine) if editable else None
    if options.like is not None:
        return (TimingCache(options.like / KEPT, machine, required=True), (kept,)) if kept else (None, ())
    given = TimingCache(options.timing_cache, machine) if options.timing_cache else None
    return given or kept, tuple(cache for cache in (given, kept) if cache is not None)


class TimingCache:
    """One file for one build: loaded into its configuration before, saved after."""

    def __init__(self, path: Path, machine: Machine, required: bool = False) -> None:
        self.path = path
        self._machine = machine
        self._required = required  # one that is not there yet is nothing to be said, else
        self._ours = True
        self._attached: Any = None  # TensorRT may use it until the engine is built

    def load(self, config: Any, log: BuildLog) -> str:
        """Gives the builder the file's measurements, or none to begin with.

        Returns:
            Why the file was not used, as a note; "" where it was, or is yet to be made.
        """
        why = ""
        try:
            data = self._read()
        except _UnusableError as reason:
            data, why = b"", str(reason)
        log.errors.clear()
        if not self._attach(config, data, log):
            why = f"TensorRT refuses it: {log.take_errors()}"
            self._attach(config, b"", log)
        return f"The timing cache {self.path.name} was not used: {why}" if why else ""

    def save(self, config: Any) -> str:
        """Writes the file with what the build has added.

        Returns:
            Why it was not written, as a note; "" where it was, or where `load` found it not to be ours.
        """
        held = config.get_timing_cache()
        if held is None or not self._ours:
            return ""
        data = bytes(held.serialize())
        header = _Header(machine=self._machine, sha256=hashlib.sha256(data).hexdigest())
        try:
            write_atomically(self.path, header.model_dump_json().encode() + b"\n" + data)
        except ArtifactError as error:
            return f"The timing cache was not saved: {error.message}"
        return ""

    def _read(self) -> bytes:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            if self._required:
                raise _UnusableError("it does not exist.") from None
            return b""
        except OSError as error:
            raise _UnusableError(f"it cannot be read: {error.strerror}.") from error
        line, _, data = content.partition(b"\n")
        try:
            header = _Header.model_validate_json(line[:_LONGEST_HEADER])
        except ValidationError as error:
            self._ours = False
            raise _UnusableError("sparseflow-trt did not write it. It is left as it is.") from error
        if header.machine != self._machine:
            raise _UnusableError(f"it is of {header.machine}; this is {self._machine}. It is replaced.")
        if hashlib.sha256(data).hexdigest() != header.sha256:
            raise _UnusableError("its bytes are not those that were written. It is replaced.")
        return data

    def _attach(self, config: Any, data: bytes, log: BuildLog) -> bool:
        self._attached = config.create_timing_cache(data)
        if self._attached is None:
            return False
        return bool(config.set_timing_cache(self._attached, False)) and not log.errors
