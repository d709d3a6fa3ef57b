"""sparseflow-trt inspect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper

from sparseflow_trt.model.pattern import prune_2to4
from tests.graphs import in_module, random_weight

if TYPE_CHECKING:
    from tests.commands import Sparseflow
    from tests.conftest import Models

MakeModel = Callable[..., Path]


def test_a_table_with_the_reasons(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    ended = sparseflow("inspect", mlp())
    assert (ended.code, ended.err) == (3, "")
    up, down = (line.split() for line in ended.out.splitlines()[1:3])
    assert up == ["up_proj", "gate_up", "MatMul", "batch", "128", "64", "FP32", "0", "sparse"]
    assert down[:9] == ["down_proj", "down", "MatMul", "batch", "32", "128", "FP32", "0", "not-sparse"]
    assert "100% of the groups, first at [0, 0]" in ended.out
    assert "1 sparse, 1 not sparse, 0 not eligible" in ended.out
    assert "\nPrune them with: sparseflow-trt prune " in ended.out
    assert "prune MODEL" not in ended.out
    assert ended.out.endswith("\nInput 'x': float32 [batch, 64]\n")


def test_layers_that_were_pruned_along_the_wrong_axis_are_one_row_with_what_to_do(
    sparseflow: Sparseflow, models: Models
) -> None:
    weights = {f"w{i}": prune_2to4(random_weight(64, 64, seed=i), 1) for i in range(2)}
    nodes = [
        helper.make_node("MatMul", [x, w], [y], name=f"layers.{w[1:]}.up/MatMul")
        for x, w, y in (("x", "w0", "h"), ("h", "w1", "y"))
    ]
    models.save(models.model(nodes, weights, {"x": ("batch", 64)}), "wrong.onnx")
    ended = sparseflow("inspect", "wrong.onnx")
    assert ended.code == 3
    assert ended.out.splitlines()[1].endswith("of the groups; it is 2:4 along N, not K"), ended.out
    assert "\n2 layer(s) seem to have been pruned before: prune the model from before that" in ended.out


def test_a_flattened_kernel_and_nan_are_told_by_inspect_and_plan(
    sparseflow: Sparseflow, models: Models
) -> None:
    kernel = prune_2to4(random_weight(32, 16, 3, 3).reshape(32, -1), 1).reshape(32, 16, 3, 3)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    models.save(models.model([node], {"w": kernel}, {"x": (1, 16, 8, 8)}), "flat.onnx")
    broken = random_weight(64, 64)
    broken[5, 7] = np.nan
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    models.save(models.model([node], {"w": broken}, {"x": (8, 64)}), "nan.onnx")
    for name, told in (
        ("flat.onnx", "; it is 2:4 along its flattened kernel, not along its input channels"),
        ("nan.onnx", "; it holds NaN in 1 place(s), which count as non-zeros"),
    ):
        inspected = sparseflow("inspect", name)
        assert told in inspected.out
        assert ("seem to have been pruned before" in inspected.out) is (name == "flat.onnx")
        (layer,) = sparseflow("plan", name, "--json").json["layers"]
        assert layer["reason"].endswith(told)


def test_a_narrow_terminal_has_the_reasons_below_the_table(
    sparseflow: Sparseflow, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.ones((64, 128), np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="model.layers.0.self_attention.q_proj/MatMul")
    models.save(models.model([node], {"w": weight}, {"x": ("batch", "sequence", 64)}), "one.onnx")
    monkeypatch.setenv("COLUMNS", "80")
    lines = sparseflow("inspect", "one.onnx").out.splitlines()
    table = lines[: lines.index("[1] 100% of the groups, first at [0, 0]")]
    assert max(map(len, table)) <= 80
    assert table[1].endswith("not-sparse  [1]")


def test_masks_that_are_apart_are_listed_with_what_to_do(sparseflow: Sparseflow, models: Models) -> None:
    nodes = [
        helper.make_node("Mul", ["w", "mask"], ["masked"], name="mul"),
        helper.make_node("MatMul", ["x", "masked"], ["y"], name="up"),
    ]
    mask = np.tile(np.array([[1], [1], [0], [0]], np.float32), (16, 32))
    models.save(models.model(nodes, {"w": np.ones((64, 32), np.float32), "mask": mask}), "masked.onnx")
    ended = sparseflow("inspect", "masked.onnx")
    assert ended.code == 3  # for a mask of 2:4, too: the weight that is stored runs dense
    lines = ended.out.splitlines()
    assert lines[1].endswith("its mask is still separate: the graph multiplies its weight by it")
    assert any(line.startswith("1 layer(s) multiply their weight by a mask at each run") for line in lines)
    assert "torch.nn.utils.prune.remove(module, 'weight'), or squash_mask()" in ended.out
    assert "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')" in ended.out
    told = next(line for line in lines if line.startswith("1 layer(s) multiply their weight by a mask"))
    for command in (("plan", "-o", "p.yaml"), ("build", "--backend", "onnxruntime", "-o", "a.artifact")):
        ended = sparseflow(command[0], "masked.onnx", "--dim", "batch=8", *command[1:])
        assert (ended.code, told in ended.out) == (0, True), "a table without its layers would be all"
    ended = sparseflow("inspect", "a.artifact")
    assert (ended.code, told in ended.out) == (3, True)
    assert not sparseflow("inspect", "masked.onnx", "--json").json["all_eligible_sparse"]


def test_weights_that_are_computed_are_listed_with_what_to_do(sparseflow: Sparseflow, models: Models) -> None:
    ort = pytest.importorskip("onnxruntime")
    nodes = [
        helper.make_node("Mul", ["w", "scale"], ["scaled"], name="mul"),
        helper.make_node("MatMul", ["x", "scaled"], ["y"], name="up"),
    ]
    weights = {"w": random_weight(64, 32), "scale": np.ones((1, 32), np.float32)}
    models.save(models.model(nodes, weights), "normed.onnx")
    ended = sparseflow("inspect", "normed.onnx")
    why = "its weight is computed from constants by Mul 'mul': make it one parameter before the export"
    assert ended.out.splitlines()[1].endswith(why)
    told = "1 layer(s) have weights that the graph computes from constants, and stay as they are: 'up'. "
    does = "by torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') or nn.Parameter(torch.cat"
    assert f"\n{told}Make each a single parameter before the export, {does}" in ended.out
    for command in (("plan", "-o", "p.yaml"), ("build", "--backend", "onnxruntime", "-o", "a.artifact")):
        assert does in sparseflow(command[0], "normed.onnx", "--dim", "batch=8", *command[1:]).out
    assert does in sparseflow("estimate", "normed.onnx", "--device", "a100", "--dim", "batch=8").err
    options = ort.SessionOptions()  # what is advised for a file
    options.optimized_model_filepath = "folded.onnx"
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    ort.InferenceSession("normed.onnx", options)
    assert "Prune them with: sparseflow-trt prune folded.onnx" in sparseflow("inspect", "folded.onnx").out


def test_a_model_of_quantized_operators_alone_says_that_nothing_was_judged(
    sparseflow: Sparseflow, models: Models
) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    path = models.matmul(prune_2to4(random_weight(64, 32), 0))
    quantization.quantize_dynamic(path, models.folder / "quantized.onnx")
    ended = sparseflow("inspect", "quantized.onnx")
    assert ended.code == 0  # no eligible weight is anything but 2:4
    assert "MatMulInteger multiplies by its weight in a way that has no 2:4 path here" in ended.out
    told = "Nothing was judged. The model has no stored weight that could be 2:4: each row says why."
    assert f"0 sparse, 0 not sparse, 1 not eligible\n{told}\n" in ended.out
    assert "Nothing was judged" not in sparseflow("inspect", path).out


def test_a_weight_on_two_axes_is_not_to_be_pruned(sparseflow: Sparseflow, models: Models) -> None:
    nodes = [
        in_module(helper.make_node("MatMul", ["x", "w"], ["h"], name="node_MatMul_7"), "h.0.up"),
        in_module(helper.make_node("Gemm", ["h", "w"], ["y"], name="node_linear_8", transB=1), "h.0.down"),
    ]
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    models.save(models.model(nodes, {"w": weight}), "tied.onnx")
    said = sparseflow("inspect", "tied.onnx").out
    why = "weight 'w' is shared by layers whose K lies on different axes: 'h.0.up' against 'h.0.down'"
    assert f"\n'h.0.up', 'h.0.down' cannot be pruned: {why}.\n" in said
    assert "weight shared with h.0.down" in said
    assert "node_" not in said
    told = sparseflow("inspect", "tied.onnx", "--json").json
    assert told["layers"][0]["shared_with"] == ["node_linear_8"], "programs are told the node"
    assert "sparseflow-trt prune" not in said
    built = sparseflow("build", "tied.onnx", "--dim", "batch=8", "--backend", "onnxruntime", "-o", "tied")
    assert "`sparseflow-trt inspect tied.onnx` says whether they can be pruned." in built.out
    assert sparseflow("prune", "tied.onnx").code == 3


def test_what_pruning_leaves_is_said_beside_what_it_takes(sparseflow: Sparseflow, models: Models) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="up"),
        helper.make_node("MatMul", ["a", "v"], ["y"], name="down"),
        helper.make_node("Gather", ["v", "ids"], ["z"], name="embed"),
    ]
    weights = {n: rng.standard_normal((64, 64)).astype(np.float32) for n in "wv"} | {"ids": np.array([1])}
    models.save(models.model(nodes, weights, outputs=["y", "z"]), "embed.onnx")
    said = sparseflow("inspect", "embed.onnx").out
    assert "\nPrune them with: sparseflow-trt prune embed.onnx\n" in said
    why = "weight 'v' is also read by Gather 'embed', which pruning would change"
    assert f"\n'down' cannot be pruned: {why}.\n" in said
    told = sparseflow("inspect", "embed.onnx", "--json").json["prune"]
    assert told == {"takes": ["up"], "conflicts": [["down", why]], "skipped": []}
    pruned = sparseflow("prune", "embed.onnx", "-o", "pruned.onnx")
    assert pruned.code == 3
    assert f"not pruned 'down': {why}\n" in pruned.out


def test_a_head_tied_to_its_embedding_is_not_held_against_a_pruned_model(
    sparseflow: Sparseflow, models: Models
) -> None:
    """Nobody can prune it without changing what is looked up: a script would wait for that for ever."""
    nodes = [
        helper.make_node("Gather", ["wte", "ids"], ["e"], "embed"),
        helper.make_node("MatMul", ["e", "up"], ["h"], "up_proj"),
        helper.make_node("Gemm", ["h", "wte", ""], ["y"], "/lm_head/Gemm", transB=1),
    ]
    rng = np.random.default_rng(0)
    weights = {"wte": rng.standard_normal((128, 64)), "up": prune_2to4(rng.standard_normal((64, 64)), 0)}
    floats = {name: weight.astype(np.float32) for name, weight in weights.items()}
    models.save(models.model(nodes, {**floats, "ids": np.array([1])}, {"x": ("m", 64)}), "tied.onnx")
    ended = sparseflow("inspect", "tied.onnx")
    assert ended.code == 0
    assert "1 sparse, 0 not sparse, 1 not eligible" in ended.out
    why = "weight 'wte' is also read by Gather 'embed', which pruning would change"
    (row,) = (line for line in ended.out.splitlines() if line.startswith("/lm_head/Gemm"))
    assert "not-eligible  weight 'wte' is also read by Gather" in row, "and not that it is no 2:4"
    assert f"`prune` leaves '/lm_head/Gemm' alone: {why}.\n" in ended.out
    planned = sparseflow("plan", "tied.onnx", "--policy", "a100-80gb", "--dim", "m=8", "--json").json[
        "layers"
    ]
    assert [layer["reason"] for layer in planned if layer["name"] == "/lm_head/Gemm"] == [
        f"cannot be 2:4: {why}"
    ]


def test_the_step_that_broke_2to4_is_named(sparseflow: Sparseflow, models: Models) -> None:
    """What a user's own tools make of a pruned model: one file a step."""
    rng = np.random.default_rng(0)
    names = ("pruned.onnx", "folded.onnx", "scaled.onnx", "quantised.onnx")
    weights = {"up": prune_2to4(rng.standard_normal((64, 64)).astype(np.float32), 0)}
    for number, name in enumerate(names):
        if number == 2:
            weights["up"] = weights["up"] + np.float32(0.01)
        layer = "up_proj" if number < 3 else "renamed"
        node = helper.make_node("MatMul", ["x", "up"], ["y"], name=layer)
        models.save(models.model([node], weights), name)
    before = sum((["--since", name] for name in names[:-1]), start=list[str]())
    ended = sparseflow("inspect", names[-1], *before)
    assert ended.code == 3
    told = ended.out.splitlines()[-1]
    assert told.startswith("'up_proj' was 2:4 in folded.onnx and is not in scaled.onnx: 100% of 1024 groups")
    assert told.endswith("the first at [0, 0].")
    (found,) = sparseflow("inspect", names[-1], *before, "--json").json["broken_since"]
    assert (found["before"], found["after"], found["first"]) == ("folded.onnx", "scaled.onnx", [0, 0])
    kept = sparseflow("inspect", "folded.onnx", "--since", "pruned.onnx")
    assert kept.code == 0
    assert kept.out.endswith("Every layer that was 2:4 still is.\n")
    assert "broken_since" not in sparseflow("inspect", "folded.onnx", "--json").json


def test_a_function_is_to_be_exported_first(sparseflow: Sparseflow, own_folder: Path) -> None:
    (own_folder / "mine.py").write_text("")
    ended = sparseflow("inspect", "mine.py:make")
    assert ended.code == 1
    assert "mine.py:make is a function, and this command reads ONNX files." in ended.error
    assert "`sparseflow-trt export mine.py:make`" in ended.err


def test_since_a_model_with_nothing_2to4_it_is_said_that_nothing_could_break(
    sparseflow: Sparseflow, models: Models
) -> None:
    path = models.matmul(random_weight(64, 64))
    ended = sparseflow("inspect", path, "--since", path)
    assert ended.out.endswith(f"No layer was 2:4 in {path}: there was nothing to break.\n")
    assert ended.code == 0


def test_layers_that_are_not_in_the_next_model_are_named(sparseflow: Sparseflow, models: Models) -> None:
    """An exporter renames all; another model has none of them."""
    rng = np.random.default_rng(0)

    def save(name: str, prefix: str, weights: list[np.ndarray]) -> None:
        nodes = [
            helper.make_node("MatMul", ["x", f"{prefix}w{i}"], [f"y{i}"], name=f"{prefix}{i}")
            for i in range(len(weights))
        ]
        named = {f"{prefix}w{i}": weight for i, weight in enumerate(weights)}
        models.save(models.model(nodes, named, outputs=[f"y{i}" for i in range(len(weights))]), name)

    def pruned() -> np.ndarray:
        return prune_2to4(rng.standard_normal((64, 64)).astype(np.float32), 0)

    mine = [pruned(), pruned()]
    save("mine.onnx", "a", mine)
    save("renamed.onnx", "b", mine)
    save("half.onnx", "b", [mine[0], pruned()])
    save("other.onnx", "b", [pruned(), pruned()])
    kept = sparseflow("inspect", "renamed.onnx", "--since", "mine.onnx")
    assert (kept.code, kept.out.splitlines()[-1]) == (0, "Every layer that was 2:4 still is.")
    half = sparseflow("inspect", "half.onnx", "--since", "mine.onnx")
    assert half.code == 3
    assert half.out.splitlines()[-1] == "1 layer that was 2:4 in mine.onnx is not in half.onnx: 'a1'."
    other = sparseflow("inspect", "other.onnx", "--since", "mine.onnx")
    assert other.code == 3
    assert other.out.endswith("\n2 layers that were 2:4 in mine.onnx are not in other.onnx: 'a0', 'a1'.\n")
    told = sparseflow("inspect", "other.onnx", "--since", "mine.onnx", "--json").json
    assert (told["broken_since"], told["missing_since"]) == (
        [], [{"layers": ["a0", "a1"], "before": "mine.onnx", "after": "other.onnx"}]
    )  # fmt: skip


def test_a_narrow_terminal_breaks_no_word_of_a_fixed_list(
    sparseflow: Sparseflow, mlp: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = sparseflow("inspect", mlp())
    assert " not-sparse " in ended.out
    told = [line for line in ended.out.splitlines() if "sparseflow-trt prune" not in line]  # with a long path
    assert max(map(len, told)) <= 80


def test_json_also_with_exit_code_3(sparseflow: Sparseflow, mlp: MakeModel) -> None:
    ended = sparseflow("inspect", mlp(), "--json")
    assert (ended.code, ended.err) == (3, "")
    found = ended.json
    assert found["summary"] == {"sparse": 1, "not-sparse": 1, "not-eligible": 0}
    assert found["all_eligible_sparse"] is False
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "dims": ["batch", 64]}]
    up, down = found["layers"]
    assert (up["name"], up["m"], up["n"], up["k"], up["k_axes"], up["state"]) == (
        "up_proj", "batch", 128, 64, [0], "sparse"
    )  # fmt: skip
    assert (down["groups"], down["violating_groups"], down["first_violation"]) == (1024, 1024, [0, 0])
    assert up["mask_sha256"]


def test_exit_code_0_where_all_is_sparse(sparseflow: Sparseflow, models: Models) -> None:
    ended = sparseflow("inspect", models.matmul(np.eye(64, 32, dtype=np.float32)))
    assert ended.code == 0
    assert "prune" not in ended.out


def test_products_of_activations_are_shown_when_asked_for(sparseflow: Sparseflow, models: Models) -> None:
    node = helper.make_node("MatMul", ["x", "x"], ["y"], name="[bold]square[/bold]")
    path = models.save(models.model([node], inputs={"x": (64, 64)}))
    hidden = sparseflow("inspect", path)
    assert hidden.code == 0
    assert "square" not in hidden.out
    assert "\nNothing was judged. The model has no stored weight that is multiplied by.\n" in hidden.out
    assert "1 of them products with no constant weight: --all lists them" in hidden.out
    assert "[bold]square[/bold]" in sparseflow("inspect", path, "--all").out, "names are no markup"


def test_an_artifact_is_shown_as_it_was_built(sparseflow: Sparseflow, models: Models, tmp_path: Path) -> None:
    path = models.matmul(prune_2to4(np.random.default_rng(0).standard_normal((64, 32)), 0).astype(np.float32))
    built = sparseflow(
        "build", path, "--backend", "onnxruntime", "--dim", "batch=8", "-o", tmp_path / "made.artifact"
    )
    shown = sparseflow("inspect", tmp_path / "made.artifact")
    assert (shown.code, shown.err) == (0, "")
    origin, _, rest = shown.out.partition("\n\n")
    assert origin.startswith(f"Built from {path.name} at 2") and f"build {path}" in origin
    assert rest == built.out
    told = json.loads(sparseflow("inspect", tmp_path / "made.artifact", "--json").out)
    assert told["manifest"]["layers"][0]["state"] == "sparse"

    refused = sparseflow("inspect", tmp_path / "made.artifact", "--since", path)
    assert refused.code == 2
    assert "--all and --since are for ONNX files" in refused.err


def test_an_artifact_without_2to4_weights_ends_as_its_model_does(
    sparseflow: Sparseflow, models: Models, tmp_path: Path
) -> None:
    path = models.matmul(np.ones((64, 32), np.float32))
    sparseflow(
        "build", path, "--backend", "onnxruntime", "--dim", "batch=8", "-o", tmp_path / "made.artifact"
    )
    shown = sparseflow("inspect", tmp_path / "made.artifact")
    assert shown.code == sparseflow("inspect", path).code == 3
    assert f"`sparseflow-trt inspect {path.name}` says whether they can be pruned." in " ".join(
        shown.out.split()
    )


def test_an_input_whose_shape_the_file_does_not_say(sparseflow: Sparseflow, models: Models) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    path = models.save(models.model([node], {"w": np.ones((64, 64), np.float32)}))
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    models.save(proto)
    ended = sparseflow("inspect", path)
    assert (ended.code, ended.out.splitlines()[-1]) == (3, "Input 'x': float32 of unknown shape")
    assert sparseflow("inspect", path, "--json").json["inputs"][0]["dims"] is None
    ended = sparseflow("plan", path, "--shapes", "x:1x64,2x64,4x64")
    assert ended.error.endswith("input 'x' has no shape, not even a number of dimensions.")
