"""A key of memos that stands for an object itself, so that what it holds is not hashed and compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class Same(Generic[_Value]):
    """A value that equals itself alone: thousands of points are never asked whether they are alike."""

    value: _Value = field(repr=False)

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value
