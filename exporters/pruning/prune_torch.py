"""Prunes the layers of a PyTorch module 2:4 along K, block by block, on calibration batches or without.

ModelOpt has 2:4 pruning by magnitude and SparseGPT, too. Its SparseGPT takes the mask alone and leaves the
weights that stay as they were, holds the Hessians of all layers at once, and knows neither Wanda nor Conv1D:
docs/ACCURACY.md has the figures. What it wrote is read by `sparse_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparseflow_trt._deps import require
from sparseflow_trt._schema import Record
from sparseflow_trt.errors import InputError, ModelError
from sparseflow_trt.exporters.pruning.blocks import Block
from sparseflow_trt.exporters.pruning.calibration import as_batch, walk_blocks
from sparseflow_trt.exporters.pruning.pruning_methods import (
    DAMPING,
    Hessian,
    Method,
    Norms,
    Pruned,
    prune_by_magnitude,
    prune_by_sparsegpt,
    prune_by_wanda,
)
from sparseflow_trt.model.other_patterns import seems_pruned
from sparseflow_trt.policies.expected import VerdictBasis
from sparseflow_trt.pytorch.torch_layers import Choice, TorchLayer, choose_by_name, find_layers, find_others
from sparseflow_trt.pytorch.torch_pattern import Tensor, is_2to4, mask_hash

_SAMPLED = 1024  # rows of a layer's inputs on which its error is measured
_NEEDED_FOR = "pruning PyTorch modules"


class PrunedLayer(Record):
    """What pruning did to one layer.

    Attributes:
        method: As asked; "magnitude" where no calibration row reached the layer.
        rows: Of its inputs, that the method learned from.
        damping: SparseGPT's, see `pruning_methods`.
        zeros: The share of the weight's elements that are zero now.
        pruned_before: Whether it had been pruned another way: it was not 2:4, and had many zeros.
        weight_error: ‖W - Ŵ‖ / ‖W‖.
        output_error: ‖X(W - Ŵ)ᵀ‖ / ‖XWᵀ‖ on up to 1024 of the rows, as the pruned blocks before it give them;
            None without calibration.
        mask_sha256: Of the places of its non-zeros, see `torch_pattern.mask_hash`.
    """

    name: str
    kind: str
    n: int
    k: int
    dtype: str
    method: Method
    rows: int
    damping: float | None = None
    zeros: float
    pruned_before: bool = False
    weight_error: float
    output_error: float | None = None
    mask_sha256: str


class ChosenLayer(Record):
    """Whether one layer was taken to be pruned, and why; the fields are those of `torch_layers.Choice`.

    Attributes:
        m: The rows of its product at which a policy was asked; None where none was.
        basis: How the policy knows, see `lookup.Verdict`; None likewise.
    """

    name: str
    kind: str
    n: int
    k: int
    m: int | None
    taken: bool
    why: str
    basis: VerdictBasis | None


class PruneRecord(Record):
    """What pruning did to a module.

    Attributes:
        batches: How many calibration batches there were.
        choices: Every layer, pruned or not, in the module's order.
        left: The layers and other parts with weights that were left alone, with the reason.
    """

    method: Method
    batches: int
    choices: tuple[ChosenLayer, ...]
    layers: tuple[PrunedLayer, ...]
    left: dict[str, str]

    @property
    def pruned_before(self) -> tuple[str, ...]:
        """The layers that it pruned, and that had been pruned another way."""
        return tuple(layer.name for layer in self.layers if layer.pruned_before)


@dataclass
class _Seen:
    """What calibration has seen of one layer."""

    statistics: Norms | Hessian | None
    rows: int = 0
    samples: list[Tensor] = field(default_factory=list)


def prune_module(
    module: Any,
    method: Method,
    batches: Iterable[Any] = (),
    choices: Sequence[Choice] | None = None,
    damping: float = DAMPING,
    on_step: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> PruneRecord:
    """Prunes a module in place.

    One block's statistics are held at a time: for SparseGPT 4·K² bytes for each of its layers, beside what
    the block before it gave for every batch.

    Args:
        module: Its layers are torch.nn.Linear and transformers' Conv1D. It may be on a GPU.
        method: "wanda" and "sparsegpt" need batches.
        batches: Each a tensor, a tuple or a mapping by name, as the module is called. Tokens whose
            attention_mask is 0 are not counted.
        choices: Which layers to take (`torch_layers.choose_by_name`, `choose_by_policy`); None takes all
            that can be 2:4 but classifiers and adapters.
        damping: SparseGPT's share of the Hessian's mean diagonal that is added to its diagonal.
        on_step: Told what is done: (words, done, total).

    Returns:
        What was done. Every pruned weight was checked to be 2:4.

    Raises:
        InputError: There are no batches or no layers to prune, the module fails on a batch, or a layer
            gets values there that are not finite.
        ModelError: A weight is not finite.
    """
    if choices is None:
        choices = choose_by_name(find_layers(module))
    taken = [choice.layer for choice in choices if choice.taken]
    if not taken:
        raise InputError("there is no layer to prune.", _why_none(choices))
    device = taken[0].weight.device
    given = [as_batch(inputs, device) for inputs in batches]
    if method != "magnitude" and not given:
        raise InputError(f"{method} needs calibration batches.", "Give some, or prune by magnitude.")
    seen: dict[str, _Seen] = {}
    done: dict[str, PrunedLayer] = {}
    share = -(-_SAMPLED // max(len(given), 1))

    def watch(layer: TorchLayer, x: Tensor) -> None:
        mine = seen.get(layer.name)
        if mine is None:
            mine = seen[layer.name] = _Seen(_statistics(method, layer))
        if mine.statistics is not None:
            mine.statistics.add(x)
        mine.rows += len(x)
        if sum(map(len, mine.samples)) < _SAMPLED:
            mine.samples.append(x[:: max(1, len(x) // share)][:share].clone())

    def settle(block: Block) -> None:
        for layer in block.layers:
            on_step(f"Pruning {layer.name}", len(done), len(taken))
            done[layer.name] = _prune_layer(layer, seen.pop(layer.name, None), damping)

    if given:
        walk_blocks(module, taken, given, watch, settle, on_step)
    else:
        settle(Block("", "", tuple(taken)))
    return PruneRecord(
        method=method,
        batches=len(given),
        choices=tuple(map(_record_choice, choices)),
        layers=tuple(done[layer.name] for layer in taken),
        left={
            **{choice.layer.name: choice.why for choice in choices if not choice.taken},
            **find_others(module),
        },
    )


def _record_choice(choice: Choice) -> ChosenLayer:
    layer = choice.layer
    return ChosenLayer(
        name=layer.name,
        kind=layer.kind,
        n=layer.n,
        k=layer.k,
        m=choice.m,
        taken=choice.taken,
        why=choice.why,
        basis=choice.basis,
    )


def _why_none(choices: Sequence[Choice]) -> str:
    if not choices:
        return "A module's torch.nn.Linear and Conv1D layers are pruned, and this one has none."
    return f"'{choices[0].layer.name}', for one: {choices[0].why}."


def _statistics(method: Method, layer: TorchLayer) -> Norms | Hessian | None:
    if method == "magnitude":
        return None
    return (Norms if method == "wanda" else Hessian)(layer.k, layer.weight.device)


def _prune_layer(layer: TorchLayer, seen: _Seen | None, damping: float) -> PrunedLayer:
    torch = require("torch", _NEEDED_FOR)
    weight = layer.weight
    if not bool(weight.isfinite().all()):
        raise ModelError(f"the weight of '{layer.name}' holds values that are not finite.", "Check it.")
    try:
        with torch.no_grad():
            pruned, used = _prune_weight(weight, seen, damping)
    except InputError as error:
        raise InputError(f"'{layer.name}': {error.message}", error.hint) from error
    if not bool(pruned.weight.isfinite().all()) or not is_2to4(pruned.weight):
        raise ModelError(
            f"'{layer.name}' is not finite or not 2:4 after {used}.", "This is a bug: please report it."
        )
    difference = weight.float() - pruned.weight.float()
    output_error = None
    if seen and seen.samples:
        x = torch.cat(seen.samples).float()
        output_error = _ratio(x @ difference.t(), x @ weight.float().t())
    record = PrunedLayer(
        name=layer.name,
        kind=layer.kind,
        n=layer.n,
        k=layer.k,
        dtype=layer.dtype,
        method=used,
        rows=seen.rows if seen else 0,
        damping=pruned.damping,
        zeros=round(_zeros(pruned.weight) / weight.numel(), 6),
        pruned_before=seems_pruned(_zeros(weight), weight.numel()) and not is_2to4(weight),
        weight_error=_ratio(difference, weight.float()),
        output_error=output_error,
        mask_sha256=mask_hash(pruned.weight),
    )
    weight.copy_(pruned.weight)
    return record


def _prune_weight(weight: Tensor, seen: _Seen | None, damping: float) -> tuple[Pruned, Method]:
    statistics = seen.statistics if seen else None
    if isinstance(statistics, Norms):
        return prune_by_wanda(weight, statistics), "wanda"
    if isinstance(statistics, Hessian):
        return prune_by_sparsegpt(weight, statistics, damping), "sparsegpt"
    return prune_by_magnitude(weight), "magnitude"


def _zeros(weight: Tensor) -> int:
    """How many elements are zero."""
    return int((weight == 0).sum())


def _ratio(part: Tensor, whole: Tensor) -> float:
    """‖part‖ / ‖whole‖ to four digits; 0 for nothing of nothing."""
    size = float(whole.norm())
    return float(f"{float(part.norm()) / size:.4g}") if size else 0.0
