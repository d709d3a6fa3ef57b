"""Pieces of work that take turns on a GPU, and how many inputs exceed its cache."""
