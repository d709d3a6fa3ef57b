"""The error by step: shares that add up, and which step is to blame."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparseflow_trt.artifacts.verdict import Attribution, OutputVerdict
from sparseflow_trt.cli.attributions import print_attribution
from sparseflow_trt.errors import InputError
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.plans.shapes import make_profile
from sparseflow_trt.validation import steps as module
from sparseflow_trt.validation.chain import Origin
from sparseflow_trt.validation.compare import compare
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.inputs import generate_inputs
from sparseflow_trt.validation.steps import Stage, add_outputs, attribute, percent
from sparseflow_trt.validation.tolerances import DEFAULTS, output_tolerances
from sparseflow_trt.validation.trial import Candidate

Linear = Callable[..., Path]
FP16 = output_tolerances(DEFAULTS["fp16"])
NUMBERS = st.floats(-1e6, 1e6, width=32)


def chain() -> list[Stage]:
    return [
        Stage("unpruned"),
        Stage("pruned", "pruning"),
        Stage("typed", "precision"),
        Stage("engine", "engine"),
    ]


def attributed(*arrays: Any, **options: Any) -> Attribution:
    stages = chain()
    add_outputs(stages, "s", [None if a is None else {"y": np.asarray(a)} for a in arrays])
    return attribute(stages, **options)


@given(hnp.arrays(np.float32, (4, 9), elements=NUMBERS), st.integers(1, 9))
def test_shares_add_up_to_the_whole_error(arrays: Any, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", piece)  # sums over pieces are those over the whole
        found = [step.outputs[0] for step in attributed(*arrays).steps]
    wide = arrays.astype(np.float64)
    size, whole = np.linalg.norm(wide[0]), np.linalg.norm(wide[3] - wide[0])
    if size and whole > 1e-4 * np.abs(wide).max():  # of steps that all but cancel doubles keep too little
        assert sum(f.share or 0.0 for f in found) == pytest.approx(1)
        assert found[-1].accumulated == pytest.approx(whole / size)
        assert found[1].error == pytest.approx(np.linalg.norm(wide[2] - wide[1]) / size)
        assert found[1].max_abs == pytest.approx(np.abs(wide[2] - wide[1]).max())


def test_the_step_that_changes_most_is_blamed() -> None:
    found = attributed([1.0, 2.0], [1.0, 2.5], [1.01, 2.5], [1.01, 2.5])
    assert found.blamed == "pruning"
    assert found.reason == (
        "Pruning makes most of the error: it changes output 'y' on input set 's' by 22 % and the planned "
        "precision by 0.45 %."
    )


def test_a_step_that_changed_nothing_has_no_part_in_the_error() -> None:
    assert attributed([1.0, 2.0], [1.0, 2.0], [1.01, 2.0], [1.01, 2.0]).reason == (
        "The planned precision makes all of the error: it changes output 'y' on input set 's' by 0.45 %."
    )


@pytest.mark.parametrize(
    ("engine", "left", "shares"),
    [
        ([1.0001, 2.0], "0.0045 %", 3 * [None]),  # takes back 0.9 of what the precision added
        ([1.00096, 2.0], "0.043 %", 3 * [None]),  # shares would be 104.2 % and -4.2 %
        ([1.0, 2.0009], "0.04 %", 3 * [None]),  # shares would be 0 and 100 %, of an error that shrinks
        ([1.0, 2.0], "0 %", 3 * [None]),
        ([0.997, 2.0], "0.13 %", 3 * [None]),  # beyond: the error grows, one share is below 0
        ([1.001, 2.0005], "", ["0.0", "80.0", "20.0"]),
        ([1.001, 2.0], "", ["0.0", "100.0", "0.0"]),
    ],
)
def test_steps_that_cancel_are_said_to(
    engine: list[float], left: str, shares: list[str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    found = attributed([1.0, 2.0], [1.0, 2.0], [1.001, 2.0], engine)
    said = f"One step cancels what another added: the error after all of them is {left}."
    assert (said in found.reason) == bool(left)
    assert (" is the largest step: it changes output 'y'" in found.reason) == bool(left)
    print_attribution(found)
    out = capsys.readouterr().out
    rows = re.findall(r"^(?:pruning|precision|engine) .*", out, re.MULTILINE)
    assert [(re.findall(r"(-?\d+\.\d) %  \d", row) or [None])[-1] for row in rows] == shares
    below = "No shares where one step undoes another's error: 'y' on 's' (an error of "
    assert (below in out) == bool(left)


def test_rows_are_of_the_input_set_that_is_blamed(capsys: pytest.CaptureFixture[str]) -> None:
    """On 's' pruning changes most, on 't' the precision: a row of each would add up to nothing."""
    stages = chain()[:3]
    for name, values in (("s", (1.0, 1.5, 1.51)), ("t", (1.0, 0.9, 1.3))):
        add_outputs(stages, name, [{"y": np.array([value])} for value in values])
    found = attribute(stages)
    assert (found.blamed, found.input_set) == ("pruning", "s")
    print_attribution(found)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [row[-1] for row in rows] == ["s", "s"]
    assert sum(float(row[row.index("%", 6) - 1]) for row in rows) == pytest.approx(100)


def test_a_step_that_was_not_run_is_left_out_and_said() -> None:
    stages = chain()
    stages[2] = Stage("typed", "precision", "no kernel.")
    add_outputs(stages, "s", [{"y": np.ones(2)}, {"y": np.ones(2)}, None, {"y": np.array([1.0, 1.5])}])
    found = attribute(stages)
    assert [(step.name, step.before, bool(step.outputs)) for step in found.steps] == [
        ("pruning", "unpruned", True),
        ("precision", "pruned", False),
        ("engine", "pruned", True),
    ]
    assert found.steps[1].not_run == "no kernel."
    assert found.blamed == "engine"
    assert found.reason.endswith("What the planned precision would add is not known: it was not run.")


def test_nothing_to_blame() -> None:
    assert attributed([1.0], [1.0], [1.0], [1.0]).reason == "No step changes an output."
    assert attributed([1.0], None, None, None).reason == "No step could be measured."
    assert attributed([0.0], [0.0], [0.0], [0.0]).blamed == ""


def test_outputs_that_cannot_be_subtracted_blame_nobody() -> None:
    """The typed model has another shape: of its failure there are no figures."""
    stages = chain()
    add_outputs(stages, "s", [{"y": np.ones(2)}, {"y": np.zeros(2)}, None, None])
    add_outputs(stages, "t", [{"y": np.ones(2)}, {"y": np.ones(2)}, {"y": np.ones(3)}, {"y": np.ones(2)}])
    wrong = OutputVerdict(output="y", input_set="t", passed=False, tolerance=DEFAULTS["fp16"])
    found = attribute(stages, [("precision", wrong)])
    assert (found.blamed, found.reason) == (
        "",
        "No output could be subtracted. What the planned precision "
        "and the engine itself would add is not known: they were not run.",
    )
    assert attribute(stages).blamed == "pruning"


def test_the_first_step_that_overflows_is_blamed_whatever_else_differs() -> None:
    found = attributed([1.0, 2.0], [9.0, 2.0], [9.0, np.inf], [np.nan, np.inf])
    assert found.blamed == "precision"
    assert "makes 1 element(s) of output 'y' on input set 's' NaN or infinite." in found.reason
    assert [step.outputs[0].nonfinite for step in found.steps] == [0, 1, 1]
    gone = attributed([1.0], [1.0], [np.nan], [np.nan]).steps[1].outputs[0]
    assert (gone.error, gone.accumulated, gone.max_abs, gone.nonfinite) == (None, None, None, 1)


def test_outputs_that_are_no_floats_are_counted() -> None:
    found = attributed([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 5])
    assert [step.outputs[0].equal for step in found.steps] == [1.0, 0.75, 1.0]
    assert found.blamed == "precision"
    assert "by 25 %" in found.reason


def test_percent() -> None:
    assert [percent(x) for x in (0.0, 0.00123, 0.0234, 0.234, 1.2, np.inf)] == [
        "0 %", "0.12 %", "2.3 %", "23 %", "120 %", "more than can be said",
    ]  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path, linear: Linear) -> list[InputSet]:
    profile = make_profile("p", {"x": ("batch", 8)}, {"batch": (1, 4, 16)}, {})
    assert profile is not None
    return generate_inputs(read_model(linear(tmp_path / "any.onnx")), [profile])


def test_a_failure_is_blamed_on_what_its_tolerance_judges(
    tmp_path: Path, linear: Linear, inputs: list[InputSet]
) -> None:
    """Pruning changed more, and is not what failed."""
    paths = [linear(tmp_path / f"{scale}.onnx", scale=scale) for scale in (50.0, 1.0, 1.001, 9.0)]
    candidates = [
        Candidate("typed", paths[2], "onnx", step="precision"),
        Candidate("engine", paths[3], "onnx", step="engine"),
    ]
    found = compare(paths[1], candidates, inputs, FP16, origin=Origin(paths[0]))
    assert found.verdict == "fail"
    assert found.attribution is not None
    assert found.attribution.blamed == "engine"
    assert found.attribution.reason.startswith("The engine itself is to blame: it changes output 'y'")
    assert "pruning" not in found.attribution.reason
    pruning = next(f for f in found.attribution.steps[0].outputs if f.output == "y")
    assert pruning.error is not None
    typed = compare(paths[1], [candidates[1]], inputs, FP16).attribution
    assert typed is not None
    assert [step.name for step in typed.steps] == ["engine"]


def test_restored_weights_are_measured_before_and_after(
    tmp_path: Path, linear: Linear, inputs: list[InputSet]
) -> None:
    paths = [linear(tmp_path / f"{scale}.onnx", scale=scale) for scale in (3.0, 2.5, 1.0)]
    typed = Candidate("typed", paths[1], "onnx", step="precision")
    found = compare(paths[1], [typed], inputs, FP16, origin=Origin(paths[0], paths[2])).attribution
    assert found is not None
    assert found.unrestored is not None
    assert found.unrestored.after == "the pruned model as given, FP32"
    pairs = zip(found.unrestored.outputs, found.steps[0].outputs, strict=True)
    assert all((a.accumulated or 0) > (b.accumulated or 0) for a, b in pairs if a.output == "y")
    assert "With the restored weights, output 'y'" in found.reason
    assert "worse" not in found.reason
    worse = compare(paths[2], [typed], inputs, FP16, origin=Origin(paths[0], paths[1])).attribution
    assert worse is not None
    assert "Restoring made it worse" in worse.reason


def test_an_unpruned_model_that_cannot_run_is_named(
    tmp_path: Path, linear: Linear, save: Callable[..., Path], inputs: list[InputSet]
) -> None:
    from onnx import TensorProto, helper

    odd = save(
        tmp_path / "odd.onnx",
        [helper.make_node("Reshape", ["x", "two"], ["y"])],
        [("x", TensorProto.FLOAT, ["batch", 8])],
        [("y", TensorProto.FLOAT, [3, 5])],
        {"two": np.array([3, 5])},
    )
    reference = linear(tmp_path / "reference.onnx")
    with pytest.raises(InputError, match=r"odd\.onnx cannot run on input set"):
        compare(reference, [], inputs, FP16, origin=Origin(odd))


def test_a_step_that_is_there_twice_counts_by_what_it_changes_most() -> None:
    stages = [Stage("pruned"), Stage("over HTTP", "engine"), Stage("over gRPC", "engine")]
    add_outputs(stages, "s", [{"y": np.array(y, np.float32)} for y in ([1.0, 0.0], [1.0, 0.1], [1.0, 0.1])])
    found = attribute(stages)
    assert found.blamed == "engine"
    assert "No step changes an output" not in found.reason


def test_a_reference_with_nan_is_said_and_blames_nobody() -> None:
    arrays = ([np.nan], [np.nan], [np.nan], [np.nan])
    wrong = OutputVerdict(
        output="y", input_set="s", passed=False, tolerance=DEFAULTS["fp16"], reference_nan=1
    )
    found = attributed(*arrays, failed=[("precision", wrong), ("engine", wrong)])
    assert (found.blamed, found.reason) == (
        "",
        "No step is to blame: the reference itself has NaN in output 'y' on input set 's', "
        "so nothing can be measured against it.",
    )
