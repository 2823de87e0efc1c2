PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUNS := $(VENV)/.installed-runs
INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# pip of the pins: the one that Python 3.11 brings takes 20 seconds longer over 6 GB
MAKE_VENV := test -x $(BIN)/python || { $(PYTHON) -m venv $(VENV) && { $(INSTALL) --upgrade pip || true; }; }
# without templates that are no Python, and what no command and no test imports
COMPILE := $(BIN)/python -m compileall -q -j 0 -x '/(tests|templates|rllib|databricks)/' $(VENV)/lib >/dev/null 2>&1 || true

.PHONY: setup demo test test-unit test-integration test-cluster test-python on-python compiled programs bench docs lint format clean

setup: $(STAMP)  ## the virtual environment, pinned by constraints.txt

# torchattacks pins an old `requests` that ray cannot live with, so it comes without dependencies.
# Compiled here, by all cores: a run starts a dozen processes, and where Python may not write
# (PYTHONDONTWRITEBYTECODE) each of them would compile torch again.
$(STAMP): pyproject.toml constraints.txt
	$(MAKE_VENV)
	$(INSTALL) -e '.[dev]'
	$(INSTALL) --no-deps torchattacks
	$(COMPILE)
	touch $(RUNS) $(STAMP)

# what the commands need and no more, for who wants to see them first
$(RUNS): pyproject.toml constraints.txt
	$(MAKE_VENV)
	$(INSTALL) -e .
	$(COMPILE)
	touch $(RUNS)

demo: $(RUNS)  ## train, evaluate and register nine experts on scikit-learn's digits
	$(BIN)/fmoe train digits --workers 2

# unit tests in two processes; those that start Ray come one by one: beside each other, or beside the
# cluster's, they take longer than one after the other, and what must answer in 30 seconds does not
UNIT_WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest

test: test-unit test-integration  ## everything but the cluster's faults

test-unit: programs compiled
	$(PYTEST) --ignore=tests/integration --ignore=tests/cluster -n $(UNIT_WORKERS) --dist loadfile \
		--cov --cov-report=
	$(BIN)/coverage report --fail-under=90

test-integration: programs compiled
	$(PYTEST) tests/integration

# another Python, in an environment beside the usual one; TESTS="tests/test_wheel.py …" for some
test-python:  ## the unit tests on it: make test-python PYTHON=python3.13
	$(MAKE) on-python VENV=.venv-$(notdir $(PYTHON))

TESTS ?= tests --ignore=tests/integration --ignore=tests/cluster
on-python: compiled
	$(PYTEST) $(TESTS) -n $(UNIT_WORKERS) --dist loadfile

# FMOE_KILLS=10 for more kills at random moments
test-cluster: programs compiled  ## two Ray hosts in network namespaces, under faults; needs root
	command -v ip >/dev/null
	$(PYTEST) tests/cluster

# as the virtual environment is: the tests start some hundred processes
compiled: setup
	$(BIN)/python -m compileall -q fmoe pipelines

# in chromium the report's page is looked at: without root or apt that test is skipped
programs: setup
	command -v chromedriver >/dev/null || { apt-get update -q && apt-get install -y -q chromium chromium-driver; } || true
	command -v ip >/dev/null || { apt-get update -q && apt-get install -y -q iproute2; } || true

# the machine must be quiet; those of real images want DATA=folder, those of a trained model MODEL=…
bench: setup  ## side by side with peers and with the floor; results/ and the tables of docs/measurements.md
	$(INSTALL) -e '.[bench]'
	for name in crafting step memory growth startup; do $(BIN)/python -m benchmarks.$$name || exit 1; done
	test -z "$(DATA)" || for name in cheap_attacks speedrun ray_overhead; do \
		$(BIN)/python -m benchmarks.$$name --data-dir $(DATA) || exit 1; done
	test -z "$(DATA)" || test -z "$(MODEL)" || for name in evaluation autoattack; do \
		$(BIN)/python -m benchmarks.$$name $(MODEL) --data-dir $(DATA) || exit 1; done

# from nothing each time, so that no page is left of what has gone; warnings are errors
docs: setup  ## the site, in docs/_build/html
	rm -rf docs/_build
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet -b html docs docs/_build/html

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-python* build dist docs/_build *.egg-info .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
