"""Weights that a Split or Slices take apart: each part is read, pruned and written as a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper

from sparseflow_trt.errors import ModelError
from sparseflow_trt.exporters.lowering.opt_out import opt_out, put_back
from sparseflow_trt.exporters.pruning.restore import restore_dense
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.model.graph import read_layers
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.parts import part_of
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.model.prunable import choose_weights
from sparseflow_trt.model.sites import find_sites
from sparseflow_trt.model.weights import TracedWeight
from sparseflow_trt.pytorch.masks import check_masks
from tests.exporters.pruning.pruned import check_same, prune, values_in
from tests.graphs import NOT_ELIGIBLE, NOT_SPARSE, SPARSE, layers_of, random_weight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.conftest import Array, Models

ROWS = [16, 32]
NAMES = ["w.0:16", "w.16:48"]


def attention(
    models: Models,
    weight: Array,
    sizes: list[int] | None = None,
    opset: int = 21,
    more: Sequence[onnx.NodeProto] = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """Two products with the rows of one weight, as cross attention has them."""
    held = [helper.make_node("Split", ["w", "sizes"] if sizes else ["w"], ["a", "b"], "split", **attributes)]
    for part in "ab":
        held.append(helper.make_node("Transpose", [part], [f"{part}t"], perm=[1, 0]))
        held.append(helper.make_node("MatMul", ["x", f"{part}t"], [f"y{part}"], f"mm_{part}"))
    weights = {"w": weight, **({"sizes": np.array(sizes, np.int64)} if sizes else {})}
    outputs = ["ya", "yb", *(node.output[0] for node in more[-1:])]
    return models.model([*held, *more], weights, outputs=outputs, opset=opset)


def pruned_below(weight: Array) -> Array:
    return np.concatenate([weight[:16], prune_2to4(weight[16:], 1)])


def test_parts_are_layers_of_their_own(models: Models) -> None:
    weight = pruned_below(random_weight(48, 64))
    upper, lower = layers_of(models.save(attention(models, weight, ROWS)))
    assert [upper.weight, lower.weight] == NAMES
    assert [upper.state, lower.state] == [NOT_SPARSE, SPARSE]
    assert [(layer.n, layer.k, layer.weight_shape) for layer in (upper, lower)] == [
        (16, 64, (16, 64)), (32, 64, (32, 64)),
    ]  # fmt: skip
    assert upper.shared_with == ()
    alone = layers_of(models.save(attention(models, weight[::-1].copy(), [32, 16]), "other.onnx"))
    assert alone[0].state is SPARSE


@pytest.mark.parametrize(
    ("opset", "attributes", "names"),
    [
        (21, {"num_outputs": 2}, ["w.0:24", "w.24:47"]), (11, {"split": [15, 32]}, ["w.0:15", "w.15:47"]),
        (21, {"num_outputs": 2, "axis": -2}, ["w.0:24", "w.24:47"]),
    ],
)  # fmt: skip
def test_sizes_as_each_opset_says_them(
    models: Models, opset: int, attributes: dict[str, Any], names: list[str]
) -> None:
    path = models.save(attention(models, random_weight(47, 64), opset=opset, **attributes))
    assert [layer.weight for layer in layers_of(path)] == names


def test_columns_are_no_range_of_the_file(models: Models) -> None:
    nodes = attention(models, random_weight(64, 48), [16, 32], axis=1)
    assert [layer.state for layer in layers_of(models.save(nodes))] == [NOT_ELIGIBLE] * 2


def slices(models: Models, weight: Array, *given: dict[str, Any], between: Any = ()) -> onnx.ModelProto:
    """Products with slices of one weight: each of its own starts, ends and, where given, axes and steps."""
    held, weights = list(between), {"w": weight}
    for i, each in enumerate(given):
        inputs = [f"{name}{i}" if name in each else "" for name in ("starts", "ends", "axes", "steps")]
        while not inputs[-1]:
            inputs.pop()
        weights |= {f"{name}{i}": np.array(value, np.int64) for name, value in each.items()}
        whole = between[-1].output[0] if between else "w"
        held.append(helper.make_node("Slice", [whole, *inputs], [f"s{i}"], f"slice_{i}"))
        held.append(helper.make_node("Gemm", ["x", f"s{i}"], [f"y{i}"], f"mm_{i}", transB=int(not between)))
    return models.model(held, weights, outputs=[f"y{i}" for i in range(len(given))])


def test_slices_are_parts(models: Models) -> None:
    """As exporters have fused q, k and v: ends beyond the last row, negative numbers, axes left out."""
    weight = pruned_below(random_weight(48, 64))
    model = slices(
        models, weight, {"starts": [0], "ends": [16], "axes": [0], "steps": [1]},
        {"starts": [-32], "ends": [2**63 - 1], "axes": [-2]},
        {"starts": [16, 0], "ends": [48, 64]}, {"starts": [8], "ends": [24]},
    )  # fmt: skip
    found = layers_of(path := models.save(model))
    assert [layer.weight for layer in found] == ["w.0:16", "w.16:48", "w.16:48", "w.8:24"]
    assert [layer.state for layer in found] == [NOT_SPARSE, SPARSE, SPARSE, NOT_SPARSE]
    choice = choose_weights(read_model(path))  # the last overlaps the others
    assert {name for name, _ in choice.conflicts} == {"mm_0", "mm_1", "mm_2", "mm_3"}
    _, pruned = prune(models.save(slices(models, weight, {"starts": [0], "ends": [16]})))
    check_same(
        values_in(pruned, path.parent / "out", {"w": weight})["w"],
        np.concatenate([prune_2to4(weight[:16], 1), weight[16:]]),
    )


@pytest.mark.parametrize(
    "given",
    [
        {"starts": [0], "ends": [16], "steps": [2], "axes": [0]}, {"starts": [0], "ends": [16], "axes": [1]},
        {"starts": [0, 0], "ends": [16, 32]}, {"starts": [47], "ends": [0], "steps": [-1], "axes": [0]},
        {"starts": [0, 0], "ends": [48, 64], "axes": [1]},
    ],
)  # fmt: skip
def test_what_is_no_range_of_rows_is_left(models: Models, given: dict[str, Any]) -> None:
    (layer,) = layers_of(models.save(slices(models, random_weight(48, 64), given)))
    assert (layer.state, layer.weight) == (NOT_ELIGIBLE, "")


def test_parts_behind_a_transpose_and_of_a_part(models: Models) -> None:
    """The graph that is made of them gives what the file gives."""
    ort = pytest.importorskip("onnxruntime")
    weight = pruned_below(random_weight(48, 64))
    transpose = helper.make_node("Transpose", ["w"], ["t"], "t", perm=[1, 0])
    columns = {"starts": [16], "ends": [48], "axes": [1]}
    behind = slices(models, weight, {"starts": [0], "ends": [16], "axes": [1]}, columns, between=[transpose])
    split = helper.make_node("Split", ["w"], ["a", "b"], "split", num_outputs=2)
    of_a_part = slices(models, weight, {"starts": [0], "ends": [16]}, between=[split, transpose])
    of_a_part.graph.node[1].input[0] = "b"
    of_a_part.graph.node[2].input[0] = "b"  # the Slice
    of_a_part.graph.node[3].attribute[0].i = 1
    named = []
    for model in (behind, of_a_part):
        path = models.save(model)
        read = read_model(path)
        named += [(layer.weight, layer.state) for layer in read_layers(read)]
        save_model(read.ir, written := path.with_name("written.onnx"))
        x = {"x": random_weight(4, 64)}
        run = [ort.InferenceSession(file).run(None, x) for file in (path, written)]
        for expected, got in zip(*run, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert named == [("w.0:16", NOT_SPARSE), ("w.16:48", SPARSE), ("w.24:40", SPARSE)]
    assert "w" not in {tensor.name for tensor in onnx.load(written).graph.initializer}


def test_sizes_that_are_not_those_of_the_weight_are_refused(models: Models) -> None:
    model = read_model(models.save(attention(models, random_weight(48, 64), [16, 16])))
    with pytest.raises(ModelError, match=r"Split 'split' makes 2 parts of \[16, 16\] rows of 48"):
        find_sites(model)


@pytest.mark.parametrize("place", ["in the file", "beside it", "parsed"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_prune_writes_the_rows_where_they_lie(models: Models, place: str, dtype: Any) -> None:
    weight = random_weight(48, 64).astype(dtype)
    proto = attention(models, weight, ROWS)
    if place == "parsed":  # a small weight beside it: then all are taken from the protobuf
        small = random_weight(16, 16).astype(dtype)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(small, "small"))
        proto.graph.node.append(helper.make_node("MatMul", ["x_small", "small"], ["ysmall"], "small"))
        proto.graph.input.append(helper.make_tensor_value_info("x_small", 1, [4, 16]))
        proto.graph.output.append(helper.make_tensor_value_info("ysmall", 1, [4, 16]))
    path = models.save(proto)
    if place == "beside it":
        models.externalize(proto, {"w": "w.bin"})
        path = models.save(proto)
    report, pruned = prune(path, include=("w.16*", *(["small"] if place == "parsed" else [])))
    assert {entry.weight for entry in report.pruned} - {"small"} == {"w.16:48"}
    assert [(name, why) for name, why in report.skipped] == [("mm_a", "no pattern names it")]
    got = values_in(pruned, path.parent / "out", {"w": weight})["w"]
    check_same(got, pruned_below(weight))
    _, both = prune(path)
    check_same(values_in(both, path.parent / "out", {"w": weight})["w"], prune_2to4(weight, 1))
    assert [n.op_type for n in both.graph.node] == [n.op_type for n in proto.graph.node]


def test_a_whole_that_is_read_too_is_not_pruned_in_part(models: Models) -> None:
    more = [helper.make_node("ReduceSum", ["w"], ["sum"], "total")]
    model = read_model(models.save(attention(models, random_weight(48, 64), ROWS, more=more)))
    choice = choose_weights(model)
    assert not choice.taken
    assert choice.conflicts[0] == (
        "mm_a", "weight 'w.0:16' shares some of its bytes with 'w', which pruning would change"
    )  # fmt: skip


def test_each_part_opts_out_and_is_restored_by_itself(models: Models) -> None:
    dense = random_weight(48, 64)
    sparse = prune_2to4(dense, 1)
    model = read_model(models.save(attention(models, sparse, ROWS)))
    records = opt_out(model, ["mm_a", "mm_b"])
    assert [record.route for record in records] == ["element", "element"]
    assert [layer.state for layer in read_layers(model)] == [NOT_SPARSE] * 2
    put_back(model, records)
    assert [layer.state for layer in read_layers(model)] == [SPARSE] * 2
    unpruned = read_model(models.save(attention(models, dense, ROWS), "dense.onnx"))
    (restored,) = restore_dense(model, unpruned, ["mm_b"])
    assert (restored.weight, restored.route) == ("w.16:48", "restored")
    save_model(model.ir, written := models.save(attention(models, sparse, ROWS), "typed.onnx"))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(written).graph.initializer}
    assert sorted(stored) == NAMES
    check_same(stored["w.0:16"], sparse[:16])
    check_same(stored["w.16:48"], dense[16:])


def test_a_part_is_that_of_the_parameter(models: Models) -> None:
    torch = pytest.importorskip("torch")
    weight = prune_2to4(random_weight(48, 64), 1)
    model = read_model(models.save(attention(models, weight, ROWS)))
    layers = read_layers(model)
    same = check_masks(model, layers, {"w": torch.from_numpy(weight)})
    assert (same.compared, same.sparse, same.changed, same.foreign) == (2, 2, (), ())
    moved = weight.copy()
    moved[20] = np.roll(moved[20], 1)
    assert check_masks(model, layers, {"w": torch.from_numpy(moved)}).changed == ("w.16:48",)
    assert check_masks(model, layers, {"w": torch.from_numpy(moved[:32])}).foreign == ("mm_a", "mm_b")


def test_one_part_read_by_two_splits_is_one_weight(models: Models) -> None:
    more = [
        helper.make_node("Split", ["w", "sizes"], ["c", "d"], "again"),
        helper.make_node("Gemm", ["x", "c"], ["yc"], "gemm", transB=1),
    ]
    model = read_model(models.save(attention(models, random_weight(48, 64), ROWS, more=more)))
    sites = {site.name: site.weight for site in find_sites(model)}
    first, again = sites["mm_a"], sites["gemm"]
    assert isinstance(first, TracedWeight)
    assert isinstance(again, TracedWeight)
    assert first.value is again.value
    part = part_of(first.tensor)
    assert part is not None
    assert (part.name, part.start, part.stop) == ("w", 0, 16)


def test_constants_that_said_where_to_split_go_with_the_split(models: Models) -> None:
    proto = attention(models, random_weight(48, 64), ROWS)
    sizes = helper.make_node("Constant", [], ["sizes"], value=proto.graph.initializer.pop(1))
    proto.graph.node.insert(0, sizes)
    model = read_model(models.save(proto))
    find_sites(model)
    assert [node.op_type for node in model.ir.graph] == ["Transpose", "MatMul"] * 2
    assert sorted(model.ir.graph.initializers) == NAMES
