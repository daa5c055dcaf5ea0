# Each target sets up .venv by itself; run any of them on a fresh machine with Python 3.11+, make and git.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TRACIN_DATA ?=

.PHONY: demo test test-fast test-floor test-browser mnist paper quality bench bench-device docs lint types imports clean help

help: ## what can be made here
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

# The pip that comes with an old Python takes four times as long to see that the pins fit together;
# compiling what few of the packages' modules are ever imported takes half of the rest.
pip := $(BIN)/python -m pip install --quiet --constraint constraints.txt
venv = $(PYTHON) -m venv .venv && $(pip) pip
install = $(pip) --no-compile --editable

# One environment, two stamps: the demo needs little, development needs everything.
.venv/demo.stamp: pyproject.toml constraints.txt
	$(venv)
	$(install) '.[demo]'
	touch $@

.venv/dev.stamp: pyproject.toml constraints.txt
	$(venv)
	$(install) '.[dev]'
	touch .venv/demo.stamp $@

.venv/bench.stamp: .venv/dev.stamp
	$(install) '.[bench]'
	touch $@

demo: .venv/demo.stamp ## find wrong labels in real data and explain a prediction, in under two minutes
	$(BIN)/tracin demo --overwrite

# Tests start many processes, and each would compile torch anew where bytecode must not be kept.
test: export PYTHONDONTWRITEBYTECODE :=
test: .venv/dev.stamp lint imports ## everything CI checks
	@# pyright takes one core for most of a minute, so it runs beside the tests and is heard after them.
	@# Libraries are compiled once before them, or each process of tests would compile all of them.
	$(BIN)/pyright > .venv/types.log 2>&1 & types=$$!; code=0; \
	$(BIN)/python -m pytest --collect-only > .venv/collected.log 2>&1; \
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal || code=$$?; \
	wait $$types || code=1; cat .venv/types.log; exit $$code

test-fast: export PYTHONDONTWRITEBYTECODE :=
test-fast: .venv/dev.stamp ## the tests that take under a minute together
	$(BIN)/python -m pytest -m "not slow" --numprocesses logical --maxprocesses 8 --dist worksteal

# A wheel of that age is built for CUDA: 3 GB to fetch, 6 on the disk. What needs transformers is left out.
FLOOR_TESTS := tests/test_zoo.py tests/test_slow_twin.py tests/scoring/test_verification.py tests/test_precision.py \
	tests/test_eager.py tests/test_out_of_memory.py tests/gradients/test_forms.py
test-floor: ## the engine's tests on the oldest torch that pyproject.toml allows
	$(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet --editable '.[index]' torch==2.6.0 hypothesis pytest pytest-timeout pytest-xdist
	.venv-floor/bin/python -m pytest $(FLOOR_TESTS) -k "not (lora or gpt2 or llama or bert or vit)" \
		--numprocesses logical --maxprocesses 8 --dist worksteal

test-browser: .venv/dev.stamp ## the viewer and a report in a real browser (needs a chromium on the path)
	$(pip) playwright axe-playwright-python
	$(BIN)/python -m pytest tests/view/test_view_browser.py tests/report/test_browser.py

lint: .venv/dev.stamp ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.stamp ## static types
	$(BIN)/pyright

imports: .venv/dev.stamp ## the layers: imports point down
	$(BIN)/lint-imports

mnist: .venv/demo.stamp ## the paper's MNIST experiment on all 60,000 images (reads TRACIN_DATA)
	$(BIN)/python -m experiments.mnist

# Each writes its part of docs/results.md; what was broken off continues where it stopped. Shares of
# the full size, for two hours on two cores: --scale 1 is the paper's own.
paper: .venv/dev.stamp ## the paper's experiments, into docs/results.md (two hours)
	$(BIN)/python -m experiments.mnist --docs --scale 0.2
	$(BIN)/python -m experiments.approximations --docs --scale 0.1
	$(BIN)/python -m experiments.california --docs --scale 0.5
	$(BIN)/python -m experiments.dbpedia --docs
	$(BIN)/python -m experiments.imagenet --docs --scale 0.1
	$(BIN)/python -m experiments.cifar10 --docs

quality: .venv/dev.stamp ## which scores predict retraining, into docs/quality.md (an hour)
	$(BIN)/python -m pip install --quiet --no-deps --requirement experiments/rivals.txt
	$(BIN)/python -m experiments.retraining --docs

bench: .venv/bench.stamp ## ratios to a plain forward and backward pass
	$(BIN)/python -m benchmarks

bench-device: .venv/dev.stamp ## correctness, ratios and memory on the accelerator that is there
	$(BIN)/python -m benchmarks.device

docs: .venv/dev.stamp ## the documentation, into docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

clean: ## remove what the targets made
	rm -rf .venv .venv-floor docs/_build .pytest_cache .ruff_cache
