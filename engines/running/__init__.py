"""Engines that run: inputs and outputs on the device, CUDA graphs, interleaved timing."""
