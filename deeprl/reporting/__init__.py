"""Run directories read back: tables, curves, the report. Not named results: `deeprl.results` is a function."""
