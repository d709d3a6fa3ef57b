"""Shapes behind the ONNX Runtime's own operators, as its optimiser of transformers writes them."""

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
    from pathlib import Path

    from tests.conftest import Models

RUNTIMES = "com.microsoft"


def _fused(models: Models, attention: Any = (64, 192)) -> Path:
    """A block of BERT, and the sum that its last norm gives beside, as the optimiser fuses them."""

    def own(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, outputs, domain=RUNTIMES, **attributes)

    norm = ["gain", "bias"]
    nodes = [
        own("EmbedLayerNormalization", ["ids", "", "words", "places", "", *norm], ["e", "mask"]),
        own("Attention", ["e", "qkv", "qkv_bias", "mask"], ["a"], num_heads=4),
        helper.make_node("MatMul", ["a", "o"], ["b"], name="o_proj"),
        own("SkipLayerNormalization", ["b", "e", *norm], ["c", "", "", "sum"]),
        helper.make_node("MatMul", ["c", "up"], ["d"], name="up_proj"),
        own("BiasGelu", ["d", "up_bias"], ["f"]),
        own("FusedMatMul", ["f", "down"], ["g"], name="down_proj", alpha=0.5),
        helper.make_node("MatMul", ["sum", "o"], ["h"], name="of_the_sum"),
        helper.make_node("Add", ["g", "h"], ["i"]),
        helper.make_node("SimplifiedLayerNormalization", ["i", "gain"], ["j"]),
        helper.make_node("MatMul", ["j", "o"], ["y"], name="last"),
    ]
    vector = np.ones(64, np.float32)
    weights = {
        "words": random_weight(32, 64), "places": random_weight(16, 64), "gain": vector, "bias": vector,
        "qkv": random_weight(*attention), "qkv_bias": np.ones(attention[1], np.float32),
        "o": random_weight(64, 64), "up": random_weight(64, 128), "up_bias": np.ones(128, np.float32),
        "down": random_weight(128, 64),
    }  # fmt: skip
    model = models.model(nodes, weights, {"ids": ("batch", "seq")}, opset=17)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    model.opset_import.append(helper.make_opsetid(RUNTIMES, 1))
    return models.save(model)


def test_m_is_known_behind_them(models: Models) -> None:
    model = read_model(_fused(models))
    before = [(n.domain, n.op_type, [v.name if v else "" for v in n.inputs]) for n in model.ir.graph]
    found = {site.name: str(site.m) for site in find_sites(model) if site.n}
    names = ("o_proj", "up_proj", "of_the_sum", "last")
    assert found == dict.fromkeys(names, "batch*seq")
    assert [(n.domain, n.op_type, [v.name if v else "" for v in n.inputs]) for n in model.ir.graph] == before


def test_it_stays_unknown_behind_an_attention_of_another_width(models: Models) -> None:
    sites = find_sites(read_model(_fused(models, attention=(64, 240))))
    assert next(str(site.m) for site in sites if site.name == "o_proj") == "?"


@pytest.mark.parametrize(("kind", "zero"), [("FLOAT", np.int16(0)), ("FLOAT", np.uint8(3))])
def test_quantizers_of_the_runtime_s_own(kind: str, zero: Any, models: Models) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], domain=RUNTIMES),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], domain=RUNTIMES),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="mm"),
    ]
    constants = {"s": np.array(0.1, np.float32), "w": random_weight(64, 64)}
    model = models.model(nodes, constants)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(zero), "z"))
    model.opset_import.append(helper.make_opsetid(RUNTIMES, 1))
    (site,) = find_sites(read_model(models.save(model)))
    assert str(site.m) == "batch"
    assert site.node.inputs[0] is not None
    assert site.node.inputs[0].dtype is not None
    assert site.node.inputs[0].dtype.name == kind


@pytest.mark.parametrize("whole", [True, False])
def test_m_is_known_behind_a_weight_of_a_few_bits(whole: bool, models: Models) -> None:
    sizes: dict[str, Any] = {"K": 64, "N": 96} if whole else {"N": 96}  # a damaged file
    packed = helper.make_node(
        "MatMulNBits", ["x", "blocks", "scales"], ["h"], domain=RUNTIMES, bits=4, block_size=32, **sizes
    )
    weights = {"scales": np.ones(96 * 2, np.float32), "w": random_weight(96, 32)}
    inputs = {"x": ("batch", "seq", 64)}
    model = models.model([packed, helper.make_node("MatMul", ["h", "w"], ["y"], name="mm")], weights, inputs)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((96, 2, 16), np.uint8), "blocks"))
    model.opset_import.append(helper.make_opsetid(RUNTIMES, 1))
    read = read_model(models.save(model))
    before = set(read.ir.graph.initializers)
    assert str(find_sites(read)[-1].m) == ("batch*seq" if whole else "?")
    assert [n.op_type for n in read.ir.graph] == ["MatMulNBits", "MatMul"]
    assert set(read.ir.graph.initializers) == before
