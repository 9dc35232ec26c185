# Everything is installed into .venv in the clone. Needs Python 3.11 or newer, git, make and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
EXTRAS ?= dev,demo,excel,cuda,vision,stats,tensorboard,finetune,export
# Folders of data sets and of reference outputs, if they are next to the clone.
export TSFM_DATA ?= $(realpath ../shared/data)
export TSFM_GOLDEN ?= $(realpath ../shared/golden)

.PHONY: setup demo test test-all check format shape clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@

demo: setup
	$(BIN)/tsfm demo --output report/demo

test: setup check
	$(PYTEST) -m "not slow and not cuda"

# Also the tests that take more than 2.5 seconds.
test-all: setup check
	$(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

shape: setup
	$(BIN)/python benchmarks/shape.py

clean:
	rm -rf $(VENV) build dist *.egg-info report .mypy_cache .ruff_cache .pytest_cache
