# Two commands matter: `make train` and `make test`. Both set up all they need.
# Variables go to `mlflow run`: make train MODEL=cnn STRATEGY=weighted DATA=/path EPOCHS=20

.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# MLproject calls `python`: the environment's must come first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUNBUFFERED := 1

MODEL ?= resnet18
STRATEGY ?= oversample
DATA ?= auto
EPOCHS ?= 10
IMAGE_SIZE ?= 128
SEED ?= 0
WEIGHTS ?= auto
MASK_MODE ?= lungs
# More of the same: make train ARGS="-P lr=0.0005 -P batch_size=32"
ARGS ?=
# How `mlflow run` gets its environment: local (this .venv), uv, or conda.
ENV_MANAGER ?= local
PORT ?= 5000
TIMES ?= 5
REQUESTS ?= 10000

export MLFLOW_TRACKING_URI ?= sqlite:///mlflow.db

.PHONY: help install train test test-fast faults fuzz bench-env lint format ui lock clean

help:  ## Show this.
	@echo "cxr_mlflow: chest X-ray classification, tracked in MLflow. Not for diagnosis."
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo
	@echo "make train takes MODEL=cnn|resnet18 STRATEGY=none|weighted|oversample DATA=FOLDER"
	@echo "  EPOCHS IMAGE_SIZE SEED WEIGHTS MASK_MODE ENV_MANAGER=local|uv|conda ARGS='-P lr=0.0005'"

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@echo "Installing the pinned environment into $(VENV) (once; several GB because of torch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  "$$(grep '^uv==' requirements.lock)"
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode -r requirements.lock
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps -e .
	@touch $@

install: $(VENV)/.installed  ## Create .venv from requirements.lock.

train: install  ## Train through MLflow: your data if it is there, else the demo data.
	@mlflow run . --env-manager $(ENV_MANAGER) --experiment-name chest-xray \
	  -P model=$(MODEL) -P strategy=$(STRATEGY) -P data_dir="$(DATA)" -P epochs=$(EPOCHS) \
	  -P image_size=$(IMAGE_SIZE) -P seed=$(SEED) -P weights="$(WEIGHTS)" \
	  -P mask_mode=$(MASK_MODE) $(ARGS)

test: install  ## Run all tests, a process for each core.
	@OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-fast: install  ## Run the tests that take seconds.
	@python -m pytest -m "not slow"

faults: install  ## Kill trainings at every moment and at random; print what was lost.
	@python -m tests.faults.inject --times $(TIMES)

fuzz: install  ## Send 10,000 random and mutated requests to a real `cxr serve`; print what it answered.
	@OMP_NUM_THREADS=1 python -m tools.http_fuzz --requests $(REQUESTS)

bench-env: install  ## Create .venv-bench: ours beside the pipelines it is compared with.
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@VIRTUAL_ENV=.venv-bench uv pip install --quiet -r requirements.lock \
	  -r benchmarks/requirements.txt
	@VIRTUAL_ENV=.venv-bench uv pip install --quiet --no-deps -e .

lint: install  ## Check format, style and types.
	@ruff format --check .
	@ruff check .
	@mypy

format: install  ## Format the code and mend what ruff can mend.
	@ruff format .
	@ruff check --fix .

ui: install  ## Open the MLflow UI on this machine (PORT=5000).
	@echo "MLflow UI: http://127.0.0.1:$(PORT)  (stop with Ctrl-C)"
	@python -m tools.ui_links $(MLFLOW_TRACKING_URI) http://127.0.0.1:$(PORT)
	@mlflow server --host 127.0.0.1 --port $(PORT) --backend-store-uri $(MLFLOW_TRACKING_URI) \
	  --workers 1

lock: install  ## Renew requirements.lock and conda.yaml from pyproject.toml.
	@uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --fork-strategy fewest --no-header --no-annotate --no-emit-index-url \
	  --upgrade --quiet -o requirements.lock
	@python tools/write_conda.py

clean:  ## Remove the environment and caches; runs, models and data stay.
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './data/*' -prune -exec rm -rf {} +
