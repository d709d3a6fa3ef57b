"""Triton's model repository: configuration, versions, templates of model.py, Docker, Kubernetes."""
