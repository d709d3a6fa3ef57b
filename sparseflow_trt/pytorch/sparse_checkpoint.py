"""2:4 checkpoints of other tools, and this one's, as plain weights with zeros; every mask is verified."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseflow_trt._deps import require
from sparseflow_trt._files import check_file, put_in_place, temporary_folder
from sparseflow_trt._listing import listed
from sparseflow_trt._paths import AnyPath
from sparseflow_trt._schema import Record, load_json, read_text
from sparseflow_trt.errors import ModelError
from sparseflow_trt.pytorch.checkpoint_files import (
    INDEX,
    Checkpoint,
    open_checkpoint,
    save_tensors,
    write_shards,
)
from sparseflow_trt.pytorch.sparse_entries import MASKS, read_claims, read_entries, read_masks
from sparseflow_trt.pytorch.sparse_formats import check_2to4
from sparseflow_trt.pytorch.torch_layers import find_layers, is_conv1d
from sparseflow_trt.pytorch.torch_pattern import Tensor, is_2to4, mask_hash

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf")
_PACKING = ("quantization_config", "compression_config")
_EMBEDDING = re.compile(r"(^|[._])(embed\w*|embeddings?|wte|wpe|shared)([._]|$)")
_MOST_NAMED = 3
_NEEDED_FOR = "sparse checkpoints"
_HINT = "Get the checkpoint again from where it was written."


class UnpackedLayer(Record):
    """A weight that came out of a sparse form, or that a checkpoint says is 2:4.

    Attributes:
        name: Of the layer, such as "model.layers.0.mlp.up_proj".
        form: How it was kept: one of `sparse_formats.Form`, or "dense" for a plain tensor with zeros.
        n: Its outputs.
        k: Its inputs.
        mask_sha256: See `torch_pattern.mask_hash`.
    """

    name: str
    form: str
    n: int
    k: int
    mask_sha256: str


@dataclass(frozen=True)
class Unpacked:
    """What `unpack_checkpoint` did.

    Attributes:
        layers: Those that were sparse.
        broken: Plain weights that the checkpoint says are 2:4 and that are not.
        output: What was written.
    """

    layers: tuple[UnpackedLayer, ...]
    broken: tuple[str, ...]
    output: Path


def load_checkpoint(module: Any, path: AnyPath) -> tuple[UnpackedLayer, ...]:
    """Loads a checkpoint into a module, in place; where it fails the module is as it was.

    Args:
        module: With the checkpoint's names and shapes; values are converted to its types.
        path: A file or folder, see `checkpoint_files`. In it are plain weights, sparse-24-bitmask weights of
            compressed-tensors, semi-structured tensors of PyTorch and torchao, ModelOpt's weights with
            masks, or a state that `prune` wrote.

    Returns:
        The layers that were sparse, each verified: 2:4 along K, and where the checkpoint has the hashes of
        its masks, these. Where compressed-tensors' configuration says which plain weights are 2:4, those
        are verified, too.

    Raises:
        ModelError: The checkpoint cannot be read, its parts do not fit, its names or shapes are not the
            module's, or a weight is not 2:4 or has another mask than it says.
        NotInstalledError: PyTorch or safetensors; or cuSPARSELt, for what it has packed.
    """
    torch = require("torch", _NEEDED_FOR)
    path = Path(path)
    found: list[UnpackedLayer] = []
    state: dict[str, Tensor] = {}
    layers = {f"{layer.name}.weight": layer for layer in find_layers(module)}
    with open_checkpoint(path) as checkpoint:
        masks = read_masks(checkpoint)
        claims = read_claims(checkpoint.config)
        for entry in read_entries(checkpoint):
            tensor = state[entry.name] = entry.make()
            layer, name = layers.get(entry.name), entry.name.removesuffix(".weight")
            # the weight of a Conv1D lies [K, N], in a state of ours as in its module
            weight = tensor.t() if layer and is_conv1d(layer.module) and entry.form == "dense" else tensor
            if entry.form != "dense" or name in masks or (layer and claims(name)):
                check_2to4(entry.name, weight)
                found.append(_unpacked(name, entry.form, weight))
    held = {layer.name: layer.mask_sha256 for layer in found}
    for name, expected in masks.items():
        if held.get(name) != expected:
            raise ModelError(
                f"{path}: the mask of '{name}' is not the one that was written.",
                "The file was changed after it was pruned: prune again.",
            )
    _check_fits(module, state, path)
    with torch.no_grad():
        module.load_state_dict(state, strict=False)
    return tuple(found)


def unpack_checkpoint(
    path: Path | str,
    output: Path | str,
    on_step: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> Unpacked:
    """Writes a sparse checkpoint again with plain weights, for tools that know nothing of its form.

    Args:
        path: As for `load_checkpoint`.
        output: A folder where `path` is one: everything but the weights is copied, and config.json no longer
            asks for the tool that packed them. Else a .safetensors file.
        on_step: Told what is done.

    Raises:
        ModelError: As for `load_checkpoint`, or the checkpoint holds no sparse weight.
        ArtifactError: The output cannot be written.
        NotInstalledError: As for `load_checkpoint`.
    """
    path, output = Path(path), Path(output)
    found: list[UnpackedLayer] = []
    broken: list[str] = []

    def plain(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
        claims, masks = read_claims(checkpoint.config), read_masks(checkpoint)
        entries = read_entries(checkpoint)
        for i, entry in enumerate(entries):
            on_step(f"Unpacking {entry.name}", i, len(entries))
            tensor, name = entry.make(), entry.name.removesuffix(".weight")
            claimed = tensor.dim() == 2 and entry.name.endswith(".weight")
            claimed = claimed and (name in masks or (claims(name) and not _EMBEDDING.search(name)))
            if entry.form != "dense":
                check_2to4(entry.name, tensor)
            if entry.form != "dense" or (claimed and is_2to4(tensor)):
                found.append(_unpacked(name, entry.form, tensor))
            elif claimed:
                broken.append(entry.name)
            yield entry.name, tensor

    with open_checkpoint(path) as checkpoint:
        if path.is_dir():
            with temporary_folder(output) as folder:
                _copy_others(path, folder)
                write_shards(plain(checkpoint), folder)
                _check_any(path, found, broken)
                put_in_place(folder, output)
        else:
            check_file(output)
            tensors = dict(plain(checkpoint))
            _check_any(path, found, broken)
            masks = {layer.name: layer.mask_sha256 for layer in found}
            save_tensors(tensors, output, {MASKS: json.dumps(masks)})
    return Unpacked(tuple(found), tuple(broken), output)


def _unpacked(name: str, form: str, weight: Tensor) -> UnpackedLayer:
    n, k = weight.shape
    return UnpackedLayer(name=name, form=form, n=n, k=k, mask_sha256=mask_hash(weight))


def _check_any(path: Path, found: list[UnpackedLayer], broken: list[str]) -> None:
    if not found and not broken:
        raise ModelError(
            f"{path} holds no sparse weight in a known format, and does not say which are 2:4.",
            "Plain weights need no unpacking: export it as it is.",
        )


def _check_fits(module: Any, state: Mapping[str, Tensor], path: Path) -> None:
    own = module.state_dict(keep_vars=True)
    given = {id(own[name]) for name in state if name in own}
    wrong = {
        "it lacks": [name for name, value in own.items() if name not in state and id(value) not in given],
        "the module has no": [name for name in state if name not in own],
        "these have other shapes:": [
            n for n, value in state.items() if n in own and own[n].shape != value.shape
        ],
    }
    if said := [f"{words} {_some(names)}" for words, names in wrong.items() if names]:
        raise ModelError(
            f"{path} does not fit the module: {'; '.join(said)}.", "Give the module that it belongs to."
        )


def _some(names: list[str]) -> str:
    return listed([f"'{name}'" for name in names], _MOST_NAMED)


def _copy_others(source: Path, target: Path) -> None:
    """Copies what is no weight; config.json without what says how the weights are packed."""
    for file in sorted(source.iterdir()):
        if not file.is_file() or file.name == INDEX or file.suffix in _WEIGHTS:
            continue
        if file.name != "config.json":
            shutil.copyfile(file, target / file.name)
            continue
        config = load_json(read_text(file, ModelError, "configuration"), str(file), ModelError, _HINT)
        plain = {key: value for key, value in config.items() if key not in _PACKING}
        (target / file.name).write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
