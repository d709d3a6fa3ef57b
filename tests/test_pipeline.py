"""Whole builds of small models, through both backends: what comes out, and what stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparseflow_trt._files import sha256_of
from sparseflow_trt.artifact_validation import ValidationOptions, validate_artifact
from sparseflow_trt.engines.choose import BackendName
from sparseflow_trt.engines.ort import OnnxRuntimeBackend
from sparseflow_trt.errors import (
    EXIT_NOT_SPARSE,
    ArtifactError,
    BuildError,
    InputError,
    NotSparseError,
    PlanError,
)
from sparseflow_trt.manifest import check_files, read_manifest
from sparseflow_trt.pattern import prune_2to4
from sparseflow_trt.pipeline import (
    BuildOptions,
    BuildResult,
    PlanOptions,
    build,
    plan_for,
    read,
)
from sparseflow_trt.plan import Plan, read_plan
from sparseflow_trt.policy import Point, Policy
from sparseflow_trt.validation.tolerances import parse_tolerances

if TYPE_CHECKING:
    from tests.conftest import Array, Models

FLOAT, HALF, BRAIN = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
BATCH = PlanOptions(axes={"batch": (1, 4, 8)})
IMPOSSIBLE = ValidationOptions(tolerances=parse_tolerances(["atol=0,rtol=0,cosine=1"]))
Run = Callable[..., BuildResult]


def _weight(*shape: int, seed: int = 0) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])
    return np.asarray(values, np.float32)


def _sparse(*shape: int, seed: int = 0) -> Array:
    return prune_2to4(_weight(*shape, seed=seed), 0)


def _mlp(models: Models, dtype: Any = np.float32) -> onnx.ModelProto:
    """x (batch, 64) through up, Relu and down; up is 2:4."""
    types = {"float32": FLOAT, "float16": HALF, "bfloat16": BRAIN}
    return models.model(
        [
            helper.make_node("MatMul", ["x", "up"], ["a"], name="up_proj"),
            helper.make_node("Relu", ["a"], ["b"], name="act"),
            helper.make_node("MatMul", ["b", "down"], ["y"], name="down_proj"),
        ],
        {"up": _sparse(64, 128).astype(dtype), "down": _weight(128, 32).astype(dtype)},
        dtype=types[np.dtype(dtype).name],
    )


def _attention(models: Models, layers: int = 2) -> onnx.ModelProto:
    """Single-head attention over x (batch, seq, 32): LayerNormalization, Softmax, residuals."""
    nodes, weights = [], {"gain": np.ones(32, np.float32), "root": np.asarray(np.float32(32**-0.5))}
    x = "x"
    for i in range(layers):
        p = f"l{i}_"
        for j, name in enumerate("qkvo"):
            weights[f"{p}{name}_w"] = _sparse(32, 32, seed=4 * i + j)
        nodes.append(helper.make_node("LayerNormalization", [x, "gain"], [p + "n"], name=p + "norm"))
        nodes += [
            helper.make_node("MatMul", [p + "n", f"{p}{name}_w"], [p + name], name=f"{p}{name}_proj")
            for name in "qkv"
        ]
        nodes += [
            helper.make_node("Transpose", [p + "k"], [p + "kt"], perm=[0, 2, 1]),
            helper.make_node("MatMul", [p + "q", p + "kt"], [p + "raw"], name=p + "scores"),
            helper.make_node("Mul", [p + "raw", "root"], [p + "scaled"]),
            helper.make_node("Softmax", [p + "scaled"], [p + "p"], name=p + "softmax"),
            helper.make_node("MatMul", [p + "p", p + "v"], [p + "mixed"], name=p + "context"),
            helper.make_node("MatMul", [p + "mixed", p + "o_w"], [p + "o"], name=p + "o_proj"),
            helper.make_node("Add", [x, p + "o"], [p + "x"], name=p + "residual"),
        ]
        x = p + "x"
    nodes.append(helper.make_node("Identity", [x], ["y"]))
    return models.model(nodes, weights, {"x": ("batch", "seq", 32)})


def _convolution(models: Models) -> onnx.ModelProto:
    """x (2, 8, 12, 12) through two convolutions, a batch normalisation and a mean."""
    one, zero = np.ones(16, np.float32), np.zeros(16, np.float32)
    return models.model(
        [
            helper.make_node("Conv", ["x", "c1"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["a", "one", "zero", "zero", "one"], ["b"], name="bn"),
            helper.make_node("Relu", ["b"], ["c"], name="act"),
            helper.make_node("Conv", ["c", "c2"], ["d"], name="conv2", group=2),
            helper.make_node("ReduceMean", ["d", "axes"], ["y"], name="pool"),
        ],
        {"c1": _weight(16, 8, 3, 3) / 6, "c2": _weight(16, 8, 1, 1), "one": one, "zero": zero,
         "axes": np.array([2, 3])},
        {"x": (2, 8, 12, 12)},
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Builds a model with ONNX Runtime, which is the quicker backend, and batches of 1 to 8."""

    def build_it(
        path: Path,
        plan: Plan | PlanOptions = BATCH,
        backend: BackendName = "onnxruntime",
        output: Path | None = None,
        **options: Any,
    ) -> BuildResult:
        return build(path, BuildOptions(output or tmp_path / "out", plan, backend, **options))

    return build_it


def _typed(result: BuildResult) -> dict[str, str]:
    """The type of each named node's first output in the typed graph."""
    model = onnx.shape_inference.infer_shapes(onnx.load(result.artifact / "model.onnx"))
    values = (*model.graph.value_info, *model.graph.output)
    types = {v.name: TensorProto.DataType.Name(v.type.tensor_type.elem_type) for v in values}
    return {node.name: types.get(node.output[0], "") for node in model.graph.node}


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
@pytest.mark.parametrize(
    ("precision", "sparsity", "expected"),
    [
        ("fp32", "policy", "FLOAT"), ("fp16", "force", "FLOAT16"), ("bf16", "off", "BFLOAT16"),
        ("keep", "force", "FLOAT"), (None, "policy", "FLOAT16"),
    ],
)  # fmt: skip
def test_an_mlp_in_each_precision(
    backend: BackendName, precision: Any, sparsity: Any, expected: str, models: Models, run: Run
) -> None:
    plan = replace(BATCH, precision=precision, sparsity=sparsity)
    path = models.save(_mlp(models))
    if (backend, precision) == ("onnxruntime", "bf16"):
        with pytest.raises(BuildError, match=r"no kernel for node 'up_proj' .*BFLOAT16"):
            run(path, plan, backend)
        assert [f.name for f in models.folder.iterdir()] == ["model.onnx"]
        return
    result = run(path, plan, backend)
    manifest = result.manifest
    assert manifest.status == "pass"
    assert _typed(result)["up_proj"] == _typed(result)["down_proj"] == expected
    asked = "sparse" if sparsity == "force" else "dense"
    assert [(layer.sparsity, layer.state) for layer in manifest.layers] == [
        (asked, "sparse"),
        ("dense", "not-sparse"),
    ]
    assert manifest.layers[0].m == {"default": (1, 4, 8)}
    verdicts = {c.name: c.verdict for c in manifest.validation.candidates}
    assert verdicts[f"engine ({backend})"] == ("pass" if backend == "onnxruntime" else "not run")
    if backend == "tensorrt-rtx":
        said = {"FLOAT": "Float", "FLOAT16": "Half", "BFLOAT16": "BFloat16"}[expected]
        gemms = {layer.precision for layer in manifest.engine.layers if layer.type == "gemm"}
        assert gemms == {said}, "the engine's own layers"
        assert "runs dense" in manifest.engine.sparse_tactics


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_attention_keeps_its_norms_and_softmax_in_fp32(
    backend: BackendName, models: Models, run: Run
) -> None:
    plan = PlanOptions(axes={"batch": (1, 2, 2), "seq": (4, 8, 8)}, sparsity="force")
    result = run(models.save(_attention(models)), plan, backend)
    assert result.manifest.status == "pass"
    types = _typed(result)
    assert {types[f"l{i}_{name}"] for i in (0, 1) for name in ("norm", "softmax")} == {"FLOAT"}
    assert {types[f"l{i}_{name}_proj"] for i in (0, 1) for name in "qkvo"} == {"FLOAT16"}
    assert set(result.manifest.graph.islands) == {"l0_norm", "l0_softmax", "l1_norm", "l1_softmax"}
    weighted = result.manifest.layers
    assert len(weighted) == 8, "products of two activations are not in the manifest"
    assert {layer.m["default"] for layer in weighted} == {(4, 16, 16)}


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_a_static_convolutional_net(backend: BackendName, models: Models, run: Run) -> None:
    result = run(models.save(_convolution(models)), PlanOptions(), backend)
    assert result.manifest.status == "pass"
    assert [layer.kind for layer in result.manifest.layers] == ["conv", "conv"]
    assert {_typed(result)[name] for name in ("bn", "pool")} == {"FLOAT"}
    assert _typed(result)["conv1"] == "FLOAT16"
    assert [s.name for s in result.manifest.validation.input_sets] == ["static#0", "static#1", "static#2"]


def test_a_policy_decides_and_lies_beside_the_plan(models: Models, run: Run) -> None:
    shape: dict[str, Any] = {"kind": "gate_up", "n": 128, "k": 64, "m": 4, "dtype": "FP16"}
    shape["library"] = "tensorrt"
    points = (Point(**shape, kernel="dense", us=2), Point(**shape, kernel="sparse", us=1))
    policy = Policy(
        schema_version=1, name="mine", device="a card", compute_capability="8.0", provenance="measured",
        source="here", points=points,
    )  # fmt: skip
    path = models.save(_mlp(models))
    result = run(path, replace(BATCH, policy=policy))
    assert "2.00×" in result.manifest.layers[0].reason
    assert result.manifest.layers[0].sparsity == "sparse"
    assert result.manifest.policy is not None
    assert result.manifest.policy.sha256 == sha256_of(result.artifact / "policy.json")
    assert not run(path, replace(BATCH, policy=policy.model_copy(update={"margin": 0.5}))).unchanged


def test_the_artifact_holds_all_that_the_manifest_says(models: Models, run: Run) -> None:
    path = models.save(_mlp(models))
    result = run(path, backend="tensorrt-rtx", command="sparseflow-trt build model.onnx")
    folder = result.artifact
    names = {f.name for f in folder.iterdir()}
    assert names == {
        "manifest.json", "model.engine", "model.onnx", "model.onnx.data", "plan.yaml", "report.html"
    }  # fmt: skip
    manifest = read_manifest(folder)
    assert manifest == result.manifest
    check_files(manifest, folder)
    assert set(manifest.files) == names - {"manifest.json"}
    assert manifest.model.sha256 == sha256_of(path)
    assert manifest.model.bytes == path.stat().st_size
    assert manifest.plan_sha256 == sha256_of(folder / "plan.yaml")
    assert manifest.policy is None
    assert manifest.command == "sparseflow-trt build model.onnx"
    assert set(manifest.engine.versions) == {"tensorrt-rtx"}
    assert {"read", "plan", "rewrite", "backend", "validate"} <= set(manifest.seconds)
    assert manifest.layers[0].mask_hash
    assert read_plan(folder / "plan.yaml").layers[0].name == "up_proj"
    assert folder.stat().st_mode & 0o777 == 0o755
    assert sorted(f.name for f in models.folder.iterdir()) == ["model.onnx", "out"]


def test_a_plan_is_written_edited_and_built(models: Models, run: Run) -> None:
    path = models.save(_mlp(models))
    model, layers = read(path)
    plan = plan_for(model, layers, BATCH, sha256_of(path))
    up, down = plan.layers
    edited = plan.model_copy(update={"layers": (up, down.model_copy(update={"precision": "fp32"}))})
    result = run(path, edited, "tensorrt-rtx")
    types = _typed(result)
    assert (types["up_proj"], types["down_proj"]) == ("FLOAT16", "FLOAT")
    evidence = [layer for layer in result.manifest.engine.layers if "down_proj" in layer.nodes]
    assert [(layer.type, layer.precision) for layer in evidence] == [("gemm", "Float")]
    assert result.manifest.status == "pass"


def test_a_plan_that_does_not_fit_is_refused_layer_by_layer(models: Models, run: Run) -> None:
    path = models.save(_mlp(models))
    plan = plan_for(*read(path), BATCH, "")
    up, down = plan.layers
    wrong = plan.model_copy(
        update={"layers": (up.model_copy(update={"k": 65}), down.model_copy(update={"name": "other"}))}
    )
    with pytest.raises(PlanError) as caught:
        run(path, wrong)
    for name in ("'up_proj'", "'other'", "'down_proj'"):
        assert name in caught.value.message
    sparse = plan.model_copy(update={"layers": (up, down.model_copy(update={"sparsity": "sparse"}))})
    with pytest.raises(NotSparseError, match="'down_proj' is planned sparse and is not-sparse") as refused:
        run(path, sparse)
    assert refused.value.exit_code == EXIT_NOT_SPARSE
    assert [f.name for f in models.folder.iterdir()] == ["model.onnx"]


def test_a_type_that_the_opset_lacks_is_refused(models: Models, run: Run) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    path = models.save(models.model([node], {"w": _weight(64, 32)}, opset=11))
    with pytest.raises(PlanError, match="'fc' is planned bf16, and opset 11 has no MatMul of that type"):
        run(path, replace(BATCH, precision="bf16"))


def test_nothing_changed_does_nothing(models: Models, run: Run, tmp_path: Path) -> None:
    path = models.save(_mlp(models))
    npz = tmp_path / "x.npz"
    np.savez(npz, x=_weight(4, 64))
    real = ValidationOptions(inputs=str(npz))
    first = run(path, validation=real)
    stamp = (first.artifact / "manifest.json").stat().st_mtime_ns
    again = run(path, validation=real)
    assert again.unchanged
    assert again.manifest == first.manifest
    assert (again.artifact / "manifest.json").stat().st_mtime_ns == stamp
    assert not run(path, validation=real, force=True).unchanged

    np.savez(npz, x=_weight(4, 64, seed=1))
    assert not run(path, validation=real).unchanged, "the inputs have changed"
    loose = replace(real, tolerances=parse_tolerances(["rtol=0.5"]))
    assert not run(path, validation=loose).unchanged, "the tolerance has"
    assert not run(path, replace(BATCH, precision="fp32"), validation=loose).unchanged, "the plan has"
    assert not run(path).unchanged, "the inputs are random ones again"
    assert not run(path, validation=ValidationOptions(seed=1)).unchanged
    assert run(path, validation=ValidationOptions(seed=1)).unchanged
    (tmp_path / "out" / "report.html").unlink()
    assert not run(path, validation=ValidationOptions(seed=1)).unchanged, "a file is gone"
    (tmp_path / "out" / "manifest.json").write_text("{}")
    assert not run(path, validation=ValidationOptions(seed=1)).unchanged, "a damaged one is replaced"
    models.save(_mlp(models, np.float16))
    assert not run(path, validation=ValidationOptions(seed=1)).unchanged, "the model has"


def test_an_engine_for_another_device_is_built_again(
    models: Models, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models.save(_mlp(models))
    run(path)
    assert run(path).unchanged
    monkeypatch.setattr(OnnxRuntimeBackend, "device", lambda _: "another CPU")
    assert not run(path).unchanged
    assert run(path).unchanged


def test_a_loader_that_yields_other_values_builds_again(models: Models, run: Run, tmp_path: Path) -> None:
    path = models.save(_mlp(models))
    (tmp_path / "scale.txt").write_text("1")
    loader = tmp_path / "loader.py"
    loader.write_text(
        "import numpy as np, pathlib\n"
        "def sets():\n"
        "    scale = float(pathlib.Path(__file__).with_name('scale.txt').read_text())\n"
        "    yield {'x': np.full((4, 64), scale, np.float32)}\n"
    )
    options = ValidationOptions(inputs=f"{loader}:sets")
    run(path, validation=options)
    assert run(path, validation=options).unchanged
    (tmp_path / "scale.txt").write_text("2")
    assert not run(path, validation=options).unchanged


def test_real_inputs_are_what_is_compared_on(models: Models, run: Run, tmp_path: Path) -> None:
    path = models.save(_mlp(models))
    np.savez(tmp_path / "x.npz", **{"x@first": _weight(4, 64), "x@second": _weight(1, 64)})  # type: ignore[arg-type]
    result = run(path, validation=ValidationOptions(inputs=str(tmp_path / "x.npz")))
    assert [s.shapes["x"] for s in result.manifest.validation.input_sets] == [(4, 64), (1, 64)]
    np.savez(tmp_path / "x.npz", x=_weight(4, 63))
    with pytest.raises(InputError, match="'x'"):
        run(path, validation=ValidationOptions(inputs=str(tmp_path / "x.npz")))


def test_a_failed_build_is_kept_and_marked(models: Models, run: Run) -> None:
    path = models.save(_mlp(models))
    result = run(path, validation=IMPOSSIBLE)
    assert result.manifest.status == read_manifest(result.artifact).status == "fail"
    check_files(result.manifest, result.artifact)
    again = run(path, validation=IMPOSSIBLE)
    assert again.unchanged
    assert again.manifest.status == "fail"
    assert run(path).manifest.status == "pass", "one that passes takes the place of one that failed"


def test_a_failed_build_leaves_the_one_that_passed(models: Models, run: Run) -> None:
    path = models.save(_mlp(models))
    good = run(path)
    before = {f.name: sha256_of(f) for f in good.artifact.iterdir()}
    bad = run(path, validation=IMPOSSIBLE)
    assert bad.artifact == good.artifact.with_name("out.failed")
    assert read_manifest(bad.artifact).status == "fail"
    assert {f.name: sha256_of(f) for f in good.artifact.iterdir()} == before
    assert run(path).unchanged
    assert run(path, validation=IMPOSSIBLE).artifact == bad.artifact
    assert sorted(f.name for f in models.folder.iterdir()) == ["model.onnx", "out", "out.failed"]


def test_nothing_foreign_is_replaced(models: Models, run: Run, tmp_path: Path) -> None:
    path = models.save(_mlp(models))
    good = run(path)
    mine = tmp_path / "out.failed"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"out\.failed exists and is no artifact"):
        run(path, validation=IMPOSSIBLE)
    with pytest.raises(ArtifactError, match=r"out\.failed exists and is no artifact"):
        run(path, output=mine)
    with pytest.raises(ArtifactError, match=r"model\.onnx exists and is no artifact"):
        run(path, output=path)
    with pytest.raises(ArtifactError, match="does not exist"):
        run(path, output=tmp_path / "no" / "where")
    assert (mine / "thesis.txt").read_text() == "years of work"
    check_files(good.manifest, good.artifact)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "out", "out.failed"]


def test_what_somebody_puts_there_during_a_build_is_not_replaced(models: Models, tmp_path: Path) -> None:
    path = models.save(_mlp(models))

    def meanwhile(_: object) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "thesis.txt").write_text("years of work")

    with pytest.raises(ArtifactError, match="out exists and is no artifact"):
        build(path, BuildOptions(tmp_path / "out", BATCH, "onnxruntime"), meanwhile)
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "out"]


def test_a_linked_output_stays_a_link(models: Models, run: Run, tmp_path: Path) -> None:
    path = models.save(_mlp(models))
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "real")
    run(path, output=link)
    bad = run(path, output=link, validation=IMPOSSIBLE)
    assert link.is_symlink()
    assert read_manifest(link).status == "pass"
    assert bad.artifact == tmp_path / "disk" / "real.failed"


def test_the_current_folder_may_be_the_output(
    models: Models, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models.save(_mlp(models))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(path, output=Path())
    assert read_manifest(tmp_path / "here").status == "pass"


def _norm_in_small_operators(kind: str) -> list[onnx.NodeProto]:
    """x to y, normalised along the last axis, with squares that leave FP16's range."""

    def node(op: str, inputs: list[str], output: str) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], name=output)

    if kind == "layer norm":
        return [
            node("ReduceMean", ["x", "axis"], "mean"), node("Sub", ["x", "mean"], "centred"),
            node("Pow", ["centred", "two"], "square"), node("ReduceMean", ["square", "axis"], "var"),
            node("Add", ["var", "eps"], "var_eps"), node("Sqrt", ["var_eps"], "std"),
            node("Div", ["centred", "std"], "normed"),
        ]  # fmt: skip
    if kind == "rms norm":
        return [
            node("Mul", ["x", "x"], "square"), node("ReduceMean", ["square", "axis"], "var"),
            node("Add", ["var", "eps"], "var_eps"), node("Sqrt", ["var_eps"], "std"),
            node("Reciprocal", ["std"], "inverse"), node("Mul", ["x", "inverse"], "normed"),
        ]  # fmt: skip
    return [
        node("ReduceMax", ["x", "axis"], "top"), node("Sub", ["x", "top"], "shifted"),
        node("Exp", ["shifted"], "exp"), node("ReduceSum", ["exp", "axis"], "total"),
        node("Div", ["exp", "total"], "normed"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["layer norm", "rms norm", "softmax"])
def test_norms_in_small_operators_stay_in_fp32(kind: str, models: Models, run: Run, tmp_path: Path) -> None:
    nodes = [*_norm_in_small_operators(kind), helper.make_node("MatMul", ["normed", "w"], ["y"], name="fc")]
    constants = {"axis": np.array([-1]), "two": np.float32(2), "eps": np.float32(1e-5), "w": _weight(64, 64)}
    used = {name for node in nodes for name in node.input}
    path = models.save(models.model(nodes, {k: np.asarray(v) for k, v in constants.items() if k in used}))
    # squares of 1e6 and sums of 6e7, where FP16 ends at 65504
    np.savez(tmp_path / "x.npz", x=_weight(4, 64) * 2000)
    result = run(path, validation=ValidationOptions(inputs=str(tmp_path / "x.npz")))
    assert result.manifest.status == "pass", result.manifest.validation.reason
    types = _typed(result)
    inside = {"square", "var", "var_eps", "std", "inverse", "exp", "total"} & set(types)
    assert {types[name] for name in inside} == {"FLOAT"}
    assert types["fc"] == "FLOAT16"


@pytest.mark.parametrize(
    ("dtype", "backend"), [(np.float16, "onnxruntime"), (ml_dtypes.bfloat16, "tensorrt-rtx")]
)
def test_a_half_precision_model_is_kept_and_compared_with_fp32(
    dtype: Any, backend: BackendName, models: Models, run: Run
) -> None:
    path = models.save(_mlp(models, dtype))
    result = run(path, backend=backend)
    manifest = result.manifest
    assert manifest.status == "pass", manifest.validation.reason
    name = TensorProto.DataType.Name({"float16": HALF}.get(np.dtype(dtype).name, BRAIN))
    assert _typed(result) == {"up_proj": name, "act": name, "down_proj": name}
    assert manifest.graph.casts == 0
    assert manifest.validation.reference == "reference.onnx"
    output = manifest.validation.candidates[0].outputs[0]
    assert output.reference_dtype == "float32"
    assert output.max_abs is not None
    assert output.max_abs > 0, "a reference in the model's own type would be equal"
    again = validate_artifact(result.artifact, path, ValidationOptions())
    assert again.candidates[0].outputs == manifest.validation.candidates[0].outputs


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_an_if_and_a_loop(backend: BackendName, models: Models, run: Run) -> None:
    def output(name: str, dtype: int = FLOAT, shape: Any = ("batch", 64)) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, shape)

    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"], name="in_if")], "then", [], [output("t")]
    )
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "else", [], [output("e")])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["state", "w"], ["scaled"], name="in_loop"),
            helper.make_node("Tanh", ["scaled"], ["next"]),
        ],
        "body",
        [output("i", TensorProto.INT64, []), output("go", TensorProto.BOOL, []), output("state")],
        [output("go_on", TensorProto.BOOL, []), output("next")],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["cond"]),
        helper.make_node("If", ["cond"], ["b"], then_branch=then, else_branch=other),
        helper.make_node("Loop", ["trips", "always", "b"], ["y"], body=body),
    ]
    constants = {"w": _weight(64, 64), "zero": np.asarray(np.float32(0)), "trips": np.asarray(3),
                 "always": np.asarray(True)}  # fmt: skip
    result = run(models.save(models.model(nodes, constants)), backend=backend)
    assert result.manifest.status == "pass", result.manifest.validation.reason
    assert [layer.name.rpartition("/")[2] for layer in result.manifest.layers] == ["in_if", "in_loop"]
    assert {layer.precision for layer in result.manifest.layers} == {"fp16"}


def test_local_functions_are_inlined(models: Models, run: Run) -> None:
    function = helper.make_function(
        "local", "Linear", ["a", "b"], ["c"],
        [helper.make_node("MatMul", ["a", "b"], ["p"], name="mm"), helper.make_node("Relu", ["p"], ["c"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Linear", ["x", "up"], ["h"], name="first", domain="local"),
        helper.make_node("Linear", ["h", "down"], ["y"], name="second", domain="local"),
    ]
    weights = {"up": _sparse(64, 128), "down": _weight(128, 32)}
    path = models.save(models.model(nodes, weights, functions=[function]))
    result = run(path, replace(BATCH, sparsity="force"))
    assert result.manifest.status == "pass"
    assert [layer.sparsity for layer in result.manifest.layers] == ["sparse", "dense"]
    assert not onnx.load(result.artifact / "model.onnx").functions
    assert validate_artifact(result.artifact, path, ValidationOptions()).verdict == "pass"


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_external_data_is_read_and_hashed(
    backend: BackendName, models: Models, run: Run, tmp_path: Path
) -> None:
    model = _mlp(models)
    models.externalize(model, {"up": "weights/up.bin", "down": "down.bin"}, padding=64)
    path = models.save(model)
    result = run(path, backend=backend)
    assert result.manifest.status == "pass"
    assert result.manifest.model.data == {
        name: sha256_of(tmp_path / name) for name in ("weights/up.bin", "down.bin")
    }
    assert run(path, backend=backend).unchanged
    (tmp_path / "down.bin").write_bytes(b"\0" * (tmp_path / "down.bin").stat().st_size)
    assert not run(path, backend=backend).unchanged
    for name in ("weights/up.bin", "down.bin", "model.onnx"):
        (tmp_path / name).unlink()
    engine = [f for f in result.artifact.iterdir() if f.name.startswith(("model.engine", "model.ort"))]
    assert sum(f.stat().st_size for f in engine) > 2 * (64 * 128 + 128 * 32), "it needs no other file"


def test_a_constant_beyond_fp16_is_said(models: Models, run: Run) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="fc"),
        helper.make_node("Shape", ["a"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["filled"],
                         value=models.tensor("v", np.array([1e6], np.float32))),
        helper.make_node("Min", ["a", "filled", "far"], ["y"]),
    ]  # fmt: skip
    weights = {"w": _weight(64, 32), "far": np.array([1e7], np.float32)}
    result = run(models.save(models.model(nodes, weights)))
    assert {(c[1], round(c[2])) for c in result.manifest.graph.clamped} == {(1, 10**6), (1, 10**7)}
    assert result.manifest.status == "pass"


def test_what_the_checker_refused_before_is_not_held_against_the_rewriting(models: Models, run: Run) -> None:
    model = _mlp(models)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, ["batch", 99]))
    assert run(models.save(model)).manifest.status == "pass"


def test_an_artifact_is_validated_again(models: Models, run: Run, tmp_path: Path) -> None:
    path = models.save(_mlp(models))
    result = run(path, backend="tensorrt-rtx")
    found = validate_artifact(result.artifact, path, ValidationOptions(seed=3))
    assert found.verdict == "pass"
    engine = found.candidates[1]
    assert engine.verdict == "not run"
    assert engine.reason
    assert "was not run" in found.reason
    assert validate_artifact(result.artifact, path, IMPOSSIBLE).verdict == "fail"
    renamed = path.rename(tmp_path / "renamed.onnx")
    assert validate_artifact(result.artifact, renamed, ValidationOptions()).verdict == "pass"
    other = models.save(_mlp(models, np.float16), "other.onnx")
    with pytest.raises(ArtifactError, match="was built from another model"):
        validate_artifact(result.artifact, other, ValidationOptions())
    with (result.artifact / "model.engine").open("r+b") as stream:
        stream.write(b"\0\0\0\0")
    with pytest.raises(ArtifactError, match=r"model\.engine is not the file that was built"):
        validate_artifact(result.artifact, renamed, ValidationOptions())


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_an_empty_cache_is_a_profile_of_min_0(models: Models, run: Run, backend: BackendName) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "k_proj"], ["new"], name="k_proj"),
        helper.make_node("Concat", ["past_key", "new"], ["all"], name="cache", axis=1),
        helper.make_node("MatMul", ["all", "out_proj"], ["y"], name="out_proj"),
    ]
    weights = {"k_proj": _sparse(32, 32), "out_proj": _sparse(32, 32, seed=1)}
    inputs = {"x": ("batch", "seq", 32), "past_key": ("batch", "past", 32)}
    path = models.save(models.model(nodes, weights, inputs), "cache.onnx")
    axes = {"batch": (1, 2, 4), "seq": (1, 1, 8), "past": (0, 8, 16)}
    result = run(path, PlanOptions(axes=axes, sparsity="force"), backend)
    assert result.manifest.status == "pass"
    shapes = {tuple(given.shapes["past_key"]) for given in result.manifest.validation.input_sets}
    assert (1, 0, 32) in shapes
