"""Online algorithms: they learn from an environment as they act in it."""
