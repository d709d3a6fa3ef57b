"""The documentation and the committed results, for tests that hold one to the other."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def result_of(name: str) -> dict[str, Any]:
    """A benchmark's committed result."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def prose(page: str) -> str:
    """A page's text on one line."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def rows(page: str, like: str) -> list[str]:
    """The rows of a page's tables that begin like that."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if re.match(like, line)]


def gain(found: Mapping[str, float]) -> str:
    """A ratio with its extremes."""
    return f"{found['median']:.3f} ({found['low']:.3f}–{found['high']:.3f})"
