"""docs/REASONS.md tells of the reasons that are printed, in their words, and of options that there are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sparseflow_trt.cli.main import group
from tests.pages import ROOT

PAGE = "docs/REASONS.md"
# where the reasons of each part of the page are made
SOURCES = {
    "The weights are not 2:4": ("sparseflow_trt/model/sites.py", "sparseflow_trt/model/trace.py",
                                "sparseflow_trt/model/graph.py", "sparseflow_trt/model/other_patterns.py"),
    "The plan says dense": ("sparseflow_trt/plans/decide.py", "sparseflow_trt/policies/reasons.py",
                            "sparseflow_trt/policies/measurements.py", "sparseflow_trt/model/symbolic.py",
                            "sparseflow_trt/plans/merges.py"),
    "The engine runs a dense kernel": ("engines/evidence/outcome_reasons.py",),
}  # fmt: skip


def words_of(source: Path) -> str:
    """All string constants of a file, docstrings left out, one a line."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in said)
    return "\n".join(node.value for node in constants if isinstance(node.value, str))


def reasons_of(part: str) -> list[str]:
    """What stands in the first column of a part's table."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {re.escape(part)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE)


@pytest.mark.parametrize("part", SOURCES)
def test_each_reason_is_one_that_is_printed(part: str) -> None:
    printed = "\n".join(words_of(ROOT / source) for source in SOURCES[part])
    found = reasons_of(part)
    assert len(found) >= 9
    for reason in found:
        for words in filter(None, (piece.strip() for piece in reason.split("…"))):
            assert words in printed, f"{reason!r} is no reason of {SOURCES[part]}"


def options_named() -> Iterator[tuple[str, str]]:
    """Each option that the page names with its command."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`]+)`", text):
        command, *arguments = code.removeprefix("sparseflow-trt ").split()
        if command in group.list_commands(click.Context(group)):
            yield from ((command, argument) for argument in arguments if argument.startswith("--"))


def test_the_options_that_it_names_exist() -> None:
    named = set(options_named())
    assert len(named) >= 8
    for command, option in sorted(named):
        found = group.get_command(click.Context(group), command)
        assert found is not None
        assert any(option in parameter.opts for parameter in found.params), f"{command} has no {option}"
