"""The kind of a weighted layer (gate_up, down, qkv, …), which policies give thresholds for."""

from __future__ import annotations

import re

KINDS = ("gate_up", "down", "qkv", "o", "ffn", "conv", "classifier", "other")

# Read in this order; the first that matches the module, weight or node name says the kind.
_KINDS = [
    (kind, re.compile(rf"(^|[./_])({words})([./_0-9]|$)", re.IGNORECASE))
    for kind, words in (
        ("classifier", r"lm_head|classifier|score"),
        ("qkv", r"[qkv]_proj|qkv(_proj)?|query_key_value|query|key|value|c_attn|in_proj(_weight)?|Wqkv"
                r"|[qkv]_lin|SelfAttention\.[qkv]|EncDecAttention\.[qkv]|attn\.[qkv]"),
        ("o", r"o_proj|out_proj|out_lin|attention\.output\.dense|attn\.c_proj"
              r"|(SelfAttention|EncDecAttention)\.o|attention\.dense|attn\.proj"),
        ("gate_up", r"gate_up_proj|gate_proj|up_proj|intermediate\.dense|dense_h_to_4h|fc1|fc_in|c_fc|lin1"
                    r"|linear1|wi(_\d)?|experts.*\.w[13]|feed_forward\.w[13]"),
        ("down", r"down_proj|output\.dense|dense_4h_to_h|fc2|fc_out|mlp\.c_proj|lin2|linear2"
                 r"|DenseReluDense\.wo|experts.*\.w2|feed_forward\.w2"),
        ("ffn", r"mlp|ffn|feed_forward"),
    )
]  # fmt: skip


def kind_from_names(names: tuple[str, ...], n: int, k: int) -> str:
    """The kind that the first telling name says; where none does, the ratio N/K (0 where unknown) decides."""
    for name in names:
        for kind, words in _KINDS:
            if name and words.search(name):
                return kind
    if not n or not k:
        return "other"
    return "gate_up" if n >= 2 * k else "down" if k >= 2 * n else "other"
