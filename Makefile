# Two commands matter: `make demo` and `make test`. Both set up what they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Every stage is a process of its own: with bytecode the first one compiles what all import, and nothing else is.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo test lint types release clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.setup: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e ".[detector,pipeline,light,video]"
	@touch $@

$(VENV)/.setup-dev: pyproject.toml constraints.txt | $(VENV)/.setup
	$(PIP) -c constraints.txt -e ".[detector,pipeline,light,video,onnx,dev]"
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	       && apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null; } \
	  || echo "no Chromium: the browser test of the report will be skipped"
	@touch $@ $(VENV)/.setup

setup: $(VENV)/.setup ## Make .venv and install the pipeline

setup-dev: $(VENV)/.setup-dev ## The same with the tools of development

demo: setup ## Run the pipeline on the embedded synthetic scenes and print the metrics
	dvc repro
	@python -m anomdino.cli.main show

test: setup-dev ## Run the whole test suite, on two processes
	OMP_NUM_THREADS=1 python -m pytest -m "not network" -n 2 --dist loadfile --no-loadscope-reorder

lint: setup-dev ## Check style and formatting
	ruff check .
	ruff format --check .

types: setup-dev ## Check types, strictly
	mypy

release: setup ## Train the whole released light model again, every network of it (best on a GPU)
	python -m pipeline.release_all

clean: ## Remove the environment and all outputs of the pipeline
	rm -rf $(VENV) build *.egg-info plots report eval metrics.json dvclive
	find data -mindepth 1 ! -name README.md -delete
