"""Why no layer of a module became sparse, and what to do about it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sparseflow_trt._user_code import function_stem
from sparseflow_trt.engines.measuring.time_torch import DTYPES
from sparseflow_trt.engines.torch_kernels.sparsify import ATTENTION, is_asked_for
from sparseflow_trt.engines.torch_kernels.torch_sparse import NOT_2TO4
from sparseflow_trt.errors import InputError
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import FAR, sparse_ranges
from sparseflow_trt.policies.policy import Policy
from sparseflow_trt.pytorch.hugging_face import holds_weights
from sparseflow_trt.pytorch.torch_layers import Choice, TorchLayer

_MOST_REASONS = 3


def nothing_sparse(
    source: str, choices: Sequence[Choice], policy: Policy, rows: Mapping[str, int], attention: bool
) -> InputError:
    """The error of a module that stays dense: for how many layers each reason holds, and what to do.

    Args:
        source: The module, as it was given.
        choices: Its layers, none of them taken, with the reasons.
        policy: Picked them.
        rows: M by the layer's name.
        attention: Whether attention's projections were asked for.
    """
    asked = [choice for choice in choices if is_asked_for(choice.layer, attention)]
    others = [choice for choice in choices if not is_asked_for(choice.layer, attention)]
    reasons = sorted(_count_reasons(asked), key=lambda counted: counted[0] != NOT_2TO4)
    reasons += _count_reasons(others)
    said = [f"{count} layer{'s' * (count > 1)}: {why}" for why, count in reasons[:_MOST_REASONS]]
    if more := sum(count for _, count in reasons[_MOST_REASONS:]):
        said.append(f"{more} more layer{'s' * (more > 1)}: other reasons")
    why = "; ".join(said) or "it has no Linear layer"
    return InputError(
        f"{source}: no layer was made sparse; {why}.", _what_to_do(source, choices, asked, policy, rows)
    )


def _count_reasons(choices: Iterable[Choice]) -> list[tuple[str, int]]:
    return Counter(choice.why for choice in choices).most_common()


def _what_to_do(
    source: str,
    choices: Sequence[Choice],
    asked: Sequence[Choice],
    policy: Policy,
    rows: Mapping[str, int],
) -> str:
    layers = [choice.layer for choice in asked]
    if not layers and any(choice.layer.kind in ATTENTION for choice in choices):
        return "Ask for attention's projections with --attention."
    if any(choice.why == NOT_2TO4 for choice in asked):
        return _how_to_prune(source)
    if layers and not (layers := [layer for layer in layers if rows.get(layer.name)]):
        return "The module calls none of these layers on its inputs: give others."
    if layers and not (layers := [layer for layer in layers if layer.dtype in DTYPES]):
        return "cuSPARSELt takes FP16 and BF16: give the module in one of them (of a folder: --dtype)."
    if (nearest := _nearest_win(layers, policy, rows)) and nearest[1] != rows[nearest[0]]:
        name, m = nearest
        return (
            f"Policy '{policy.name}' runs '{name}' sparse at M={m}, but these inputs make it M={rows[name]}: "
            "choose others (of a folder: --batch and --seq)."
        )
    if layers and not nearest:
        return (
            f"By policy '{policy.name}' none of these layers runs sparse at any M: choose another policy or "
            "type, or measure one with `sparseflow-trt autotune MODEL.onnx --library torch --dtype "
            f"{layers[0].dtype.lower()}`."
        )
    return "Layers that can be sparse are plain Linear ones: no hooks, N and K that are multiples of 16."


def _how_to_prune(source: str) -> str:
    path = Path(source)
    if not path.exists():
        return (
            f"Prune it with `sparseflow-trt prune {shlex.quote(source)}`, and let the function load what "
            f"that writes, {function_stem(source)}.2to4.safetensors, with `load_checkpoint`."
        )
    folder = path if path.is_dir() else path.parent
    prune = f"`sparseflow-trt prune {shlex.quote(str(folder))}`"
    written = f"{folder.resolve().name}.2to4"
    if holds_weights(folder):
        return f"Prune it with {prune}, and profile what that writes, {written}."
    return (
        f"{folder} holds no weights, and random ones are not 2:4: put the checkpoint there, prune it with "
        f"{prune}, and profile what that writes, {written}."
    )


def _nearest_win(
    layers: Iterable[TorchLayer], policy: Policy, rows: Mapping[str, int]
) -> tuple[str, int] | None:
    """A layer and the M at which the policy runs it sparse, the nearest by ratio to the M that it has."""
    wins = [
        (max(now, m) / min(now, m), layer.name, m)
        for layer in layers
        for now in (rows[layer.name],)
        for low, high, sparse in sparse_ranges(
            policy, Gemm(layer.kind, layer.n, layer.k, layer.dtype), 1, FAR, "torch"
        )
        if sparse
        for m in (min(max(now, low), high),)
    ]
    return min(wins)[1:] if wins else None
