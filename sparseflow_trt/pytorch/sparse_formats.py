"""Sparse weights as other tools keep them, back as W[N, K] with zeros.

- compressed-tensors' sparse-24-bitmask (llm-compressor, until 0.12): the kept values [N, K/2], a bit for each
  place, and the shape.
- PyTorch's semi-structured tensors, which torchao's semi_sparse_weight makes: CUTLASS's values and metadata,
  or what cuSPARSELt packs, whose layout only that library knows.
- ModelOpt's sparsified modules: the weight as it was, with a mask beside it.
"""

from __future__ import annotations

from typing import Any, Literal

from sparseflow_trt._deps import require
from sparseflow_trt.errors import ModelError, NotInstalledError
from sparseflow_trt.model.pattern import GROUP, KEPT
from sparseflow_trt.pytorch.torch_pattern import Tensor, is_2to4

Form = Literal["sparse-24-bitmask", "semi-structured (CUTLASS)", "semi-structured (cuSPARSELt)", "modelopt"]

_NEEDED_FOR = "sparse checkpoints"
_HINT = "Write the checkpoint again with the tool that made it, or take the dense weights it was made from."


def decode_bitmask(name: str, compressed: Tensor, bitmask: Tensor, shape: Tensor) -> Tensor:
    """W[N, K] of compressed-tensors' three tensors.

    Args:
        name: Of the weight, for errors.
        compressed: [N, K/2], of a floating type or INT8: the kept values in the order of K.
        bitmask: [N, K/8 rounded up], uint8: bit i of byte b is the place 8·b + i.
        shape: N and K, integers of any shape.

    Raises:
        ModelError: They do not fit each other, or a group of four holds more or fewer than two places.
    """
    torch = require("torch", _NEEDED_FOR)
    sizes = shape.flatten().tolist() if not shape.is_floating_point() else []
    if len(sizes) != 2 or min(sizes) <= 0 or sizes[1] % GROUP:
        raise ModelError(f"'{name}': its shape is {sizes}, not [N, K] with K a multiple of four.", _HINT)
    n, k = sizes
    width = -(-k // 8)
    if tuple(compressed.shape) != (n, k // GROUP * KEPT) or tuple(bitmask.shape) != (n, width):
        raise ModelError(
            f"'{name}' is {n}×{k}: it needs values {n}×{k // GROUP * KEPT} and a bitmask {n}×{width}, "
            f"and has {list(compressed.shape)} and {list(bitmask.shape)}.",
            _HINT,
        )
    if bitmask.dtype != torch.uint8:
        raise ModelError(f"'{name}': its bitmask is {bitmask.dtype}, not torch.uint8.", _HINT)
    bits = torch.arange(8, dtype=torch.uint8)
    places = ((bitmask.unsqueeze(-1) >> bits) & 1).bool().reshape(n, width * 8)[:, :k]
    wrong = int((places.reshape(-1, GROUP).sum(-1) != KEPT).sum())
    if wrong:
        raise ModelError(
            f"'{name}': {wrong} of {n * k // GROUP} groups of four do not have two places in the bitmask.",
            _HINT,
        )
    weight = torch.zeros(n, k, dtype=compressed.dtype)
    return weight.masked_scatter_(places, compressed)


def form_of(tensor: Any) -> Form | None:
    """How a tensor of PyTorch's semi-structured classes is kept; None for any other."""
    torch = require("torch", _NEEDED_FOR)
    if isinstance(tensor, torch.sparse.SparseSemiStructuredTensorCUTLASS):
        return "semi-structured (CUTLASS)"
    if isinstance(tensor, torch.sparse.SparseSemiStructuredTensorCUSPARSELT):
        return "semi-structured (cuSPARSELt)"
    return None


def decode_semi_structured(name: str, tensor: Any) -> Tensor:
    """W[N, K] of a semi-structured tensor, on the CPU.

    Args:
        name: Of the weight, for errors.
        tensor: One of PyTorch's two classes, as it was saved.

    Raises:
        ModelError: Its parts do not fit each other.
        NotInstalledError: It is cuSPARSELt's, and there is no GPU with that library.
    """
    for part in ("packed", "meta"):
        if not hasattr(tensor, part):
            raise ModelError(f"'{name}' is a {type(tensor).__name__} without its parts.", _HINT)
    if tensor.packed is None:
        raise ModelError(f"'{name}' holds only its transpose (as in training): it has no W[N, K].", _HINT)
    if tensor.dim() != 2:
        raise ModelError(f"'{name}' has the shape {list(tensor.shape)}, not [N, K].", _HINT)
    if form_of(tensor) == "semi-structured (CUTLASS)":
        return _decode_cutlass(name, tensor)
    return _decode_cusparselt(name, tensor)


def _decode_cutlass(name: str, tensor: Any) -> Tensor:
    torch = require("torch", _NEEDED_FOR)
    from torch.sparse import _semi_structured_conversions as conversions

    n, k = tensor.shape
    if tensor.meta is None or tuple(tensor.packed.shape) != (n, k // GROUP * KEPT):
        raise ModelError(
            f"'{name}' is {n}×{k}, and its packed values are {list(tensor.packed.shape)}.", _HINT
        )
    packed = tensor.packed.cpu().contiguous()
    # as integers: halves of an FP32 value that happen to be an FP16 NaN do not survive PyTorch's scatter
    bits = packed if packed.dtype == torch.int8 else packed.view(torch.int16)
    try:
        weight = conversions.sparse_semi_structured_to_dense_cutlass(bits, tensor.meta.cpu()).view(
            packed.dtype
        )
    except RuntimeError as error:
        raise ModelError(f"'{name}': its values and metadata do not fit: {error}.", _HINT) from error
    if int(torch.count_nonzero(weight)) != int(torch.count_nonzero(packed)):
        raise ModelError(f"'{name}': its metadata names a place twice.", _HINT)
    return weight


def _decode_cusparselt(name: str, tensor: Any) -> Tensor:
    torch = require("torch", _NEEDED_FOR)
    if not torch.cuda.is_available() or not torch.backends.cusparselt.is_available():
        raise NotInstalledError(
            f"'{name}' is packed as cuSPARSELt keeps it, and only that library on a GPU unpacks it.",
            "Load it on a GPU of the same kind, with the PyTorch that packed it.",
        )
    n, k = tensor.shape
    least = n * k // GROUP * KEPT
    if tensor.packed.numel() < least:
        raise ModelError(
            f"'{name}' is {n}×{k}, and has {tensor.packed.numel()} packed elements for {least} values.", _HINT
        )
    try:
        ones = torch.eye(k, dtype=tensor.dtype, device="cuda").t()  # INT8 products take only this layout
        weight = torch._cslt_sparse_mm(tensor.packed.cuda(), ones, transpose_result=True).t().cpu()
    except RuntimeError as error:
        words = str(error).splitlines()[0]
        raise ModelError(f"'{name}': cuSPARSELt does not unpack it: {words}.", _HINT) from error
    if tuple(weight.shape) != (n, k):
        raise ModelError(f"'{name}' is {n}×{k}, and unpacks to {list(weight.shape)}.", _HINT)
    return weight


def decode_modelopt(name: str, weight: Tensor, mask: Tensor) -> Tensor:
    """W[N, K] of ModelOpt's weight and the mask of what it keeps.

    Raises:
        ModelError: The mask has another shape, or is not one of true and false.
    """
    torch = require("torch", _NEEDED_FOR)
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise ModelError(
            f"'{name}' is {list(weight.shape)}, and its mask is {mask.dtype} of {list(mask.shape)}.", _HINT
        )
    return weight.masked_fill(~mask, 0)


def check_2to4(name: str, weight: Tensor) -> None:
    """Refuses a weight W[N, K] that is not 2:4.

    Raises:
        ModelError: It is not.
    """
    if weight.dim() != 2 or not is_2to4(weight):
        raise ModelError(
            f"'{name}' is not 2:4 along K, which its checkpoint says it is.",
            "It was changed after it was pruned: prune it again, or leave it out of the sparse layers.",
        )
