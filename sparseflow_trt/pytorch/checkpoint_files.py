"""Opens a checkpoint's files: safetensors, sharded or not, or PyTorch's own, and runs no code of theirs."""

from __future__ import annotations

import contextlib
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparseflow_trt._deps import require
from sparseflow_trt._files import write_atomically, written_atomically
from sparseflow_trt._schema import load_json, read_text
from sparseflow_trt.errors import ModelError, one_line
from sparseflow_trt.pytorch.torch_pattern import Tensor

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 2 << 30
_NEEDED_FOR = "checkpoints"
_PICKLES = (".pt", ".pth", ".bin")
_NESTED = ("model_state_dict", "state_dict", "model")  # where training scripts and ModelOpt keep the weights
_HINT = (
    "Give a .safetensors file, a .pt, .pth or .bin file with a state_dict, or a folder with "
    f"model.safetensors, {INDEX} or pytorch_model.bin."
)


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint.

    Attributes:
        path: As given.
        names: Of its tensors.
        read: Gives one of them, on the CPU.
        config: config.json beside it; empty where there is none.
        metadata: Of a single safetensors file.
        in_memory: Whether all of it has been read: one of PyTorch's own files.
    """

    path: Path
    names: tuple[str, ...]
    read: Callable[[str], Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    in_memory: bool = False


@contextlib.contextmanager
def open_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """Opens a file or a folder; safetensors are read as they are asked for.

    Raises:
        ModelError: It is no checkpoint, is truncated or broken, or holds more than tensors.
        NotInstalledError: PyTorch or safetensors.
    """
    require("torch", _NEEDED_FOR)
    require("safetensors", _NEEDED_FOR)
    config = _read_config(path) if path.is_dir() else {}
    with contextlib.ExitStack() as stack:
        if not path.is_dir():
            yield _open_file(path, stack, config)
        elif (path / INDEX).is_file():
            yield _open_shards(path, stack, config)
        else:
            inside = [path / name for name in ("model.safetensors", "pytorch_model.bin", "model.pt")]
            file = next((file for file in inside if file.is_file()), None)
            if file is None:
                raise ModelError(f"{path} holds no weights in a known format.", _HINT)
            yield _open_file(file, stack, config)


def save_tensors(
    tensors: Mapping[str, Tensor],
    path: Path,
    metadata: Mapping[str, str],
    check: Callable[[Path], None] = lambda path: None,
) -> None:
    """Writes a safetensors file, whole or not at all; tensors that share memory are written once each.

    Args:
        tensors: By name.
        path: The file.
        metadata: Of the file.
        check: Looks at what was written before it stands at `path`; an error of it leaves all as it was.

    Raises:
        ArtifactError: It cannot be written.
        NotInstalledError: PyTorch or safetensors.
    """
    require("safetensors", _NEEDED_FOR)
    from safetensors.torch import save_file

    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        place = whole.untyped_storage().data_ptr()
        apart[name] = whole.clone() if place in seen else whole
        seen.add(place)
    with written_atomically(path) as temporary:
        save_file(apart, temporary, {"format": "pt", **metadata})
        check(temporary)


def write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Writes model.safetensors, or numbered shards and their index where that is more than SHARD_BYTES.

    Tensors are taken as they come: one shard is held at a time.
    """
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        save_tensors(held, folder / f"shard-{len(shards)}", {})
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and size + tensor.nbytes > SHARD_BYTES:
            flush()
            size = 0
        held[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    places = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"shard-{i}").rename(folder / file)
        places.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_atomically(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _open_file(path: Path, stack: contextlib.ExitStack, config: Mapping[str, Any]) -> Checkpoint:
    if not path.is_file():
        raise ModelError(f"{path} does not exist.", _HINT)
    if path.suffix in _PICKLES:
        state = _read_pickle(path)
        return Checkpoint(path, tuple(state), state.__getitem__, config, in_memory=True)
    opened = _open_safetensors(path, stack)
    return Checkpoint(path, tuple(opened.keys()), _reader(path, opened), config, opened.metadata() or {})


def _open_shards(folder: Path, stack: contextlib.ExitStack, config: Mapping[str, Any]) -> Checkpoint:
    index = load_json(read_text(folder / INDEX, ModelError, "index"), str(folder / INDEX), ModelError, _HINT)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ModelError(f"{folder / INDEX} holds no weight_map of names to files.", _HINT)
    readers: dict[str, Callable[[str], Any]] = {}
    held: dict[str, set[str]] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(f"{folder / INDEX} names '{file}', which is not a file beside it.", _HINT)
        opened = _open_safetensors(folder / file, stack)
        readers[file], held[file] = _reader(folder / file, opened), set(opened.keys())
    for name, file in places.items():
        if name not in held[file]:
            raise ModelError(f"{folder / file} lacks '{name}', which {INDEX} says is in it.", _HINT)
    return Checkpoint(folder, tuple(places), lambda name: readers[places[name]](name), config)


def _open_safetensors(path: Path, stack: contextlib.ExitStack) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return stack.enter_context(safe_open(path, framework="pt", device="cpu"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is not a complete safetensors file: {_line(error)}.", _HINT) from error


def _reader(path: Path, opened: Any) -> Callable[[str], Any]:
    from safetensors import SafetensorError

    def read(name: str) -> Any:
        try:
            return opened.get_tensor(name)
        except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
            raise ModelError(f"{path}: '{name}' cannot be read: {_line(error)}.", _HINT) from error

    return read


def _read_pickle(path: Path) -> dict[str, Any]:
    torch = require("torch", _NEEDED_FOR)
    sparse = [
        torch.sparse.SparseSemiStructuredTensorCUTLASS,
        torch.sparse.SparseSemiStructuredTensorCUSPARSELT,
    ]
    try:
        with torch.serialization.safe_globals(sparse):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors, or is broken: {_refused(error)}.",
            "It is not run as code. Save model.state_dict() alone, or a .safetensors file.",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError,
            zipfile.BadZipFile) as error:  # fmt: skip
        raise ModelError(f"{path} is not a complete PyTorch checkpoint: {_line(error)}.", _HINT) from error
    for name in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{path} holds a {type(loaded).__name__}, not a state_dict.", _HINT)
    state = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise ModelError(f"{path} holds no tensor.", _HINT)
    return state


def _refused(error: Exception) -> str:
    """What PyTorch did not load, out of its long advice."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "nsupported" in line or "Error" in line), lines[0]).rstrip(".")[
        :200
    ]


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is not JSON: {_line(error)}.", "Check the file.") from error
    return config if isinstance(config, dict) else {}


def _line(error: BaseException) -> str:
    return one_line(error)[:300]
