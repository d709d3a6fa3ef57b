"""Anything to ONNX, ONNX to ONNX (pruned, or rewritten to mean its plan), artifacts to Triton."""
