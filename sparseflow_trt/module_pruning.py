"""Prunes a PyTorch module from source to files: load, choose layers, calibrate, prune, write, read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseflow_trt._deps import require
from sparseflow_trt._files import check_file, check_folder, put_in_place, temporary_folder, write_atomically
from sparseflow_trt.errors import InputError, ModelError, NotInstalledError
from sparseflow_trt.exporters.pruning.prune_torch import PruneRecord, prune_module
from sparseflow_trt.exporters.pruning.pruning_methods import DAMPING, Method
from sparseflow_trt.policies.policy import Dtype, Library, Policy
from sparseflow_trt.pytorch.checkpoint_files import open_checkpoint, save_tensors
from sparseflow_trt.pytorch.hugging_face import TorchDtype
from sparseflow_trt.pytorch.sparse_entries import MASKS
from sparseflow_trt.pytorch.torch_layers import (
    Choice,
    TorchLayer,
    choose_by_name,
    choose_by_policy,
    find_layers,
    is_conv1d,
    record_rows,
)
from sparseflow_trt.pytorch.torch_pattern import mask_hash
from sparseflow_trt.pytorch.torch_source import TorchModel, load_torch_model
from sparseflow_trt.validation.input_files import read_sets

RECORD = "pruning.json"
LINES_A_BATCH = 8
_MOST_TOKENS = 512
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_NEEDED_FOR = "pruning PyTorch modules"

OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class WhereItPays:
    """Which layers a policy takes: those that a plan by it would run sparse.

    Attributes:
        batch: Of a Hugging Face module's inputs, which give each layer its M; a function brings inputs.
        seq: Their tokens.
        dtype: Of the products; None is each weight's own.
        library: Whose kernels will run.
    """

    policy: Policy
    batch: int = 1
    seq: int = 128
    dtype: Dtype | None = "FP16"
    library: Library = "tensorrt"


def prune_source(
    source: str,
    output: Path,
    method: Method,
    calibration: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    pays: WhereItPays | None = None,
    dtype: TorchDtype | None = None,
    device: str = "cpu",
    damping: float = DAMPING,
    on_step: OnStep = lambda step, done, total: None,
) -> PruneRecord:
    """Prunes a module 2:4 and writes it, whole or not at all.

    Args:
        source: A Hugging Face folder with weights, or FILE.py:FUNCTION or MODULE:FUNCTION that gives
            (module, inputs).
        output: A folder like the source, with the pruned weights and pruning.json; of a function's module a
            .safetensors file, with a .pruning.json beside it.
        method: "magnitude", "wanda" or "sparsegpt".
        calibration: A source of inputs as `validate` takes it (.npz, .json, FILE.py:FUNCTION); for a folder
            with a tokenizer also a .txt, one text a line.
        include: Globs of the layers to prune; none means all but classifiers and adapters.
        exclude: Globs of layers to leave alone.
        pays: Of these take the layers where a policy runs sparse.
        dtype: Of a Hugging Face module; None keeps the checkpoint's.
        device: Where to calibrate, as PyTorch names it.
        damping: See `prune_module`.
        on_step: Told what is done.

    Returns:
        What was done to each layer. The masks were read back from the files and compared.

    Raises:
        InputError: The source, the calibration or a pattern cannot be used.
        PolicyError: The policy takes no layer.
        ModelError: What was written is not what was pruned.
        ArtifactError: The output cannot be written.
        NotInstalledError: PyTorch, transformers or safetensors.
    """
    folder = Path(source) if Path(source).is_dir() else None
    _check_output(folder, output)
    _check_device(device)
    if folder:
        _quiet_transformers()
    on_step("Loading the module", 0, 0)
    sizes = (pays.batch, pays.seq) if pays else (1, 8)
    model = load_torch_model(source, *sizes, dtype, device, "given", runs=pays is not None)
    choices = choose_layers(model, include, exclude, pays)
    batches = list(read_calibration(calibration, folder, model.module)) if calibration else []
    record = prune_module(model.module, method, batches, choices, damping, on_step)
    on_step("Writing", 0, 0)
    pruned = [choice.layer for choice in choices if choice.taken]
    if folder is None:
        masks = {layer.name: layer.mask_sha256 for layer in record.layers}
        state = model.module.state_dict()
        save_tensors(
            state, output, {MASKS: json.dumps(masks)}, lambda path: verify_written(path, pruned, record)
        )
        write_atomically(output.with_suffix(f".{RECORD}"), _text(record))
        return record
    with temporary_folder(output) as target:
        model.module.save_pretrained(target)
        verify_written(target, pruned, record)
        for file in sorted(folder.iterdir()):  # the tokenizer and what else belongs to it
            apart = file.suffix in _WEIGHTS or file.name.endswith(".index.json")
            if file.is_file() and not apart and not (target / file.name).exists():
                shutil.copyfile(file, target / file.name)
        (target / RECORD).write_text(_text(record), encoding="utf-8")
        put_in_place(target, output)
    return record


def choose_layers(
    model: TorchModel, include: Sequence[str], exclude: Sequence[str], pays: WhereItPays | None
) -> tuple[Choice, ...]:
    """The layers of a module, with which are taken: by patterns, then by a policy at the M of its inputs.

    Raises:
        InputError: A pattern matches nothing.
        PolicyError: The policy takes no layer.
    """
    layers = find_layers(model.module)
    choices = choose_by_name(layers, include, exclude)
    if not pays:
        return choices
    rows = record_rows(layers, model.run)
    return choose_by_policy(choices, pays.policy, rows, pays.dtype, pays.library)


def read_calibration(source: str, folder: Path | None, module: Any) -> Iterator[Mapping[str, Any]]:
    """The batches of a calibration source, as tensors by name.

    Raises:
        InputError: It cannot be read, or holds nothing.
        NotInstalledError: transformers, for a text file.
    """
    torch = require("torch", _NEEDED_FOR)
    if source.endswith(".txt"):
        yield from _tokenized(Path(source), folder, module)
        return
    sets = read_sets(source)
    if not sets:
        raise InputError(
            f"{source} holds no calibration batch.", "Give at least one; some hundred texts are usual."
        )
    kind = next((value.dtype for value in module.parameters() if value.is_floating_point()), torch.float32)
    for _, feeds in sets:
        tensors = {name: torch.as_tensor(value) for name, value in feeds.items()}
        yield {name: t.to(kind) if t.is_floating_point() else t for name, t in tensors.items()}


def _tokenized(path: Path, folder: Path | None, module: Any) -> Iterator[Mapping[str, Any]]:
    transformers = require("transformers", "tokenizing a text file")
    if folder is None:
        raise InputError(
            f"{path} is text, and a function's module has no tokenizer.",
            "Give batches: an .npz, or FILE.py:FUNCTION that yields {input name: tensor}.",
        )
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as text: {error}.", "Give UTF-8 text, one sample a line."
        ) from error
    if not lines:
        raise InputError(f"{path} holds no text.", "Give one text a line; some hundred are usual.")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        words = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder} has no tokenizer: {words}.", "Give batches of tokens: an .npz."
        ) from error
    pads = tokenizer.pad_token is not None
    most = min(tokenizer.model_max_length, getattr(module.config, "max_position_embeddings", _MOST_TOKENS))
    size = LINES_A_BATCH if pads else 1
    for begin in range(0, len(lines), size):
        some = lines[begin : begin + size]
        tokens = tokenizer(
            some, padding=pads, truncation=True, max_length=min(most, _MOST_TOKENS), return_tensors="pt"
        )
        yield dict(tokens)


def verify_written(path: Path, layers: Sequence[TorchLayer], record: PruneRecord) -> None:
    """Reads pruned weights back from their files and compares their masks with the record.

    Args:
        path: The file or folder.
        layers: Those that were pruned.
        record: What was done to them.

    Raises:
        ModelError: A mask is missing or another one.
    """
    expected = {layer.name: layer.mask_sha256 for layer in record.layers}
    with open_checkpoint(path) as written:
        held = set(written.names)
        for layer in layers:
            name = f"{layer.name}.weight"
            if name not in held:  # a family that names weights otherwise in its files
                name = next(
                    (each for each in written.names if name.endswith(each) or each.endswith(name)), ""
                )
            weight = written.read(name) if name else None
            if weight is not None and is_conv1d(layer.module):
                weight = weight.t()
            if weight is None or mask_hash(weight) != expected[layer.name]:
                raise ModelError(
                    f"'{layer.name}' lost its mask when it was written.",
                    "Nothing was put in place. Report it, with the module's family.",
                )


def _quiet_transformers() -> None:
    """Progress is told by `on_step`."""
    transformers = require("transformers", "Hugging Face models")
    transformers.utils.logging.disable_progress_bar()


def _check_output(folder: Path | None, output: Path) -> None:
    if folder is None and output.suffix != ".safetensors":
        raise InputError(
            f"{output} is not a .safetensors file, which the state of a function's module is written to.",
            "Give --output NAME.safetensors.",
            usage=True,
        )
    if folder is not None and (output.resolve() == folder.resolve() or output.is_file()):
        raise InputError(f"{output} is the source itself or a file.", "Give --output another folder.")
    (check_file if folder is None else check_folder)(output)


def _check_device(device: str) -> None:
    torch = require("torch", _NEEDED_FOR)
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(
            f"'{device}' is not a PyTorch device.", "Give --device cpu, cuda or cuda:1.", usage=True
        ) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise NotInstalledError(
            f"PyTorch {torch.__version__} sees no GPU.", "Leave --device out: pruning runs on the CPU, too."
        )


def _text(record: PruneRecord) -> str:
    return record.model_dump_json(indent=2) + "\n"
