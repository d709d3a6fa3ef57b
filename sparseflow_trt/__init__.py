"""2:4-sparse models to TensorRT: which layers are sparse, why or why not, measured."""

__version__ = "0.1.0"
