"""A PyTorch module as the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparseflow_trt.errors import InputError
from sparseflow_trt.validation.compare import compare
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.tolerances import DEFAULTS, output_tolerances
from sparseflow_trt.validation.torch_runner import torch_reference

torch: Any = pytest.importorskip("torch")


def test_a_size_that_the_module_does_not_take_is_told_by_its_axis() -> None:
    def two_rows_alone(x: Any) -> Any:
        return x.reshape(2, 4)

    given = {"x": torch.zeros(2, 4)}
    reference = torch_reference(two_rows_alone, given, ("y",), "module", {"x": ("batch", 4)})
    three = InputSet("s", {"x": np.ones((3, 4), np.float32)}, None, "")
    with pytest.raises(InputError, match=r"the reference module cannot run on input set 's' \(batch=3\): "):
        compare(reference, [], [three], output_tolerances(DEFAULTS["fp32"]))


def test_inputs_of_another_type_than_the_module_computes_in_are_told_so() -> None:
    given = {"x": torch.zeros(2, 4)}
    reference = torch_reference(torch.nn.Linear(4, 4).half(), given, ("y",), "module", {"x": ("batch", 4)})
    two = InputSet("s", {"x": np.ones((2, 4), np.float32)}, None, "")
    with pytest.raises(InputError, match="must have the same dtype") as caught:
        compare(reference, [], [two], output_tolerances(DEFAULTS["fp32"]))
    assert caught.value.hint.startswith("Give inputs of the type that the module computes in")
