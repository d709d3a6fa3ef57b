"""Reads what TensorRT's engine inspector tells of an engine, in the words of 8.6, 10 and 11.

8.6 and 10 put a tensor's type and format into "Format/Datatype", 11 and TensorRT-RTX into "Datatype" and
"Format". Where shapes are dynamic, 8.6 tells a type only to an inspector that has an execution context.
"""

from __future__ import annotations

import json
import re
from typing import Any

from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
from sparseflow_trt.engines.evidence.tactics import (
    nodes_of,
    precision_of,
    profile_of,
    region_profiles,
    weight_types,
    without_profile,
)
from sparseflow_trt.errors import BuildError

_TYPES = {
    "Float", "Half", "BFloat16", "Int8", "UInt8", "Int32", "Int64", "Bool", "FP8", "Int4", "FP4",
}  # fmt: skip
# "Two wide channel vectorized row major FP16 format": before 8.6 the type is told by its format alone.
_TYPES_BY_FORMAT = {
    "FP32": "Float", "FP16": "Half", "BF16": "BFloat16", "INT8": "Int8", "INT32": "Int32", "INT64": "Int64",
    "BOOL": "Bool", "FP8": "FP8",
}  # fmt: skip
_WORD = re.compile(r"\w+")
_NOT_PARAMETERS = {
    "Name", "LayerType", "Inputs", "Outputs", "TacticName", "TacticValue", "StreamId", "Metadata",
}  # fmt: skip


def layers_from_inspector(*texts: str) -> tuple[LayerEvidence, ...]:
    """Reads an inspector's JSON: every layer, once for each profile.

    Args:
        texts: What `get_engine_information` returned: once for the engine, or once for each profile, in
            their order, with that profile's shapes set. Then each profile's layers come from its own text,
            which is the one that tells their types.

    Returns:
        The layers. One that TensorRT lists by its name alone has neither type nor tactic.

    Raises:
        BuildError: A text is not an inspector's JSON.
    """
    read = [_layers(text) for text in texts]
    if len(read) == 1:
        return read[0]
    return tuple(layer for number, layers in enumerate(read) for layer in layers if layer.profile == number)


def _layers(text: str) -> tuple[LayerEvidence, ...]:
    entries = [_entry(entry) for entry in _entries(text)]
    # The same search over a layer's whole text that the log's reader does, as its nodes may carry the suffix.
    regions = region_profiles((_text(e, "Name"), json.dumps(e, ensure_ascii=False)) for e in entries)
    return tuple(_evidence(entry, regions) for entry in entries)


def _entries(text: str) -> list[Any]:
    try:
        # Metadata holds a raw \x1e between two nodes.
        data = json.loads(text, strict=False)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _unreadable(f"it is not JSON: {error}") from error
    layers = data.get("Layers") if isinstance(data, dict) else None
    if not isinstance(layers, list):
        raise _unreadable("it has no list of 'Layers'")
    return layers


def _entry(entry: Any) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"Name": entry}
    if isinstance(entry, dict) and isinstance(entry.get("Name"), str):
        return entry
    raise _unreadable("one of its layers is neither a name nor an object with a 'Name'")


def _evidence(entry: dict[str, Any], regions: dict[str, int]) -> LayerEvidence:
    name, tactic = _text(entry, "Name"), _text(entry, "TacticName")
    sparse_weights, read = entry.get("HasSparseWeights"), _datatypes(entry.get("Inputs"))
    return LayerEvidence(
        name=without_profile(name),
        type=_text(entry, "LayerType"),
        precision=precision_of(read, _datatypes(entry.get("Outputs")), tactic, _weight_types(entry, read)),
        tactic=tactic,
        profile=profile_of(name, regions),
        nodes=nodes_of(_text(entry, "Metadata")),
        sparse_weights=bool(sparse_weights) if isinstance(sparse_weights, int) else None,
        tactic_id=_text(entry, "TacticValue"),
        parameters=_parameters(entry),
    )


def _parameters(entry: dict[str, Any]) -> str:
    if not isinstance(entry.get("Weights"), dict):  # 11 tells less
        return ""
    told = {key: value for key, value in entry.items() if key not in _NOT_PARAMETERS}
    for key in ("Inputs", "Outputs"):
        tensors = entry.get(key)
        if not isinstance(tensors, list) or not all(isinstance(tensor, dict) for tensor in tensors):
            return ""
        told[key] = [(tensor.get("Dimensions"), _datatype(tensor)) for tensor in tensors]
    return json.dumps(told, sort_keys=True)


def _datatypes(tensors: Any) -> list[str]:
    """The types of a layer's tensors, without those that TensorRT does not tell."""
    if not isinstance(tensors, list):
        return []
    told = (_datatype(tensor) for tensor in tensors if isinstance(tensor, dict))
    return [datatype for datatype in told if datatype]


def _weight_types(entry: dict[str, Any], read: list[str]) -> tuple[str, ...]:
    """The types of its "Constants" that are weights, in 11; in 8.6 that of its "Weights".

    8.6 may mean the weights as they were given: it counts where that type is also read.
    """
    if isinstance(weights := entry.get("Weights"), dict):
        return (told,) if (told := _text(weights, "Type")) in read else ()
    listed = entry.get("Constants")
    constants = [c for c in listed if isinstance(c, dict)] if isinstance(listed, list) else []
    return weight_types((_sizes(c.get("Dimensions")), _datatype(c)) for c in constants if _datatype(c))


def _sizes(dimensions: Any) -> list[int]:
    return [d for d in dimensions if isinstance(d, int)] if isinstance(dimensions, list) else []


def _datatype(tensor: dict[str, Any]) -> str:
    if datatype := _text(tensor, "Datatype"):
        return datatype
    words = _WORD.findall(_text(tensor, "Format/Datatype"))
    if words and words[0] in _TYPES:
        return str(words[0])
    return next((_TYPES_BY_FORMAT[w.upper()] for w in words if w.upper() in _TYPES_BY_FORMAT), "")


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""


def _unreadable(why: str) -> BuildError:
    return BuildError(
        f"TensorRT's inspector said something that cannot be read: {why}.",
        "This version of TensorRT is not known to this tool: report it with its version.",
    )
