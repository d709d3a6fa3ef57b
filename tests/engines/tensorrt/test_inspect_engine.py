"""Asking an engine what it holds, at each profile's shapes. A TensorRT without a GPU stands in."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sparseflow_trt.engines.tensorrt.api import Flavour
from sparseflow_trt.engines.tensorrt.inspect_engine import engine_information
from sparseflow_trt.engines.tensorrt.log import BuildLog
from sparseflow_trt.errors import BuildError
from sparseflow_trt.plans.shapes import Profile, ShapeRange

PROFILES = tuple(
    Profile(name=name, inputs={"x": ShapeRange(min=(low, 2), opt=(low, 2), max=(high, 2))})
    for name, low, high in (("short", 1, 4), ("long", 5, 8))
)


def flavour_whose(refused: str) -> Flavour:
    """A TensorRT of an engine of two profiles; its context refuses one of its calls, and logs why."""

    class ILogger:
        pass

    class Context:
        profile = 0

        def __init__(self, logger: Any) -> None:
            self.logger = logger
            self.shapes: dict[str, tuple[int, ...]] = {}

        def set_optimization_profile_async(self, number: int, stream: int) -> bool:
            if refused == f"profile {number}":
                self.logger.log(SimpleNamespace(name="ERROR"), "the profile is in use")
                return False
            self.profile = number
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            if refused == f"shape {list(shape)}":
                self.logger.log(SimpleNamespace(name="ERROR"), "the shape is out of range")
                return False
            self.shapes[name] = shape
            return True

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            inspector = SimpleNamespace(execution_context=None)
            inspector.get_engine_information = lambda form: json.dumps(
                [inspector.execution_context.profile, inspector.execution_context.shapes]
            )
            return SimpleNamespace(
                create_engine_inspector=lambda: inspector,
                create_execution_context=lambda: Context(self.logger),
            )

    module = ModuleType("simulated_tensorrt")
    forms = SimpleNamespace(JSON="json")
    vars(module).update(ILogger=ILogger, Runtime=Runtime, LayerInformationFormat=forms)
    return Flavour("tensorrt", "TensorRT", module, "10.3.0", False)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    (tmp_path / "model.engine").touch()
    return tmp_path / "model.engine"


def test_each_profile_is_asked_about_at_its_opt(engine: Path) -> None:
    texts = engine_information(flavour_whose(""), engine, PROFILES, BuildLog(io.StringIO()))
    assert [json.loads(text) for text in texts] == [[0, {"x": [1, 2]}], [1, {"x": [5, 2]}]]


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        ("profile 1", "profile 'long': the profile is in use."),
        ("shape [5, 2]", "profile 'long': the shape is out of range."),
    ],
)
def test_what_is_told_of_one_profile_is_not_taken_for_another(engine: Path, refused: str, says: str) -> None:
    """TensorRT returns False: the inspector would go on to tell the types of the profile before."""
    with pytest.raises(BuildError, match="built an engine that does not accept the opt shapes") as caught:
        engine_information(flavour_whose(refused), engine, PROFILES, BuildLog(io.StringIO()))
    assert caught.value.message.endswith(says)
