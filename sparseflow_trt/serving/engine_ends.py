"""Inputs and outputs as an engine has them, where they are not quite its typed model's."""

from __future__ import annotations

from dataclasses import replace

from sparseflow_trt.artifacts.manifest import EngineRecord
from sparseflow_trt.engines.tensorrt.api import takes_int64
from sparseflow_trt.exporters.triton.tensors import Ends, ServedTensor


def ends_of_engine(ends: Ends, engine: EngineRecord) -> Ends:
    """A model's inputs and outputs with the types that they have in an engine of it.

    TensorRT 8.6 has no INT64: what is one in the model is INT32 in the engine, and Triton refuses a
    configuration that says otherwise.
    """
    if not narrows_integers(engine):
        return ends

    def of_engine(tensor: ServedTensor) -> ServedTensor:
        return replace(tensor, type="INT32") if tensor.type == "INT64" else tensor

    return ends.each(of_engine)


def narrows_integers(engine: EngineRecord) -> bool:
    """Whether the engine has INT32 where its model has INT64."""
    return engine.backend == "tensorrt" and not takes_int64(engine.versions.get("tensorrt", ""))
