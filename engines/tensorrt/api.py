"""The adapter: the one place that knows how TensorRT's flavours differ.

Flags are found by name, never by number: the same bit means other things in other versions. A call
that fails returns None, False or -1 and says why only to its logger, so each is checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sparseflow_trt import _deps
from sparseflow_trt.engines.machine.hardware import load_kernels_lazily
from sparseflow_trt.engines.protocol import EngineOptions, OnProgress, Progress
from sparseflow_trt.engines.tensorrt.builder_options import (
    apply_options,
    build_failure,
    lacks,
    spare_library_handles,
)
from sparseflow_trt.engines.tensorrt.log import BuildLog, make_logger
from sparseflow_trt.engines.tensorrt.parser_refusal import refusal, unreadable
from sparseflow_trt.engines.tensorrt.timing_cache import caches_for, this_machine
from sparseflow_trt.errors import BuildError, NotInstalledError
from sparseflow_trt.model.target import GraphNeeds
from sparseflow_trt.plans.shapes import Profile


@dataclass(frozen=True)
class _Known:
    title: str
    # In the order in which they have to be imported; the last one is the API.
    modules: tuple[str, ...]


_NOT_LIKE = "Build it without --like, or build that artifact again first."

_KNOWN = {
    "tensorrt": _Known("TensorRT", ("tensorrt",)),
    "tensorrt-rtx": _Known("TensorRT-RTX", ("tensorrt_rtx_libs", "tensorrt_rtx_bindings.tensorrt_rtx")),
}


@dataclass(frozen=True)
class Flavour:
    """A TensorRT that is loaded into this process.

    Attributes:
        key: Its name here, such as "tensorrt-rtx".
        title: Its name for people.
        module: Its Python API.
        version: Of its package; TensorRT-RTX's module does not know its own.
        strongly_typed: Whether its networks take their types from the graph. Before 10.12 they are
            asked for layer by layer (`pin_types`).
    """

    key: str
    title: str
    module: ModuleType
    version: str
    strongly_typed: bool


def title_of(key: str) -> str:
    """The name for people of a flavour, loaded or not."""
    return _KNOWN[key].title


def version_of(key: str) -> str | None:
    """The installed version of a flavour, None where one of its packages is missing."""
    versions = [_deps.version_of(module) for module in _KNOWN[key].modules]
    return versions[-1] if all(versions) else None


def install_line(key: str) -> str:
    """The command that installs a flavour."""
    return _deps.install_line(_KNOWN[key].modules[-1])


def load_flavour(key: str) -> Flavour:
    """Imports a TensorRT. It may print to stdout and may crash: do this in a process that may die.

    Raises:
        NotInstalledError: It is not installed, is too old or does not load.
    """
    known = _KNOWN.get(key)
    if known is None:
        raise NotInstalledError(f"There is no backend '{key}'.", f"Choose one of: {', '.join(_KNOWN)}.")
    load_kernels_lazily()
    loaded = [_deps.require(module, f"building with {known.title}") for module in known.modules]
    version = version_of(key) or "unknown"
    return Flavour(key, known.title, loaded[-1], version, is_strongly_typed(key, version))


def is_strongly_typed(key: str, version: str) -> bool:
    """Whether its networks take their types from the graph: TensorRT's from 10.12 on, RTX's always."""
    return key != "tensorrt" or _release(version) >= (10, 12)


def takes_int64(version: str) -> bool:
    """Whether a TensorRT's engines have INT64 inputs and outputs; before 9 they are INT32 there."""
    return not version or _release(version) >= (9,)


def graph_needs_of(key: str, version: str | None) -> GraphNeeds:
    """What a flavour needs of the graph.

    SPARSE_WEIGHTS is one switch for all of TensorRT's layers, and TensorRT-RTX ignores it. 8.6 reads opset 17
    at most, and has no BF16.

    Args:
        key: The flavour.
        version: Of its package; None, where it is not installed, has the needs of the newest.
    """
    if key != "tensorrt":
        return GraphNeeds()
    before_9 = version is not None and _release(version) < (9,)
    return GraphNeeds(
        17 if before_9 else None,
        spells_out=before_9,
        opts_out_dense=True,
        takes_plugin=True,
        takes_bf16=not before_9,
    )


def build_engine(
    flavour: Flavour,
    model: Path,
    engine: Path,
    profiles: tuple[Profile, ...],
    sparse: bool,
    options: EngineOptions,
    log: BuildLog,
    on_progress: OnProgress,
) -> tuple[str, ...]:
    """Builds an engine file from a typed ONNX file; external data is found beside that.

    Args:
        flavour: The TensorRT to build with.
        model: The ONNX file.
        engine: Where the engine is written.
        profiles: The optimization profiles; none for a model whose shapes are all static.
        sparse: Whether sparse weights are enabled.
        options: How to build.
        log: Takes all that TensorRT says, with the built engine's layers.
        on_progress: Called for each phase of the build and each step in it.

    Returns:
        Sentences about what was asked for and not done: a timing cache that was not used.

    Raises:
        ArtifactError: The artifact whose tactics are asked for cannot be read.
        BuildError: The model, a profile, an option or the build was refused; the sentence says which and why.
    """
    logger = make_logger(flavour.module, log)
    builder = flavour.module.Builder(logger)
    network = _created(flavour, log, "network", lambda: builder.create_network(_network_flags(flavour)))
    on_progress(Progress("Parsing the model"))
    # The network borrows the weights from the parser: both have to live until the build is done.
    parser = flavour.module.OnnxParser(network, logger)
    _parse(flavour, parser, model, log)
    config = _created(flavour, log, "configuration", builder.create_builder_config)
    _configure(flavour, config, sparse, on_progress)
    named = f"{flavour.title} {flavour.version}"
    apply_options(flavour.module, named, config, options)
    spare_library_handles(flavour.module, network, config)
    editable = _make_editable(flavour, config)
    selector = None if editable else _select_like(flavour, config, options)
    cache, saved = caches_for(options, engine, this_machine(flavour.version), editable)
    notes = [cache.load(config, log)] if cache else []
    if options.like and any(notes):
        raise BuildError(f"{named} cannot be asked for {options.like.name}'s tactics. {notes[0]}", _NOT_LIKE)
    if not flavour.strongly_typed:
        from sparseflow_trt.engines.tensorrt.pin_types import pin_types

        pin_types(flavour.module, flavour.version, network, config, model)
    for profile in profiles:
        _add_profile(flavour, builder, network, config, profile, log)
    log.errors.clear()
    built = builder.build_serialized_network(network, config)
    del selector  # TensorRT does not keep it alive
    if built is None:
        raise build_failure(named, model.name, options, profiles, log.take_errors())
    notes += [file.save(config) for file in saved]
    with engine.open("wb") as stream:
        stream.write(built)
    return tuple(note for note in notes if note)


def _network_flags(flavour: Flavour) -> int:
    flags = flavour.module.NetworkDefinitionCreationFlag
    # 8.6 reads ONNX in explicit-batch networks alone; 10 ignores that flag and 11 does not have it.
    names = ["EXPLICIT_BATCH", *(["STRONGLY_TYPED"] if flavour.strongly_typed else [])]
    return sum(1 << int(getattr(flags, name)) for name in names if hasattr(flags, name))


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _created(flavour: Flavour, log: BuildLog, what: str, create: Callable[[], Any]) -> Any:
    created = create()
    if created is None:
        raise BuildError(
            f"{flavour.title} {flavour.version} could not create a {what}: {log.take_errors()}",
            f"Install it again: {install_line(flavour.key)}",
        )
    return created


def _parse(flavour: Flavour, parser: Any, model: Path, log: BuildLog) -> None:
    if parser.parse_from_file(str(model)):
        return
    if parser.num_errors == 0:
        raise unreadable(flavour, model, log.take_errors())
    raise refusal(flavour, model, parser.get_error(0))


def _configure(flavour: Flavour, config: Any, sparse: bool, on_progress: OnProgress) -> None:
    trt = flavour.module
    if sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    # Without it the layers are listed by name only, with neither type nor tactic.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _make_monitor(trt, on_progress)


def _make_editable(flavour: Flavour, config: Any) -> bool:
    """Whether the build's timing cache is one that records its decisions: from TensorRT 10.8 on."""
    flag: Any = getattr(flavour.module.BuilderFlag, "EDITABLE_TIMING_CACHE", None)
    if flag is None or flavour.key == "tensorrt-rtx":  # which has the flag, and times nothing
        return False
    config.set_flag(flag)
    return True


def _select_like(flavour: Flavour, config: Any, options: EngineOptions) -> Any:
    if options.like is None:
        return None
    if not hasattr(flavour.module, "IAlgorithmSelector"):
        raise lacks(f"{flavour.title} {flavour.version}", "--like")
    from sparseflow_trt.artifacts.manifest import read_manifest
    from sparseflow_trt.engines.tensorrt.like import make_selector, tactics_of

    selector = make_selector(flavour.module, tactics_of(read_manifest(options.like).engine.layers))
    config.algorithm_selector = selector
    return selector


def _make_monitor(module: ModuleType, on_progress: OnProgress) -> Any:
    base: Any = module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]  # the bindings have no types
        def __init__(self) -> None:
            base.__init__(self)  # super() would not do: pybind11 wants its own constructor called
            self.totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            on_progress(Progress(phase_name, 0, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self.totals.get(phase_name, 0)
            on_progress(Progress(phase_name, min(step + 1, total), total))
            return True

        def phase_finish(self, phase_name: str) -> None:
            total = self.totals.pop(phase_name, 0)
            on_progress(Progress(phase_name, total, total))

    return Monitor()


def _add_profile(
    flavour: Flavour, builder: Any, network: Any, config: Any, profile: Profile, log: BuildLog
) -> None:
    inputs = {network.get_input(i).name for i in range(network.num_inputs)}
    hint = "Give each input of the model its shapes: min ≤ opt ≤ max, and fixed dimensions as they are."
    # TensorRT takes shapes for a name it does not know without a word.
    differ = sorted(inputs ^ set(profile.inputs))
    if differ:
        problem = "has no shapes for" if differ[0] in inputs else "gives shapes for an unknown"
        raise BuildError(f"Profile '{profile.name}' {problem} input '{differ[0]}'.", hint)
    added = builder.create_optimization_profile()
    for name, shapes in profile.inputs.items():
        added.set_shape(name, shapes.min, shapes.opt, shapes.max)
    if not added or config.add_optimization_profile(added) < 0:
        raise BuildError(f"{flavour.title} refuses profile '{profile.name}': {log.take_errors()}", hint)
