"""sparseflow-trt doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.commands import Sparseflow


def test_says_what_is_there_and_what_to_install(sparseflow: Sparseflow) -> None:
    ended = sparseflow("doctor")
    assert (ended.code, ended.err) == (0, "")
    for name in ("GPU", "TensorRT", "TensorRT-RTX", "ONNX Runtime", "polygraphy", "cusparseLt"):
        assert name in ended.out


def test_a_narrow_terminal_breaks_no_command(sparseflow: Sparseflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    told = sparseflow("doctor").out
    for finding in sparseflow("doctor", "--json").json["findings"]:
        if finding["install"]:
            assert f"] {finding['install']}\n" in told


def test_json(sparseflow: Sparseflow) -> None:
    found = sparseflow("doctor", "--json").json
    assert set(found) == {"python", "platform", "gpus", "findings"}
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert by_name["ONNX Runtime"]["status"] == "ok"
    assert all(f["status"] in ("ok", "limited", "missing") for f in found["findings"])
    assert all(f["install"] for f in found["findings"] if f["status"] == "missing")
