# What one does with this repository. Everything runs in .venv, which is made on first use.

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

BIN := .venv/bin
PROTOS := $(wildcard protos/recall/v1/*.proto)
INSTALLED := .venv/.installed

# Writes the stubs of every proto below the directory $(1).
protoc = PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc --proto_path=protos \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS)

.DEFAULT_GOAL := help
.PHONY: help install run test lint types format generate verify check clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Make .venv with recalld and what its development needs (PYTHON=python3.13 chooses another Python)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(INSTALLED) ## Serve on 127.0.0.1:50051 with an embedded Postgres (ARGS="--listen :0" passes options)
	@exec $(BIN)/recalld serve $(ARGS)

test: $(INSTALLED) ## Run every test (WORKERS=0 in one process, ARGS="-k purge" passes options)
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: $(INSTALLED) ## Check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED) ## Check types
	$(BIN)/mypy

format: $(INSTALLED) ## Format the Python files and the protos
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format --write

generate: $(INSTALLED) ## Write generated/ from protos/
	$(call protoc,generated)

verify: $(INSTALLED) ## Check the protos, and that generated/ is what they generate
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call protoc,"$$fresh") && \
	diff -r -x py.typed -x __pycache__ "$$fresh" generated || { echo "generated/ is stale: make generate" >&2; exit 1; }

check: lint types verify ## Everything but the tests

clean: ## Remove what the other targets made, .venv too
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
