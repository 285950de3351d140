"""A run: its loop, directory, checkpoints, logs. Nothing is imported here: `deeprl.run.progress` needs no torch."""
