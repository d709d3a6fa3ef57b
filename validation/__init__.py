"""Compares what was built with the FP32 reference, through Polygraphy."""
