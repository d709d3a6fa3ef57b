"""Dimensions that onnx's inference does not follow, as torch's TorchScript exporter makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.sites import find_sites
from tests.graphs import random_weight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.conftest import Models

node = helper.make_node


def _m(path: Path) -> dict[str, str]:
    return {site.name: str(site.m) for site in find_sites(read_model(path)) if site.n}


def _rows(path: Path, sizes: Mapping[str, int]) -> tuple[list[int | None], list[int]]:
    """M of each layer by its name, and as the ONNX Runtime has it."""
    ort = pytest.importorskip("onnxruntime")
    sites = [site for site in find_sites(read_model(path)) if site.n]
    proto = onnx.load(path)
    names = [site.node.outputs[0].name for site in sites]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {
        given.name: np.ones(
            [sizes.get(dim, dim) for dim in given.shape],
            np.int64 if given.type == "tensor(int64)" else np.float32,
        )
        for given in session.get_inputs()
    }
    made = [values.size // site.n for site, values in zip(sites, session.run(names, feeds), strict=True)]
    return [site.m.evaluate(dict(sizes)) for site in sites], made


def _expanded(models: Models, named: str = "batch") -> Path:
    """A class token that PyTorch's `expand` repeats for each image, before the patches (ViT)."""
    nodes = [
        node("Shape", ["x"], ["sizes"]),
        node("Gather", ["sizes", "zero"], ["images"], axis=0),
        node("Unsqueeze", ["images", "first"], ["count"]),
        node("Concat", ["count", "minus", "minus"], ["wanted"], axis=0),
        node(
            "ConstantOfShape", ["three"], ["ones"], value=helper.make_tensor("v", TensorProto.INT64, [1], [1])
        ),
        node("Mul", ["ones", "minus"], ["kept"]),
        node("Equal", ["wanted", "kept"], ["same"]),
        node("Where", ["same", "ones", "wanted"], ["shape"]),
        node("Expand", ["token", "shape"], ["tokens"]),
        node("Concat", ["tokens", "x"], ["all"], axis=1),
        node("MatMul", ["all", "w"], ["y"], name="fc1"),
    ]
    weights = {
        "zero": np.int64(0), "first": np.array([0]), "minus": np.array([-1]), "three": np.array([3]),
        "token": random_weight(1, 1, 64), "w": random_weight(64, 128),
    }  # fmt: skip
    return models.save(models.model(nodes, weights, {"x": (named, 196, 64)}, opset=17))


def test_m_is_known_behind_a_shape_that_the_graph_computes(models: Models) -> None:
    path = _expanded(models)
    assert _m(path) == {"fc1": "197*batch"}
    assert _rows(path, {"batch": 5}) == ([985], [985])


def test_an_axis_whose_name_reads_as_an_expression_is_found_alone(models: Models) -> None:
    assert _m(_expanded(models, "batch-size")) == {"fc1": "197*batch-size"}


def test_m_of_fixed_shapes_is_known_where_the_ends_of_a_slice_are_computed(models: Models) -> None:
    """As `chunk` is exported: YOLO's blocks, none of whose shapes vary."""
    nodes = [
        node("Shape", ["x"], ["sizes"]),
        node("Gather", ["sizes", "one"], ["channels"], axis=0),
        node("Add", ["channels", "one"], ["more"]),
        node("Div", ["more", "two"], ["half"]),
        node("Mul", ["half", "one"], ["end"]),
        node("Slice", ["x", "zero", "end", "one"], ["part"]),
        node("Conv", ["part", "w"], ["y"], name="cv1"),
    ]
    weights = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2]),
        "w": random_weight(16, 16, 1, 1),
    }
    model = models.model(nodes, weights, {"x": (1, 32, 8, 8)}, opset=17)
    assert _m(models.save(model)) == {"cv1": "64"}


def test_an_output_whose_axis_the_exporter_named_after_it_has_the_inputs(models: Models) -> None:
    """torch calls the first dimension of an output that it cannot follow Conv9_dim_0."""
    nodes = [
        node("ConvTranspose", ["x", "up"], ["a"], strides=[2, 2]),
        node("Conv", ["a", "w"], ["y"], name="out"),
    ]
    weights = {"up": random_weight(32, 16, 2, 2), "w": random_weight(4, 16, 1, 1)}
    model = models.model(nodes, weights, {"x": ("batch", 32, 4, 4)}, opset=17)
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["Conv9_dim_0", 4, 8, 8])
    )
    assert _m(models.save(model)) == {"out": "64*batch"}


def _strided(models: Models, *convolutions: Mapping[str, Any]) -> Path:
    """Convolutions of images of any size, and a product of each of the last one's pixels."""
    nodes = [
        node("Conv", [f"x{i}" if i else "x", f"w{i}"], [f"x{i + 1}"], name=f"conv{i}", **attributes)
        for i, attributes in enumerate(convolutions)
    ]
    nodes += [
        node("Shape", [f"x{len(convolutions)}"], ["sizes"]),
        node("Slice", ["sizes", "zero", "two"], ["kept"]),
        node("Concat", ["kept", "minus"], ["flat"], axis=0),
        node("Reshape", [f"x{len(convolutions)}", "flat"], ["rows"]),
        node("Transpose", ["rows"], ["turned"], perm=[0, 2, 1]),
        node("MatMul", ["turned", "w"], ["y"], name="fc"),
    ]
    weights: dict[str, Any] = {"zero": np.array([0]), "two": np.array([2]), "minus": np.array([-1])}
    weights |= {
        f"w{i}": random_weight(16, 16, *attributes["kernel_shape"])
        for i, attributes in enumerate(convolutions)
    }
    weights["w"] = random_weight(16, 32)
    return models.save(models.model(nodes, weights, {"x": ("batch", 16, "h", "w_")}, opset=17))


_SAME = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
_HALVED = {"kernel_shape": [2, 2], "strides": [2, 2]}


@pytest.mark.parametrize(
    "convolutions", [(_SAME,), (_HALVED,), (_SAME, _SAME, _SAME), (_HALVED, _HALVED),
                     ({"kernel_shape": [14, 14], "strides": [14, 14]},)]
)  # fmt: skip
@pytest.mark.parametrize("size", [(64, 96), (77, 101), (57, 30)])
def test_what_strides_leave_of_an_image_is_what_the_onnx_runtime_makes(
    models: Models, convolutions: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> None:
    sizes = {"batch": 3, "h": size[0], "w_": size[1]}
    named, made = _rows(_strided(models, *convolutions), sizes)
    assert named == made


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [4, 3], "strides": [2, 3], "pads": [1, 0, 1, 2], "output_padding": [1, 0]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "dilations": [2, 1], "group": 4},
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"kernel_shape": [3, 3], "strides": [2, 2], "output_shape": [90, 100]},
    ],
)
def test_m_is_known_behind_what_makes_an_image_larger(models: Models, attributes: dict[str, Any]) -> None:
    """A decoder of an image's axes, as in a U-Net."""
    nodes = [
        node("Conv", ["x", "half"], ["small"], name="half", strides=[2, 2]),
        node("ConvTranspose", ["small", "up"], ["large"], name="up", **attributes),
        node("Conv", ["large", "last"], ["y"], name="last"),
    ]
    out = 8 * attributes.get("group", 1)
    weights = {"half": random_weight(16, 16, 2, 2), "up": random_weight(16, 8, *attributes["kernel_shape"]),
               "last": random_weight(32, out, 1, 1)}  # fmt: skip
    path = models.save(models.model(nodes, weights, {"x": ("batch", 16, "h", "w_")}, opset=17))
    named, made = _rows(path, {"batch": 3, "h": 90, "w_": 101})
    assert named == made


def test_which_axis_was_halved_and_how_often_is_told_apart(models: Models) -> None:
    unlike = {"kernel_shape": [3, 3], "strides": [2, 8], "pads": [1, 1, 1, 1]}
    assert _m(_strided(models, unlike))["fc"] == "batch*(((h - 1)//2) + 1)*(((w_ - 1)//8) + 1)"
    assert _m(_strided(models, _SAME, _SAME))["fc"] == "batch*(((h - 1)//4) + 1)*(((w_ - 1)//4) + 1)"
    assert _m(_strided(models, _HALVED, _HALVED))["fc"] == "batch*(h//4)*(w_//4)"


def test_a_sequence_that_is_filled_up_to_windows_is_as_long_as_they_are(models: Models) -> None:
    """512 tokens for 5, and 1024 for 600."""
    nodes = [
        node("Shape", ["x"], ["sizes"]),
        node("Gather", ["sizes", "one"], ["tokens"], axis=0),
        node("Mod", ["tokens", "window"], ["more"]),
        node("Sub", ["window", "more"], ["lacking"]),
        node("Mod", ["lacking", "window"], ["missing"]),
        node("Concat", ["three", "missing"], ["ends"], axis=0),
        node("Concat", ["ends", "zero"], ["pads"], axis=0),
        node("Pad", ["x", "pads"], ["a"]),
        node("MatMul", ["a", "w"], ["y"], name="fc"),
    ]
    weights = {
        "one": np.array([1]), "window": np.array([512]), "zero": np.array([0]),
        "three": np.zeros(4, np.int64), "w": random_weight(64, 64),
    }  # fmt: skip
    path = models.save(models.model(nodes, weights, {"x": (1, "seq", 64)}, opset=17))
    for sizes, tokens in (({"seq": 5}, 512), ({"seq": 512}, 512), ({"seq": 600}, 1024)):
        assert _rows(path, sizes) == ([tokens], [tokens])


_SHAPED = [  # of x, with its axes as the graph reads them
    node("Shape", ["x"], ["sizes"]),
    node("Reshape", ["x", "sizes"], ["same"]),
]


def test_of_two_axes_one_of_which_may_be_repeated_m_is_the_larger(models: Models) -> None:
    nodes = [*_SHAPED, node("Add", ["same", "z"], ["a"]), node("MatMul", ["a", "w"], ["y"], name="fc")]
    weights = {"w": random_weight(64, 64)}
    path = models.save(models.model(nodes, weights, {"x": ("rows", 64), "z": ("more", 64)}, opset=17))
    for sizes in ({"rows": 7, "more": 1}, {"rows": 1, "more": 5}, {"rows": 3, "more": 3}):
        named, made = _rows(path, sizes)
        assert named == made == [max(sizes.values())]


def test_what_the_inference_would_guess_stays_unknown_and_is_not_told(
    models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """As many rows as another input has, which may be more than there are."""
    nodes = [
        node("Shape", ["z"], ["others"]),
        node("Gather", ["others", "zero"], ["end"], axis=0),
        node("Slice", ["x", "zero", "end", "zero"], ["a"]),
        node("MatMul", ["a", "w"], ["y"], name="fc"),
    ]
    weights = {"zero": np.array([0]), "w": random_weight(64, 64)}
    path = models.save(models.model(nodes, weights, {"x": ("rows", 64), "z": ("more", 64)}, opset=17))
    assert _m(path) == {"fc": "?"}
    assert capfd.readouterr() == ("", "")


def test_an_operator_that_nobody_knows_ends_nothing_but_what_reads_it(models: Models) -> None:
    nodes = [
        node("Other", ["x"], ["c"], domain="custom"),
        node("MatMul", ["c", "w"], ["d"], name="behind"),
        *_SHAPED,
        node("MatMul", ["same", "w"], ["e"], name="beside"),
        node("Add", ["d", "e"], ["y"]),
    ]
    model = models.model(nodes, {"w": random_weight(64, 64)}, {"x": ("batch", 8, 64)}, opset=17)
    model.opset_import.append(helper.make_opsetid("custom", 1))
    assert _m(models.save(model)) == {"behind": "?", "beside": "8*batch"}


def test_without_the_onnx_runtime_it_stays_unknown(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _expanded(models)
    monkeypatch.setattr("sparseflow_trt.model.ort_inference._tool", lambda: None)
    assert _m(path) == {"fc1": "?*?"}


def test_what_depends_on_values_stays_unknown(models: Models) -> None:
    nodes = [
        node("NonZero", ["x"], ["where"]),
        node("Transpose", ["where"], ["rows"]),
        node("Cast", ["rows"], ["a"], to=TensorProto.FLOAT),
        node("MatMul", ["a", "w"], ["y"], name="fc"),
    ]
    model = models.model(nodes, {"w": random_weight(2, 16)}, opset=17)
    assert _m(models.save(model)) == {"fc": "?"}


def test_a_model_whose_shapes_are_known_is_not_tried(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(*_: object) -> None:
        raise AssertionError("it was tried")

    monkeypatch.setattr("sparseflow_trt.model.sites.find_dims", tried)
    assert _m(models.matmul(random_weight(64, 64))) == {"mm": "batch"}
