"""TensorRT's API, whatever its version: options, types, caches, tactics again, weights exchanged."""
