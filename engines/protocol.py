"""What a backend takes and gives, whatever library is behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sparseflow_trt._paths import NO_PATH, MaybePath, with_paths

if TYPE_CHECKING:
    from sparseflow_trt.artifacts.manifest import PluginRecord
    from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
    from sparseflow_trt.engines.evidence.outcomes import LayerOutcome
    from sparseflow_trt.model.target import GraphNeeds
    from sparseflow_trt.plans.plan import Plan


@with_paths
class EngineOptions:
    """How to build, where that is not the library's own default. Each is an option of `build`.

    Attributes:
        workspace: The most device memory that a kernel may use as scratch space, in MiB.
        optimization_level: From 0 (quickest build) to 5 (most kernels tried).
        timing_cache: A file of measured kernels, read as a hint and written after the build.
        version_compatible: Whether later TensorRT releases shall load the engine.
        hardware_compatible: Whether other GPUs, from Ampere on, shall run the engine.
        refit: Whether the engine's weights shall be exchangeable later.
        strip_plan: Whether the engine is written without weights: it takes those of the typed model when
            it is loaded.
        like: An artifact whose tactics are asked for again.
        tf32: Whether FP32 products may run in TF32, which keeps 10 bits of the mantissa, as FP16 does.
    """

    workspace: int | None = None
    optimization_level: int | None = None
    timing_cache: MaybePath = NO_PATH
    version_compatible: bool = False
    hardware_compatible: bool = False
    refit: bool = False
    strip_plan: bool = False
    like: MaybePath = NO_PATH
    tf32: bool = False

    def asked(self) -> dict[str, bool | int | str]:
        """What is not left to the library, by name, as plain data."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def flags(self) -> str:
        """The names of the command line's options that are asked for, as words."""
        return ", ".join(f"--{name.replace('_', '-')}" for name in self.asked())


@dataclass(frozen=True)
class BuildRequest:
    """One engine to build.

    Attributes:
        model: The typed ONNX file that means the plan; its external data lies beside it.
        plan: The plan, for its profiles and for the checks after the build.
        folder: An existing folder that the backend writes its files into.
        sparse: Whether sparse weights are enabled at all.
        options: How to build.
        plugin: The library of the plugin's nodes; None where the model has none.
        plugin_sha256: Of that library, which is not hashed again; "" has the backend hash it.
    """

    model: Path
    plan: Plan
    folder: Path
    sparse: bool
    options: EngineOptions = field(default_factory=EngineOptions)
    plugin: Path | None = None
    plugin_sha256: str = ""


@dataclass(frozen=True)
class Progress:
    """A step of a build: its name, and how far it is (`total` 0 where that is not known)."""

    step: str
    done: int = 0
    total: int = 0


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class BuiltEngine:
    """An engine, and what is known about it.

    Attributes:
        file: The engine's file, in the request's folder.
        files: All that was written there, `file` first.
        backend: The backend's name.
        versions: Of the libraries that built it, by package name.
        device: What it was built for, in words.
        seconds: How long the backend's own build took.
        runs_here: "" where the engine can run on this machine, else why not, as a sentence.
        sparse_tactics: Whether the engine can hold sparse kernels at all: "" if so, else why not.
        layers: The engine's own layers, empty where it cannot be asked.
        outcomes: What became of each planned layer, empty where the builder does not tell.
        notes: Sentences for the person who builds: what was ignored, what this engine is not.
        plugin: The library that it needs to be loaded, a file of its folder.
    """

    file: Path
    files: tuple[Path, ...]
    backend: str
    versions: dict[str, str]
    device: str
    seconds: float
    runs_here: str
    sparse_tactics: str
    layers: tuple[LayerEvidence, ...] = ()
    outcomes: tuple[LayerOutcome, ...] = ()
    notes: tuple[str, ...] = ()
    plugin: PluginRecord | None = None


class Backend(Protocol):
    """A way to build engines."""

    name: str

    def unavailable(self) -> str:
        """Why this backend cannot build on this machine, as a sentence with what to do; "" if it can."""
        ...

    def versions(self) -> dict[str, str]:
        """The installed versions of the libraries that would build, by package name."""
        ...

    def device(self) -> str:
        """What an engine is for that is built here, in words: it may load nowhere else."""
        ...

    def graph_needs(self) -> GraphNeeds:
        """What it needs of the graph."""
        ...

    def build(self, request: BuildRequest, on_progress: OnProgress) -> BuiltEngine:
        """Builds an engine.

        Raises:
            BuildError: The backend refused; the sentence names the node or shape it refused.
            NotInstalledError: A library it needs is missing.
        """
        ...
