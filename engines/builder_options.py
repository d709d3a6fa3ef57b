"""What a person asks of the builder, put into TensorRT's configuration, and its failures read with that."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

from sparseflow_trt.engines.protocol import EngineOptions
from sparseflow_trt.errors import BuildError

_MIB = 1 << 20
_OF_WORKSPACE = re.compile(r"workspace|any implementation for node", re.IGNORECASE)
_OF_LEAN_RUNTIME = re.compile(r"nvinfer_lean|lean runtime", re.IGNORECASE)


def apply_options(trt: ModuleType, title: str, config: Any, options: EngineOptions) -> None:
    """Sets the options in a builder's configuration; the timing cache has its own module.

    Args:
        trt: The TensorRT that builds.
        title: Its name for people, with its version.
        config: Its IBuilderConfig.
        options: What is asked for.

    Raises:
        BuildError: This TensorRT does not have one of them, or does not take its value.
    """
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace * _MIB)
    if options.optimization_level is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise _lacks(title, "--optimization-level")
        config.builder_optimization_level = options.optimization_level
        # It logs an error or takes the nearest one, and says neither here.
        if config.builder_optimization_level != options.optimization_level:
            raise BuildError(
                f"{title} has no optimization level {options.optimization_level}.",
                "Choose one from 0 (quickest build) to 5 (most kernels tried).",
            )
    if options.version_compatible:
        if not hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE"):
            raise _lacks(title, "--version-compatible")
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        levels: Any = getattr(trt, "HardwareCompatibilityLevel", None)
        if not hasattr(levels, "AMPERE_PLUS"):
            raise _lacks(title, "--hardware-compatible")
        config.hardware_compatibility_level = levels.AMPERE_PLUS


def build_failure(title: str, model: str, options: EngineOptions, said: str) -> BuildError:
    """The error of a build that gave no engine.

    Args:
        title: The TensorRT's name for people, with its version.
        model: The model file's name.
        options: What was asked for, which may be why.
        said: What TensorRT logged as errors.
    """
    if options.workspace is not None and _OF_WORKSPACE.search(said):
        return BuildError(
            f"{title} could not build {model}, most likely for want of workspace (the memory pool WORKSPACE "
            f"is limited to {options.workspace} MiB): {said}",
            "Raise --workspace, or leave it out: kernels may then use all of the device's memory.",
        )
    if options.version_compatible and _OF_LEAN_RUNTIME.search(said):
        return BuildError(
            f"{title} cannot make a version-compatible engine of {model} here: {said}",
            "Install the library it names, or build without --version-compatible.",
        )
    return BuildError(
        f"{title} could not build {model}: {said}",
        "Where a profile does not fit, change its shapes; where a layer has no kernel, plan it in fp32.",
    )


def _lacks(title: str, option: str) -> BuildError:
    return BuildError(f"{title} has no {option}.", "Leave it out, or build with a newer TensorRT.")
