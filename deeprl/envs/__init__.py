"""Environments: made by name, stepped for a whole population, saved and restored with its run."""
