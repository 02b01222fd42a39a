# make test: environment, lint, types, tests.  make demo: the whole chain on one machine.  make help: the rest.
PYTHON ?= python3
ENV := .venv
BIN := $(ENV)/bin
STAMP := $(ENV)/.installed
PIP_OPTIONS ?= --quiet --disable-pip-version-check
FUZZ_EXAMPLES ?= 5000
RANDOM_PLANS ?= 100000
CHAOS_KILLS ?= 200
EXACTNESS_CASES ?= 200

.DEFAULT_GOAL := help
.PHONY: help env minkowski sparse-cuts demo test check bench bench-long bench-models cuts fuzz fuzz-schedules exactness chaos clean

help:
	@echo "make env    the environment in $(ENV), from pyproject.toml and constraints.txt"
	@echo "make minkowski   MinkowskiEngine for the sparse models, built and repaired: 5 minutes once, then seconds"
	@echo "make sparse-cuts every cut of the sparse models against one process: minutes"
	@echo "make demo   profile, plan, generate and train one model on emulated unequal devices"
	@echo "make test   check and the tests"
	@echo "make check  lint, format and types"
	@echo "make bench  the tables of docs/benchmarks.md; make bench-long: the rows that take minutes"
	@echo "make bench-models  15 models at their real size through all four tools: about a minute each"
	@echo "make fuzz   the property tests with $(FUZZ_EXAMPLES) examples each"
	@echo "make fuzz-schedules  $(RANDOM_PLANS) random plans: none deadlocks, wrong orders are caught"
	@echo "make chaos  $(CHAOS_KILLS) random faults in real trainings, all resumed; takes minutes"
	@echo "make exactness  $(EXACTNESS_CASES) plans and schedules against one process, in float64 and with AdamW"
	@echo "make cuts   every cut of the larger models: outputs and gradients bit for bit; takes minutes"
	@echo "make clean  remove what was made, the environment too"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "make: $(PYTHON) is not Python 3.11 or newer; name one: make env PYTHON=python3.12" >&2; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
	  { echo "make: there is no C++ compiler (c++, g++ or clang++), which the exact planner needs; install one" >&2; exit 1; }
	@$(PYTHON) -m venv $(ENV) || \
	  { echo "make: $(PYTHON) cannot make a virtual environment; install its venv module" >&2; exit 1; }
	@$(BIN)/python -m pip install $(PIP_OPTIONS) -c constraints.txt -e '.[dev]' || \
	  { echo "make: pip could not install what pyproject.toml names; is the package registry reachable?" >&2; exit 1; }
	@touch $(STAMP)

minkowski: $(STAMP)
	$(BIN)/python -m stagewright.models.minkowski.engine

sparse-cuts: minkowski
	STAGEWRIGHT_EVERY_CUT=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout 0 tests/runtime/messages/test_voxels.py tests/runtime/test_sparse_models.py -k "any_cut or losses or any_replicas"

demo: $(STAMP)
	$(BIN)/python benchmarks/demo.py

test: check
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy stagewright tests benchmarks

bench: $(STAMP)
	@for file in $(filter-out benchmarks/models.py,$(wildcard benchmarks/*.py)); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

cuts: $(STAMP)
	STAGEWRIGHT_CUTS=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --timeout 0 tests/optimizer/codegen/test_models.py

bench-long: bench-models
	$(BIN)/python benchmarks/metis_table.py --long

bench-models: $(STAMP)
	$(BIN)/python benchmarks/models.py

chaos: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/chaos.py --kills $(CHAOS_KILLS)

fuzz: $(STAMP)
	STAGEWRIGHT_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest --timeout 0

fuzz-schedules: $(STAMP)
	STAGEWRIGHT_RANDOM_PLANS=$(RANDOM_PLANS) $(BIN)/python -m pytest --timeout 0 tests/test_random_plans.py

exactness: $(STAMP)
	STAGEWRIGHT_EXACTNESS=$(EXACTNESS_CASES) $(BIN)/python -m pytest -s --timeout 0 tests/runtime/test_exactness.py

clean:
	rm -rf $(ENV) build dist demo_output stagewright.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
