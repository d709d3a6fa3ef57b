"""An artifact as a server needs it: its ends, its batches, and from which batch on its sparse layers win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparseflow_trt.artifacts.manifest import Manifest, PluginRecord, check_files, read_manifest
from sparseflow_trt.artifacts.small_m import SparseFrom, sparse_from
from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.batching import Batching, choose_batching
from sparseflow_trt.exporters.triton.config import Route
from sparseflow_trt.exporters.triton.models import Runtime
from sparseflow_trt.exporters.triton.repository import check_name
from sparseflow_trt.exporters.triton.tensors import TENSORRT_TYPES, Ends, ServedTensor, read_ends
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.plans.plan import Plan, read_plan
from sparseflow_trt.policies.policy import find_policy
from sparseflow_trt.serving.engine_ends import ends_of_engine

RouteName = Literal["auto", "tensorrt_plan", "python"]
RUNTIMES: dict[str, Runtime] = {
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
    "onnxruntime": "onnxruntime",
}
# Of the ONNX Runtime and TensorRT-RTX, where a plan has sparse layers.
DENSE_ALL_THE_SAME = (
    "This engine's backend has no 2:4 kernels and runs dense: where sparse wins is the policy's answer for "
    "TensorRT."
)


@dataclass(frozen=True)
class Artifact:
    """What a deployment needs to know of an artifact."""

    folder: Path
    manifest: Manifest
    plan: Plan
    ends: Ends
    batching: Batching
    sparse_from: tuple[SparseFrom, ...]


def read_artifact(
    folder: Path,
    least_m: int | None = None,
    delay_us: int | None = None,
    max_batch_size: int | None = None,
) -> Artifact:
    """Reads what a deployment needs of an artifact, and refuses one that failed its validation.

    Args:
        folder: The artifact's.
        least_m: The M from which sparse wins; the artifact's policy says it by default.
        delay_us: How long a request may wait for others, where not by default.
        max_batch_size: The largest batch, where a person says it: 0 for none.

    Raises:
        ArtifactError: The folder is no artifact, or its files have changed.
        DeployError: Its validation failed, Triton has no words for its inputs and outputs, or the engine
            does not take the batch.
        ModelError: Its typed model cannot be read.
        PlanError: Its plan cannot be read.
        PolicyError: Its policy cannot be read.
    """
    manifest = read_manifest(folder)
    check_files(manifest, folder)
    if manifest.status == "fail":
        raise DeployError(
            f"{folder} failed its validation: {manifest.validation.reason}",
            "Build one that passes; `sparseflow-trt validate` compares again.",
        )
    plan = read_plan(folder / "plan.yaml")
    shapes = _seen_shapes(manifest)
    ends = read_ends(read_model(folder / "model.onnx"), [seen for _, seen in shapes])
    ends = ends_of_engine(ends, manifest.engine)
    policy = folder / "policy.json"
    found = find_policy(str(policy)) if policy.name in manifest.files else None
    begins = sparse_from(manifest, plan.profiles, found, least_m)
    batching = choose_batching(
        ends,
        plan.profiles,
        [(batch, shape) for batch, seen in shapes for shape in seen.values()],
        {row.profile: row.batch for row in begins},
        delay_us,
        max_batch_size,
    )
    return Artifact(folder, manifest, plan, ends, batching, begins)


def model_name(artifact: Path, given: str | None = None) -> str:
    """The name that an artifact is served under: its folder's, where none is given.

    Raises:
        DeployError: It is no name for a model.
    """
    return check_name(given or artifact.resolve().name.removesuffix(".artifact"))


def choose_route(artifact: Artifact, asked: RouteName) -> Route:
    """The way in which an engine is served.

    Raises:
        DeployError: Triton could not serve it so.
    """
    engine = artifact.manifest.engine
    if engine.backend not in RUNTIMES:
        raise DeployError(
            f"{artifact.folder} holds an engine of {engine.backend}.", "Build it for another backend."
        )
    if asked == "auto":
        asked = "tensorrt_plan" if engine.backend == "tensorrt" else "python"
    if asked == "tensorrt_plan" and engine.backend != "tensorrt":
        raise DeployError(
            f"{artifact.folder} holds an engine of {engine.backend}, not for Triton's TensorRT backend.",
            "Leave --route out: the Python backend serves it.",
        )
    if engine.options.get("strip_plan"):
        raise DeployError(
            f"{artifact.folder} was built with --strip-plan: its engine has no weights.",
            "Build it without --strip-plan.",
        )
    tensors = (*artifact.ends.inputs, *artifact.ends.outputs)
    if engine.backend != "onnxruntime":
        _check_tensorrt_ends(tensors)
    if engine.backend == "onnxruntime" and (narrow := [t.name for t in tensors if t.type == "BF16"]):
        raise DeployError(
            f"'{narrow[0]}' is BF16, and the Python backend hands NumPy arrays to the ONNX Runtime: NumPy "
            "has no such type.",
            "Give the model FP32 or FP16 inputs and outputs.",
        )
    return asked


def _check_tensorrt_ends(tensors: Sequence[ServedTensor]) -> None:
    for tensor in tensors:
        if tensor.type not in TENSORRT_TYPES:
            raise DeployError(
                f"'{tensor.name}' is {tensor.type}; TensorRT's engines have {', '.join(TENSORRT_TYPES)}.",
                "Cast it inside the model: inputs and outputs need one of these types.",
            )
        if not tensor.dims:
            raise DeployError(
                f"'{tensor.name}' is a scalar, which Triton does not hand to TensorRT.",
                "Give it a dimension of 1.",
            )


# On an H200 in FP16, at 512 plans (results/plugin_soak.json).
_NEW_M = (
    "Each number of rows that is new makes the plugin compile a kernel for each shape of its layers, until "
    "it has some hundred: up to a second each, and 23 MB of the host's memory that stay. Have few sizes "
    "come: pad sequences to a handful of lengths, and batches to the preferred ones."
)


def plugin_notes(name: str, plugin: PluginRecord, route: Route, present: Mapping[str, str]) -> list[str]:
    """What an engine with plugin nodes takes of its server, in sentences.

    Args:
        name: The model's.
        plugin: The library that the engine needs.
        route: How it is served.
        present: SHA-256 of the library that the server loads for each model, by its name.

    Raises:
        DeployError: The server loads another library for another model.
    """
    used = ", ".join(f"{library} {version}" for library, version in plugin.versions.items())
    notes = [f"The plugin was built with {used}: the server has to find it as well."] if used else []
    notes.append(_NEW_M)
    if route != "tensorrt_plan":  # each model of the Python backend is a process of its own
        return notes
    if others := [model for model, sha256 in present.items() if model != name and sha256 != plugin.sha256]:
        raise DeployError(
            f"'{name}' needs a different build of the plugin's library from '{others[0]}': TensorRT knows a "
            "plugin by its name, and the server would run both with the first.",
            "Build both with one library, deploy one with --route python, or into another repository.",
        )
    if present.get(name) != plugin.sha256:
        notes.append(
            "The server loads the plugin's library when it starts: restart a server that is already running."
        )
    return notes


def _seen_shapes(manifest: Manifest) -> Sequence[tuple[int, Mapping[str, tuple[int, ...]]]]:
    """For each input set of the validation its batch, and the shapes that the outputs had."""
    found = []
    for given in manifest.validation.input_sets:
        first = next(iter(given.shapes.values()), ())
        shapes = {
            output.output: output.shape
            for candidate in manifest.validation.candidates
            for output in candidate.outputs
            if output.input_set == given.name and output.shape
        }
        if first and shapes:
            found.append((first[0], shapes))
    return found
