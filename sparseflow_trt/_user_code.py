"""Imports the Python that a user names: a module, or a file that no package holds."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sparseflow_trt._listing import listed
from sparseflow_trt.errors import InputError, one_line

_MOST_NAMED = 6  # functions, in a sentence


def import_user_code(target: str, what: str, hint: str) -> ModuleType:
    """Imports a module by its name, or a file whose name ends with .py, with what lies beside it.

    Args:
        target: The module or the file.
        what: What it is to the user: "loader".
        hint: What to give, for a file that Python cannot import.

    Raises:
        InputError: The file does not exist or is nothing that Python imports.
    """
    if not target.endswith(".py"):
        with neighbours_importable(target):
            importlib.invalidate_caches()  # it may have been written since that folder was looked at
            return importlib.import_module(target)
    path = _existing(target, what).resolve()
    spec = importlib.util.spec_from_file_location(f"_sparseflow_{what}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{target} cannot be imported.", hint)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in it look their module up
    with neighbours_importable(target):
        spec.loader.exec_module(module)
    return module


def _existing(target: str, what: str) -> Path:
    if not Path(target).is_file():
        raise InputError(f"{target} does not exist.", f"Check the path of the {what}.")
    return Path(target)


def import_function(target: str, function: str, what: str, hint: str) -> Callable[..., Any]:
    """A function of the Python that a user names.

    Args:
        target: The module or the file.
        function: Its name.
        what: What the file is to the user: "loader".
        hint: What to give.

    Raises:
        InputError: The file does not exist, or holds no such function; those that it holds are named.
    """
    module = import_user_code(target, what, hint)
    found: Callable[..., Any] | None = getattr(module, function, None)
    if callable(found):
        return found
    own = [name for name, value in vars(module).items()
           if inspect.isfunction(value) and value.__module__ == module.__name__]  # fmt: skip
    held = f"It has: {listed(own, _MOST_NAMED)}." if own else hint
    raise InputError(f"{target} has no function '{function}'.", held)


def function_stem(source: str) -> str:
    """What a file made of FILE.py:FUNCTION or MODULE:FUNCTION is called: files may have a function alike."""
    target, _, function = source.rpartition(":")
    return f"{Path(target).stem if target.endswith('.py') else target}.{function}"


@contextlib.contextmanager
def neighbours_importable(target: str) -> Iterator[None]:
    """Lets a user's code import in the block what `python FILE.py` or `python -m MODULE` would find first.

    Args:
        target: The file, whose folder that is, or the module, for which it is the current one.
    """
    folder = str(Path(target).resolve().parent if target.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # what that code itself has put there stays
            sys.path.remove(folder)


def split_source(source: str, hint: str) -> tuple[str, str]:
    """The file or module and the function that a source names; nothing is imported yet.

    Args:
        source: FILE.py:FUNCTION or MODULE:FUNCTION.
        hint: How it is to be written.

    Raises:
        InputError: It is no such source, or there is no such file.
    """
    target, colon, function = source.rpartition(":")
    if not colon or not target or not function:
        raise InputError(f"{source} is not a PyTorch module.", hint)
    if target.endswith(".py"):
        _existing(target, "module")
    return target, function


def call_for_module(torch: Any, source: str, hint: str) -> tuple[Any, Any, Any]:
    """Calls a user's function for (module, inputs) or (module, inputs, axes); axes are None without.

    Args:
        torch: PyTorch.
        source: FILE.py:FUNCTION or MODULE:FUNCTION.
        hint: How it is to be written.

    Raises:
        InputError: It is no such source, fails, or returns something else.
    """
    target, function = split_source(source, hint)
    with user_errors(source, hint):
        made = import_function(target, function, "module", hint)()
    if not isinstance(made, tuple):
        told = f"a {type(made).__name__}"
    elif len(made) not in (2, 3):
        told = f"a tuple of {len(made)}"
    elif not isinstance(made[0], torch.nn.Module):
        told = f"a tuple that begins with a {type(made[0]).__name__}"
    else:
        return made[0], made[1], made[2] if len(made) == 3 else None
    raise InputError(f"{source} returned {told} and not (module, inputs).", hint)


@contextlib.contextmanager
def user_errors(source: str, hint: str) -> Iterator[None]:
    """Turns what a user's code raises in the block, which can be anything, into one sentence.

    A script that ends Python when it is imported would end this tool with its own exit code, 0 mostly.

    Args:
        source: What is called, as the user named it: FILE.py:FUNCTION or MODULE:FUNCTION.
        hint: How it is to be written.

    Raises:
        InputError: It failed; its own words and traceback go along.
    """
    try:
        with neighbours_importable(source.rpartition(":")[0]):  # a function may import when it is called
            yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{source} failed: {type(error).__name__}: {one_line(error)}.", hint) from error
