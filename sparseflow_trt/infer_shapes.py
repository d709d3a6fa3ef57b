"""onnx's inference of types and shapes, without its traceback where it fails."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def infer_shapes(model: ir.Model) -> None:
    """Adds types and shapes that the file does not say and onnx can tell; a failure leaves them unknown."""
    from onnx_ir.passes.common import ShapeInferencePass

    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
    before, logger.disabled = logger.disabled, True  # what stays unknown is said of each layer
    try:
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
    finally:
        logger.disabled = before
