from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper

from sparseflow_trt.errors import ModelError
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.model.operators import check_operators

if TYPE_CHECKING:
    from tests.conftest import Models


def test_an_unknown_operator_is_named_with_its_node(models: Models) -> None:
    nodes = [helper.make_node("MatMull", ["x"], ["y"], name="typo")]
    model = read_model(models.save(models.model(nodes)))
    with pytest.raises(ModelError, match="node 'typo' is a 'MatMull', which opset 21 does not have\\."):
        check_operators(model)


def test_an_operator_of_a_later_opset_says_so(models: Models) -> None:
    nodes = [helper.make_node("GroupNormalization", ["x", "x", "x"], ["y"], num_groups=1)]
    model = read_model(models.save(models.model(nodes, opset=17)))
    with pytest.raises(ModelError, match=r"node 'y' is .* \(it came with opset 18\)"):
        check_operators(model)


def test_an_opset_that_no_backend_reads_says_what_converts_it(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BatchNormalization wants `is_test` there, and Add and Gemm broadcast by attributes."""
    node = helper.make_node("Add", ["x", "b"], ["y"], broadcast=1)
    path = models.save(models.model([node], {"b": np.ones(8, np.float32)}, {"x": (2, 8)}, opset=6))
    with pytest.raises(ModelError, match=r"is written in opset 6, but backends need 7 or later") as caught:
        check_operators(read_model(path))
    assert "needs sizes in place of named axes" in caught.value.hint
    monkeypatch.chdir(path.parent)
    exec(f"import onnx\n{caught.value.hint.partition('axes: ')[2]}", {})
    check_operators(read_model(Path("new.onnx")))


def test_operators_in_branches_are_checked_and_other_domains_are_not(models: Models) -> None:
    body = helper.make_graph(
        [helper.make_node("Nope", ["x"], ["t"], name="deep")],
        "g",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)]
    with pytest.raises(ModelError, match="'deep'"):
        check_operators(read_model(models.save(models.model(nodes, {"c": np.array(True)}))))
    function = helper.make_function(
        "mine", "Nope", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 21)]
    )
    fine = [
        helper.make_node("FusedMatMul", ["x", "x"], ["z"], domain="com.microsoft"),
        helper.make_node("Nope", ["z"], ["y"], domain="mine"),
    ]
    check_operators(read_model(models.save(models.model(fine, functions=[function]))))
    same_name = [helper.make_node("Nope", ["x"], ["y"], name="not mine")]
    with pytest.raises(ModelError, match="'not mine'"):
        check_operators(read_model(models.save(models.model(same_name, functions=[function]))))
