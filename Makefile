# make demo   export, predict and evaluate on phantom CTs; ends in a Dice table and a picture
# make test   linters, type checks, import contracts and the test suite
# make lint | typecheck | contracts | unit   the parts of make test

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A finished environment leaves this file, which is older than pyproject.toml when the dependencies changed.
READY := $(VENV)/.installed
DEMO_OUT ?= demo_out
# Half of the tests start engines with their own threads: more workers than cores do not help.
JOBS ?= 2

.PHONY: demo test lint typecheck contracts unit clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/offline-infer demo -o $(DEMO_OUT) --overwrite

test: lint typecheck contracts unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

unit: $(READY)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(DEMO_OUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
