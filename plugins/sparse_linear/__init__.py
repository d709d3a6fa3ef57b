"""The C++ sources of the 2:4 linear plugin, for `sparseflow-trt plugin build`."""
