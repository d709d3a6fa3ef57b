"""This machine: its GPUs, their clocks, and CUDA's libraries."""
