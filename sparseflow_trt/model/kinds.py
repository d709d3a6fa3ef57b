"""The kind of a weighted layer (gate_up, down, qkv, …), which policies give thresholds for."""

from __future__ import annotations

import re

from sparseflow_trt._listing import did_you_mean

KINDS = ("gate_up", "down", "qkv", "o", "ffn", "conv", "classifier", "adapter", "other")

# A last layer has no module around it: the `fc` of a ResNet, the `head` of a ViT, Whisper's `proj_out`; or it
# is the head's of a model of timm. Inside of other modules these words mean other things.
_LAST = re.compile(r"^/?(fc|head|heads?[./](head|fc)|embed_out|proj_out)(/[^/]*|\.weight)?$")

# Read in this order; the first that matches the module, weight or node name says the kind. Nodes that
# TorchScript's exporter names have slashes in place of the dots.
_KINDS = [
    (kind, re.compile(rf"(^|[._])({words})([._0-9]|$)", re.IGNORECASE))
    for kind, words in (
        # first: an adapter's name holds that of the layer it is beside
        ("adapter", r"lora_[AB]|lora_(down|up)|lora_linear_layer"),
        # routers of experts, and projections into a space of two models: neither is one of the kinds
        ("other", r"(mlp|moe)\.gate(?!_)|router|(visual|text)_projection"),
        ("classifier", r"lm_head|classifier|score"),
        # RWKV's feed_forward has a key and a value, too: its up and down
        ("qkv", r"[qkv]_proj|qkv(_proj)?|query_key_value|query|(?<!feed_forward\.)(key|value)|c_attn"
                r"|in_proj(_weight)?|Wqkv|[qkv]_lin|SelfAttention\.[qkv]|EncDecAttention\.[qkv]|attn\.[qkv]|(attention|attn)\.w[qkv]"
                r"|to_(q|k|v|kv|qkv)"),
        ("o", r"o_proj|out_proj|out_lin|attention\.output(\.dense)?|attn\.c_proj"
              r"|(SelfAttention|EncDecAttention)\.o|attention\.dense"
              r"|self_attn\.dense|attn\.proj|(attention|attn)\.wo|to_(add_)?out"),
        ("gate_up", r"gate_up_proj|gate_proj|up_proj|pwconv1|intermediate[._]dense|dense_h_to_4h|fc1|fc_in"
                    r"|c_fc|ff(_context)?\.net\.0\.proj|lin1|linear1|wi(_\d)?|experts.*\.w[13]"
                    r"|feed_forward\.(w[13]|key)"),
        ("down", r"down_proj|pwconv2|output[._]dense|dense_4h_to_h|fc2|fc_out|mlp\.c_proj|lin2|linear2"
                 r"|ff(_context)?\.net\.2|(DenseReluDense|mlp)\.wo|experts.*\.w2|feed_forward\.(w2|value)"),
    )
]  # fmt: skip
# Says where a layer is, not which one it is: asked where no name says more.
_FFN = re.compile(r"(^|[._])(mlp|ffn|feed_forward)([._0-9]|$)", re.IGNORECASE)
# torch's own exporters name nn.MultiheadAttention's fused product after the module alone.
_ATTENTION = re.compile(r"(^|[._])(attn|attention)(\.(MatMul|Gemm))?$", re.IGNORECASE)


def known_kind(kind: str) -> str:
    """The kind, where it is one of them.

    Raises:
        ValueError: It is not.
    """
    if kind not in KINDS:
        known = did_you_mean(kind, KINDS, f"Known: {', '.join(KINDS)}")
        raise ValueError(f"'{kind}' is not a kind of layer. {known}")
    return kind


def kind_from_names(names: tuple[str, ...], n: int, k: int) -> str:
    """The kind that the first telling name says; where none does, the ratio N/K (0 where unknown) decides."""
    dotted = [name.replace("/", ".") for name in names]
    for name, dots in zip(names, dotted, strict=True):
        if _LAST.search(name):
            return "classifier"
        for kind, words in _KINDS:
            if words.search(dots):
                return kind
    if any(map(_FFN.search, dotted)):
        return "ffn"
    if n > k > 0 and any(map(_ATTENTION.search, dotted)):
        return "qkv"
    if not n or not k:
        return "other"
    return "gate_up" if n >= 2 * k else "down" if k >= 2 * n else "other"
