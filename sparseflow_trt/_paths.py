"""Paths as programs give them: a text, or what `os.fspath` takes."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

AnyPath = str | os.PathLike[str]


def convert_paths(options: Any) -> None:
    """Makes a Path of each field of a dataclass that is declared as one, for its `__post_init__`.

    Args:
        options: A value whose module has its annotations as texts.
    """
    for field in fields(options):
        value = getattr(options, field.name)
        if field.type in ("Path", "Path | None") and value is not None:
            object.__setattr__(options, field.name, Path(value))  # it may be frozen
