# Every target sets up what it needs, and may be typed in any order, again and again.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What a sandboxed test runner or an outer shell set up for another Python must not leak in.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help run test lint docs ui bench clean install

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY) ## run the default experiment: config, stages, store, tracking, report (ARGS="lens=logit_lens" to change it)
	@$(BIN)/python -m pipeline $(ARGS)

test: $(READY) ## run all tests, on all cores (ARGS="tests/interp -k lens" for some)
	@$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile $(ARGS)

lint: $(READY) ## check format, style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY) ## build the documentation site into build/docs; every warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open build/docs/index.html"

ui: $(READY) ## open MLflow's page on http://127.0.0.1:5000 to compare runs (PORT=5001 for another port)
	@$(BIN)/python -m pipeline.tracking ui --port $(or $(PORT),5000)

bench: $(READY) ## measure stage times, tokens per second, store throughput, and the lenses beside other tools (LENSES="--help")
	@$(BIN)/python -m benchmarks.run $(ARGS)
	@$(BIN)/python -m benchmarks.lenses $(LENSES)
	@$(BIN)/python -m benchmarks.readout
	@$(BIN)/python -m benchmarks.memory

clean: ## remove runs, caches and the virtual environment (papers/ and the tracked runs in mlflow.db stay)
	rm -rf $(VENV) .venv-nnterp .venv-transformer-lens outputs .interpipe .dvc/cache .dvc/tmp .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	rm -rf .hypothesis *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(READY) ## make the virtual environment, and nothing else

# A marker newer than what is to be installed; a broken installation leaves none and is done anew.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info < (3, 14)))' || { \
		echo "Interpipe needs Python 3.11 to 3.13, '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing into $(VENV) (once, about two minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# Apart: transformers would import it in every process, and it warns of each of its libraries that wants a GPU.
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/torchao torchao
	@touch $@
