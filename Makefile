# `make demo` and `make test` do all the set-up on a fresh machine: Python 3.11+, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint faults soak bench clean

demo: $(VENV)/installed
	$(BIN)/p2pfl run experiments/ring-digits/experiment.toml

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest -m "live and not soak and not faults"
	$(BIN)/python -m pytest -m "not live and not soak" -n auto --dist loadfile

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# they hold real processes to seconds, which a busy machine may exceed: what fails is tried once more
faults: $(VENV)/installed-test
	$(BIN)/python -m pytest -m faults || $(BIN)/python -m pytest -m faults --last-failed --last-failed-no-failures none

soak: $(VENV)/installed-test
	$(BIN)/python -m pytest -m soak

bench: $(VENV)/installed
	$(BIN)/python tools/bench.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "p2pfl needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs
