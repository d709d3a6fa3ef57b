"""Reads ONNX files: their weighted layers, which weights each has, and whether these are 2:4."""
