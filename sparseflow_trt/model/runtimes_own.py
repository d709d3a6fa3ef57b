"""ONNX Runtime's own operators that multiply by a weight, and what to do with a file that has some."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

RUNTIMES_DOMAIN = "com.microsoft"
_LAID_OUT = "com.microsoft.nchwc"  # ONNX's operators on tensors in blocks of channels, as its CPU wants them
# What the optimiser makes of ONNX's operators: the file from before it has those.
_FUSED = (
    "Attention", "FusedConv", "FusedGemm", "FusedMatMul", "FusedMatMulActivation", "GemmFastGelu",
    "LongformerAttention", "NhwcConv", "NhwcFusedConv", "PackedAttention", "TransposeMatMul",
)  # fmt: skip
_MULTIPLY = (
    *_FUSED, "AttnLSTM", "CausalConvWithState", "ConvTransposeWithDynamicPads", "DecoderAttention",
    "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "GemmFloat8", "MatMulBlockQuantizedFp4Weight",
    "MatMulBlockQuantizedFp8Weight", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger16", "MatMulIntegerToFloat",
    "MatMulNBitsMlp", "MatMulNBitsQkv", "MoE", "QAttention", "QGemm", "QMoE", "QOrderedAttention",
    "QOrderedLongformerAttention", "QOrderedMatMul", "SparseToDenseMatMul", "WordConvEmbedding",
)  # fmt: skip

BEFORE_OPTIMISER = "give the file from before ONNX Runtime's optimiser"


def is_runtimes_own(node: ir.Node) -> bool:
    """Whether a node's operator is one of ONNX Runtime's, which other runtimes do not have."""
    return node.domain in (RUNTIMES_DOMAIN, _LAID_OUT)


def multiplies(node: ir.Node) -> bool:
    """Whether an operator of ONNX Runtime's own, other than those named as ONNX's are, may have a weight."""
    if node.domain == _LAID_OUT:
        return node.op_type == "Conv"
    return node.domain == RUNTIMES_DOMAIN and node.op_type in _MULTIPLY


def is_fused(node: ir.Node) -> bool:
    """Whether ONNX Runtime's optimiser made a node that multiplies of one of ONNX's."""
    return node.domain == _LAID_OUT or (node.domain == RUNTIMES_DOMAIN and node.op_type in _FUSED)


def operator_of(node: ir.Node) -> str:
    """What a node's operator is called beside ONNX's: the one laid out in blocks is no Conv of ONNX's."""
    return f"nchwc.{node.op_type}" if node.domain == _LAID_OUT else node.op_type
