# `make demo` and `make test` do all the set-up on a fresh machine: Python 3.11+, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test fast test-all lint faults soak fuzz bench clean

demo: $(VENV)/installed
	$(BIN)/p2pfl run experiments/ring-digits/experiment.toml

# most claims, while types are checked, which takes one core half a minute; what takes long is in `make test-all` and
# `make soak`
test: $(VENV)/installed-test
	$(MAKE) --no-print-directory --jobs=2 lint fast

fast: $(VENV)/installed-test
	$(BIN)/python -m pytest -n auto --dist worksteal

# what takes longer: more kinds, graphs and seeds; live ones have the machine to themselves
test-all: $(VENV)/installed-test faults
	$(BIN)/python -m pytest -m "more and live"
	$(BIN)/python -m pytest -m "more and not live" -n auto --dist worksteal

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# they hold real processes to seconds, which a busy machine may exceed: what fails is tried once more
faults: $(VENV)/installed-test
	$(BIN)/python -m pytest -m faults || $(BIN)/python -m pytest -m faults --last-failed --last-failed-no-failures none

soak: $(VENV)/installed-test
	$(BIN)/python -m pytest -m soak -o faulthandler_timeout=7200

# whatever comes in, nearly right, a million frames of it; those of `make test` are a few, and always the same
fuzz: $(VENV)/installed-test
	$(BIN)/python -m pytest -m fuzz -n auto --dist worksteal -o faulthandler_timeout=7200

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
