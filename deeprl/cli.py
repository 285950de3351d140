"""The command line, where the console scripts of earlier installations look for it."""

from deeprl.commands.main import main

__all__ = ["main"]
