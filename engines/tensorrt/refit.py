"""Gives an engine the weights of an ONNX file.

TensorRT's ONNX parser names each weight of the network after its initializer (or the Constant node's output),
and from 10 on it has the counterpart that reads them again, OnnxParserRefitter. For 8.6 they are set by name
here.
TensorRT itself refuses weights that are not 2:4 for a layer whose kernel is sparse.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseflow_trt._listing import listed
from sparseflow_trt.engines.tensorrt.api import Flavour, load_flavour
from sparseflow_trt.engines.tensorrt.log import BuildLog, make_logger, sentence
from sparseflow_trt.engines.tensorrt.same_graph import named_weights
from sparseflow_trt.errors import BuildError
from sparseflow_trt.model.model_file import read_model

if TYPE_CHECKING:
    import onnx_ir as ir

_BUILD_NEW = "Build the new model: `sparseflow-trt build MODEL --like ARTIFACT` asks for the same kernels."
_OF_SPARSE_KERNELS = "Weights of a layer that runs a sparse kernel have to be 2:4. "


def refit_from_onnx(
    flavour: Flavour, engine: Any, model: Path, logger: Any, log: BuildLog, changed: Collection[str] = ()
) -> None:
    """Gives a loaded engine the weights of the typed ONNX file that it was built from, or of one like it.

    Args:
        flavour: The TensorRT that loaded it.
        engine: Its ICudaEngine; the weights are exchanged in place.
        model: The ONNX file; external data is found beside it.
        logger: The ILogger that the engine was loaded with, which records into `log`.
        log: Takes what TensorRT says.
        changed: Names of weights that have to be exchanged for the engine to be that model.

    Raises:
        BuildError: The engine was not built for this, it cannot exchange one of `changed`, or TensorRT
            refuses the weights (as of a layer whose kernel is sparse, where they are not 2:4).
    """
    if not engine.refittable:
        raise BuildError(
            "the engine's weights cannot be exchanged: it was not built for it.", "Build it with --refit."
        )
    log.errors.clear()
    refitter = flavour.module.Refitter(engine, logger)
    with_parser = hasattr(flavour.module, "OnnxParserRefitter")
    exchangeable = set(refitter.get_all_weights()) | (_folded_again(model) if with_parser else set())
    if fixed := sorted(set(changed) - exchangeable):
        named = listed([f"'{name}'" for name in fixed], 1)
        raise BuildError(
            f"the engine cannot exchange weight {named}: TensorRT folded it in when it was built.",
            _BUILD_NEW,
        )
    refused: list[str] = []
    arrays = []
    if with_parser:
        refused = _read_again(flavour.module.OnnxParserRefitter(refitter, logger), model, log)
    else:
        arrays = _set_by_name(flavour, refitter, model, log)
    done = not refused and refitter.refit_cuda_engine()
    del arrays  # TensorRT read them in place until here
    if not done:
        said = " ".join(refused) or log.take_errors()
        raise BuildError(
            f"{flavour.title} {flavour.version} does not take the weights of {model.name}: {said}",
            (_OF_SPARSE_KERNELS if "sparse" in said else "") + _BUILD_NEW,
        )


def put_weights(model: Path, engine: Any) -> None:
    """Gives an engine that another library loaded, with the TensorRT of this process, a model's weights.

    Raises:
        BuildError: As `refit_from_onnx`.
        NotInstalledError: TensorRT is missing.
    """
    flavour = load_flavour("tensorrt")
    with Path(os.devnull).open("w") as nowhere:
        log = BuildLog(nowhere)
        refit_from_onnx(flavour, engine, model, make_logger(flavour.module, log), log)


def serialized(trt: Any, engine: Any) -> Any:
    """A refitted engine as bytes: with its weights, and still refittable."""
    if not hasattr(engine, "create_serialization_config"):  # 8.6
        return engine.serialize()
    config = engine.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    if hasattr(trt.SerializationFlag, "INCLUDE_REFIT"):
        config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    return engine.serialize_with_config(config)


def _read_again(parser: Any, model: Path, log: BuildLog) -> list[str]:
    """Lets OnnxParserRefitter read the model; why it does not take it, which it keeps for who asks."""
    if parser.refit_from_file(str(model)):
        return []
    told = (sentence(parser.get_error(i).desc()) for i in range(parser.num_errors))
    return list(dict.fromkeys(told)) or [log.take_errors()]


def _set_by_name(
    flavour: Flavour, refitter: Any, model: Path, log: BuildLog
) -> list[np.ndarray[Any, np.dtype[Any]]]:
    """Sets every weight that the engine has by that name; returns the arrays, which TensorRT reads later."""
    wanted = set(refitter.get_all_weights())
    arrays = []
    for name, tensor in named_weights(read_model(model)).items():
        if name not in wanted or not _is_plain_float(tensor):
            continue
        array = np.ascontiguousarray(tensor.numpy())
        if not refitter.set_named_weights(name, _borrowed(flavour.module, array)):
            raise BuildError(
                f"{flavour.title} {flavour.version} does not take weight '{name}' of {model.name}: "
                f"{log.take_errors()}",
                _BUILD_NEW,
            )
        arrays.append(array)
    if missing := refitter.get_missing_weights():
        raise BuildError(
            f"the engine also needs new values for '{missing[0]}', which is not a weight of {model.name}.",
            _BUILD_NEW,
        )
    return arrays


def _borrowed(trt: Any, array: np.ndarray[Any, np.dtype[Any]]) -> Any:
    """An array as TensorRT's Weights, which read it in place.

    8.6's bindings tell dtypes by identity: one that was read from a file equals FP16's and may not be it.
    """
    return trt.Weights(array.view(np.float16 if array.dtype == np.float16 else np.float32))


def _is_plain_float(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype.name in ("FLOAT", "FLOAT16")


def _folded_again(model: Path) -> set[str]:
    """The weights that the parser's refitter folds as the parser did: BatchNormalization's four."""
    nodes = read_model(model).ir.graph.all_nodes()
    normalizations = [node for node in nodes if node.op_type == "BatchNormalization"]
    return {v.name for node in normalizations for v in node.inputs[1:] if v is not None and v.name}
