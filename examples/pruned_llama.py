"""A LLaMA of TinyLlama-1.1B's sizes with random weights, its MLPs pruned 2:4: to time without a checkpoint.

sparseflow-trt profile examples/pruned_llama.py:make --policy h200 --sparsify
"""

from __future__ import annotations

from typing import Any

TOKENS = 1024


def make() -> tuple[Any, dict[str, Any]]:
    """The module in FP16 and one sequence of TOKENS tokens, on the GPU where there is one."""
    return _make(layers=22)


def make_one_layer() -> tuple[Any, dict[str, Any]]:
    """The same with one layer of the 22, to try on a CPU."""
    return _make(layers=1)


def _make(layers: int) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sparseflow_trt import choose_by_name, find_layers, prune_module

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=4, vocab_size=32000,
        max_position_embeddings=2048, rms_norm_eps=1e-5, dtype="float16",
    )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        module = LlamaForCausalLM(config).half().eval()
    prune_module(module, "magnitude", choices=choose_by_name(find_layers(module), include=("*.mlp.*",)))
    return module, {"input_ids": torch.randint(0, config.vocab_size, (1, TOKENS), device=device)}
