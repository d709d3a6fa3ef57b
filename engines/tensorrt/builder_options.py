"""What a person asks of the builder, put into TensorRT's configuration, and its failures read with that."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from sparseflow_trt.engines.protocol import EngineOptions
from sparseflow_trt.errors import BuildError
from sparseflow_trt.plans.shapes import POINTS, Profile

_MIB = 1 << 20
_OF_WORKSPACE = re.compile(r"workspace|any implementation for node", re.IGNORECASE)
_OF_LEAN_RUNTIME = re.compile(r"nvinfer_lean|lean runtime", re.IGNORECASE)
_OF_FIXED = re.compile(r"violate shape constraints|reshape (would change|changes) volume", re.IGNORECASE)
_POINTS = ("MIN", "OPT", "MAX")
_OF_POINT = re.compile(r"\bk(?P<point>MIN|OPT|MAX) values for profile (?P<number>\d+)\b")
_OF_NO_GPU = re.compile(r"CUDA_SUCCESS|not found in the accelerator list", re.IGNORECASE)


def apply_options(trt: ModuleType, title: str, config: Any, options: EngineOptions) -> None:
    """Sets the options in a builder's configuration; the timing cache and --like have their own modules.

    Args:
        trt: The TensorRT that builds.
        title: Its name for people, with its version.
        config: Its IBuilderConfig.
        options: What is asked for.

    Raises:
        BuildError: This TensorRT does not have one of them, or does not take its value or two together.
    """
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace * _MIB)
    if options.optimization_level is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise lacks(title, "--optimization-level")
        config.builder_optimization_level = options.optimization_level
        # It logs an error or takes the nearest one, and says neither here.
        if config.builder_optimization_level != options.optimization_level:
            raise BuildError(
                f"{title} has no optimization level {options.optimization_level}.",
                "Choose one from 0 (quickest build) to 5 (most kernels tried).",
            )
    if options.hardware_compatible:
        levels: Any = getattr(trt, "HardwareCompatibilityLevel", None)
        if not hasattr(levels, "AMPERE_PLUS"):
            raise lacks(title, "--hardware-compatible")
        config.hardware_compatibility_level = levels.AMPERE_PLUS
    if hasattr(trt.BuilderFlag, "TF32"):
        # The plan's "fp32" means FP32: TF32, which is on by default, keeps 10 bits of the mantissa.
        (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    elif options.tf32:
        raise lacks(title, "--tf32")
    for option, asked, flag in (
        ("--version-compatible", options.version_compatible, "VERSION_COMPATIBLE"),
        ("--refit", options.refit, "REFIT"),
        ("--strip-plan", options.strip_plan, "STRIP_PLAN"),
        # What is left out has to be put back, and these weights alone unless others are asked for.
        ("--strip-plan", options.strip_plan and not options.refit, "REFIT_IDENTICAL"),
    ):
        if asked:
            _set_flag(trt, title, config, flag, option)


def spare_library_handles(trt: ModuleType, network: Any, config: Any) -> None:
    """Leaves out the cuBLAS and cuDNN handles that TensorRT gives to each plugin, where it would load them.

    The plugins here take none, and TensorRT 8.6 loads both libraries for that alone: its own kernels are
    without them (DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805 is on). A network without plugins stays as it
    is.

    Args:
        trt: The TensorRT that builds.
        network: The parsed INetworkDefinition.
        config: Its IBuilderConfig.
    """
    kinds = {getattr(trt.LayerType, name, None) for name in ("PLUGIN_V2", "PLUGIN_V3")} - {None}
    if not any(network.get_layer(i).type in kinds for i in range(network.num_layers)):
        return
    sources = config.get_tactic_sources()
    for name in ("CUBLAS", "CUBLAS_LT", "CUDNN"):
        if hasattr(trt.TacticSource, name):
            sources &= ~(1 << int(getattr(trt.TacticSource, name)))
    config.set_tactic_sources(sources)


def build_failure(
    title: str, model: str, options: EngineOptions, profiles: Sequence[Profile], said: str
) -> BuildError:
    """The error of a build that gave no engine.

    Args:
        title: The TensorRT's name for people, with its version.
        model: The model file's name.
        options: What was asked for, which may be why.
        profiles: The optimization profiles, which TensorRT tells of by number.
        said: What TensorRT logged as errors.
    """
    if options.workspace is not None and _OF_WORKSPACE.search(said):
        return BuildError(
            f"{title} could not build {model}, most likely because the workspace is too small (the memory "
            f"pool WORKSPACE is limited to {options.workspace} MiB): {said}",
            "Raise --workspace, or leave it out: kernels may then use all of the device's memory.",
        )
    if options.version_compatible and _OF_LEAN_RUNTIME.search(said):
        return BuildError(
            f"{title} cannot make a version-compatible engine of {model} here: {said}",
            "Install the library it names, or build without --version-compatible.",
        )
    if (options.refit or options.strip_plan) and _OF_NO_GPU.search(said):
        return BuildError(
            f"{title} builds an engine of {model} whose weights can be exchanged only where it finds a GPU "
            f"of its own: {said}",
            "Build on that GPU's machine, or without --refit and --strip-plan.",
        )
    if _OF_FIXED.search(said):
        said = _OF_POINT.sub(lambda told: _named(told, profiles), said)
        return BuildError(
            f"{title} could not build {model}: {said}",
            "A size fixed inside the model conflicts with a profile's shapes: export it with that "
            "axis dynamic, or plan with the one size that it takes.",
        )
    return BuildError(
        f"{title} could not build {model}: {said}",
        "Where a profile does not fit, change its shapes; where a layer has no kernel, plan it in fp32.",
    )


def _named(told: re.Match[str], profiles: Sequence[Profile]) -> str:
    """The shapes of "kOPT values for profile 0", with the profile's name."""
    profile, point = profiles[int(told["number"])], POINTS[_POINTS.index(told["point"])]
    shapes = (f"{name} {'x'.join(map(str, given.at(point)))}" for name, given in profile.inputs.items())
    return f"the {point} shapes of profile '{profile.name}' ({', '.join(shapes)})"


def lacks(title: str, option: str) -> BuildError:
    """The error of an option that this TensorRT does not have."""
    return BuildError(f"{title} has no {option}.", "Leave it out, or build with a newer TensorRT.")


def _set_flag(trt: ModuleType, title: str, config: Any, name: str, option: str) -> None:
    flag: Any = getattr(trt.BuilderFlag, name, None)
    if flag is None:
        raise lacks(title, option)
    config.set_flag(flag)
    # One that does not go with another (REFIT with VERSION_COMPATIBLE in 8.6) stays off, with a message.
    if not config.get_flag(flag):
        raise BuildError(
            f"{title} does not take {option} together with the other options.",
            "Leave one of them out: weights cannot be exchanged in every version-compatible engine.",
        )
