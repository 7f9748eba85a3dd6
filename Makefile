# One environment, set up once: `make setup` does nothing when pyproject.toml has not changed since.
VENV   ?= .venv
PYTHON ?= python3
EXTRAS ?= dev
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.cyclestyle-$(EXTRAS)

.DEFAULT_GOAL := help
.PHONY: help setup demo weights test test-slow check bench bench-full gpu-check clean

help:  ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18
	@echo "  VENV=path chooses another environment than .venv, PYTHON=python3.12 another interpreter,"
	@echo "  EXTRAS=dev,all sets up 16-bit colour, HEIC, ONNX and Ray as well (about 1 GB more)"

setup: $(STAMP)  ## make the environment (once; about 2 minutes and 6 GB, most of it PyTorch)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cyclestyle needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1): try make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)  ## train on drawn landscapes, translate the test photos, print where to look (6 minutes on 2 cores)
	$(BIN)/python -m cyclestyle.train +experiment=demo
	$(BIN)/python -m cyclestyle.translate checkpoint=runs/demo input=data/scenes/testA output=runs/demo/translated direction=photo2painting
	$(BIN)/python -m cyclestyle.evaluate checkpoint=runs/demo data.root=data/scenes data.aligned=true direction=photo2painting
	@echo "look at runs/demo/translated (data/scenes/testA holds the photos), runs/demo/samples, and $(BIN)/tensorboard --logdir runs"

weights: $(STAMP)  ## fetch the pretrained networks for scores and their tests, into a cache (once; 136 MB)
	$(BIN)/python -m cyclestyle.download features=[efficientnet_lite0,vgg16_hed,lpips_alex,lpips_vgg]

test: $(STAMP)  ## run the whole test suite, a process for each core
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test-slow: $(STAMP)  ## run the tests that take minutes: kill -9 at random moments, fifty times and more
	$(BIN)/python -m pytest -s -m slow

check: $(STAMP)  ## format check, lint, types, plain words
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/check_words.py

bench: $(STAMP)  ## print every ratio that has a goal, fail if one is missed by more than 10 % (8 to 10 minutes on 2 cores)
	@failed=0; \
	$(BIN)/python scripts/benchmark.py || failed=1; \
	$(BIN)/python scripts/benchmark_translate.py || failed=1; \
	exit $$failed

bench-full: $(STAMP)  ## measure every table of docs/benchmarks.md and docs/tiling.md again (over an hour on 2 cores)
	@failed=0; \
	$(BIN)/python scripts/benchmark.py --full --write docs/benchmarks.md || failed=1; \
	$(BIN)/python scripts/benchmark_saves.py --write docs/benchmarks.md || failed=1; \
	$(BIN)/python scripts/benchmark_translate.py --full --write docs/benchmarks.md || failed=1; \
	$(BIN)/python scripts/benchmark_tiles.py --write docs/tiling.md || failed=1; \
	$(BIN)/python scripts/benchmark_busy.py --write docs/benchmarks.md || failed=1; \
	exit $$failed

gpu-check: $(STAMP)  ## on a machine with a GPU: run all GPU tests and benchmarks (8 minutes; docs/gpu.md)
	$(BIN)/python scripts/gpu_check.py

clean:  ## remove the environment and caches (data/ and runs/ stay)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
