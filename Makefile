# make demo   export, predict and evaluate on phantom CTs; ends in a Dice table and a picture
# make test   linters, type checks, import contracts, the test suite with coverage, and the wheel in an empty environment
# make lint | typecheck | contracts | unit | wheel   the parts of make test
# make docs | lowest | pythons | audit | sbom        what a release needs besides: see CONTRIBUTING.md

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A finished environment leaves this file, which is older than pyproject.toml when the dependencies changed.
READY := $(VENV)/.installed
DEMO_OUT ?= demo_out
# Tests that wait for the programs they started leave a fifth of two cores to a third worker.
JOBS ?= 3
# What the classifiers in pyproject.toml claim; `make pythons` tries those that this machine has.
PYTHONS ?= python3.11 python3.12 python3.13
# Where `make lowest` gets torch. An old torch from PyPI brings 4 GB of CUDA libraries; https://download.pytorch.org/whl/cpu
# has builds without them.
TORCH_INDEX ?=
# Many tests start the program anew, which takes twice as long where Python may not keep its compiled modules.
unexport PYTHONDONTWRITEBYTECODE
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo test lint typecheck contracts unit wheel docs lowest pythons audit sbom clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/offline-infer demo -o $(DEMO_OUT) --overwrite

test: lint typecheck contracts unit wheel

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

unit: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --cov --cov-report=term:skip-covered

wheel: $(READY)
	$(ONE_THREAD) $(BIN)/python tools/check_wheel.py

pythons: $(READY)
	$(ONE_THREAD) $(BIN)/python tools/check_wheel.py --interpreter $(PYTHONS)

docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt '.[docs]'
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	$(BIN)/mkdocs build --strict

# An environment of its own with the oldest admitted release of everything; the linters and oracles are of today.
lowest:
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[test]'
	$(ONE_THREAD) .venv-lowest/bin/python -m pytest -n $(JOBS)

audit: $(READY)
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --local --skip-editable

# Of a plain install, not of the development environment.
sbom: wheel
	$(PYTHON) -m venv --clear .venv-sbom
	.venv-sbom/bin/python -m pip install --quiet dist/*.whl
	$(BIN)/python -m pip install --quiet cyclonedx-bom
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-file dist/offline_infer.cdx.json .venv-sbom/bin/python

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(DEMO_OUT) build dist site *.egg-info .venv-lowest .venv-sbom .coverage* .pytest_cache .mypy_cache .ruff_cache
