# make test: environment, lint, types, tests.  make demo: the whole chain on one machine.  make help: the rest.
PYTHON ?= python3
ENV := .venv
BIN := $(ENV)/bin
STAMP := $(ENV)/.installed
PIP_OPTIONS ?= --quiet --disable-pip-version-check
FUZZ_EXAMPLES ?= 5000

.DEFAULT_GOAL := help
.PHONY: help env demo test check bench bench-long fuzz clean

help:
	@echo "make env    the environment in $(ENV), from pyproject.toml and constraints.txt"
	@echo "make demo   profile, plan, generate and train one model on emulated unequal devices"
	@echo "make test   check and the tests"
	@echo "make check  lint, format and types"
	@echo "make bench  the tables of docs/benchmarks.md; make bench-long: the rows that take minutes"
	@echo "make fuzz   the property tests with $(FUZZ_EXAMPLES) examples each"
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

demo: $(STAMP)
	$(BIN)/python benchmarks/demo.py

test: check
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy stagewright tests

bench: $(STAMP)
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

bench-long: $(STAMP)
	$(BIN)/python benchmarks/metis_table.py --long

fuzz: $(STAMP)
	STAGEWRIGHT_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest --timeout 0

clean:
	rm -rf $(ENV) build dist demo_output stagewright.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
