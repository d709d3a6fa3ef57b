"""What a model gets: each layer's precision and kernel with the reason, and the optimization profiles."""
