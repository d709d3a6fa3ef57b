"""The matrix products of well-known models, so that a policy can be measured without their weights.

Sizes are those of the models' own configurations (config.json on Hugging Face), named beside each.
Attention scores, embeddings and the language model's head have no place here: the first have no weights,
and the others are rarely pruned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparseflow_trt.errors import PolicyError


@dataclass(frozen=True, order=True)
class Product:
    """y[M, N] = x[M, K] · Wᵀ with weights W[N, K], of a layer of `kind` (see `kinds`)."""

    kind: str
    n: int
    k: int


@dataclass(frozen=True)
class _Transformer:
    """The sizes of one block; `gated` is an MLP with gate and up (SwiGLU), else it has up alone."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    gated: bool
    own_head: int = 0  # where a head is not hidden/heads wide

    @property
    def head(self) -> int:
        return self.own_head or self.hidden // self.heads


_PRESETS = {
    # meta-llama/Llama-2-7b-hf: hidden 4096, intermediate 11008, 32 heads, no grouped queries
    "llama-7b": _Transformer(4096, 11008, 32, 32, gated=True),
    # meta-llama/Llama-3.1-8B: hidden 4096, intermediate 14336, 32 heads, 8 key-value heads
    "llama-8b": _Transformer(4096, 14336, 32, 8, gated=True),
    # meta-llama/Llama-3.1-70B: hidden 8192, intermediate 28672, 64 heads, 8 key-value heads
    "llama-70b": _Transformer(8192, 28672, 64, 8, gated=True),
    # TinyLlama/TinyLlama-1.1B-Chat-v1.0: hidden 2048, intermediate 5632, 32 heads, 4 key-value heads
    "tinyllama": _Transformer(2048, 5632, 32, 4, gated=True),
    # meta-llama/Llama-3.2-3B: hidden 3072, intermediate 8192, 24 heads, 8 key-value heads
    "llama-3b": _Transformer(3072, 8192, 24, 8, gated=True),
    # meta-llama/Llama-2-13b-hf: hidden 5120, intermediate 13824, 40 heads, no grouped queries
    "llama-13b": _Transformer(5120, 13824, 40, 40, gated=True),
    # Qwen/Qwen2.5-7B: hidden 3584, intermediate 18944, 28 heads, 4 key-value heads
    "qwen2.5-7b": _Transformer(3584, 18944, 28, 4, gated=True),
    # Qwen/Qwen2.5-32B: hidden 5120, intermediate 27648, 40 heads, 8 key-value heads
    "qwen2.5-32b": _Transformer(5120, 27648, 40, 8, gated=True),
    # Qwen/Qwen2.5-14B: hidden 5120, intermediate 13824, 40 heads, 8 key-value heads
    "qwen2.5-14b": _Transformer(5120, 13824, 40, 8, gated=True),
    # Qwen/Qwen3-8B: hidden 4096, intermediate 12288, 32 heads, 8 key-value heads
    "qwen3-8b": _Transformer(4096, 12288, 32, 8, gated=True),
    # mistralai/Mistral-Nemo-Base-2407: hidden 5120, intermediate 14336, 32 heads of 128, 8 key-value heads
    "mistral-nemo": _Transformer(5120, 14336, 32, 8, gated=True, own_head=128),
    # google/gemma-2-9b: hidden 3584, intermediate 14336, 16 heads of 256, 8 key-value heads
    "gemma-2-9b": _Transformer(3584, 14336, 16, 8, gated=True, own_head=256),
    # microsoft/Phi-3-mini-4k-instruct: hidden 3072, intermediate 8192, 32 heads, no grouped queries
    "phi-3-mini": _Transformer(3072, 8192, 32, 32, gated=True),
    # Qwen/Qwen3-14B: hidden 5120, intermediate 17408, 40 heads of 128, 8 key-value heads
    "qwen3-14b": _Transformer(5120, 17408, 40, 8, gated=True),
    # Qwen/Qwen3-32B: hidden 5120, intermediate 25600, 64 heads of 128, 8 key-value heads
    "qwen3-32b": _Transformer(5120, 25600, 64, 8, gated=True, own_head=128),
    # Qwen/Qwen2.5-72B: hidden 8192, intermediate 29568, 64 heads, 8 key-value heads
    "qwen2.5-72b": _Transformer(8192, 29568, 64, 8, gated=True),
    # google/gemma-2-27b: hidden 4608, intermediate 36864, 32 heads of 128, 16 key-value heads
    "gemma-2-27b": _Transformer(4608, 36864, 32, 16, gated=True, own_head=128),
    # microsoft/phi-4: hidden 5120, intermediate 17920, 40 heads, 10 key-value heads
    "phi-4": _Transformer(5120, 17920, 40, 10, gated=True),
    # 01-ai/Yi-34B: hidden 7168, intermediate 20480, 56 heads, 8 key-value heads
    "yi-34b": _Transformer(7168, 20480, 56, 8, gated=True),
    # bigcode/starcoder2-15b: hidden 6144, intermediate 24576, 48 heads, 4 key-value heads
    "starcoder2-15b": _Transformer(6144, 24576, 48, 4, gated=False),
    # google-bert/bert-base-uncased: hidden 768, intermediate 3072, 12 heads
    "bert-base": _Transformer(768, 3072, 12, 12, gated=False),
    # google-bert/bert-large-uncased: hidden 1024, intermediate 4096, 16 heads
    "bert-large": _Transformer(1024, 4096, 16, 16, gated=False),
    # google/vit-base-patch16-224: hidden 768, intermediate 3072, 12 heads
    "vit-b": _Transformer(768, 3072, 12, 12, gated=False),
}

PRESETS = tuple(_PRESETS)


def _shares(model: _Transformer) -> str:
    both = math.gcd(model.heads, model.intermediate)
    return ", ".join(str(gpus) for gpus in range(2, both + 1) if both % gpus == 0)


def products_of_preset(name: str, tensor_parallel: int = 1) -> tuple[Product, ...]:
    """The products of one block of a named model on one of `tensor_parallel` GPUs.

    Queries, keys and values are given joined and apart, and so are gate and up: which of them a network
    runs is up to what serves it. A GPU of several has its share of the heads and of the intermediate size
    (Shoeybi et al., Megatron-LM, 2019): qkv and gate_up are split by their outputs, o and down by their
    inputs. Where there are more GPUs than key-value heads, each has one of them whole.

    Args:
        name: One of PRESETS.
        tensor_parallel: How many GPUs share each layer.

    Returns:
        Each product once, in the order of the block.

    Raises:
        PolicyError: There is no such preset, or its heads or its intermediate size cannot be shared so.
    """
    if name not in _PRESETS:
        hint = f"Choose one of: {', '.join(PRESETS)}."
        raise PolicyError(f"there is no preset '{name}'.", hint, usage=True)
    model = _PRESETS[name]
    for what, size in (("attention heads", model.heads), ("intermediate size", model.intermediate)):
        if tensor_parallel < 1 or size % tensor_parallel:
            raise PolicyError(
                f"{name} cannot be shared by {tensor_parallel} GPUs: {what} {size} is no multiple of that.",
                f"Choose one of: --tensor-parallel {_shares(model)}.",
                usage=True,
            )
    if max(model.kv_heads, tensor_parallel) % min(model.kv_heads, tensor_parallel):
        raise PolicyError(
            f"{name} cannot be shared by {tensor_parallel} GPUs: it has {model.kv_heads} key-value heads.",
            "Choose a divisor or a multiple of that.",
            usage=True,
        )
    query = model.heads // tensor_parallel * model.head
    key = max(1, model.kv_heads // tensor_parallel) * model.head
    inner = model.intermediate // tensor_parallel
    products = [
        Product("qkv", query + 2 * key, model.hidden),
        Product("qkv", query, model.hidden),
        Product("qkv", key, model.hidden),
        Product("o", model.hidden, query),
        Product("gate_up", inner, model.hidden),
        *([Product("gate_up", 2 * inner, model.hidden)] if model.gated else []),
        Product("down", model.hidden, inner),
    ]
    return tuple(dict.fromkeys(products))
