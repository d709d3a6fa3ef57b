"""PyTorch modules on cuSPARSELt: products, layers swapped by a policy, where a module's time goes."""
