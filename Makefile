# Two commands: `make sweep` and `make test`. Each creates .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: sweep test test-fast test-ray test-fault bench lint constraints clean

sweep: $(VENV)/.installed ## the default sweep: handwritten digits, CPU, about three minutes
	$(BIN)/python -m orchestrator.sweep

test: lint ## lint, types, and all tests but the fault tests and benchmarks
	$(BIN)/python -m pytest -m "not ray and not fault"
	$(BIN)/python -m pytest -m "ray and not fault"

test-fast: $(VENV)/.tested ## the tests below Ray, without the slow ones
	$(BIN)/python -m pytest -m "not ray and not fault and not slow"

test-ray: $(VENV)/.tested ## the tests that use a real Ray
	$(BIN)/python -m pytest -m "ray and not fault"

test-fault: $(VENV)/.tested ## kills drivers and trials, and starts a cluster with token authentication
	$(BIN)/python -m pytest -m fault

bench: $(VENV)/.tested ## what a sweep costs, against a plain loop and the stock recipe
	$(BIN)/python -m tests.benchmarks.sweep_cost

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

constraints: $(VENV)/.tested ## rewrite constraints.txt from what is installed here
	echo "# Every version, by name; pyproject.toml says what each direct one is for. Rewritten by \`make constraints\`." > $@.txt
	$(BIN)/python -m pip --disable-pip-version-check freeze --exclude-editable | grep -v "@" >> $@.txt

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# pyproject.toml lists no packages: this installs the dependencies, and the tree is run where it lies.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) ".[test]"
	touch $@
