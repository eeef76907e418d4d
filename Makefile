# Everything happens in .venv. `make` builds it, `make help` lists the rest.

PYTHON ?= python3
# torch's build for CUDA is some gigabytes larger: on a GPU machine choose one here, or leave the choice to pip.
TORCH ?= $(shell grep '^torch==' constraints.txt)
PIP_FLAGS ?=
# Options of `sffbench run`, for example RUN="--jobs 1 --device cpu".
RUN ?=
RESULTS ?= results/local
# Two processes; a module stays in one, so that what it shares is made once.
PYTEST_FLAGS ?= -n 2 --dist loadscope

BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt $(PIP_FLAGS)
BENCH := $(BIN)/python -m pytest suites/regression -o python_files='bench_*.py' -o python_functions=bench

.DEFAULT_GOAL := venv
.PHONY: help venv leaderboard leaderboard-real test test-all check bench bench-gpu clean data-is-set

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 20

venv: $(READY) ## build .venv with everything that the other targets need (the default)

# --no-compile: bytecode of what is used is made at its first import, of the rest never.
# torch goes first and pinned: left to itself, pip would take the newest and all of CUDA with it.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) "$(TORCH)"
	$(PIP) -e '.[dev]'
	@touch $@

leaderboard: $(READY) ## run the quick suite (synthetic data, minutes) and print its table
	$(BIN)/sffbench run quick --results $(RESULTS) $(RUN)
	@$(BIN)/sffbench table --results $(RESULTS) --suite quick

# The weights come from SFFBENCH_CHECKPOINTS or from the cache; where there are none, `run` says so.
leaderboard-real: data-is-set $(READY) ## run the ttm-r2 suite (real data and weights, hours) and print its table
	$(BIN)/sffbench run ttm-r2 --results $(RESULTS)/ttm-r2 $(RUN)
	@$(BIN)/sffbench table --results $(RESULTS)/ttm-r2 --suite ttm-r2

data-is-set:
	@test -n "$$SFFBENCH_DATA" || { echo "make: set SFFBENCH_DATA to the folder of the CSV files; \`sffbench fetch\` can fill one"; exit 2; } >&2

test: $(READY) ## the fast tests
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-all: $(READY) ## all tests, the slow ones too: what CI runs
	$(BIN)/python -m pytest --all $(PYTEST_FLAGS)

check: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## windows per CPU-second, ours against a loop like SFF's released one
	OMP_NUM_THREADS=1 $(BENCH)

bench-gpu: $(READY) ## the same on a GPU
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "make: bench-gpu needs a CUDA device, and torch sees none"; exit 2; } >&2
	$(BENCH) --device cuda

clean: ## remove .venv, caches and local results
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks build dist results/local
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
