# Needs Python 3.11 or newer, make and a package index; everything else is installed into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
# The lock holds the versions that were tested on Python 3.11; another Python resolves its own.
LOCK := $(shell $(PYTHON) -c 'import sys; print("-c requirements-lock.txt" if sys.version_info[:2] == (3, 11) else "")')

.PHONY: demo test notebooks lint typecheck clean

demo: $(VENV)/installed
	@if [ -e $(DEMO)/config.json ]; then \
	  echo "$(DEMO) is there from before: finishing it (rm -r $(DEMO) starts afresh)"; \
	  $(BIN)/jmeta train --resume --run-dir $(DEMO); \
	else \
	  $(BIN)/jmeta train maml half-cheetah-direction --iterations 250 --run-dir $(DEMO); \
	fi
	@$(BIN)/jmeta evaluate $(DEMO)
	@echo "the run is in $(DEMO)"

# Two processes, since compilation uses one core; neighbours stay together, which share compiled programs.
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term --cov-fail-under=90

# Executes every notebook, from the root, into notebooks/executed; stops at a cell that fails.
notebooks: $(VENV)/installed-notebooks
	@mkdir -p notebooks/executed
	@for notebook in notebooks/*.py; do \
	  executed=notebooks/executed/$$(basename $$notebook .py).ipynb; \
	  echo $$executed; \
	  $(BIN)/jupytext --quiet --to ipynb --set-kernel python3 --execute --run-path . \
	    --output $$executed $$notebook || exit 1; \
	  $(BIN)/jupyter nbconvert --log-level ERROR --to html $$executed || exit 1; \
	done

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

typecheck: $(VENV)/installed-dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml requirements-lock.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(LOCK) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(LOCK) --editable '.[dev]'
	touch $@

$(VENV)/installed-notebooks: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(LOCK) --editable '.[notebooks]'
	touch $@
