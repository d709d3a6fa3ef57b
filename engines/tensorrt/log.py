"""What TensorRT says while it builds: recorded, cleaned, and read back as sentences."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TextIO

from sparseflow_trt.engines.evidence.timings import TimingReader

# With no GPU, each call that fails for a reason of its own also reports that CUDA could not be asked.
_NO_GPU_NOISE = re.compile(r"\[checkMacros\.cpp::catchCudaError::\d+\][^\n]*")
_SOURCE_PLACE = re.compile(r"\s*In \S+ at /_src/[^)\n]*")
_ERROR_PREFIX = re.compile(r"^\w+::\w+: Error Code \d+: (?P<kind>[^(\n]+) \((?P<what>.*)\)$", re.DOTALL)
_LAYERS = "Layers:"

_newest: list[BuildLog] = []  # one at most


@dataclass
class BuildLog:
    """A record of one build: all of it in `stream`, what is asked for later in memory.

    Attributes:
        stream: Takes every message, down to VERBOSE (megabytes for a large model).
        errors: The errors since the last `take_errors`, as sentences.
        layers: The text that lists the engine's layers, "" until the engine is built.
        timings: What the builder measured of each matrix product so far.
    """

    stream: TextIO
    errors: list[str] = field(default_factory=list)
    layers: str = ""
    timings: TimingReader = field(default_factory=TimingReader)

    def record(self, severity: str, text: str) -> None:
        """Takes one message."""
        text = clean(text)
        if not text:
            return
        if not self.stream.closed:
            self.stream.write(f"[{severity}] {text}\n")
        self.timings.feed(text)
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(sentence(text))
        elif text.startswith(_LAYERS):
            self.layers = text

    def take_errors(self) -> str:
        """The errors so far, each once, as one line; they are forgotten."""
        said = " ".join(dict.fromkeys(self.errors))
        self.errors.clear()
        return said or "it does not say why."


def make_logger(module: ModuleType, log: BuildLog) -> Any:
    """A TensorRT ILogger that records into `log`; TensorRT reports failures nowhere else.

    A process's first logger is its plugins' too, for as long as TensorRT has a use for it. What it gets once
    its own log's stream is closed goes to the log of the newest logger.
    """
    base: Any = module.ILogger
    _newest[:] = [log]

    class Logger(base):  # type: ignore[misc]  # the bindings have no types
        def log(self, severity: Any, text: str) -> None:
            (_newest[0] if log.stream.closed else log).record(severity.name, text)

    return Logger()


def clean(text: str) -> str:
    """A message without the lines that only say that there is no GPU."""
    return _NO_GPU_NOISE.sub("", text).strip()


def sentence(text: str) -> str:
    """An error message without the names of TensorRT's own functions and source files."""
    text = _SOURCE_PLACE.sub("", clean(text)).strip()
    match = _ERROR_PREFIX.match(text)
    if match:
        text = f"{match['kind']}: {match['what'].strip()}"
    return text if text.endswith(".") else f"{text}."
