"""Reads the user's own input sets: .npz, Polygraphy's JSON, or a Python function that yields them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseflow_trt._deps import require
from sparseflow_trt._user_code import import_function, user_errors
from sparseflow_trt.errors import InputError, one_line
from sparseflow_trt.validation.feeds import InputSet, checked_feeds, read_input_specs
from sparseflow_trt.validation.messages import quiet_polygraphy

if TYPE_CHECKING:
    from sparseflow_trt.model.model_file import OnnxModel
    from sparseflow_trt.plans.shapes import Profile

Sets = list[tuple[str, Mapping[str, Any]]]

_DEFAULT_FUNCTION = "load_data"  # as in Polygraphy's --data-loader-script
_HINT = (
    "Give a .npz, a .json that `polygraphy run --save-inputs` wrote, or FILE.py:FUNCTION or "
    "MODULE:FUNCTION that yields {input name: array}."
)


def load_inputs(source: str | Path, model: OnnxModel) -> list[InputSet]:
    """Reads input sets and checks each against the model.

    Args:
        source: One of
            - `x.npz`: one set, its arrays named as the inputs; or several sets, its arrays named
              `INPUT@SET` (`input_ids@0`, `input_ids@1`, `attention_mask@0`, …), in the order the sets
              first come up. A name that is an input of the model as it stands is never split.
            - `x.json`: a feed dict or a list of them in Polygraphy's JSON; or a folder of such files.
            - `x.py:FUNCTION` or `module:FUNCTION`: called without arguments, it gives a feed dict or an
              iterable of them; `x.py` alone means its `load_data`.
        model: The model as read.

    Raises:
        InputError: The source cannot be read, holds no set, its function fails, or a set does not fit
            the model; with the set's and the input's name.
        NotInstalledError: Polygraphy, for its JSON.
    """
    specs = read_input_specs(model)
    text = str(source)
    found = [
        InputSet(name, checked_feeds(name, feeds, specs), None, f"read from {text}")
        for name, feeds in read_sets(text, {spec.name for spec in specs})
    ]
    if not found:
        raise InputError(f"{text} holds no input set.", _HINT)
    return found


def check_ranges(sets: list[InputSet], profiles: tuple[Profile, ...]) -> None:
    """Checks that each set fits an optimization profile: an engine takes no others.

    Raises:
        InputError: One fits none; it is named with its shapes.
    """
    for given in sets:
        if profiles and not any(_fits(given, profile) for profile in profiles):
            shapes = ", ".join(f"{name} {array.shape}" for name, array in given.feeds.items())
            raise InputError(
                f"input set '{given.name}' ({shapes}) fits none of the plan's {len(profiles)} profile(s).",
                f"Give inputs within {_ranges(profiles)}, or plan a profile for these.",
            )


def _ranges(profiles: tuple[Profile, ...]) -> str:
    """The shapes that profiles take: 'default' (x 1x64 to 32x64)."""
    said = []
    for profile in profiles:
        low_high = (
            f"{name} {'x'.join(map(str, shapes.min))} to {'x'.join(map(str, shapes.max))}"
            for name, shapes in profile.inputs.items()
        )
        said.append(f"'{profile.name}' ({', '.join(low_high)})")
    return " or ".join(said)


def _fits(given: InputSet, profile: Profile) -> bool:
    return all(
        low <= size <= high
        for name, ranges in profile.inputs.items()
        for low, size, high in zip(ranges.min, given.feeds[name].shape, ranges.max, strict=True)
    )


def read_sets(source: str, inputs: AbstractSet[str] = frozenset()) -> Sets:
    """Reads input sets as they are, each with its name: see `load_inputs`, which checks them, too.

    Args:
        source: As for `load_inputs`.
        inputs: Names that are never split at an @.

    Raises:
        InputError: The source cannot be read, or its function fails.
        NotInstalledError: Polygraphy, for its JSON.
    """
    path = Path(source)
    if path.suffix == ".npz":
        return _read_npz(path, inputs)
    if path.suffix == ".json" or path.is_dir():
        return _read_json(path)
    if path.suffix == ".py":
        return _call_loader(source, _DEFAULT_FUNCTION)
    target, colon, function = source.rpartition(":")
    if colon and target and function.isidentifier():
        return _call_loader(target, function)
    raise InputError(f"'{source}' is not a source of inputs.", _HINT, usage=True)


def _read_npz(path: Path, inputs: AbstractSet[str]) -> Sets:
    if not path.exists():
        raise InputError(f"{path} does not exist.", "Check the path of the inputs.")
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError(f"{path} is a single array, not an archive of named arrays.", _HINT)
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        # NumPy takes what is no archive for a pickle, and names the option that would run it.
        pickled = isinstance(error, ValueError) and not zipfile.is_zipfile(path)
        why = "it is not an archive of arrays" if pickled else one_line(error)
        raise InputError(
            f"{path} cannot be read as .npz: {why}.",
            "Write it with numpy.savez(path, input_name=array, …).",
        ) from error
    split = {name: (name, "") if name in inputs else _split(name) for name in arrays}
    keys = list(dict.fromkeys(key for _, key in split.values()))
    if "" in keys and len(keys) > 1:
        plain = next(name for name, (_, key) in split.items() if not key)
        raise InputError(f"{path} mixes '{plain}', of no set, with arrays named INPUT@SET.",
                         "Name all arrays after the inputs (one set), or all of them INPUT@SET.")  # fmt: skip
    return [
        (f"{path.stem}@{key}" if key else path.stem,
         {base: arrays[name] for name, (base, own) in split.items() if own == key})
        for key in keys
    ]  # fmt: skip


def _split(name: str) -> tuple[str, str]:
    base, at, key = name.rpartition("@")
    return (base, key) if at and base else (name, "")


def _read_json(path: Path) -> Sets:
    require("polygraphy", "reading inputs from JSON")
    from polygraphy.exception import PolygraphyException
    from polygraphy.json import load_json

    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    sets: Sets = []
    for file in files:
        try:
            with quiet_polygraphy():
                loaded = load_json(str(file))
        except (PolygraphyException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file} cannot be read as Polygraphy's JSON: {one_line(error)}.", _HINT
            ) from error
        feeds = loaded if isinstance(loaded, list) else [loaded]
        sets += _named(file.stem, feeds, str(file))
    return sets


def _call_loader(target: str, function: str) -> Sets:
    source = f"{target}:{function}"
    with user_errors(source, "It is called without arguments and yields {input name: array}."):
        loader = import_function(target, function, "loader", _HINT)
        made = loader()
        feeds = [made] if isinstance(made, Mapping) else list(made)
    return _named(function, feeds, source)


def _named(stem: str, feeds: Iterable[Any], source: str) -> Sets:
    sets: Sets = []
    for i, feed in enumerate(feeds):
        if not isinstance(feed, Mapping) or not all(isinstance(name, str) for name in feed):
            raise InputError(
                f"{source}: item {i} is a {type(feed).__name__}, not a mapping of input names to arrays.",
                _HINT,
            )
        sets.append((f"{stem}@{i}", feed))
    return sets
