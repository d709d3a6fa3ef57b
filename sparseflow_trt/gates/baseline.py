"""A baseline: what an accepted build gave on fixed inputs, in one file for version control. Fails closed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt

from sparseflow_trt._schema import Record, load_json, parse, read_text
from sparseflow_trt.artifacts.manifest import ModelRecord
from sparseflow_trt.artifacts.verdict import NonNegative, Tolerance, Verdict
from sparseflow_trt.errors import InputError
from sparseflow_trt.gates.stored_array import StoredArray

SCHEMA_VERSION = 1
MAX_GROWTH = 3.0
MAX_BYTES = 2_000_000

_HINT = "Create it again with `sparseflow-trt baseline create ARTIFACT`."


class BaselineInputs(Record):
    """One input set: its seed and shapes where it can be drawn again, else its arrays.

    Attributes:
        sha256: Of the arrays with their names, types and shapes (`artifact.hash_arrays`).
    """

    name: str
    origin: str
    seed: NonNegativeInt | None
    shapes: dict[str, tuple[NonNegativeInt, ...]]
    sha256: str
    arrays: dict[str, StoredArray] = Field(default_factory=dict)


class Figures(Record):
    """How far one output of one candidate was from the reference outputs: the worst over the input sets.

    None where a figure was not defined on some set.
    """

    candidate: str
    output: str
    max_abs: FiniteFloat | None
    mean_abs: FiniteFloat | None
    cosine: FiniteFloat | None
    equal: FiniteFloat | None


class LayerEvidence(Record):
    """What one weighted layer had of sparsity.

    Attributes:
        name: Its node's, by which it is found again.
        module: What people are told that it is called; "" where none is known, as in older baselines.
        pruned: Its weights were 2:4.
        planned: It was planned sparse.
        ran: The profiles in which the engine ran a sparse kernel for it, where the engine tells.
    """

    name: str
    module: str = ""
    pruned: bool = False
    planned: bool = False
    ran: tuple[NonNegativeInt, ...] = ()


class Evidence(Record):
    """What a build was, beside its outputs. Layers with nothing sparse are left out.

    Attributes:
        status: What the build said of itself.
        ships: Which engine a duel had ship; "" where there was none.
    """

    status: Verdict
    candidates: dict[str, Verdict]
    ships: Literal["", "sparse", "dense"] = ""
    layers: tuple[LayerEvidence, ...] = ()


class Metric(Record):
    """A user's metric: what it gave on the reference outputs, and by how much less passes."""

    score: FiniteFloat
    max_drop: NonNegative


Outputs = Mapping[str, Mapping[str, StoredArray]]  # by input set and name


class Baseline(Record):
    """A baseline file, schema version 1.

    Attributes:
        model: The model that the accepted build was made from.
        reference: What gave the reference outputs, in words.
        tolerances: How far each output may be from the reference output.
        max_growth: How many times the accepted build's mean error an output's may be.
        outputs: The reference outputs, by input set and name.
        figures: How far the accepted build was.
        metrics: By `module:function`.
    """

    schema_version: Literal[1]
    tool: str
    created: str
    model: ModelRecord
    reference: str
    tolerances: dict[str, Tolerance]
    max_growth: Annotated[FiniteFloat, Field(ge=1)]
    inputs: Annotated[tuple[BaselineInputs, ...], Field(min_length=1)]
    outputs: dict[str, dict[str, StoredArray]]
    figures: tuple[Figures, ...]
    evidence: Evidence
    metrics: dict[str, Metric] = Field(default_factory=dict)


def json_from_baseline(baseline: Baseline, most_bytes: int = MAX_BYTES) -> str:
    """The baseline as JSON, a field a line, so that version control shows what changed.

    Raises:
        InputError: It is larger than `most_bytes`; what takes the room is named.
    """
    data = baseline.model_dump(mode="json", exclude_defaults=True)
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    check_size(baseline.inputs, baseline.outputs, most_bytes, len(text.encode()))
    return text


def check_size(inputs: Sequence[BaselineInputs], outputs: Outputs, most_bytes: int, size: int = 0) -> None:
    """Refuses a baseline of more bytes than are allowed.

    Args:
        inputs: Its input sets.
        outputs: The reference outputs, by input set and name.
        most_bytes: That it may take.
        size: Of the whole, or 0 where it is not written yet: its arrays take nearly all of it.

    Raises:
        InputError: It is larger; what takes the room is named.
    """
    of_outputs = sum(len(array.data) for of in outputs.values() for array in of.values())
    of_inputs = sum(len(array.data) for given in inputs for array in given.arrays.values())
    size = max(size, of_outputs + of_inputs)
    if size > most_bytes:
        raise InputError(
            f"the baseline would take {size / 1e6:.1f} MB ({of_outputs / 1e6:.1f} MB of outputs, "
            f"{of_inputs / 1e6:.1f} MB of inputs), but {most_bytes / 1e6:g} MB is the limit for a file in "
            "version control.",
            "Give fewer or smaller inputs with --inputs, or allow more with --max-size.",
        )


def read_baseline(path: Path) -> Baseline:
    """Reads a baseline file.

    Raises:
        InputError: It is missing, no JSON, of another schema, or a field is wrong.
    """
    data = load_json(read_text(path, InputError, "baseline"), str(path), InputError, _HINT)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(f"{path} has schema version {version}; this tool reads {SCHEMA_VERSION}.", _HINT)
    baseline = parse(Baseline, data, str(path), InputError, _HINT)
    names = {given.name for given in baseline.inputs}
    if len(names) < len(baseline.inputs) or names != set(baseline.outputs):
        raise InputError(f"{path}: its outputs are not those of its input sets.", _HINT)
    wanted = set(baseline.tolerances)
    if any(set(outputs) != wanted for outputs in baseline.outputs.values()):
        raise InputError(f"{path}: its tolerances are not those of its outputs.", _HINT)
    return baseline
