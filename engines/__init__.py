"""Backends that turn a typed ONNX model into an engine, behind one protocol."""
