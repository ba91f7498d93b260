# Two commands: `make demo` answers a question from trained weights, `make test` passes the tests.
# Both set everything up from nothing (Python 3.11+ with venv).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint sanitize clean

demo: .stamp-install
	$(BIN)/smollm3 generate --model smollm2-135m --dtype float32 -v "What is the capital of France?"

test: .stamp-test lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not gpu"

test-slow: .stamp-test
	$(BIN)/python -m pytest -m "slow or gpu"

lint: .stamp-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The native library under the address, undefined-behaviour and thread sanitizers.
sanitize: .stamp-install
	$(BIN)/python tests/native/sanitize.py

.stamp-install: pyproject.toml constraints.txt hatch_build.py $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.stamp-test: .stamp-install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .stamp-* build dist
