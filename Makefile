# Two commands do everything on a fresh machine with Python 3.11 or later: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test lint types fast peers clean

demo: .venv/core
	$(BIN)/deeprl sweep benchmarks/sweeps/demo.toml

test: lint types .venv/dev
	$(BIN)/python -m pytest -m "not compiled"
	DEEPRL_SHAPE_CHECKS=0 $(BIN)/python -m pytest -m compiled

fast: .venv/dev  ## without the learning runs and the compiled graphs
	$(BIN)/python -m pytest -m "not slow and not compiled"

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/core: .venv/bin/python setup.cfg constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

.venv/dev: .venv/core
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .peers build *.egg-info .mypy_cache .ruff_cache .pytest_cache
