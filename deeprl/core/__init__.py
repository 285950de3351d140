"""Tensors in, tensors out: random numbers, pytrees, optimizers, populations, and what they need of the process."""
