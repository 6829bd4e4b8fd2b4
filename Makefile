# What one does with this repository. Everything runs in .venv, which is made on first use.

PYTHON ?= python3
# Many tests wait more than they compute: three processes suit two CPUs. Each has a Postgres, and takes whole files of tests.
WORKERS ?= 3
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
SECONDS ?= 600
ARGS ?=
POSTGRES ?= $(wildcard /usr/lib/postgresql/*/bin)

BIN := .venv/bin
PROTOS := $(wildcard protos/recall/v1/*.proto)
INSTALLED := .venv/.installed

# Where there is Go to build it. Elsewhere the tests that call it are skipped, and say so.
GRPCURL_VERSION := v1.9.4
GHZ_VERSION := v0.93.0
LOCAL_GRPCURL := $(if $(shell command -v go 2>/dev/null),.tools/grpcurl)

BENCH := $(INSTALLED) .tools/ghz .tools/peers/installed

# Writes the stubs of every proto below the directory $(1), and the service config beside them.
protoc = PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc --proto_path=protos \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS) && \
	cp protos/recall/v1/service_config.json $(1)/recall/v1

.DEFAULT_GOAL := help
.PHONY: help install run test test-faults test-postgres test-citus soak fuzz grpcurl interop lint types format generate stubs docs verify breaking released bench bench-quick guard check clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Make .venv with recalld and what its development needs (PYTHON=python3.13 chooses another Python)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "setting up .venv, once: this takes a minute or two"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(INSTALLED) ## Serve on 127.0.0.1:50051 with an embedded Postgres (ARGS="--listen :0" passes options)
	@exec $(BIN)/recalld serve $(ARGS)

test: $(INSTALLED) $(LOCAL_GRPCURL) ## Run every test (WORKERS=0 in one process, ARGS="-k purge" passes options)
	$(PYTEST) $(ARGS)

test-faults: $(INSTALLED) ## Run the slow tests of tests/faults: long outages, crashes by the dozen
	$(PYTEST) -m faults $(ARGS)

test-postgres: $(INSTALLED) ## Run the tests that use Postgres on every installed one (POSTGRES=/usr/lib/postgresql/15/bin chooses)
	@test -n "$(POSTGRES)" || { echo "no Postgres is installed: POSTGRES=/path/to/bin tells where" >&2; exit 1; }
	@for programs in $(POSTGRES); do \
	TEST_POSTGRES=$$programs $(PYTEST) tests/contract tests/integration tests/migrations $(ARGS) \
	|| exit 1; done

test-citus: $(INSTALLED) ## Run the storage tests on a Citus of their own, if a Postgres with that extension is installed
	TEST_CITUS=1 $(PYTEST) tests/contract tests/distributed $(ARGS)

fuzz: $(INSTALLED) ## Throw hostile input at the server for SECONDS=600, other input each time
	@end=$$(($$(date +%s) + $(SECONDS))); while [ $$(date +%s) -lt $$end ]; do \
	FUZZ_FACTOR=20 $(PYTEST) tests/fuzz $(ARGS) || exit 1; done

soak: SECONDS = 1200
soak: $(INSTALLED) ## Run two servers under mixed load for SECONDS=1200, one killed now and then, and look for leaks
	$(BIN)/python -m tests.soak --seconds $(SECONDS)

bench: $(BENCH) ## Measure recalld beside its references, and say which targets it meets (ARGS="--rounds 3": 10 minutes)
	$(BIN)/python -m tests.bench $(ARGS)

bench-quick: $(BENCH) ## Measure the same in under 3 minutes, less reliably
	$(BIN)/python -m tests.bench --quick $(ARGS)

guard: $(INSTALLED) .tools/ghz ## Check that a call costs the server no more CPU than it may, compared with an empty one
	$(BIN)/python -m pytest -m guard $(ARGS)

.tools/ghz: Makefile
	GOBIN="$$PWD/.tools" go install github.com/bojand/ghz/cmd/ghz@$(GHZ_VERSION)
	@touch $@

# One that cannot be installed is told of in the results, and keeps none of the others from running.
.tools/peers/installed: $(wildcard tests/bench/peers/*.txt)
	$(PYTHON) -m venv .tools/peers
	@for peer in $^; do .tools/peers/bin/python -m pip install --quiet --requirement $$peer || true; done
	@touch $@

grpcurl: .tools/grpcurl ## Install grpcurl in .tools, which needs Go (make test does so by itself where there is Go)

.tools/grpcurl: Makefile
	GOBIN="$$PWD/.tools" go install github.com/fullstorydev/grpcurl/cmd/grpcurl@$(GRPCURL_VERSION)
	@touch $@

interop: $(INSTALLED) ## Run the clients of tests/interop in every language whose tools are here (ARGS="-k go" chooses)
	$(BIN)/python -m pytest -m interop $(ARGS)

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

# LANG is also the shell's locale, which no program should take for `go`.
stubs: $(INSTALLED) ## Write stubs for another program (LANG=go|java|python|rust|typescript|csharp OUT=directory)
	@LANG=C.UTF-8 PYTHON="$(abspath $(BIN))/python" protos/stubs.sh "$(LANG)" "$(OUT)"

docs: $(INSTALLED) ## Write docs/api.md from the comments of protos/
	$(BIN)/python protos/reference.py > docs/api.md

verify: $(INSTALLED) ## Check the protos, and that generated/ and docs/api.md are up to date with them
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call protoc,"$$fresh") && \
	diff -r -x py.typed -x __pycache__ "$$fresh" generated || { echo "generated/ is stale: make generate" >&2; exit 1; }
	@$(BIN)/python protos/reference.py | diff docs/api.md - || { echo "docs/api.md is stale: make docs" >&2; exit 1; }

breaking: $(INSTALLED) ## Check that the protos break no client of a released version
	@for released in protos/released/*.binpb; do $(BIN)/buf breaking --against "$$released" || exit 1; done

released: $(INSTALLED) ## Record the protos as those of the version in recalld/__init__.py: part of every release
	@image=protos/released/v$$($(BIN)/python -c 'import recalld; print(recalld.__version__)').binpb; \
	test ! -e "$$image" || { echo "$$image is there, and a release does not change" >&2; exit 1; }; \
	$(BIN)/buf build --exclude-source-info -o "$$image" && echo "$$image"

check: lint types verify breaking ## Run lint, types, verify and breaking: everything but the tests

clean: ## Remove what the other targets made, also .venv
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist .tools tests/interop/.build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
