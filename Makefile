# The one place for commands. `make` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where cargo builds; a machine that makes many clones shares one (see .ci/run).
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# A virtual environment that someone else activated is not ours.
export VIRTUAL_ENV := $(abspath $(VENV))
unexport PYTHONPATH
unexport PYTHONHOME

RUST := Cargo.toml $(wildcard Cargo.lock) $(shell find rust_core -name Cargo.toml -o -name '*.rs' -path '*/src/*')
LISTEN ?= 127.0.0.1:8081

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/setup.stamp ## Make .venv: dependencies and the extension, built in release mode

# maturin installs the packages that pyproject.toml names, then the extension; python/ itself is used in place.
$(VENV)/setup.stamp: pyproject.toml $(RUST)
	@.ci/tools $(PYTHON)
	@[ -x $(BIN)/maturin ] || $(PYTHON) -m venv --clear $(VENV)
	@[ -x $(BIN)/maturin ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip maturin
	$(BIN)/maturin develop --release --extras dev,bench,plot
	@touch $@

.PHONY: run
run: setup ## Start four simulated engines and the gateway on 127.0.0.1:8081
	$(BIN)/nebula up --sim 4 --listen $(LISTEN)

.PHONY: test
test: test-rust test-loom test-python ## Every test that needs neither a GPU nor a real engine

.PHONY: test-rust
test-rust: setup ## Unit, doc and model tests of the crates
	PYO3_PYTHON=$(abspath $(BIN)/python) cargo test --quiet --workspace --exclude nebula-bind --locked

.PHONY: test-loom
test-loom: setup ## Every interleaving of the ledger and the snapshot swap
	CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/loom RUSTFLAGS="--cfg nebula_loom" \
		cargo test --quiet --release --package nebula-route --test loom --locked

.PHONY: test-python
test-python: setup ## Tests of the package
	$(BIN)/python -m pytest --ignore tests/e2e

.PHONY: e2e
e2e: setup ## The gateway in front of real vLLM engines on the CPU; the first run installs vLLM
	$(BIN)/python -m pytest tests/e2e

.PHONY: lint
lint: lint-rust lint-python ## Everything that reads the code: formats, lints, types, stub, budgets

.PHONY: lint-rust
lint-rust: setup ## cargo fmt and clippy
	cargo fmt --all --check
	cargo fmt --manifest-path benches/peer/Cargo.toml --check
	@cargo metadata --manifest-path benches/peer/Cargo.toml --locked --format-version 1 >/dev/null
	PYO3_PYTHON=$(abspath $(BIN)/python) cargo clippy --quiet --workspace --all-targets --locked -- -D warnings

.PHONY: lint-python
lint-python: setup ## ruff, mypy, the stub against the extension, the budgets
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	MYPYPATH=python $(BIN)/python -m mypy.stubtest nebula_router._core
	$(BIN)/python .ci/budgets.py

.PHONY: format
format: setup ## Format everything
	cargo fmt --all
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: bench
bench: setup ## Time the parts: criterion and pytest-benchmark
	cargo bench --workspace --exclude nebula-bind --locked
	cargo bench --manifest-path benches/peer/Cargo.toml --locked
	$(BIN)/python -m pytest benches --benchmark-only

.PHONY: bench-gateway
bench-gateway: setup ## Measure the gateway beside its peers (needs nginx and wrk)
	$(BIN)/nebula bench gateway

.PHONY: bench-smoke
bench-smoke: setup ## Every benchmark once and short, so that none rots (needs nginx and wrk)
	cargo bench --quiet --workspace --exclude nebula-bind --bench '*' --locked -- --test
	cargo bench --quiet --manifest-path benches/peer/Cargo.toml --locked -- --test
	$(BIN)/python -m pytest benches --benchmark-disable
	$(BIN)/nebula bench gateway --only direct --only nebula --only floor --rounds 1 -c 8 --streams 16
	$(BIN)/nebula bench soak --streams 100 --seconds 5
	$(BIN)/nebula simulate --workload multi_turn --sessions 40 --engines 2 --policy all --json > /dev/null

.PHONY: soak
soak: setup ## A thousand streams for a minute: no lost byte, flat memory
	$(BIN)/nebula bench soak

.PHONY: docs
docs: setup ## Write docs/settings.md from config.py
	$(BIN)/nebula config docs > docs/settings.md

.PHONY: wheel
wheel: setup ## Build a wheel into dist/
	$(BIN)/maturin build --release --strip --out dist

.PHONY: clean
clean: ## Remove what was built, the virtual environment too
	rm -rf $(VENV) target dist .pytest_cache .mypy_cache .ruff_cache .benchmarks python/nebula_router/_core*.so
