from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from polygraphy.logger import G_LOGGER

from sparseflow_trt.artifacts.verdict import Validation, overall_verdict
from sparseflow_trt.errors import InputError, ModelError
from sparseflow_trt.model.model_file import OnnxModel, read_model
from sparseflow_trt.plans.shapes import make_profile
from sparseflow_trt.validation.compare import compare
from sparseflow_trt.validation.engine_runner import select_profile
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.inputs import generate_inputs
from sparseflow_trt.validation.runners import ort_runner, run_once
from sparseflow_trt.validation.tolerances import DEFAULTS, Tolerances, output_tolerances, parse_tolerance
from sparseflow_trt.validation.trial import Candidate
from tests.conftest import Models
from tests.graphs import random_weight

Linear = Callable[..., Path]
FP16 = output_tolerances(DEFAULTS["fp16"])


@pytest.fixture
def reference(tmp_path: Path, linear: Linear) -> Path:
    return linear(tmp_path / "reference.onnx")


@pytest.fixture
def inputs(reference: Path) -> list[InputSet]:
    profile = make_profile("p", {"x": ("batch", 8)}, {"batch": (1, 4, 16)}, {})
    assert profile is not None
    return generate_inputs(read_model(reference), [profile])


def verdicts(validation: Validation) -> dict[str, str]:
    return {candidate.name: candidate.verdict for candidate in validation.candidates}


def test_the_same_model_passes(reference: Path, inputs: list[InputSet]) -> None:
    steps: list[tuple[int, int]] = []
    found = compare(
        reference, [Candidate("same", reference, "onnx")], inputs, FP16, lambda *step: steps.append(step)
    )
    assert found.verdict == "pass"
    assert found.reason == "same agreed with the reference."
    (same,) = found.candidates
    assert same.reason == "All 2 output(s) are within tolerance on all 3 input set(s)."
    assert [(o.output, o.input_set) for o in same.outputs] == [
        (output, name) for name in ("p:min", "p:opt", "p:max") for output in ("y", "best")
    ]
    assert same.outputs[0].cosine == pytest.approx(1.0)
    assert same.outputs[1].equal == 1.0
    assert steps == [(i, 6) for i in range(1, 7)]
    assert found.reference_runtime.startswith("ONNX Runtime 1.")
    assert found.input_sets[2].shapes == {"x": (16, 8)}
    assert found.compared_by.startswith("Polygraphy 0.")


def test_a_perturbed_weight_fails_with_its_numbers(
    tmp_path: Path, linear: Linear, reference: Path, inputs: list[InputSet]
) -> None:
    wrong = Candidate("wrong", linear(tmp_path / "wrong.onnx", scale=9), "onnx")
    found = compare(reference, [wrong, Candidate("same", reference, "onnx")], inputs, FP16)
    assert found.verdict == "fail"
    assert verdicts(found) == {"wrong": "fail", "same": "pass"}
    assert "output 'y' on input set 'p:min': 1 of 8 elements" in found.candidates[0].reason
    assert "worst at [0, 5]: expected " in found.candidates[0].reason
    assert found.reason.startswith("1 of 2 candidate(s) failed; wrong: output 'y'")


def test_outputs_that_are_all_empty_are_no_pass(linear: Linear, reference: Path) -> None:
    """As those of a model that fixes a dimension to 0, which some exporters write for a dynamic one."""
    nothing = [InputSet("none", {"x": np.zeros((0, 8), np.float32)}, 0, "empty")]
    found = compare(reference, [Candidate("same", reference, "onnx")], nothing, FP16)
    assert (found.verdict, found.candidates[0].verdict) == ("not run", "not run")
    assert found.reason == found.candidates[0].reason
    assert found.reason.startswith("All outputs are empty on all 1 input set(s), so nothing was compared. ")


@pytest.mark.parametrize(
    ("kept", "scale", "added", "verdict", "said"),
    [
        (False, 0, 0, "not run", "All outputs are 0 everywhere in the reference on all 3 input set(s)"),
        (True, 0, 0, "pass", "Some say nothing about errors: 'y' is 0 everywhere in the reference."),
        (False, 0, 3, "pass", "Some say nothing about errors: 'y' is 3 everywhere in the reference."),
        (False, 1, 0, "pass", "All 1 output(s) are within tolerance on all 3 input set(s)."),
    ],
)
def test_an_output_that_is_one_number_everywhere_is_no_silent_pass(
    kept: bool, scale: float, added: float, verdict: str, said: str, models: Models, inputs: list[InputSet]
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mul", ["h", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "added"], ["y"]),
    ]
    weights = {
        "w": random_weight(8, 8), "scale": np.array(scale, np.float32), "added": np.array(added, np.float32)
    }  # fmt: skip
    outputs = ["y", "h"] if kept else ["y"]
    path = models.save(models.model(nodes, weights, {"x": ("batch", 8)}, outputs), "flat.onnx")
    found = compare(path, [Candidate("same", path, "onnx")], inputs, FP16)
    assert found.verdict == verdict
    assert said in found.candidates[0].reason
    assert set(found.candidates[0].tells_nothing) == ({"y"} if not scale else set())
    shown = {name: found.candidates[0].shown(name) for name in outputs}
    assert shown == {"y": "pass" if scale or added else "not run", **({"h": "pass"} if kept else {})}


def test_one_zero_that_is_wrong_fails_still(models: Models, inputs: list[InputSet]) -> None:
    paths = []
    for scale in (0, 1):
        node = helper.make_node("Mul", ["x", "scale"], ["y"])
        weights = {"scale": np.array(scale, np.float32)}
        made = models.model([node], weights, {"x": ("batch", 8)})
        paths.append(models.save(made, f"by_{scale}.onnx"))
    found = compare(paths[0], [Candidate("other", paths[1], "onnx")], inputs, FP16)
    assert (found.verdict, found.candidates[0].shown("y")) == ("fail", "fail")


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_candidate_with_nan_fails_and_its_record_is_json(
    tmp_path: Path, linear: Linear, reference: Path, inputs: list[InputSet], poison: float
) -> None:
    bad = Candidate("bad", linear(tmp_path / "bad.onnx", poison=poison), "onnx")
    loose = output_tolerances(DEFAULTS["fp8"], [parse_tolerance("y:atol=1e9,rtol=1e9,cosine=-1")])
    found = compare(reference, [bad], inputs, loose)
    assert found.verdict == "fail"
    assert "NaN or infinite where the reference is finite; first at [0, 2]" in found.candidates[0].reason
    text = found.model_dump_json()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    assert Validation.model_validate_json(text) == found


def test_not_run_is_never_a_pass(reference: Path, inputs: list[InputSet]) -> None:
    skipped = Candidate("engine", Path("e.engine"), "engine", "This machine has no GPU.")
    alone = compare(reference, [skipped], inputs, FP16)
    assert (alone.verdict, alone.candidates[0].reason) == ("not run", "This machine has no GPU.")
    both = compare(reference, [skipped, Candidate("same", reference, "onnx")], inputs, FP16)
    assert both.verdict == "pass"
    assert verdicts(both) == {"engine": "not run", "same": "pass"}
    assert both.reason == "same agreed with the reference. engine was not run."
    assert compare(reference, [], inputs, FP16).verdict == "not run"
    assert overall_verdict(["pass", "not run", "fail"]) == "fail"


def test_tensorrt_that_is_not_installed_is_not_run(
    reference: Path, inputs: list[InputSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    found = compare(reference, [Candidate("engine", reference, "engine")], inputs, FP16)
    assert found.verdict == "not run"
    assert "tensorrt" in found.candidates[0].reason


def test_a_tolerance_for_one_output(
    tmp_path: Path, linear: Linear, reference: Path, inputs: list[InputSet]
) -> None:
    candidate = Candidate("wrong", linear(tmp_path / "wrong.onnx", scale=5), "onnx")
    wide = [parse_tolerance("y:atol=9,cosine=0"), parse_tolerance("best:equal=0")]
    found = compare(reference, [candidate], inputs, output_tolerances(DEFAULTS["fp16"], wide))
    assert found.verdict == "pass"
    assert found.candidates[0].outputs[0].tolerance.max_abs == 9
    with pytest.raises(InputError, match="for output 'z'; the model has 'y', 'best'"):
        compare(reference, [], inputs, output_tolerances(DEFAULTS["fp16"], [parse_tolerance("z:atol=1")]))


def test_integer_outputs_are_exact(
    tmp_path: Path, linear: Linear, reference: Path, inputs: list[InputSet]
) -> None:
    wrong = linear(tmp_path / "wrong.onnx", scale=50)
    wide = [parse_tolerance("y:atol=1e9,cosine=-1")]
    found = compare(
        reference, [Candidate("wrong", wrong, "onnx")], inputs, output_tolerances(DEFAULTS["fp16"], wide)
    )
    assert "output 'best'" in found.candidates[0].reason
    assert "elements differ" in found.candidates[0].reason


def test_outputs_of_other_names_fail(
    tmp_path: Path, linear: Linear, reference: Path, inputs: list[InputSet]
) -> None:
    renamed = Candidate("renamed", linear(tmp_path / "renamed.onnx", output="y_1"), "onnx")
    (found,) = compare(reference, [renamed], inputs, FP16).candidates
    assert found.verdict == "fail"
    reasons = [o.reason for o in found.outputs if not o.passed]
    assert reasons[:2] == [
        "output 'y' is missing: the candidate has 'y_1', 'best'.",
        "output 'y_1' is not one of the reference's.",
    ]


def test_inputs_of_other_names_fail(
    tmp_path: Path, reference: Path, inputs: list[InputSet], save: Callable[..., Path]
) -> None:
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["x_1"], ["y"])],
        [("x_1", TensorProto.FLOAT, ["n", 8])],
        [("y", TensorProto.FLOAT, ["n", 8])],
    )
    (found,) = compare(reference, [Candidate("other", path, "onnx")], inputs, FP16).candidates
    assert (found.verdict, found.reason) == (
        "fail", "it takes an input 'x_1', which the reference does not have.",
    )  # fmt: skip


def test_inputs_of_another_layout_fail(tmp_path: Path, save: Callable[..., Path]) -> None:
    paths = [
        save(
            tmp_path / f"{i}.onnx",
            [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
            [("x", TensorProto.FLOAT, dims)],
            [("y", TensorProto.FLOAT, [])],
        )
        for i, dims in enumerate(([1, 2, 3], [1, 3, 2]))
    ]
    sets = generate_inputs(read_model(paths[0]), [])
    (found,) = compare(paths[0], [Candidate("turned", paths[1], "onnx")], sets, FP16).candidates
    assert found.verdict == "fail"
    assert "it takes 'x' in shape (1, 3, 2), and the set holds (1, 2, 3)." in found.reason


def test_an_fp16_candidate_is_compared_in_wider_types(
    tmp_path: Path, reference: Path, inputs: list[InputSet]
) -> None:
    model = onnx.load(reference)
    model.graph.node[1].output[0] = "wide"
    model.graph.node[2].input[0] = "wide"
    model.graph.node.append(helper.make_node("Cast", ["wide"], ["y"], to=TensorProto.FLOAT16))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, tmp_path / "half.onnx")
    (found,) = compare(
        reference, [Candidate("half", tmp_path / "half.onnx", "onnx")], inputs, FP16
    ).candidates
    assert found.verdict == "pass"
    assert found.outputs[0].candidate_dtype == "float16"
    assert found.outputs[0].max_abs is not None
    assert 0 < found.outputs[0].max_abs < 1e-2


def test_bf16_goes_in_and_out(typed_ends: OnnxModel) -> None:
    sets = generate_inputs(typed_ends, [])
    found = compare(typed_ends.path, [Candidate("same", typed_ends.path, "onnx")], sets, FP16)
    assert found.verdict == "pass"
    # What comes out is what was fed, added and rounded to BF16.
    outputs = run_once(ort_runner(typed_ends.path, "reference"), sets[0])
    feeds = sets[0].feeds
    total = feeds["brain"].astype(np.float32) + feeds["half"].astype(np.float32)
    expected = total.astype(feeds["brain"].dtype).astype(np.float32)
    np.testing.assert_array_equal(outputs["brain_out"], expected)


def test_a_candidate_that_cannot_be_loaded_or_run_fails_alone(
    tmp_path: Path, reference: Path, inputs: list[InputSet], save: Callable[..., Path]
) -> None:
    (tmp_path / "cut.onnx").write_bytes(reference.read_bytes()[:60])
    stubborn = save(
        tmp_path / "stubborn.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [("x", TensorProto.FLOAT, ["n", 8])],
        [("y", TensorProto.FLOAT, [3, 5])],
        {"shape": np.array([3, 5], np.int64)},
    )
    found = compare(
        reference,
        [Candidate("cut", tmp_path / "cut.onnx", "onnx"), Candidate("gone", tmp_path / "gone.onnx", "onnx"),
         Candidate("stubborn", stubborn, "onnx"), Candidate("same", reference, "onnx")],
        inputs,
        FP16,
    )  # fmt: skip
    assert verdicts(found) == {"cut": "fail", "gone": "fail", "stubborn": "fail", "same": "pass"}
    cut, gone, stuck, _ = found.candidates
    assert cut.reason.startswith("ONNX Runtime does not take cut.onnx: ")
    assert str(tmp_path) not in cut.reason
    assert "does not exist" in gone.reason
    assert stuck.reason.startswith("it cannot run on input set 'p:min': ")
    assert stuck.reason.endswith(" And 2 more.")


def test_a_node_without_a_kernel_is_not_run(
    tmp_path: Path, save: Callable[..., Path], reference: Path, inputs: list[InputSet]
) -> None:
    path = save(
        tmp_path / "brain.onnx",
        [helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
         helper.make_node("MatMul", ["b", "b"], ["s"]),
         helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT)],
        [("x", TensorProto.FLOAT, ["n", 8])],
        [("y", TensorProto.FLOAT, ["n", 8])],
    )  # fmt: skip
    (found,) = compare(reference, [Candidate("brain", path, "onnx")], inputs, FP16).candidates
    assert found.verdict == "not run"
    assert "ONNX Runtime's CPU cannot run" in found.reason


def test_a_reference_that_fails_is_an_error(
    tmp_path: Path, reference: Path, inputs: list[InputSet], embedding: OnnxModel
) -> None:
    with pytest.raises(InputError, match="no input sets"):
        compare(reference, [], [], FP16)
    with pytest.raises(ModelError, match=r"gone\.onnx does not exist"):
        compare(tmp_path / "gone.onnx", [], inputs, FP16)
    ids = np.full((1, 2), 99)
    names = ("input_ids", "attention_mask", "token_type_ids")
    outside = InputSet(
        "outside", {**dict.fromkeys(names, ids), "column_ids": np.zeros(1, np.int64)}, None, ""
    )
    with pytest.raises(InputError, match=r"'outside' \(batch=1, .*\): a Gather node refuses it: .*out of"):
        compare(embedding.path, [], [outside], FP16)


def test_a_size_that_is_fixed_inside_is_told_with_its_node(tmp_path: Path, save: Callable[..., Path]) -> None:
    """As other exporters write a Reshape of the batch that they traced with."""
    path = save(
        tmp_path / "fixed.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["y"], name="flat"),
         helper.make_node("ReduceSum", ["z", "axes"], ["s"])],
        [("x", TensorProto.FLOAT, ["batch", "", 8]), ("z", TensorProto.FLOAT, ["batch", 2])],
        [("y", TensorProto.FLOAT, [1, 24]), ("s", TensorProto.FLOAT, [1, 2])],
        {"shape": np.array([1, 24], np.int64), "axes": np.array([0], np.int64)},
    )  # fmt: skip
    x = {"x": np.ones((2, 3, 8), np.float32), "z": np.ones((2, 2), np.float32)}
    words = (
        r"the reference fixed\.onnx cannot run on input set 'two' \(batch=2, x\.1=3\): Reshape node 'flat' "
        r"refuses it: The input tensor cannot be reshaped to the requested shape\. Input shape:\{2,3,8\}, "
        r"requested shape:\{1,24\}\.(?m:$)"
    )
    with pytest.raises(InputError, match=words) as caught:
        compare(path, [], [InputSet("two", x, None, "")], FP16)
    assert "longer than the model has positions for, plan a shorter one" in caught.value.hint
    assert "export it with that axis dynamic, or plan with the one size that it takes" in caught.value.hint
    one = {"x": np.ones((1, 3, 8), np.float32), "z": np.ones((1, 2), np.float32)}
    assert (
        compare(path, [Candidate("c", path, "onnx")], [InputSet("one", one, None, "")], FP16).verdict
        == "pass"
    )


def test_external_data_is_found(tmp_path: Path, reference: Path, inputs: list[InputSet]) -> None:
    (tmp_path / "far").mkdir()
    onnx.save(onnx.load(reference), tmp_path / "far" / "m.onnx", save_as_external_data=True, size_threshold=0)
    assert (tmp_path / "far" / "m.onnx").stat().st_size < reference.stat().st_size
    same = Candidate("far", tmp_path / "far" / "m.onnx", "onnx")
    assert compare(tmp_path / "far" / "m.onnx", [same], inputs, FP16).verdict == "pass"


def test_nothing_is_printed_and_the_logger_stays_as_it_was(
    tmp_path: Path,
    linear: Linear,
    reference: Path,
    inputs: list[InputSet],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    severity = {"": G_LOGGER.WARNING, "backend": G_LOGGER.ERROR}
    monkeypatch.setattr(G_LOGGER, "module_severity", severity)
    before = str(G_LOGGER.module_severity)
    bad = Candidate("bad", linear(tmp_path / "bad.onnx", poison=np.nan), "onnx")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(b"not onnx")
    compare(reference, [bad, Candidate("cut", cut, "onnx")], inputs, Tolerances().for_plan(_plan()))
    assert capfd.readouterr() == ("", "")
    assert str(G_LOGGER.module_severity) == before


def test_a_profile_is_chosen_by_the_sets_shapes(inputs: list[InputSet]) -> None:
    ranges = [((1, 8), (1, 8), (2, 8)), ((3, 8), (4, 8), (8, 8))]
    engine = SimpleNamespace(num_optimization_profiles=2, get_tensor_profile_shape=lambda name, i: ranges[i])
    runner: Any = SimpleNamespace(_engine_or_context=engine, optimization_profile=None)
    for given, index in zip(inputs[:2], (0, 1), strict=True):
        select_profile(runner, given)
        assert runner.optimization_profile == index
    with pytest.raises(InputError, match=r"'p:max' \(x \(16, 8\)\) fits none of the engine's 2 profile\(s\)"):
        select_profile(runner, inputs[2])


def _plan() -> Any:
    from sparseflow_trt.plans.plan import Plan

    return Plan(precision="fp16", policy="none", profiles=(), layers=())


def test_a_reference_that_does_not_fit_into_memory_says_how_much_it_needs(
    tmp_path: Path, save: Callable[..., Path]
) -> None:
    """A max with a digit too many asks for that."""
    path = save(
        tmp_path / "large.onnx",
        [helper.make_node("Expand", ["x", "sizes"], ["y"], name="wide")],
        [("x", TensorProto.FLOAT, ["batch", 8])],
        [("y", TensorProto.FLOAT, ["n", 8])],
        {"sizes": np.array([1 << 40, 8], np.int64)},
    )
    words = r"\(batch=1\): Expand node 'wide' needs more memory than there is: 35184\.4 GB for one tensor\.$"
    with pytest.raises(InputError, match=rf"(?m){words}") as caught:
        compare(path, [], [InputSet("one", {"x": np.ones((1, 8), np.float32)}, None, "")], FP16)
    assert caught.value.hint.startswith("Plan smaller sizes, ")
