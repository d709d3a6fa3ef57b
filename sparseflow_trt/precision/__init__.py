"""Which layers FP16 holds, measured on the model's own inputs."""
