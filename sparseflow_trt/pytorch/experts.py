"""Mixtures of experts as products with constant weights: every expert on every token, weighed by route."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

_NAME = "sparseflow_every_expert"


def use_every_expert(config: Any) -> None:
    """Lets a model that is made of a configuration run every expert on every token.

    A route that gathers weights or groups tokens has shapes that depend on values, and no weight that an
    engine could hold as 2:4. This costs experts / experts a token times the products; nothing else changes:
    what is not chosen is multiplied by zero.

    Args:
        config: Of the model, which is told to use them. transformers before 5 has no such experts, and
            runs as it does.
    """
    if not _has_experts(config):
        return
    with contextlib.suppress(ImportError):
        moe = importlib.import_module("transformers.integrations.moe")
        moe.ALL_EXPERTS_FUNCTIONS.register(_NAME, _forward)
        config._experts_implementation = _NAME


def _has_experts(config: Any) -> bool:
    return any(getattr(config, name, 0) for name in ("num_local_experts", "num_experts", "n_routed_experts"))


def _forward(self: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
    """hidden_states [tokens, K], top_k_index and top_k_weights [tokens, k] → [tokens, K]."""
    import torch

    routes = torch.nn.functional.one_hot(top_k_index, self.num_experts).to(top_k_weights.dtype)
    weights = (routes * top_k_weights.unsqueeze(-1)).sum(1)  # [tokens, experts]
    name = "gate_up_proj" if self.has_gate else "up_proj"
    made = _products(self, name, hidden_states.unsqueeze(0))
    made = self._apply_gate(made) if self.has_gate else self.act_fn(made)
    made = _products(self, "down_proj", made)
    if self.has_post_expert_norm:
        made = self.post_expert_norm(made)
    summed = (made * weights.t().unsqueeze(-1)).sum(0)
    return summed.to(hidden_states.dtype)


def _products(self: Any, name: str, tokens: Any) -> Any:
    """One product for each expert: [experts, tokens, N]."""
    import torch

    weight = getattr(self, name)  # [experts, N, K], or [experts, K, N] where it is transposed
    made = torch.matmul(tokens, weight if self.is_transposed else weight.transpose(1, 2))
    return made + getattr(self, f"{name}_bias").unsqueeze(1) if self.has_bias else made
