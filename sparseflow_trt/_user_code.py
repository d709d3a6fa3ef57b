"""Imports the Python that a user names: a module, or a file that no package holds."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from sparseflow_trt.errors import InputError, one_line


def import_user_code(target: str, what: str, hint: str) -> ModuleType:
    """Imports a module by its name, or a file whose name ends with .py.

    Args:
        target: The module or the file.
        what: What it is to the user: "loader".
        hint: What to give, for a file that Python cannot import.

    Raises:
        InputError: The file does not exist or is nothing that Python imports.
    """
    if not target.endswith(".py"):
        return importlib.import_module(target)
    path = Path(target).resolve()
    if not path.is_file():
        raise InputError(f"{target} does not exist.", f"Check the path of the {what}.")
    spec = importlib.util.spec_from_file_location(f"_sparseflow_{what}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{target} cannot be imported.", hint)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in it look their module up
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def user_errors(source: str, hint: str) -> Iterator[None]:
    """Turns what a user's code raises in the block, which can be anything, into one sentence.

    Args:
        source: What was called, as the user named it.
        hint: How it is to be written.

    Raises:
        InputError: It failed; its own words and traceback go along.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{source} failed: {type(error).__name__}: {one_line(error)}.", hint) from error
