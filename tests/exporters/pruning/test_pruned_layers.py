"""Which layers `prune` takes: weights of several users, classifiers, and what is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.errors import ModelError
from sparseflow_trt.exporters.pruning.prune import PruneReport
from sparseflow_trt.model.graph import all_eligible_sparse, read_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.pattern import prune_2to4
from tests.exporters.pruning.pruned import MATMUL, prune, random_weight

if TYPE_CHECKING:
    from tests.conftest import Models


def _shared(
    models: Models, nodes: Sequence[onnx.NodeProto], weights: dict[str, Any], **more: Any
) -> PruneReport:
    outputs = [name for node in nodes for name in node.output if name.startswith("y")]
    return prune(models.save(models.model(nodes, weights, outputs=outputs, **more)))[0]


def test_a_shared_weight_is_pruned_once(models: Models) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y1"], name="a"),
        helper.make_node("Gemm", ["x", "w"], ["y2"], name="b"),
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("Gemm", ["x", "t"], ["y3"], name="c", transB=1),
    ]
    report = _shared(models, nodes, {"w": random_weight(64, 32)})
    (pruned,) = report.pruned
    assert (pruned.layers, pruned.zeroed) == (("a", "b", "c"), 1024)


def test_users_of_different_axes_are_a_conflict(models: Models) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y1"], name="a"),
        helper.make_node("Gemm", ["x", "w"], ["y2"], name="b", transB=1),
    ]
    report = _shared(models, nodes, {"w": random_weight(64, 64)})
    assert not report.pruned
    reason = "weight 'w' is shared by layers whose K lies on different axes: 'a' against 'b'"
    assert report.conflicts == (("a", reason), ("b", reason))


def test_a_user_that_cannot_be_2to4_is_a_conflict(models: Models) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y1"], name="a"),
        helper.make_node("Gemm", ["z", "w"], ["y2"], name="b", transB=1),
    ]
    report = _shared(models, nodes, {"w": random_weight(64, 6)}, inputs={"x": ("b", 64), "z": ("b", 6)})
    assert not report.pruned
    assert report.skipped == (("b", "K=6 is not a multiple of 4"),)
    assert report.conflicts == (("a", "weight 'w' is also read by Gemm 'b', which pruning would change"),)


@pytest.mark.parametrize(
    ("other", "reader"),
    [
        (helper.make_node("Gather", ["w", "ids"], ["y2"], name="embed"), "Gather 'embed'"),
        (helper.make_node("Add", ["x", "w"], ["y2"]), "Add 'y2'"),
        (helper.make_node("MatMul", ["w", "w"], ["y2"], name="square"), "MatMul 'square'"),
        (helper.make_node("Gemm", ["x", "v", "w"], ["y2"], name="bias"), "Gemm 'bias'"),
        (helper.make_node("Reshape", ["w", "ids"], ["y2"]), "the graph's outputs"),
    ],
)
def test_another_reader_is_a_conflict(models: Models, other: onnx.NodeProto, reader: str) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y1"], name="a"), other]
    weights = {
        "w": random_weight(64, 64),
        "v": prune_2to4(random_weight(64, 64), 0),
        "ids": np.array([64, 64]),
    }
    report = _shared(models, nodes, weights)
    assert ("a", f"weight 'w' is also read by {reader}, which pruning would change") in report.conflicts
    assert "w" not in {p.weight for p in report.pruned}


def test_a_weight_that_is_an_output_is_a_conflict(models: Models) -> None:
    model = models.model(MATMUL, {"w": random_weight(64, 32)}, outputs=["y", "w"])
    report, _ = prune(models.save(model))
    assert report.conflicts == (
        ("mm", "weight 'w' is also read by the graph's outputs, which pruning would change"),
    )


def test_users_with_other_zero_points_are_a_conflict(models: Models) -> None:
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", f"z{i}"], [f"v{i}"]) for i in range(2)]
    nodes += [helper.make_node("MatMul", ["x", f"v{i}"], [f"y{i}"], name=f"m{i}") for i in range(2)]
    weights = {
        "w": np.full((64, 32), 7, np.int8),
        "s": np.ones((), np.float32),
        "z0": np.full((), 1, np.int8),
        "z1": np.full((), 2, np.int8),
    }
    report = _shared(models, nodes, weights)
    assert [c[1] for c in report.conflicts] == [
        "weight 'w' is shared by layers that take other values for zero: 'm0' against 'm1'"
    ] * 2


def _tied(models: Models, second: str, shift: int, node: onnx.NodeProto) -> PruneReport:
    """Two initializers over one data file, the second `shift` bytes behind the first."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="a"), node]
    weight = random_weight(64, 32)
    weights = {"w": weight, second: weight, "ids": np.array([1, 2])}
    model = models.model(nodes, weights, outputs=["y", "y2"])
    models.externalize(model, {"w": "w.bin"}, length=False)
    with (models.folder / "w.bin").open("ab") as stream:
        stream.write(bytes(shift))
    from_first = {e.key: e.value for e in model.graph.initializer[0].external_data}
    tensor = model.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=from_first["location"])
    tensor.external_data.add(key="offset", value=str(int(from_first["offset"]) + shift))
    return prune(models.save(model))[0]


def test_two_names_for_one_range_are_one_weight(models: Models) -> None:
    report = _tied(models, "v", 0, helper.make_node("Gemm", ["x", "v"], ["y2"], name="b"))
    (pruned,) = report.pruned
    assert (pruned.layers, pruned.zeroed) == (("a", "b"), 1024)
    assert all_eligible_sparse(read_layers(read_model(report.output)))


def test_a_range_that_another_tensor_reads_is_a_conflict(models: Models) -> None:
    report = _tied(models, "table", 0, helper.make_node("Gather", ["table", "ids"], ["y2"], name="embed"))
    assert not report.pruned
    reason = "weight 'w' is also read by Gather 'embed', which pruning would change"
    assert report.conflicts == (("a", reason),)


def test_ranges_that_overlap_are_a_conflict(models: Models) -> None:
    report = _tied(models, "v", 256, helper.make_node("MatMul", ["x", "v"], ["y2"], name="b"))
    assert not report.pruned
    assert report.conflicts == (
        ("a", "weight 'w' shares some of its bytes with 'v', which pruning would change"),
        ("b", "weight 'v' shares some of its bytes with 'w', which pruning would change"),
    )


@pytest.mark.parametrize("pattern", ["mm", "m*", "w", "*.q_proj", "w[0]"])
def test_what_is_excluded_stays(models: Models, pattern: str) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm" if pattern != "w[0]" else "w[0]")
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'm.q_proj', 'mm']")
    path = models.save(models.model([node], {"w": random_weight(64, 32)}))
    report, _ = prune(path, exclude=(pattern,))
    assert report.skipped == ((node.name, "excluded"),)
    assert report.output.read_bytes() == path.read_bytes()


def test_a_pattern_that_matches_nothing_is_refused(models: Models) -> None:
    path = models.save(
        models.model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": random_weight(64, 32)})
    )
    with pytest.raises(ModelError, match="'lm_haed\\*' matches no layer, module or weight"):
        prune(path, exclude=("w", "lm_haed*"))


def test_an_empty_pattern_is_not_the_name_of_layers_that_have_no_module(models: Models) -> None:
    path = models.matmul(random_weight(64, 32))
    for patterns in ({"exclude": ("",)}, {"include": ("",)}):
        with pytest.raises(ModelError, match="'' matches no layer, module or weight"):
            prune(path, **patterns)


def _with_head(
    models: Models, weight: str = "lm_head.weight", node: str = "node_3", module: str = ""
) -> Path:
    """An MLP's last product, and a head behind it."""
    head = helper.make_node("MatMul", ["a", weight], ["y"], name=node)
    if module:
        head.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=f"['', '{module}', 'linear']")
    nodes = [helper.make_node("MatMul", ["x", "mlp.down_proj.weight"], ["a"], name="down"), head]
    return models.save(
        models.model(nodes, {"mlp.down_proj.weight": random_weight(64, 64), weight: random_weight(64, 32)})
    )


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"weight": "onnx::MatMul_9", "node": "/lm_head/MatMul"},
        {"weight": "val_1", "module": "classifier"},
        {"weight": "fc.weight"},
    ],
)
def test_a_classifier_is_left_alone_unless_it_is_named(models: Models, names: dict[str, str]) -> None:
    path = _with_head(models, **names)
    report, _ = prune(path)
    head = names.get("node", "node_3")
    assert report.skipped == ((head, "a classifier, which is taken only where it is named"),)
    assert [weight.layers for weight in report.pruned] == [("down",)]
    for everything in ("*", head):
        report, _ = prune(path, include=(everything, "down"))
        assert [weight.layers for weight in report.pruned] == [("down",), (head,)]
        assert not report.skipped


def test_included_layers_are_pruned_and_no_others(models: Models) -> None:
    report, _ = prune(_with_head(models), include=("lm_head*",))
    assert [weight.layers for weight in report.pruned] == [("node_3",)]
    assert report.skipped == (("down", "no pattern names it"),)
    report, _ = prune(_with_head(models), include=("*",), exclude=("down",))
    assert report.skipped == (("down", "excluded"),)
    with pytest.raises(ModelError, match="'lm_haed\\*' matches no layer, module or weight"):
        prune(_with_head(models), include=("lm_haed*",))


def test_the_last_product_of_a_block_is_no_classifier(models: Models) -> None:
    """Nothing but a name says what a model's last product is: a block exported alone ends in one, too."""
    down = helper.make_node("MatMul", ["x", "w"], ["y"], name="down_proj")
    report, _ = prune(models.save(models.model([down], {"w": random_weight(64, 32)})))
    assert not report.skipped
    assert len(report.pruned) == 1


def test_a_head_tied_to_its_embedding_is_left_for_that_reason(models: Models) -> None:
    nodes = [
        helper.make_node("Gather", ["wte.weight", "ids"], ["e"], name="embed"),
        helper.make_node("Gemm", ["x", "wte.weight"], ["y"], name="/lm_head/Gemm", transB=1),
    ]
    weights = {"wte.weight": random_weight(32, 64), "ids": np.array([1])}
    path = models.save(models.model(nodes, weights, outputs=["y", "e"]))
    report, _ = prune(path)
    why = "weight 'wte.weight' is also read by Gather 'embed', which pruning would change"
    assert report.skipped == (("/lm_head/Gemm", why),)
    assert not report.conflicts
    assert len(prune(path, include=("*",))[0].conflicts) == 1


def test_not_eligible_layers_are_named(models: Models) -> None:
    report, _ = prune(models.matmul(random_weight(66, 32)))
    assert report.skipped == (("mm", "K=66 is not a multiple of 4"),)
    assert not report.pruned
