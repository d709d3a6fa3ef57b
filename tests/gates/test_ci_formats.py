"""A gate for CI: names that are code in XML, Markdown or a workflow's log stay names."""

from __future__ import annotations

from xml.etree import ElementTree

from sparseflow_trt.artifacts.verdict import Validation
from sparseflow_trt.gates.github import annotations_from_gate, summary_from_gate
from sparseflow_trt.gates.junit import junit_from_gate
from sparseflow_trt.gates.regressions import Check, Gate

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


def test_annotations_are_counted_from_the_tenth_on() -> None:
    lines = annotations_from_gate(gate(31), "b").splitlines()
    assert len(lines) == 11
    assert "21 more checks failed" in lines[9]
    assert len(annotations_from_gate(gate(11), "b").splitlines()) == 11


def test_a_summary_shows_names_as_text() -> None:
    text = summary_from_gate(gate())
    assert "<" not in text
    assert "`" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.count("|") == 7 for row in rows)
    assert rows[2].startswith("| ❌")
