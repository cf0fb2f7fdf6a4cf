# Every target sets up what it needs: the virtual environment in .venv is made again when requirements change.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.sharecap
# The first Python that is new enough; `make PYTHON=…` selects another one.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# Without bytecode files, every start of the engine compiles vLLM's modules again, which takes seconds in many tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup ray demo serve test test-other-pythons soak check clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 25

setup: $(STAMP) ## make the virtual environment .venv

$(STAMP): requirements/cpu.txt requirements/gateway.txt requirements/dev.txt requirements/datasets.txt requirements/stats.txt requirements/install.sh pyproject.toml client/pyproject.toml
	@[[ -n "$(PYTHON)" ]] || { echo "sharecap needs Python 3.11 or newer: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@requirements/install.sh $(VENV)
	@touch $(STAMP)

ray: $(STAMP)-ray ## add Ray to .venv, for `sharecap ray`

$(STAMP)-%: $(STAMP) requirements/%.txt
	@echo "sharecap: installing the packages of requirements/$*.txt"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input -qq --no-deps --no-compile --requirement requirements/$*.txt
	@touch $@

demo: $(STAMP) ## start everything, caption a sample clip, recaption a prompt, stop
	@$(BIN)/sharecap demo

serve: $(STAMP) ## run everything on this machine until Ctrl-C
	@$(BIN)/sharecap up

test: $(STAMP) ## run all tests that need neither a GPU nor the internet
	@requirements/test-other-pythons.sh & others=$$!; status=0; \
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile || status=$$?; \
	wait $$others || status=$$?; exit $$status

test-other-pythons: ## run the tests of client and gateway on Python 3.11, 3.12 and 3.13, if installed
	@requirements/test-other-pythons.sh

soak: export SOAK = 1
soak: export SOAK_JOBS ?= 200
soak: export SOAK_WORKERS ?= 4
soak: export SOAK_KILLS ?= 0
soak: export SOAK_LEASE_S ?= 10
soak: export SOAK_RECOVERY_S ?= 15
soak: export SOAK_GOOD ?= 20
soak: export SOAK_EVERY_STEP ?= 1
soak: $(STAMP)-soak ## run the fault tests at full size: kill processes at random for some minutes
	@$(BIN)/python -m pytest tests/soak tests/hostile tests/bench/test_smoke.py tests/service/streaming/test_streams.py tests/service/connections \
		tests/workers/xcomposer2/test_engines.py tests/workers/xcomposer2/test_tensor_parallel.py \
		tests/client/test_installation.py tests/client/datasets/test_remote.py tests/docs/test_pages.py::test_the_first_commands_of_the_readme_work \
		-s -vv --durations 10 --timeout 3600

check: $(STAMP) ## check style, types and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest tests/test_layout.py tests/service/test_process.py -k "layout or imports"

clean: ## remove the virtual environments and all caches
	@rm -rf $(VENV) $(VENV)-* build *.egg-info client/build client/*.egg-info .mypy_cache .ruff_cache .pytest_cache
