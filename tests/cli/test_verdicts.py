"""What a comparison's table says of each output."""

from __future__ import annotations

import pytest

from sparseflow_trt.artifacts.verdict import CandidateVerdict, OutputVerdict, Validation
from sparseflow_trt.cli.verdicts import print_validation
from sparseflow_trt.validation.tolerances import DEFAULTS

TOLERANCE = DEFAULTS["fp16"]


def printed(capsys: pytest.CaptureFixture[str], passed: dict[str, bool]) -> list[list[str]]:
    """The words of the table's rows, for an engine that failed, with outputs that passed or not."""
    outputs = tuple(
        OutputVerdict(output=name, input_set="s", passed=good, tolerance=TOLERANCE)
        for name, good in passed.items()
    )
    engine = CandidateVerdict(name="engine", file="e", verdict="fail", reason="It failed.", outputs=outputs)
    print_validation(
        Validation(
            verdict="fail", reason="", reference="m.onnx", reference_runtime="", compared_by="",
            input_sets=(), candidates=(engine,),
        )
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    return [line.split()[:3] for line in lines if line.startswith("engine ")]


def test_of_a_candidate_that_failed_each_output_says_whether_it_did(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert printed(capsys, {"logits": True, "mask": False}) == [
        ["engine", "pass", "logits"],
        ["engine", "fail", "mask"],
    ]


def test_where_no_output_is_to_blame_none_has_passed(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, {"logits": True}) == [["engine", "fail", "logits"]]
