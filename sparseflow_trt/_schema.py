"""Reads JSON and YAML into pydantic models, with errors that name the file and the field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sparseflow_trt._listing import listed_apart
from sparseflow_trt.errors import SparseflowError


class Record(BaseModel):
    """A value that is written to files: immutable, with no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_Model = TypeVar("_Model", bound=BaseModel)


def parse(schema: type[_Model], data: Any, source: str, error: type[SparseflowError], hint: str) -> _Model:
    """Validates plain data against a schema.

    Raises:
        SparseflowError: Of the class `error`; every wrong field is named with what was expected.
    """
    if not isinstance(data, dict):
        raise error(f"{source} holds no mapping of fields.", hint)
    try:
        return schema.model_validate(data)
    except ValidationError as failure:
        raise error(f"{source}: {describe(failure)}", hint) from failure


def load_json(text: str, source: str, error: type[SparseflowError], hint: str) -> Any:
    """The plain data that a JSON text holds.

    Raises:
        SparseflowError: Of the class `error`, where it is not JSON, or names a field twice.
    """
    if not text.strip():
        raise error(f"{source} is not JSON: it is empty.", hint)
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as problem:
        raise error(f"{source} is not JSON: {problem}.", hint) from problem


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields. Of two with one name json would take the last, in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return found


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that names a field twice, of which PyYAML would take the last, in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise ValueError(f"'{key}' stands twice in one mapping{node.start_mark}")
        return super().construct_mapping(node, deep)


def load_yaml(text: str, source: str, error: type[SparseflowError], hint: str) -> Any:
    """The plain data that a YAML text holds.

    Raises:
        SparseflowError: Of the class `error`, where it is not YAML, or names a field twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
        # PyYAML's own error, or what its constructors let through: 2020-99-99 is a date to it
        where = re.sub(r"\s+", " ", str(problem))
        raise error(f"{source} is not YAML: {where}.", hint) from problem


def describe(failure: ValidationError, most: int = 5) -> str:
    """One line for a pydantic error: the first few wrong fields, each with what is wrong with it."""
    details = failure.errors(include_url=False)
    lines = [f"{'.'.join(map(str, d['loc'])) or 'the whole'}: {d['msg']}" for d in details]
    return f"{listed_apart(lines, most)}."


def read_text(path: Path, error: type[SparseflowError], what: str) -> str:
    """The text of a file.

    Raises:
        SparseflowError: Of the class `error`, where it cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"{path} does not exist.", f"Check the path of the {what}.") from None
    except UnicodeDecodeError as problem:
        raise error(f"{path} is no {what}: it holds no text.", f"Check the path of the {what}.") from problem
    except OSError as problem:
        raise error(
            f"{path} cannot be read: {problem.strerror}.", f"Check the path of the {what}."
        ) from problem
