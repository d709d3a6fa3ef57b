"""Giving an engine weights: the order of things, on a stand-in for TensorRT's refitter, which needs a GPU."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from onnx import helper

from sparseflow_trt.engines.protocol import EngineOptions
from sparseflow_trt.engines.tensorrt.api import Flavour, load_flavour
from sparseflow_trt.engines.tensorrt.log import BuildLog
from sparseflow_trt.engines.tensorrt.refit import refit_from_onnx, serialized
from sparseflow_trt.engines.tensorrt.refit_engine import check_refittable
from sparseflow_trt.errors import BuildError

if TYPE_CHECKING:
    from types import ModuleType

    from tests.conftest import Models

NO_REGION = "globWriter.cpp::reserveRegionForHunk: Cuda Runtime .invalid argument."
UP = np.arange(8, dtype=np.float16).reshape(4, 2)


class Refitter:
    """What TensorRT 8.6's Refitter has, over a dictionary of weights that the "engine" holds."""

    def __init__(self, engine: Any, logger: Any) -> None:
        self.engine, self.logger = engine, logger
        self.given: dict[str, Any] = {}

    def get_all_weights(self) -> list[str]:
        return list(self.engine.weights)

    def set_named_weights(self, name: str, weights: Any) -> bool:
        if weights.size != self.engine.weights[name].size:
            return False
        self.given[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        return [name for name in self.engine.bound if name not in self.given]

    def refit_cuda_engine(self) -> bool:
        self.engine.weights.update({name: np.array(w.numpy()) for name, w in self.given.items()})
        return not refused(self.engine, self.logger)


class ParserRefitter:
    """What OnnxParserRefitter has."""

    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self.refitter, self.logger = refitter, logger
        self.num_errors = 0

    def refit_from_file(self, path: str) -> bool:
        engine = self.refitter.engine
        engine.read_from = path
        self.num_errors = len(engine.keeps)
        return not self.num_errors and not refused(engine, self.logger)

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: self.refitter.engine.keeps[index])


def refused(engine: Any, log: BuildLog) -> bool:
    """Whether it refuses, which it says."""
    if engine.refuses:
        log.record("ERROR", engine.refuses)
    return bool(engine.refuses)


def make_engine(*names: str, bound: tuple[str, ...] = (), refuses: str = "", refittable: bool = True) -> Any:
    weights = {name: np.zeros(8) for name in names}
    return SimpleNamespace(weights=weights, bound=bound, refuses=refuses, refittable=refittable, keeps=())


def flavour(version: str) -> Flavour:
    rtx = load_flavour("tensorrt-rtx").module  # whose Weights and types are those of TensorRT
    module = SimpleNamespace(Refitter=Refitter, Weights=rtx.Weights, DataType=rtx.DataType)
    if version != "8.6.0":
        module.OnnxParserRefitter = ParserRefitter
    return Flavour("tensorrt", "TensorRT", cast("ModuleType", module), version, strongly_typed=False)


def refit(engine: Any, model: Path, version: str = "8.6.0", changed: tuple[str, ...] = ()) -> None:
    log = BuildLog(io.StringIO())
    refit_from_onnx(flavour(version), engine, model, log, log, changed)


@pytest.fixture
def model(models: Models) -> Path:
    """y = BatchNormalization(x · up), with an integer constant beside it."""
    one = np.ones(2, np.float16)
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], name="up_proj"),
        helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["b"], name="bn"),
        helper.make_node("Reshape", ["b", "shape"], ["y"]),
    ]
    weights = {"up": UP, **dict.fromkeys(("scale", "bias", "mean", "var"), one), "shape": np.array([-1])}
    return models.save(models.model(nodes, weights, {"x": ("batch", 4)}, dtype=10))


def test_weights_are_set_by_name(model: Path) -> None:
    engine = make_engine("up", "shape", "tmp_weight")
    refit(engine, model, changed=("up",))
    assert np.array_equal(engine.weights["up"], UP.ravel())
    assert not engine.weights["shape"].any(), "a shape is no weight"
    assert not engine.weights["tmp_weight"].any(), "nor is what the parser made itself"


@pytest.mark.parametrize("version", ["8.6.0", "10.8.0"])
def test_a_weight_that_was_folded_in_cannot_be_exchanged(model: Path, version: str) -> None:
    engine = make_engine("bias")
    with pytest.raises(BuildError, match="cannot exchange weight 'up': TensorRT folded it in") as caught:
        refit(engine, model, version, changed=("up", "bias"))
    assert "sparseflow-trt build" in caught.value.hint
    with pytest.raises(BuildError, match="weight 'other' and 1 more: "):
        refit(engine, model, version, changed=("up", "other"))


def test_only_the_parsers_refitter_folds_a_batch_normalization_again(model: Path) -> None:
    engine = make_engine("up")
    refit(engine, model, "10.8.0", changed=("up", "scale", "var"))
    assert engine.read_from == str(model)
    with pytest.raises(BuildError, match="cannot exchange weight 'scale' and 1 more"):
        refit(engine, model, "8.6.0", changed=("up", "scale", "var"))


def test_weights_that_are_wanted_and_that_no_model_has(model: Path) -> None:
    with pytest.raises(BuildError, match="also needs new values for 'tmp_weight', which is not a weight of"):
        refit(make_engine("up", "tmp_weight", bound=("up", "tmp_weight")), model)


@pytest.mark.parametrize("version", ["8.6.0", "10.8.0"])
def test_what_tensorrt_refuses(model: Path, version: str) -> None:
    for says, of_2to4 in (("dense weights provided for the sparse layer", True), (NO_REGION, False)):
        with pytest.raises(
            BuildError, match=rf"TensorRT [\d.]+ does not take the weights of model\.onnx: {says}"
        ) as caught:
            refit(make_engine("up", refuses=says), model, version)
        assert ("have to be 2:4" in caught.value.hint) == of_2to4
    with pytest.raises(BuildError, match="it was not built for it"):
        refit(make_engine("up", refittable=False), model, version)


def test_what_the_parsers_refitter_keeps_to_itself(model: Path) -> None:
    """Its errors are asked for, as the parser's are: they need not be in the log."""
    engine = make_engine("up")
    engine.keeps = (
        "In node 0 (refitWeights): UNSUPPORTED_NODE",
        "In node 0 (refitWeights): UNSUPPORTED_NODE",
    )
    says = r"weights of model\.onnx: In node 0 \(refitWeights\): UNSUPPORTED_NODE\.(?m:$)"
    with pytest.raises(BuildError, match=says):
        refit(engine, model, "10.8.0")


def test_an_engine_that_cannot_be_refitted_is_told_when_it_is_built(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: dict[Path, Any] = {}
    monkeypatch.setattr(
        "sparseflow_trt.engines.tensorrt.refit_engine.load_engine",
        lambda flavour, path, log, host_code: SimpleNamespace(engine=built[path], logger=log),
    )
    path, log = model.with_name("model.engine"), BuildLog(io.StringIO())
    built[path] = make_engine("up")
    check_refittable(flavour("8.6.0"), path, model, EngineOptions(refit=True), log)
    assert np.array_equal(built[path].weights["up"], UP.ravel())
    built[path] = make_engine("up", refuses=NO_REGION)
    with pytest.raises(BuildError, match=f"was built but cannot be refitted: .*{NO_REGION}") as caught:
        check_refittable(flavour("8.6.0"), path, model, EngineOptions(refit=True), log)
    assert "one profile" in caught.value.hint


def test_a_weight_of_another_size_is_named(model: Path) -> None:
    engine = make_engine("up", "bias")
    with pytest.raises(BuildError, match="does not take weight 'bias' of"):
        refit(engine, model)


@pytest.mark.parametrize("include", [True, False])
def test_a_refitted_engine_is_written_with_its_weights(include: bool) -> None:
    said: list[tuple[str, str]] = []
    config = SimpleNamespace(
        clear_flag=lambda flag: said.append(("clear", flag)), set_flag=lambda flag: said.append(("set", flag))
    )
    engine = SimpleNamespace(
        create_serialization_config=lambda: config,
        serialize_with_config=lambda given: b"10" if given is config else b"",
    )
    flags = {"EXCLUDE_WEIGHTS": "exclude", **({"INCLUDE_REFIT": "refit"} if include else {})}
    trt = SimpleNamespace(SerializationFlag=SimpleNamespace(**flags))
    assert serialized(trt, engine) == b"10"
    assert said == [("clear", "exclude"), *([("set", "refit")] if include else [])]
    assert serialized(trt, SimpleNamespace(serialize=lambda: b"8.6")) == b"8.6"
