"""The command line. Nothing is imported here: `deeprl --help` answers at once."""
