"""Makes an engine file with another model's weights from one built for that, and tries whether one can be."""

from __future__ import annotations

import shutil
from pathlib import Path

from sparseflow_trt.engines.protocol import EngineOptions
from sparseflow_trt.engines.tensorrt.api import Flavour
from sparseflow_trt.engines.tensorrt.load_engine import load_engine
from sparseflow_trt.engines.tensorrt.log import BuildLog
from sparseflow_trt.engines.tensorrt.refit import refit_from_onnx, serialized
from sparseflow_trt.engines.tensorrt.same_graph import changed_weights
from sparseflow_trt.errors import BuildError
from sparseflow_trt.model.model_file import read_model


def check_refittable(
    flavour: Flavour, engine: Path, model: Path, options: EngineOptions, log: BuildLog
) -> None:
    """Exchanges an engine's weights for those that it has, and writes nothing: what fails now fails later.

    TensorRT 8.6.0 builds engines with the flag for it that it cannot refit (docs/TENSORRT.md).

    Args:
        flavour: The TensorRT that built it.
        engine: The engine's file.
        model: The typed ONNX file that it was built from.
        options: What it was built with.
        log: Takes what TensorRT says.

    Raises:
        BuildError: TensorRT does not exchange them.
    """
    try:
        held = load_engine(flavour, engine, log, options.version_compatible)
        refit_from_onnx(flavour, held.engine, model, held.logger, log)
    except BuildError as error:
        raise BuildError(
            f"the engine was built but cannot be refitted: {error.message}",
            "Build with one profile, or without --refit: `sparseflow-trt build MODEL --like ARTIFACT` "
            "gives another model's weights the same kernels.",
        ) from error


def refit_engine(
    flavour: Flavour,
    before: Path,
    old_model: Path,
    new_model: Path,
    after: Path,
    options: EngineOptions,
    log: BuildLog,
) -> None:
    """Writes an engine that is `before` with the weights of `new_model`.

    A stripped engine holds no weights: it is tried with the new ones, and copied.

    Args:
        flavour: The TensorRT that built it.
        before: The engine's file.
        old_model: The typed ONNX file that it was built from.
        new_model: One of the same graph.
        after: The file to write.
        options: What `before` was built with.
        log: Takes what TensorRT says.

    Raises:
        BuildError: The engine does not load here, or does not take the weights.
    """
    changed = changed_weights(read_model(old_model), read_model(new_model))
    held = load_engine(flavour, before, log, options.version_compatible)
    refit_from_onnx(flavour, held.engine, new_model, held.logger, log, changed)
    if options.strip_plan:
        shutil.copyfile(before, after)
        return
    written = serialized(flavour.module, held.engine)
    if written is None:
        raise BuildError(
            f"{flavour.title} {flavour.version} cannot write the engine with its new weights: "
            f"{log.take_errors()}",
            "Build the new model instead: `sparseflow-trt build`.",
        )
    with after.open("wb") as stream:
        stream.write(written)
