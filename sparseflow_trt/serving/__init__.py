"""Artifacts on Triton: deployed, and verified against a real server."""
