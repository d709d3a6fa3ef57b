"""Anything to ONNX, ONNX to ONNX: pruning and the rewriting that makes a graph mean its plan."""
