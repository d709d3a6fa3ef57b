"""Runs the command line in this process: one of its own takes a second to import what is imported here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from sparseflow_trt.cli.main import main


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """All of standard output as JSON."""
        return json.loads(self.out, parse_constant=pytest.fail)

    @property
    def error(self) -> str:
        """What the error line says; checks that the command failed as it should: in words and only there.

        With --json, standard output says the same.
        """
        assert self.code not in (0, 4), self
        lines = self.err.strip().splitlines()
        if self.out:
            said = self.json["error"]
            assert (list(self.json), list(said)) == (["error"], ["message", "hint", "exit_code"])
            assert said["exit_code"] == self.code
            assert [
                f"error: {said['message']}",
                *([f"hint:  {said['hint']}"] if said["hint"] else ()),
            ] == lines
        assert "Traceback" not in self.err
        assert lines[0].startswith("error: "), self.err
        assert [line[:7] for line in lines].count("error: ") == 1
        assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint:  ")), self.err
        assert "bug in sparseflow-trt" not in self.err
        return lines[0].removeprefix("error: ")


Sparseflow = Callable[..., Ended]


def run_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    """Runs `sparseflow-trt` with arguments, in the current folder."""
    monkeypatch.setattr(sys, "argv", ["sparseflow-trt", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capfd.readouterr()
    return Ended(int(caught.value.code or 0), out, err)
