"""A gate for CI: names that are code in XML, Markdown or a workflow's log stay names."""

from __future__ import annotations

from typing import get_args
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.artifacts.verdict import Validation
from sparseflow_trt.gates.github import annotations_from_gate, summary_from_gate
from sparseflow_trt.gates.junit import junit_from_gate
from sparseflow_trt.gates.regressions import Check, Gate, Kind

EVIL = "a\n::error::x | <img src=x> `[l](u)` \x00\x1b[31m,:%25 ]]> &#60; \ud800"


def gate(checks: int = 2) -> Gate:
    made = tuple(
        Check(
            kind="layer", name=f"{EVIL}{i}", of="", was=EVIL, now=EVIL, limit="stays", passed=i == 0,
            reason="" if i == 0 else EVIL,
        )
        for i in range(checks)
    )  # fmt: skip
    validation = Validation(
        verdict="pass", reason="", reference="", reference_runtime="", compared_by="", input_sets=(),
        candidates=(),
    )  # fmt: skip
    return Gate(verdict="fail", reason=EVIL, artifact=EVIL, baseline=EVIL, checks=made, notes=(EVIL,),
                validation=validation)  # fmt: skip


def test_junit_is_xml_whatever_the_names() -> None:
    root = ElementTree.fromstring(junit_from_gate(gate()).encode())
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    passed, failed = root.iter("testcase")
    assert passed.find("failure") is None
    failure = failed.find("failure")
    assert failure is not None
    assert "::error::x | <img src=x>" in failure.get("message", "")


def test_an_annotation_is_one_line_and_cannot_be_left() -> None:
    text = annotations_from_gate(gate(), "b,a:s.json")
    lines = text.split("\n")
    assert [line.split(" ")[0] for line in lines] == ["::error", "::notice", ""]
    assert lines[0].startswith("::error file=b%2Ca%3As.json,title=layer%3A a%0A%3A%3Aerror%3A%3Ax ")
    assert "%2525" in lines[0]


def test_an_annotation_names_the_candidate_and_what_to_do() -> None:
    """Two with one title differed in their numbers alone."""
    failed = Check(kind="output", name="y", of="engine", was="", now="", limit="", passed=False, reason="r")
    made = gate().model_copy(update={"checks": (failed,), "notes": (), "hint": "Run it."})
    assert annotations_from_gate(made, "b").splitlines() == [
        "::error file=b,title=output%3A y (engine)::r",
        "::notice file=b,title=what to do::Run it.",
    ]
    assert "> Run it." in summary_from_gate(made)


def test_no_more_annotations_than_github_shows_and_metrics_are_among_them() -> None:
    """It shows ten errors of one step: outputs, which come first, hid the metric behind them."""
    kinds: tuple[tuple[Kind, int], ...] = (("verdict", 1), ("output", 12), ("error", 7), ("metric", 2))
    failed = [
        Check(kind=kind, name=f"n{i}", of="engine", was="", now="", limit="", passed=False, reason=f"r{i}.")
        for kind, count in kinds
        for i in range(count)
    ]  # fmt: skip
    made = gate().model_copy(update={"checks": tuple(failed), "notes": ("a",), "hint": "b"})
    assert annotations_from_gate(made, "b").splitlines() == [
        "::error file=b,title=verdict%3A n0 (engine)::r0.",
        "::error file=b,title=metric%3A n0 (engine)::r0.",
        "::error file=b,title=metric%3A n1 (engine)::r1.",
        "::error file=b,title=output%3A n0 (engine) and 11 more::r0. 11 more of this kind failed: "
        "n1 (engine), n2 (engine), n3 (engine), n4 (engine), n5 (engine), n6 (engine) and 5 more. "
        "The job's summary has them all.",
        "::error file=b,title=error%3A n0 (engine) and 6 more::r0. 6 more of this kind failed: "
        "n1 (engine), n2 (engine), n3 (engine), n4 (engine), n5 (engine), n6 (engine). "
        "The job's summary has them all.",
        "::notice file=b,title=what to do::b",
        "::notice file=b,title=baseline::a",
    ]
    few = made.model_copy(update={"checks": tuple(failed[6:16])})
    assert [line.count(" more") for line in annotations_from_gate(few, "b").splitlines()] == [0] * 12


@given(counts=st.lists(st.integers(0, 40), min_size=5, max_size=5))
def test_whatever_fails_each_kind_is_annotated(counts: list[int]) -> None:
    failed = [
        Check(kind=kind, name=f"{kind}{i}", of="", was="", now="", limit="", passed=False, reason="r.")
        for kind, count in zip(get_args(Kind), counts, strict=True)
        for i in range(count)
    ]  # fmt: skip
    made = gate().model_copy(update={"checks": tuple(failed), "notes": ()})
    lines = annotations_from_gate(made, "b").splitlines()
    assert len(lines) <= 10
    assert sum(counts) <= 10 or len(lines) < sum(counts)
    for check in [check for check in failed if check.name.endswith("0")]:
        assert any(f"title={check.kind}%3A" in line for line in lines)


def test_a_summary_shows_names_as_text() -> None:
    text = summary_from_gate(gate())
    assert "<" not in text
    assert "`" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.count("|") == 7 for row in rows)
    assert rows[2].startswith("| ❌")
