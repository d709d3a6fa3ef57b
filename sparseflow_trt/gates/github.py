"""A gate as GitHub shows it: annotations on the run, and a job summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from sparseflow_trt._listing import listed
from sparseflow_trt.gates.regressions import Kind

if TYPE_CHECKING:
    from sparseflow_trt.gates.regressions import Check, Gate

_MOST = 10  # errors that GitHub shows of one step
_MOST_NAMED = 6  # checks, in a sentence
_MARKUP = {ord(sign): f"&#{ord(sign)};" for sign in "&<>\\`*_[]|~#@"}


def annotations_from_gate(gate: Gate, baseline: str) -> str:
    """Workflow commands, a line for each failed check and note.

    Where more checks failed than GitHub shows, those of the commonest kinds share one: the outputs of a large
    model would hide its metrics.

    Args:
        gate: The gate.
        baseline: The baseline's path in the repository, which the annotations point to.

    The escapes are those of GitHub's own toolkit:
    https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
    """
    groups = _grouped([check for check in gate.checks if not check.passed])
    lines = [_command("error", baseline, *_told(group)) for group in groups]
    if gate.hint:
        lines.append(_command("notice", baseline, "what to do", gate.hint))
    lines += [_command("notice", baseline, "baseline", note) for note in gate.notes]
    return "".join(f"{line}\n" for line in lines)


def _grouped(failed: Sequence[Check]) -> list[list[Check]]:
    """The checks that each annotation tells of: one, or all of a kind where there would be too many."""
    by_kind = {kind: [check for check in failed if check.kind == kind] for kind in get_args(Kind)}
    apart = sorted(by_kind, key=lambda kind: len(by_kind[kind]))
    together: list[str] = []
    while sum(len(by_kind[kind]) for kind in apart) + len(together) > _MOST:
        together.append(apart.pop())
    groups = []
    for kind, checks in by_kind.items():
        groups += [checks] if kind in together else [[check] for check in checks]
    return groups


def _told(checks: Sequence[Check]) -> tuple[str, str]:
    """The title and the message of an annotation."""
    first, *others = checks
    title = f"{first.kind}: {_named(first)}"
    if not others:
        return title, first.reason
    named = listed([_named(check) for check in others], _MOST_NAMED)
    more = f"{len(others)} more of this kind failed: {named}. The job's summary has them all."
    return f"{title} and {len(others)} more", f"{first.reason} {more}"


def annotation_from_error(message: str, hint: str, baseline: str) -> str:
    """The workflow command for a check that ended with an error: nothing could be held to the baseline."""
    return _command("error", baseline, "nothing was checked", f"{message} {hint}".rstrip()) + "\n"


def summary_from_error(artifact: str, message: str, hint: str) -> str:
    """Markdown for the job's summary where nothing could be held to the baseline."""
    return f"### ❌ {_cell(artifact)}: nothing was checked\n\n{_cell(f'{message} {hint}')}\n"


def summary_from_gate(gate: Gate) -> str:
    """Markdown for the job's summary: the verdict, then the checks, those that failed first."""
    mark = "✅" if gate.verdict == "pass" else "❌"
    rows = sorted(gate.checks, key=lambda check: check.passed)
    lines = [
        f"### {mark} {_cell(gate.artifact)} against {_cell(gate.baseline)}: {gate.verdict}",
        "",
        _cell(gate.reason),
        "",
        "| | Check | Of | Was | Now | Passes |",
        "|---|---|---|---|---|---|",
    ]
    for check in rows:
        cells = (check.name, check.of, check.was, check.now, check.limit)
        lines.append(f"| {'✅' if check.passed else '❌'} | {' | '.join(map(_cell, cells))} |")
    told = (*gate.notes, *filter(None, [gate.hint]))
    return "\n".join([*lines, "", *(f"> {_cell(note)}" for note in told), ""])


def _named(check: Check) -> str:
    return f"{check.name} ({check.of})" if check.of else check.name


def _command(kind: str, file: str, title: str, message: str) -> str:
    return f"::{kind} file={_property(file)},title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _cell(text: str) -> str:
    """Text as Markdown shows it: names may hold HTML, bars and links."""
    return " ".join(text.split()).translate(_MARKUP)
