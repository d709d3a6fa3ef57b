"""sparseflow-trt prune."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.model.pattern import prune_2to4
from tests.graphs import in_module, random_weight

if TYPE_CHECKING:
    from tests.commands import Sparseflow
    from tests.conftest import Models

MakeModel = Callable[..., Path]


def test_writes_beside_the_model_by_default(sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path) -> None:
    path = mlp()
    before = path.read_bytes()
    ended = sparseflow("prune", path)
    assert (ended.code, ended.err) == (0, "")
    assert "1 weight pruned (2048 of 12288 elements set to zero), 1 was 2:4 already." in ended.out
    assert path.read_bytes() == before
    assert sparseflow("inspect", own_folder / "model.2to4.onnx").code == 0


def test_json(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    ended = sparseflow("prune", mlp(), "-o", "pruned.onnx", "--exclude", "up_*", "--json")
    assert ended.code == 0
    report = ended.json
    assert report["output"] == "pruned.onnx"
    assert [w["weight"] for w in report["pruned"]] == ["down"]
    assert report["skipped"] == [["up_proj", "excluded"]]


@pytest.mark.parametrize("how", ["along N", "anywhere", "whole groups"])
def test_weights_that_were_pruned_another_way_are_told_as_inspect_tells_them(
    sparseflow: Sparseflow, models: Models, how: str
) -> None:
    weight = random_weight(64, 64)
    by_rows = np.where(np.arange(64)[:, None] < 20, 0, weight)  # a third: what is left loses a third, too
    pruned = {
        "along N": prune_2to4(weight, 1),
        "anywhere": np.where(abs(weight) > np.median(abs(weight)), weight, 0),
        "whole groups": by_rows,
    }
    path = models.matmul(pruned[how].astype(np.float32))
    told = "1 layer(s) seem to have been pruned before: prune the model from before that, or accuracy is lost"
    assert told in sparseflow("inspect", path).out
    ended = sparseflow("prune", path, "-o", "pruned.onnx")
    assert ended.code == 0
    assert told in ended.out
    assert len(sparseflow("prune", path, "-o", "pruned.onnx", "--json").json["pruned_before"]) == 1
    assert "pruned before" not in sparseflow("prune", "pruned.onnx").out, "nothing is pruned twice"


def test_layers_that_are_alike_are_left_alone_in_one_line(sparseflow: Sparseflow, models: Models) -> None:
    nodes = [
        helper.make_node("MatMul", [x, w], [y], name=f"layers.{w[1:]}.lora_A")
        for x, w, y in (("x", "w0", "h"), ("h", "w1", "y"))
    ]
    weights = {f"w{i}": random_weight(64, 64, seed=i) for i in range(2)}
    path = models.save(models.model(nodes, weights, {"x": ("batch", 64)}))
    why = "an adapter, which is taken only where it is named"
    assert f"left alone 'layers.*.lora_A' (2): {why}\n" in sparseflow("prune", path, "-o", "left.onnx").out
    assert f"`prune` leaves 'layers.*.lora_A' (2) alone: {why}." in sparseflow("inspect", path).out
    as_json = sparseflow("prune", path, "-o", "left.onnx", "--json").json
    assert [name for name, _ in as_json["skipped"]] == ["layers.0.lora_A", "layers.1.lora_A"]


def test_adapters_are_left_dense_unless_named_and_inspect_agrees(
    sparseflow: Sparseflow, models: Models
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "base"], ["y"], name="up_proj.base_layer"),
        helper.make_node("MatMul", ["x", "a"], ["h"], name="up_proj.lora_A"),
        helper.make_node("MatMul", ["h", "b"], ["z"], name="up_proj.lora_B"),
    ]
    weights = {"base": random_weight(64, 64), "a": random_weight(64, 16), "b": random_weight(16, 64)}
    models.save(models.model(nodes, weights, {"x": ("batch", 64)}, outputs=["y", "z"]))
    assert sparseflow("inspect", "model.onnx").code == 3, "the base is not 2:4"
    done = sparseflow("prune", "model.onnx", "-o", "pruned.onnx").out
    assert "'up_proj.lora_A': an adapter, which is taken only where it is named" in done
    assert done.count("left alone") == 2
    ended = sparseflow("inspect", "pruned.onnx")
    assert (ended.code, ended.out.count(" adapter ")) == (0, 2), ended.out
    assert "Nothing was judged" not in sparseflow("inspect", "pruned.onnx").out
    sparseflow("prune", "model.onnx", "-o", "all.onnx", "--include", "*")
    assert "3 sparse, 0 not sparse" in sparseflow("inspect", "all.onnx").out


def test_a_classifier_is_left_and_named(sparseflow: Sparseflow, with_head: Path) -> None:
    why = "a classifier, which is taken only where it is named"
    assert f"\n`prune` leaves 'lm_head' alone: {why}.\n" in sparseflow("inspect", with_head).out
    ended = sparseflow("prune", with_head)
    assert ended.code == 0
    assert f"left alone 'lm_head': {why}\n1 weight pruned (2048 of 4096 elements" in ended.out
    named = sparseflow("prune", with_head, "--include", "*")
    assert "2 weights pruned (4096 of 8192 elements" in named.out
    assert sparseflow("inspect", with_head.with_name("model.2to4.onnx")).code == 0


def test_what_has_no_2to4_path_is_left_and_named(sparseflow: Sparseflow, models: Models) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Einsum", ["x", "w"], ["a"], name="product", equation="ij,jk->ik"),
        helper.make_node("Mul", ["w", "mask"], ["masked"], name="masking"),
        helper.make_node("MatMul", ["a", "masked"], ["b"], name="pruned"),
        helper.make_node("MatMul", ["b", "w2"], ["y"], name="plain"),
    ]
    weights = {"w": weight, "mask": (weight > 0).astype(np.float32), "w2": weight + 1}
    ended = sparseflow("prune", models.save(models.model(nodes, weights)))
    assert ended.code == 0
    lines = " ".join(ended.out.split())
    assert "left alone 'product': Einsum multiplies by its weight in a way that has no 2:4 path" in lines
    assert (
        "left alone 'pruned': its mask is still separate: the graph multiplies its weight by it 1 layer(s)"
        in lines
    )
    assert (
        "Fold the mask into the weight before the export: torch.nn.utils.prune.remove(module, 'weight')"
        in lines
    )
    assert "1 weight pruned" in lines


def test_a_conflict_is_named_with_exit_code_3(sparseflow: Sparseflow, models: Models) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Gemm", ["a", "w"], ["y"], name="other", transB=1),
    ]
    weights = {"w": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)}
    path = models.save(models.model(nodes, weights))
    ended = sparseflow("prune", path)
    assert ended.code == 3
    assert "not pruned 'one': weight 'w' is shared by layers whose K lies on different axes" in ended.out
    as_json = sparseflow("prune", path, "--json")
    assert as_json.code == 3
    assert [name for name, _ in as_json.json["conflicts"]] == ["one", "other"]


def test_the_model_is_not_its_own_output(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    path = mlp()
    assert "is the input itself" in sparseflow("prune", path, "-o", path).error


def test_an_output_that_cannot_be_written(
    sparseflow: Sparseflow, mlp: MakeModel, own_folder: Path, left: Callable[[Path], list[str]]
) -> None:
    (own_folder / "folder").mkdir()
    for output in ("folder", "no/such/x.onnx"):
        assert "cannot be written" in sparseflow("prune", mlp(), "-o", output).error
    assert left(own_folder) == ["folder", "model.onnx"]


def test_a_folder_is_no_model(sparseflow: Sparseflow) -> None:
    assert sparseflow("prune", ".").error == ". is a folder, not an ONNX file."


def test_every_command_calls_a_layer_as_the_table_does(
    sparseflow: Sparseflow, models: Models, own_folder: Path
) -> None:
    """torch's exporter numbers its nodes: 'node_linear_8' is no name that a reader could know."""
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["h"], "node_MatMul_7"),
        helper.make_node("MatMul", ["h", "head"], ["y"], "node_linear_8"),
    ]
    for node, module in zip(nodes, ("layers.0.up", "lm_head"), strict=True):
        in_module(node, module)
    weights = {"up": random_weight(64, 64), "head": random_weight(64, 32)}
    models.save(models.model(nodes, weights, {"x": ("m", 64)}), "net.onnx")
    why = "a classifier, which is taken only where it is named"
    inspected = sparseflow("inspect", "net.onnx").out
    assert f"\n`prune` leaves 'lm_head' alone: {why}.\n" in inspected
    assert f"left alone 'lm_head': {why}\n" in sparseflow("prune", "net.onnx").out
    again = sparseflow("prune", "net.2to4.onnx", "-o", "again.onnx")
    assert "--include lm_head prunes what was left alone." in again.out
    broken = sparseflow("inspect", "net.onnx", "--since", "net.2to4.onnx")
    assert "\n'layers.0.up' was 2:4 in net.2to4.onnx and is not in net.onnx: " in broken.out
    built = sparseflow("build", "net.2to4.onnx", "--dim", "m=1,2,4", "--backend", "onnxruntime")
    assert "1 of 2 layers could be 2:4 but are not, and stay dense: 'lm_head'." in built.out
    auto = ("plan", "net.2to4.onnx", "--dim", "m=1,2,4", "--precision", "auto", "-o", "plan.yaml")
    planned = sparseflow(*auto).out
    assert planned.count("layers.0.up") == planned.count("lm_head") == 2, "in the plan, and in the search"
    for ended in (inspected, again.out, broken.out, built.out, planned):
        assert "node_" not in ended
    told = sparseflow("inspect", "net.onnx", "--json").json["prune"]
    assert told["skipped"] == [["node_linear_8", why]], "programs are told the node, as in layers"
