"""A gate as GitHub shows it: annotations on the run, and a job summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparseflow_trt.gates.regressions import Check, Gate

_MOST = 10  # errors that GitHub shows of one step
_MARKUP = {ord(sign): f"&#{ord(sign)};" for sign in "&<>\\`*_[]|~#@"}


def annotations_from_gate(gate: Gate, baseline: str) -> str:
    """Workflow commands, a line for each failed check and note; after the tenth they are counted.

    Args:
        gate: The gate.
        baseline: The baseline's path in the repository, which the annotations point to.

    The escapes are those of GitHub's own toolkit:
    https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
    """
    failed = [check for check in gate.checks if not check.passed]
    shown = failed if len(failed) <= _MOST else failed[: _MOST - 1]
    lines = [_command("error", baseline, f"{check.kind}: {_named(check)}", check.reason) for check in shown]
    if len(failed) > len(shown):
        more = f"{len(failed) - len(shown)} more checks failed; the job's summary has them all."
        lines.append(_command("error", baseline, "and more", more))
    lines += [_command("notice", baseline, "baseline", note) for note in gate.notes]
    if gate.hint:
        lines.append(_command("notice", baseline, "what to do", gate.hint))
    return "".join(f"{line}\n" for line in lines)


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
