"""Datasets that others recorded: reading them, checking them, learning from them."""
