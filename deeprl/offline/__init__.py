"""Offline algorithms: they learn from a fixed data set."""
