"""What a release of TensorRT needs of a graph: an older opset, things written out, sparsity off."""
