# Everything a person or CI types. The first command sets up .venv; later ones re-use it until a pinned version changes.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
.DEFAULT_GOAL := help

.PHONY: help install demo test test-cluster test-quick check format docs bench bench-selection bench-operations results clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(READY) ## set up .venv with everything

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11; set PYTHON=python3.11 or newer" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (several GB the first time: PyTorch comes with CUDA) …" >&2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## run the whole pipeline on embedded images
	$(BIN)/head2toe demo

# Those of services come first and mostly wait, so that another process runs the rest meanwhile.
test: $(READY) ## run all tests, in two processes
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

test-cluster: $(READY) ## those with PostgreSQL, Prefect, Dask and S3 as services of this machine: 5 minutes
	$(BIN)/python -m pytest -m cluster

test-quick: $(READY) ## run the tests that take less than 3 minutes together
	$(BIN)/python -m pytest -n 2 -m "not slow and not cluster"

check: $(READY) ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## rewrite the code as `make check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY) ## build the documentation into site/, where a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY) ## measure ratios against limits (peers: bench-selection)
	$(BIN)/python -m benchmarks.store
	$(BIN)/python -m benchmarks.remote
	$(BIN)/python -m benchmarks.extraction
	$(BIN)/python -m benchmarks.refit
	$(BIN)/python -m benchmarks.prediction

bench-selection: $(READY) ## measure selection against adelie, celer, scikit-learn and one pass over the store
	test -x .peers/bin/python || $(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet --disable-pip-version-check 'numpy<2' adelie celer 'scikit-learn<1.6'
	$(BIN)/python -m benchmarks.selection
	$(BIN)/python -m benchmarks.scaling

bench-operations: $(READY) ## measure what Prefect costs, and queue 100 runs; takes about 30 minutes
	$(BIN)/python -m benchmarks.operations

results: $(READY) ## evaluate all methods on the offline benchmark and write docs/results.md; goes on where it stopped
	$(BIN)/python -m benchmarks.results

clean: ## remove the environment and what tools leave behind
	rm -rf .venv .peers .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site *.egg-info
