"""The layers of a PyTorch module that multiply by a weight, and which of them a policy or patterns take.

A layer is y[M, N] = x[M, K] · Wᵀ: torch.nn.Linear, or transformers' Conv1D (GPT-2), whose weight lies [K, N].
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparseflow_trt._deps import require
from sparseflow_trt._listing import did_you_mean, listed
from sparseflow_trt.errors import InputError, PolicyError
from sparseflow_trt.model import sites
from sparseflow_trt.model.kinds import kind_from_names
from sparseflow_trt.model.layer_names import is_named, is_pattern, why_left
from sparseflow_trt.policies.expected import VerdictBasis
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import judge
from sparseflow_trt.policies.plugin_lookup import judge_with_plugin
from sparseflow_trt.policies.policy import Dtype, Library, Policy
from sparseflow_trt.pytorch.torch_pattern import Tensor

_DTYPES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}
_NEEDED_FOR = "layers of PyTorch modules"


@dataclass(frozen=True)
class TorchLayer:
    """A layer with a weight.

    Attributes:
        name: Where it stands in the module, such as "model.layers.3.mlp.down_proj".
        module: The layer itself.
        kind: What it is in a network, see `kinds`.
        n: Its outputs.
        k: Its inputs.
        dtype: Of its weight, such as "FP16"; PyTorch's name for types that are not multiplied sparsely.
        shared_with: Another module with the same parameter, such as an embedding; "" where there is none.
    """

    name: str
    module: Any
    kind: str
    n: int
    k: int
    dtype: str
    shared_with: str = ""

    @property
    def weight(self) -> Tensor:
        """W[N, K], a view of the parameter: what is written to it is written to the layer."""
        weight = self.module.weight.detach()
        return weight.t() if is_conv1d(self.module) else weight


@dataclass(frozen=True)
class Choice:
    """A layer, whether it is taken, and why or why not.

    Attributes:
        m: At which a policy was asked; None where none was.
        basis: How the policy knows; None likewise.
    """

    layer: TorchLayer
    taken: bool
    why: str
    m: int | None = None
    basis: VerdictBasis | None = None


def find_layers(module: Any) -> tuple[TorchLayer, ...]:
    """The layers of a module in its own order; one that stands in several places is named once."""
    torch = require("torch", _NEEDED_FOR)
    owners: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    found = []
    for name, layer in module.named_modules():
        if not isinstance(layer, torch.nn.Linear) and not is_conv1d(layer):
            continue
        n, k = layer.weight.shape[::-1] if is_conv1d(layer) else layer.weight.shape
        shared = next((other for other in owners.get(id(layer.weight), ()) if other != name), "")
        kind = kind_from_names((name,), n, k)
        found.append(TorchLayer(name, layer, kind, n, k, dtype_of(layer.weight), shared))
    return tuple(found)


def find_others(module: Any) -> dict[str, str]:
    """Parts of a module with weights of their own that are no layer here, such as fused experts: name, why.

    Embeddings, which multiply nothing, are not among them.
    """
    torch = require("torch", _NEEDED_FOR)
    layers = (torch.nn.Linear, torch.nn.Embedding)
    return {
        name or "(the module itself)": f"it is a {type(part).__name__}, neither a Linear nor a Conv1D"
        for name, part in module.named_modules()
        if not isinstance(part, layers) and not is_conv1d(part)
        if any(parameter.dim() > 1 for parameter in part.parameters(recurse=False))
    }


def is_conv1d(layer: Any) -> bool:
    """Whether a layer is transformers' Conv1D, a Linear whose weight lies [K, N]."""
    made_by = sys.modules.get("transformers.pytorch_utils")  # no layer is one before that is imported
    return made_by is not None and isinstance(layer, made_by.Conv1D)


def dtype_of(weight: Tensor) -> str:
    """The type of a weight as policies call it, such as "FP16"."""
    name = str(weight.dtype).removeprefix("torch.")
    return _DTYPES.get(name, name)


def why_not_2to4(layer: TorchLayer) -> str:
    """Why a layer's weight cannot be pruned 2:4, "" where it can."""
    torch = require("torch", _NEEDED_FOR)
    weight = layer.module.weight
    if layer.dtype not in sites.SMALLEST_K:
        return f"no sparse tensor core product for {layer.dtype} weights"
    if weight.is_meta:
        return "its weight is not loaded (it is on PyTorch's meta device)"
    if torch.nn.utils.parametrize.is_parametrized(layer.module, "weight"):
        return "its weight is computed from others (a parametrization)"
    if layer.shared_with:
        return f"its weight is shared with '{layer.shared_with}'"
    return sites.why_not_2to4(layer.dtype, layer.k)


def rows_given(k: int, args: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """The rows that a call gives a Linear of K inputs, by position or as layer(input=x)."""
    return int((*args, *named.values())[0].numel()) // k


def record_rows(layers: Iterable[TorchLayer], run: Callable[[], object]) -> dict[str, int]:
    """M of each layer: the most rows of x that it gets in one call; a layer that is not called is left out.

    Args:
        layers: Of the module.
        run: Calls the module.
    """
    torch = require("torch", _NEEDED_FOR)
    rows: Counter[str] = Counter()

    def watch(layer: TorchLayer) -> Any:
        def hook(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            rows[layer.name] = max(rows[layer.name], rows_given(layer.k, args, named))

        return layer.module.register_forward_pre_hook(hook, with_kwargs=True)

    with contextlib.ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.callback(watch(layer).remove)
        run()
    return dict(rows)


def choose_by_name(
    layers: Sequence[TorchLayer], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[Choice, ...]:
    """Takes layers by patterns of their names; with no `include`, all but classifiers and adapters.

    A classifier (a language model's head) or an adapter is taken where a pattern of `include` names it.

    Args:
        layers: Those of a module.
        include: Globs such as "*.mlp.*"; none means every layer.
        exclude: Globs of those to leave alone. They go before `include`.

    Raises:
        InputError: A pattern matches no layer: a slip of the pen would prune what it was to protect.
    """
    for glob in (*include, *exclude):
        if not any(is_named((layer.name,), (glob,)) for layer in layers):
            names = [layer.name for layer in layers]
            hint = f"Its layers: {listed(names, 3) or 'none'}."
            hint = did_you_mean(glob, () if is_pattern(glob) else names, hint)
            raise InputError(f"'{glob}' matches no layer of the module.", hint)
    return tuple(_by_name(layer, include, exclude) for layer in layers)


def _by_name(layer: TorchLayer, include: Sequence[str], exclude: Sequence[str]) -> Choice:
    if why := why_not_2to4(layer):
        return Choice(layer, False, why)
    if why := why_left((layer.name,), layer.kind, include, exclude):
        return Choice(layer, False, why)
    return Choice(layer, True, "named" if include else "every layer is")


def judge_choices(
    choices: Sequence[Choice],
    policy: Policy,
    rows: int | Mapping[str, int],
    dtype: Dtype | None = None,
    library: Library = "tensorrt",
) -> tuple[Choice, ...]:
    """Of the layers taken so far, takes those that a policy runs sparse.

    Args:
        choices: What patterns took.
        policy: The times.
        rows: M, one for all or by the layer's name; a layer without is not taken.
        dtype: Of the products; None is each weight's own.
        library: Whose kernels will run, see `lookup.judge`.
    """
    return tuple(_by_policy(choice, policy, rows, dtype, library) for choice in choices)


def choose_by_policy(
    choices: Sequence[Choice],
    policy: Policy,
    rows: int | Mapping[str, int],
    dtype: Dtype | None = None,
    library: Library = "tensorrt",
) -> tuple[Choice, ...]:
    """What `judge_choices` takes, where that is anything.

    Args:
        choices: As there, like the others.
        policy: The times.
        rows: M.
        dtype: Of the products.
        library: Whose kernels will run.

    Raises:
        PolicyError: The policy takes no layer.
    """
    judged = judge_choices(choices, policy, rows, dtype, library)
    if not any(choice.taken for choice in judged):
        asked = [new.why for old, new in zip(choices, judged, strict=True) if old.taken]
        raise PolicyError(
            f"policy '{policy.name}' runs no layer of this module sparse{f': {asked[0]}' if asked else ''}.",
            "`sparseflow-trt policy ask` answers for one product; another M, type or policy may differ.",
        )
    return judged


def _by_policy(
    choice: Choice, policy: Policy, rows: int | Mapping[str, int], dtype: Dtype | None, library: Library
) -> Choice:
    layer = choice.layer
    if not choice.taken:
        return choice
    m = rows if isinstance(rows, int) else rows.get(layer.name, 0)
    if not m:
        return Choice(layer, False, "the module does not call it, so its M is not known")
    ask = judge_with_plugin if library == "tensorrt" else judge
    verdict = ask(policy, Gemm(layer.kind, layer.n, layer.k, dtype or layer.dtype), m, library)
    return Choice(layer, verdict.sparse, verdict.reason, m, verdict.basis)
