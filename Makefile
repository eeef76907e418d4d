# Everything happens in .venv. `make` builds it, `make help` lists the rest.

PYTHON ?= python3
# torch's build for CUDA is some gigabytes larger: on a GPU machine choose one here, or leave the choice to pip.
TORCH ?= $(shell grep '^torch==' constraints.txt)
PIP_FLAGS ?=
# Options of `sffbench run`, for example RUN="--jobs 1 --device cpu".
RUN ?=
RESULTS ?= results/local
# One call of `make bench-gpu` starts nothing new after this many seconds; the next call goes on.
BENCH_S ?= 420
# Two processes; a module stays in one, so that what it shares is made once.
PYTEST_FLAGS ?= -n 2 --dist loadscope

BIN := .venv/bin
READY := .venv/.ready
GPU := $(RESULTS)/gpu
GPU_BENCHES := $(patsubst suites/regression/%.py,$(GPU)/%.json,$(wildcard suites/regression/bench_*.py))
STARTED := $(shell date +%s)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt $(PIP_FLAGS)
BENCH := $(BIN)/python -m pytest -o python_files='bench_*.py' -o python_functions=bench

.DEFAULT_GOAL := venv
.PHONY: help venv leaderboard leaderboard-real test test-all check bench bench-gpu throughput clean data-is-set gpu-is-here

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
	OMP_NUM_THREADS=1 $(BENCH) suites/regression

throughput: $(READY) ## windows/s and memory of published sizes on one core (about half an hour)
	$(BIN)/sffbench run throughput --results $(RESULTS)/throughput --device cpu $(RUN)
	@$(BIN)/sffbench table --results $(RESULTS)/throughput --suite throughput

# Resumable, 8 minutes a call: each module of suites/regression runs once and leaves a file, then the
# suite runs cell by cell until the time is up. Call it until nothing is left.
bench-gpu: gpu-is-here $(GPU_BENCHES) ## the same and `throughput-gpu`, on a GPU; repeat until nothing is left
	$(BIN)/sffbench run throughput-gpu --results $(GPU) --device cuda \
	    --time-limit $$(( $(STARTED) + $(BENCH_S) > $$(date +%s) ? $(STARTED) + $(BENCH_S) - $$(date +%s) : 0 )) $(RUN)
	@$(BIN)/sffbench table --results $(GPU) --suite throughput-gpu

gpu-is-here: $(READY)
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "make: bench-gpu needs a CUDA device, and torch sees none"; exit 2; } >&2

# A module that fails leaves no file, and is tried again.
$(GPU)/bench_%.json: suites/regression/bench_%.py | gpu-is-here
	@mkdir -p $(@D)
	@if [ $$(( $$(date +%s) - $(STARTED) )) -ge $(BENCH_S) ]; then echo "left for the next call: $<"; \
	else set -x; $(BENCH) $< --device cuda --benchmark-json $@.part && mv $@.part $@; fi

clean: ## remove .venv, caches and local results
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks build dist results/local
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
