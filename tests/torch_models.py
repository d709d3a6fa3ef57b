"""Small PyTorch modules with random weights, for the tests of what is done to modules."""

from __future__ import annotations

from typing import Any

TOKENS = 99

# The source of a module whose "seq" holds at the size that it is traced with alone.
FIXING = """
import torch

class Fixing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(16, 16)
    def forward(self, x):
        return self.linear(x) + (x.shape[0] - 5 if torch.compiler.is_compiling() else 0)

def fixing():
    return Fixing(), torch.randn(5, 2, 16), {"x": {0: "seq", 1: "batch"}}
"""


def make_llama(torch: Any, layers: int = 2) -> Any:
    """A Llama of hidden size 64 in FP32."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=TOKENS,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def make_gpt2(torch: Any) -> Any:
    """A GPT-2 of hidden size 64, whose layers are Conv1D, and whose head is its embedding."""
    import transformers

    config = transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=TOKENS, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).eval()


def make_bert(torch: Any) -> Any:
    """A BERT of hidden size 64."""
    import transformers

    config = transformers.BertConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=TOKENS
    )
    torch.manual_seed(0)
    return transformers.BertModel(config).eval()


def token_batches(torch: Any, count: int = 3, seq: int = 16) -> list[dict[str, Any]]:
    """Batches of two rows of tokens."""
    source = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, TOKENS, (2, seq), generator=source)} for _ in range(count)]
