"""M as a product of integers and named dimensions."""

from __future__ import annotations

import pytest

from sparseflow_trt.model.symbolic import SymbolicM


def test_m() -> None:
    m = SymbolicM((2, "batch", 3, "seq + 1"))
    assert str(m) == "6*batch*(seq + 1)"
    assert m.evaluate({"batch": 4, "seq": 9}) == 240
    assert m.evaluate({"batch": 4}) is None
    assert SymbolicM(("batch-size",)).evaluate({"batch-size": 8}) == 8
    assert SymbolicM(("input.1_dim 0",)).evaluate({"input.1_dim 0": 8}) == 8
    assert SymbolicM(("((",)).evaluate({}) is None
    assert SymbolicM((None, 3)).evaluate({}) is None
    assert (str(SymbolicM((None, 3))), str(SymbolicM(()))) == ("3*?", "1")


def test_where_the_file_does_not_say_m_what_may_find_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SymbolicM(("batch", "seq")).not_known == "M=batch*seq is not known"
    told = "M=17*? is not known: the file does not say it; "
    monkeypatch.setattr("sparseflow_trt._deps.version_of", {"onnxruntime": "1.23"}.get)
    assert SymbolicM((17, None)).not_known == told + "export it with fixed shapes"
    monkeypatch.setattr("sparseflow_trt._deps.version_of", {}.get)
    assert SymbolicM((17, None)).not_known.startswith(told + "`pip install 'onnxruntime>=")


@pytest.mark.parametrize(
    ("dim", "shown"),
    [
        ("(((frames - 1)//2)) + 1", "8*((((frames - 1)//2)) + 1)"),
        ("height//2", "8*(height//2)"),
        ("(height//2)", "8*(height//2)"),
        ("floor(height/2)", "8*floor(height/2)"),
        ("batch-size", "8*batch-size"),
    ],
)
def test_a_dimension_that_is_computed_is_one_factor(dim: str, shown: str) -> None:
    assert str(SymbolicM((dim, 8))) == shown
    assert str(SymbolicM((dim,))) == dim
