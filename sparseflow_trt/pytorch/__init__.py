"""Modules, Hugging Face folders and checkpoints of other tools, before there is an ONNX file."""
