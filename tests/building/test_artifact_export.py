"""An artifact's typed model, with what the build put into its weights taken out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper, load, numpy_helper

from sparseflow_trt._files import sha256_of
from sparseflow_trt.artifacts.manifest import NAME
from sparseflow_trt.building.artifact_export import export_artifact, is_artifact
from sparseflow_trt.building.plan_options import PlanOptions
from sparseflow_trt.errors import ArtifactError, ModelError
from sparseflow_trt.exporters.lowering.opt_out import opt_out
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.model.graph import SparsityState, read_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.pipeline import BuildOptions, build

if TYPE_CHECKING:
    from tests.conftest import Models


def weights_of(path: Path) -> dict[str, bytes]:
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in load(path).graph.initializer}


def change(folder: Path, **graph: Any) -> None:
    """Changes the manifest's record of the graph; its files' hashes are made those that there are."""
    data = json.loads((folder / NAME).read_text())
    data["graph"] |= graph
    data["files"] = {name: sha256_of(folder / name) for name in data["files"]}
    (folder / NAME).write_text(json.dumps(data))


@pytest.fixture
def plain(models: Models, tmp_path: Path) -> Path:
    """An artifact of two 2:4 layers, none of which was taken out."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["h"], name="up"),
        helper.make_node("MatMul", ["h", "down"], ["y"], name="down"),
    ]
    weights = {
        name: np.asarray(prune_2to4(rng.standard_normal((64, 64)).astype(np.float32), 0))
        for name in ("up", "down")
    }
    path = models.save(models.model(nodes, weights))
    plan = PlanOptions(axes={"batch": (1, 4, 8)}, sparsity="force")
    return build(path, BuildOptions(tmp_path / "m.artifact", plan, "onnxruntime")).artifact


@pytest.fixture
def artifact(plain: Path) -> Path:
    """The same with 'down' taken out of sparse kernels, as a build for TensorRT does it."""
    model = read_model(plain / "model.onnx")
    records = opt_out(model, ["down"])
    (plain / "new").mkdir()
    save_model(model.ir, plain / "new" / "model.onnx")
    for file in (plain / "new").iterdir():
        file.replace(plain / file.name)
    (plain / "new").rmdir()
    change(plain, opted_out=[record.model_dump(mode="json") for record in records])
    return plain


def test_each_weight_is_what_it_was_bit_for_bit(plain: Path, request: pytest.FixtureRequest) -> None:
    before = weights_of(plain / "model.onnx")
    artifact: Path = request.getfixturevalue("artifact")
    hashes = {file.name: sha256_of(file) for file in artifact.iterdir()}
    assert weights_of(artifact / "model.onnx") != before
    done = export_artifact(artifact, artifact.parent / "back.onnx")
    assert done.put_back == ("down",)
    assert [file.name for file in done.files] == ["back.onnx.data", "back.onnx"]
    assert done.bytes == sum(file.stat().st_size for file in done.files)
    assert weights_of(done.files[-1]) == before
    assert {layer.state for layer in read_layers(read_model(done.files[-1]))} == {SparsityState.SPARSE}
    assert {file.name: sha256_of(file) for file in artifact.iterdir()} == hashes, "the artifact stays"
    assert is_artifact(str(artifact))
    assert not is_artifact(str(artifact.parent))


def test_where_nothing_was_taken_out_the_typed_model_is_written(plain: Path) -> None:
    done = export_artifact(plain, plain.parent / "typed.onnx")
    assert done.put_back == ()
    assert weights_of(done.files[-1]) == weights_of(plain / "model.onnx")


def test_what_does_not_fit_is_refused_and_nothing_is_written(artifact: Path) -> None:
    output = artifact.parent / "back.onnx"
    with pytest.raises(ArtifactError, match="would lie in the artifact itself"):
        export_artifact(artifact, artifact / "other.onnx")
    record = json.loads((artifact / NAME).read_text())["graph"]["opted_out"][0]
    change(artifact, opted_out=[{**record, "new_bits": record["new_bits"] + 1}])
    with pytest.raises(ModelError, match="weight 'down' of layer 'down' holds"):
        export_artifact(artifact, output)
    nonzero = int(np.float16(1).view(np.uint16))
    change(artifact, opted_out=[{**record, "old_bits": nonzero}])
    with pytest.raises(ModelError, match="layer 'down' is not 2:4 after its weight was restored"):
        export_artifact(artifact, output)
    (artifact / "model.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match="is not the file that was built"):
        export_artifact(artifact, output)
    assert not [file for file in artifact.parent.iterdir() if file.name.startswith("back")]
