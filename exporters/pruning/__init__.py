"""Weights pruned 2:4: of ONNX files and of PyTorch modules, with calibration; and taken back where asked."""
