"""A PyTorch module with inputs to run it on: from a Hugging Face configuration, or from a user's function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseflow_trt._deps import require
from sparseflow_trt._user_code import call_for_module, split_source
from sparseflow_trt.errors import InputError
from sparseflow_trt.pytorch.hugging_face import TorchDtype, Weights, check_config, load_hugging_face

_HINT = (
    "Give a folder with a Hugging Face config.json, that file itself, or FILE.py:FUNCTION or "
    "MODULE:FUNCTION that returns (module, inputs), with or without the axes that `export` takes: inputs are "
    "a tensor, a tuple, or a mapping by name."
)


@dataclass(frozen=True)
class TorchModel:
    """A module in evaluation mode, and one set of inputs on its device.

    Attributes:
        shapes: The inputs' shapes, in words.
    """

    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: str

    def run(self) -> Any:
        """Calls the module."""
        return self.module(*self.args, **self.kwargs)


def check_source(source: str) -> None:
    """Checks what a source names, before anything heavy is imported: that there is such a file or folder.

    Raises:
        InputError: There is not, or it is no configuration.
    """
    if _is_configuration(source):
        check_config(Path(source))
    else:
        split_source(source, _HINT)


def _is_configuration(source: str) -> bool:
    return Path(source).exists() and not source.endswith(".py")


def load_torch_model(
    source: str,
    batch: int = 1,
    seq: int = 128,
    dtype: TorchDtype | None = "fp16",
    device: str = "cuda",
    weights: Weights = "either",
    runs: bool = True,
) -> TorchModel:
    """Makes a module and inputs for it. Code of a model's own (trust_remote_code) is never run.

    Args:
        source: A folder with a config.json, such a file, or FILE.py:FUNCTION or MODULE:FUNCTION.
        batch: How many rows of tokens, or images; of a configuration's inputs alone.
        seq: How many tokens.
        dtype: Of a configuration's module; None keeps the checkpoint's.
        device: Where the module goes, as PyTorch names it.
        weights: Of a configuration's module: see `hugging_face.load_hugging_face`. By default those that lie
            beside it are taken, else they are random.
        runs: Whether it is to run: else no inputs are made for a configuration's module.

    Raises:
        InputError: The source cannot be read, its function fails, or no inputs can be made for it.
        NotInstalledError: PyTorch, or transformers for a configuration.
    """
    torch = require("torch", "PyTorch modules")
    if _is_configuration(source):
        module = load_hugging_face(Path(source), weights=weights, dtype=dtype, device=device)
        inputs = _inputs_of(torch, module, batch, seq, device) if runs else {}
        model = TorchModel(module, (), inputs, _shapes_of(torch, inputs))
    else:
        model = _from_function(torch, source, device)
    model.module.eval()
    return model


def _from_function(torch: Any, source: str, device: str) -> TorchModel:
    module, inputs, _ = call_for_module(torch, source, _HINT)
    named = {str(name): value for name, value in inputs.items()} if isinstance(inputs, Mapping) else {}
    args = () if named else (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    args = tuple(_moved(torch, value, device) for value in args)
    named = {name: _moved(torch, value, device) for name, value in named.items()}
    shaped = {**{str(i): value for i, value in enumerate(args)}, **named}
    return TorchModel(module.to(device), args, named, _shapes_of(torch, shaped))


def _inputs_of(torch: Any, module: Any, batch: int, seq: int, device: str) -> dict[str, Any]:
    config = module.config
    source = torch.Generator(device=device).manual_seed(0)
    main = module.main_input_name
    if main == "input_ids":
        words = getattr(config, "vocab_size", None) or config.get_text_config().vocab_size
        tokens = torch.randint(0, words, (batch, seq), generator=source, device=device)
        return {main: tokens, **({"decoder_input_ids": tokens} if config.is_encoder_decoder else {})}
    if main == "pixel_values":
        image = getattr(config, "vision_config", config)
        size, channels = getattr(image, "image_size", 224), getattr(image, "num_channels", 3)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        shape = (batch, channels, height, width)
        return {main: torch.randn(shape, generator=source, device=device).to(module.dtype)}
    raise InputError(
        f"{type(module).__name__} takes '{main}', for which no inputs are made here.",
        "Write a function that returns (module, inputs), and give FILE.py:FUNCTION.",
    )


def _moved(torch: Any, value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _shapes_of(torch: Any, inputs: Mapping[str, Any]) -> str:
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    return ", ".join(f"{name} {'×'.join(map(str, value.shape))}" for name, value in tensors.items())
