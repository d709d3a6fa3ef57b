"""TensorRT's API, whatever its version: its log, options, types, caches, tactics again, weights exchanged."""
