"""Builds a TensorRT engine of a typed ONNX file, by whichever flavour.

Flags are found by name, never by number: the same bit means other things in other versions. A call
that fails returns None, False or -1 and says why only to its logger, so each is checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from sparseflow_trt.engines.protocol import EngineOptions, OnProgress, Progress
from sparseflow_trt.engines.tensorrt.api import Flavour, install_line
from sparseflow_trt.engines.tensorrt.builder_options import (
    apply_options,
    build_failure,
    lacks,
    spare_library_handles,
)
from sparseflow_trt.engines.tensorrt.log import BuildLog, make_logger
from sparseflow_trt.engines.tensorrt.parser_refusal import refusal, unreadable
from sparseflow_trt.engines.tensorrt.timing_cache import caches_for, this_machine
from sparseflow_trt.errors import BuildError
from sparseflow_trt.plans.shapes import Profile

_NOT_LIKE = "Build it without --like, or build that artifact again first."


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
        raise BuildError(f"{named} cannot be built with {options.like.name}'s tactics. {notes[0]}", _NOT_LIKE)
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
