"""What the plugin's benchmarks say of themselves, and how they find cuSPARSELt's fastest algorithm."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.pages import ROOT


@pytest.fixture(scope="module")
def benchmarks() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module


def test_a_result_has_the_command_that_made_it(benchmarks: Any) -> None:
    measure: ModuleType = benchmarks("measure")
    files = ("--plugin", "--cusparselt")
    words = ["/somewhere/plugin_sanitizer.py", "--plugin", "/home/me/a b.so", "--cusparselt=/opt/lt"]
    words += ["--minutes", "0.4", "--tool", "memcheck", "--dense-below", "64"]
    assert measure.command_line(words, files) == (
        "python benchmarks/plugin_sanitizer.py --plugin FILE --cusparselt=FILE "
        "--minutes 0.4 --tool memcheck --dense-below 64"
    )
    assert measure.command_line(["x.py"], files) == "python benchmarks/x.py"


def test_a_sanitizer_that_does_not_end_is_stopped_with_what_it_started(
    benchmarks: Any, tmp_path: Path
) -> None:
    tool = tmp_path / "sanitizer"
    tool.write_text(f"#!/bin/sh\necho ========= HELLO\nsleep 60 & echo $! > {tmp_path}/pid\nwait\n")
    tool.chmod(0o755)
    under = benchmarks("plugin_sanitizer").under
    lines, row = under(argparse.Namespace(sanitizer=str(tool), limit=1), "initcheck", [])
    assert (lines, row["said"], row["ended"], row["exit code"]) == (["========= HELLO"], ["HELLO"], False, -9)
    state = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
    lines, row = under(argparse.Namespace(sanitizer="/bin/true", limit=60), "initcheck", [])
    assert (row["ended"], row["exit code"]) == (True, 0)


def test_cusparselts_finalists_are_timed_in_turn(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = benchmarks("cusparselt_alone")
    open_products: list[tuple[int, int, int]] = []

    @dataclass
    class Product:
        """One that takes as many microseconds as its number says; 9 is refused, 8 takes too much memory."""

        library: Any
        k: int
        n: int
        m: int
        algorithm: tuple[int, int, int]

        def __post_init__(self) -> None:
            if self.algorithm[0] == 9:
                raise alone.RefusedError
            open_products.append(self.algorithm)
            self.workspace = 1 << 30 if self.algorithm[0] == 8 else 0

        def close(self) -> None:
            open_products.remove(self.algorithm)

    class Timed(alone.Alone):  # type: ignore[misc, name-defined]
        """On a GPU that is slowed down while the first three are timed."""

        def __init__(self) -> None:
            self._library, self._k, self._n = None, 64, 64
            self.timed: list[int] = []

        def _graph(self, product: Product) -> int:
            return product.algorithm[0]

        def time(self, graph: int, launches: int) -> list[float]:
            self.timed.append(graph)
            return [graph + 100.0 * (len(self.timed) <= 3), 1000.0][:launches]

        def free(self, graph: int) -> None:
            pass

    monkeypatch.setattr(alone, "Product", Product)
    candidates = [(number, 1, 0) for number in (2, 9, 1, 8, 3)]
    timed = Timed()
    assert timed._ranked(64, candidates, 2, 3) == [(1, 1, 0), (2, 1, 0), (3, 1, 0)]
    assert timed.timed == [2, 1, 3] * 3
    assert open_products == []
