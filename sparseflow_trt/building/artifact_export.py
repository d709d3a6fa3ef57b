"""An artifact's typed model as a plain ONNX file: what the build put into its weights is taken out again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparseflow_trt._files import check_file, temporary_folder
from sparseflow_trt.artifacts.manifest import NAME, check_files, read_manifest
from sparseflow_trt.engines.protocol import OnProgress, Progress
from sparseflow_trt.errors import ArtifactError, ModelError
from sparseflow_trt.exporters.lowering.opt_out import put_back
from sparseflow_trt.exporters.saving import plugin_nodes, save_model, save_plugin_model
from sparseflow_trt.model.graph import SparsityState, read_layers
from sparseflow_trt.model.model_file import read_model

_MODEL = "model.onnx"


@dataclass(frozen=True)
class ArtifactExport:
    """A finished export.

    Attributes:
        files: What was written: the model last.
        put_back: The layers whose weights got an element back.
        bytes: Of all files.
    """

    files: tuple[Path, ...]
    put_back: tuple[str, ...]
    bytes: int


def is_artifact(source: str) -> bool:
    """Whether a text names an artifact's folder."""
    return (Path(source) / NAME).is_file()


def export_artifact(folder: Path, output: Path, on_step: OnProgress = lambda _: None) -> ArtifactExport:
    """Writes an artifact's typed model with every element put back that took a layer out of sparse kernels.

    The weights are then, bit for bit, what the plan's types make of those that were built from. The artifact
    stays as it is.

    Args:
        folder: The artifact.
        output: The ONNX file, outside of the artifact. Large weights stand in OUTPUT.data, the plugin's in
            OUTPUT.packed.
        on_step: Told how far it is.

    Raises:
        ArtifactError: The folder is no artifact, its files have changed, or the output cannot be written.
        ModelError: A record does not fit the model, or a weight is not 2:4 after it was put back.
    """
    manifest = read_manifest(folder)
    if output.resolve().parent == folder.resolve():
        raise ArtifactError(
            f"{output} would lie in the artifact itself, whose files stay as they were built.",
            "Name a file elsewhere with --output.",
        )
    check_file(output)
    check_files(manifest, folder)
    changed = [record for record in manifest.graph.opted_out if record.route == "element"]
    model = read_model(folder / _MODEL)
    put_back(model, changed)
    with temporary_folder(output.with_name(f"{output.name}.export")) as place:
        on_step(Progress("Writing the weights"))
        written = place / output.name
        (save_plugin_model if plugin_nodes(model.ir) else save_model)(model.ir, written)
        _check_put_back(written, [record.layer for record in changed])
        beside = sorted(file for file in place.iterdir() if file != written)
        files = (*beside, written)
        size = sum(file.stat().st_size for file in files)
        places = tuple(output.with_name(file.name) for file in files)
        for file, target in zip(files, places, strict=True):  # the model after its data
            file.replace(target)
    return ArtifactExport(places, tuple(record.layer for record in changed), size)


def _check_put_back(path: Path, names: list[str]) -> None:
    """What was taken out was 2:4, so it has to be again."""
    states = {layer.name: layer.state for layer in read_layers(read_model(path))} if names else {}
    wrong = [name for name in names if states.get(name) is not SparsityState.SPARSE]
    if wrong:
        raise ModelError(
            f"layer '{wrong[0]}' is not 2:4 after its weight was restored.",
            "The artifact's records belong to another model: build it again.",
        )
