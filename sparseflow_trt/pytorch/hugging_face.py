"""Makes a module of a Hugging Face folder: config.json, and weights beside it. Nothing is downloaded."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sparseflow_trt._deps import require
from sparseflow_trt._listing import listed
from sparseflow_trt.errors import InputError, one_line

TorchDtype = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[TorchDtype, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
Weights = Literal["given", "random", "either"]

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_HINT = "Give a folder with a Hugging Face config.json that the installed transformers knows."
_MOST_NAMED = 3
# What transformers raises on a configuration or checkpoint that it cannot take.
_FAILURES = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError)


def load_hugging_face(
    source: Path,
    *,
    weights: Weights = "given",
    model_class: str = "",
    dtype: TorchDtype | None = None,
    device: str = "cpu",
    attention: str | None = None,
    config: Any = None,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> Any:
    """Makes the module of a folder with a config.json, in evaluation mode.

    Args:
        source: The folder, or the config.json itself, beside which no weights are looked for.
        weights: "given" takes those in the folder, "random" draws them as the family initialises them,
            "either" draws them where the folder holds none.
        model_class: A class of transformers ("AutoModelForCausalLM"); "" is the first one that the
            configuration names, or the plain model of its family.
        dtype: Of the parameters; None keeps the checkpoint's, or the configuration's for random ones.
        device: Where the module goes, as PyTorch names it.
        attention: transformers' attn_implementation ("eager", "sdpa"); None is its default.
        config: The folder's configuration as `read_config` gives it, perhaps changed; None reads it.
        trust_remote_code: Run Python that lies in the folder, where the configuration names some.
        seed: Of random weights.

    Returns:
        A torch.nn.Module whose `config` is the configuration.

    Raises:
        InputError: There is no such configuration, transformers cannot make a model of it, its code is not
            to be trusted, or the folder holds no weights or not all of them.
        NotInstalledError: PyTorch or transformers.
    """
    torch = require("torch", "PyTorch modules")
    transformers = require("transformers", "Hugging Face models")
    folder = source if source.is_dir() else source.parent
    config = config or read_config(source, trust_remote_code)
    has_weights = source.is_dir() and holds_weights(folder)
    if weights == "given" and not has_weights:
        raise InputError(
            f"{source} holds a configuration and no weights ({' or '.join(_WEIGHTS)}).",
            "Put the checkpoint beside config.json, or ask for random weights (--random-weights).",
        )
    extra: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    try:
        made_by = _class_of(transformers, config, model_class)
        extra |= _without_pooler(transformers, made_by, config)
        if trust_remote_code:
            extra["trust_remote_code"] = True
        if weights == "random" or not has_weights:
            kind = getattr(torch, DTYPES[dtype]) if dtype else config.dtype or torch.float32
            torch.manual_seed(seed)
            with _defaults(torch, kind, device):
                module = _from_config(made_by, config, extra)
        else:
            with _no_bar(transformers):
                module = _from_checkpoint(torch, made_by, folder, config, dtype, extra).to(device)
    except _FAILURES as error:
        raise _refusal(source, error) from error
    return module.eval()


def read_config(source: Path, trust_remote_code: bool = False) -> Any:
    """Reads a folder's config.json, or that file, as transformers' configuration of its family.

    Raises:
        InputError: There is none, transformers does not know it, or it names code of its own.
        NotInstalledError: transformers.
    """
    transformers = require("transformers", "Hugging Face models")
    check_config(source, trust_remote_code)
    try:
        return transformers.AutoConfig.from_pretrained(
            source, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except _FAILURES as error:
        raise _refusal(source, error) from error


def _refusal(source: Path, error: Exception) -> InputError:
    words = f"{type(error).__name__}: {one_line(error)}"
    return InputError(f"{source}: transformers cannot make a model from it: {words}.", _HINT)


def holds_weights(folder: Path) -> bool:
    """Whether weights lie in a folder."""
    return any(next(folder.glob(names), None) for names in _WEIGHTS)


def check_config(source: Path, trust_remote_code: bool = False) -> None:
    """Checks a folder's config.json, or that file, as far as that takes no transformers.

    Raises:
        InputError: There is none, it is not JSON, or it names code of its own.
    """
    file = source / "config.json" if source.is_dir() else source
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{source}: transformers cannot make a model from it: there is no {file.name}.",
                         _HINT) from None  # fmt: skip
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: transformers cannot make a model from it: {error}.", _HINT) from error
    if isinstance(said, dict) and said.get("auto_map") and not trust_remote_code:
        names = ", ".join(sorted(map(str, said["auto_map"])))
        raise InputError(
            f"{source}: its configuration needs its own Python code ({names}), which is not run unless you "
            "allow it.",
            "Read that code, then give --trust-remote-code; or load the module in a function "
            "of your own and give FILE.py:FUNCTION.",
        )


def _class_of(transformers: Any, config: Any, model_class: str) -> Any:
    """The class asked for, the one that the configuration names, or the plain model of its family."""
    if model_class:
        found = getattr(transformers, model_class, None)
        if found is None:
            raise ValueError(f"it has no class {model_class}")
        return found
    named = (getattr(transformers, name, None) for name in config.architectures or ())
    return next((found for found in named if found is not None), transformers.AutoModel)


def _without_pooler(transformers: Any, made_by: Any, config: Any) -> dict[str, Any]:
    """A plain model has no pooler where it can be left out: checkpoints lack it, and nobody asked for it."""
    if made_by is not transformers.AutoModel:
        return {}
    concrete = transformers.AutoModel._model_mapping.get(type(config), None)
    has = concrete is not None and takes(concrete.__init__, "add_pooling_layer")
    return {"add_pooling_layer": False} if has else {}


def _from_config(made_by: Any, config: Any, extra: dict[str, Any]) -> Any:
    if hasattr(made_by, "from_config"):  # an Auto class
        return made_by.from_config(config, **extra)
    extra.pop("trust_remote_code", None)
    return made_by._from_config(config, **extra)


def _from_checkpoint(
    torch: Any, made_by: Any, folder: Path, config: Any, dtype: TorchDtype | None, extra: dict[str, Any]
) -> Any:
    kind = getattr(torch, DTYPES[dtype]) if dtype else "auto"
    module, info = made_by.from_pretrained(
        folder, config=config, dtype=kind, local_files_only=True, output_loading_info=True, **extra
    )
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would draw them at random and go on
        raise InputError(
            f"{folder}: the checkpoint lacks {listed(missing, _MOST_NAMED)}, which a "
            f"{type(module).__name__} has.",
            "Choose a class that the checkpoint was saved from, or complete the checkpoint.",
        )
    return module


@contextlib.contextmanager
def _no_bar(transformers: Any) -> Iterator[None]:
    """Keeps transformers' own progress bar off the terminal, where another is shown."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _defaults(torch: Any, kind: Any, device: str) -> Iterator[None]:
    """Tensors are made of this type and on this device, so that no copy of the weights is needed."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def takes(function: Any, name: str) -> bool:
    """Whether a function has a parameter of this name."""
    return name in inspect.signature(function).parameters
