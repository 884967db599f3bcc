# Everything lives in .venv. Options of the service pass through the environment: LENGTHWISE_PORT=8123 make serve
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install serve lint format test cover train export model bench docs proto clean

help: ## Says what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.development ## Makes the whole development environment in .venv

serve: .venv/.runtime ## Installs the runtime only (no torch, no onnx), and serves the bundled model on port 8000
	@exec $(BIN)/lengthwise serve

lint: .venv/.development ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.development ## Formats the code
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

test: lint cover ## Every check: lint, types, tests, branch coverage

cover: .venv/.development ## The tests, with branch coverage
	$(BIN)/python -m pytest --cov --cov-report=term

model: .venv/.development ## Trains, exports, verifies and publishes the bundled model anew
	$(BIN)/python -m benchmarks.bundled_model

bench: .venv/.development ## Measures this service beside its peers, in one run
	$(BIN)/python -m benchmarks.bench $(BENCH)

proto: .venv/.development ## Generates the messages of the gRPC protocol from its .proto
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. service/open_inference/open_inference.proto

clean: ## Removes what was built
	rm -rf .venv build dist *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache runs

.venv/bin/python:
	@echo "making .venv"
	@$(PYTHON) -c 'import sys; sys.exit("Lengthwise needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv .venv

# A change of pyproject.toml installs again; nothing else does.
.venv/.runtime: pyproject.toml | .venv/bin/python
	@echo "installing the runtime"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/.development: pyproject.toml | .venv/bin/python
	@echo "installing the development environment (torch among it: some minutes at first)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ .venv/.runtime
