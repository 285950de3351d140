# Two commands do everything on a fresh machine with Python 3.11 or later: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= passive
# Where it is set, each of the tests' hundred processes reads all modules and assertions anew: 30 s.
unexport PYTHONDONTWRITEBYTECODE
# Processes of tests at the same time, of one thread each.
WORKERS ?= 2

.PHONY: demo test test-all lint types fast peers environments clean

demo: .venv/core  ## the main job: a sweep on real environments, with its report
	$(BIN)/deeprl sweep benchmarks/sweeps/demo.toml

test test-all: export OMP_NUM_THREADS = 1
test-all: export DEEPRL_TEST_COMPILER = inductor
test: .venv/dev  ## everything; most compiled graphs are run as they are
	$(call checked,$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder)

test-all: .venv/dev  ## the same, with all of them handed to TorchInductor
	$(call checked,$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder)

# A command with `make lint types` beside it, whose output comes last; it fails where either does.
define checked
@beside=$$(mktemp); $(MAKE) --no-print-directory lint types >$$beside 2>&1 & \
$(1); tests=$$?; wait $$!; others=$$?; cat $$beside; rm -f $$beside; [ $$tests = 0 ] && [ $$others = 0 ]
endef

fast: .venv/dev  ## without the learning runs and TorchInductor
	$(BIN)/python -m pytest -m "not slow and not inductor"

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

peers: .peers/sb3/.done .peers/sbx/.done .peers/d3rlpy/.done  ## what benchmarks/speed.py compares with
SIMULATORS := "gymnasium[mujoco]==1.4.0" mujoco==4.0.0
.peers/sb3/.done: PEER = $(SIMULATORS) minatar==1.0.15 stable-baselines3==2.9.2 optuna==5.0.0
.peers/sbx/.done: PEER = $(SIMULATORS) sbx-rl==0.28.0
.peers/d3rlpy/.done: PEER = d3rlpy==2.8.1 mujoco==4.0.0 imageio
environments: .peers/environments/.done  ## what benchmarks/environments.py tries
.peers/environments/.done: PEER = -c constraints.txt -e ".[atari,minatar,dmc,box2d,robotics]" minigrid highway-env panda-gym gym-pusht
.peers/%/.done:
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/pip install --quiet torch==2.13.0
	.peers/$*/bin/pip install --quiet $(PEER)
	touch $@

clean:
	rm -rf .venv .peers build *.egg-info .mypy_cache .ruff_cache .pytest_cache
