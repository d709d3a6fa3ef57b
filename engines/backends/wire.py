"""What a build's parent and child processes say to each other: one JSON job, then JSON lines."""

from __future__ import annotations

from pydantic import Field

from sparseflow_trt._schema import Record
from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
from sparseflow_trt.engines.evidence.timings import LayerTimings
from sparseflow_trt.engines.protocol import EngineOptions, Progress
from sparseflow_trt.plans.shapes import Profile


class Exchange(Record):
    """An engine that is to get other weights, and the typed model that it was built from."""

    engine: str
    model: str


class Job(Record):
    """What the child is to build, or to refit; paths are absolute."""

    flavour: str
    model: str
    engine: str
    profiles: tuple[Profile, ...]
    sparse: bool
    options: EngineOptions
    parent: int
    exchange: Exchange | None = None
    plugin: str = ""
    plugin_sha256: str = ""


class Outcome(Record):
    """A build that went well; the engine's file is written."""

    version: str
    seconds: float
    layers: tuple[LayerEvidence, ...]
    timings: tuple[LayerTimings, ...] = ()
    notes: tuple[str, ...] = ()
    plugin_versions: dict[str, str] = Field(default_factory=dict)


class Refusal(Record):
    """An error that the child raised on purpose."""

    message: str
    hint: str
    not_installed: bool


class Message(Record):
    """One line from the child: exactly one of these."""

    progress: Progress | None = None
    outcome: Outcome | None = None
    refusal: Refusal | None = None
