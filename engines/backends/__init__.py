"""What builds engines: TensorRT, TensorRT-RTX and the ONNX Runtime, each build in a process of its own."""
