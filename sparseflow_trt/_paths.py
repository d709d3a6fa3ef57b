"""Paths as programs give them: a text, or what `os.fspath` takes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

AnyPath = str | os.PathLike[str]
NO_PATH: Any = None  # the default of a MaybePath
_Options = TypeVar("_Options")

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform

    class GivenPath:
        """A field of a class that is made by `with_paths`: it takes any path, and what is read is a Path."""

        def __get__(self, instance: object, owner: Any = None) -> Path: ...

        def __set__(self, instance: object, value: AnyPath) -> None: ...

    class MaybePath:
        """The same of a path that may be left out."""

        def __get__(self, instance: object, owner: Any = None) -> Path | None: ...

        def __set__(self, instance: object, value: AnyPath | None) -> None: ...

else:
    GivenPath, MaybePath = Path, Path | None

    def dataclass_transform(**_):
        return lambda decorator: decorator


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def with_paths(options: type[_Options]) -> type[_Options]:
    """Makes a class a frozen dataclass whose fields GivenPath and MaybePath take any path and hold a Path.

    Args:
        options: A class whose module has its annotations as texts.
    """
    options.__post_init__ = _convert_paths  # type: ignore[attr-defined]
    return dataclass(frozen=True)(options)


def _convert_paths(options: Any) -> None:
    for one in fields(options):
        value = getattr(options, one.name)
        if one.type in ("GivenPath", "MaybePath") and value is not None:
            object.__setattr__(options, one.name, Path(value))  # it is frozen
