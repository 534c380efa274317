# `make run` reproduces the default experiment, `make test` tests; both install what they need into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXPERIMENT ?= mini
INSTALLED := $(VENV)/.installed
SNAKEFILES := Snakefile workflow pipeline/workflow/rules

.DEFAULT_GOAL := help
.PHONY: help install install-login image image-cpu run reproduce-mini test test-fast test-long test-cluster test-gpu \
	gpu-proof mutants bench lint docs format clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

install: $(INSTALLED) ## create .venv with exact versions

install-login: $(VENV)/.installed-login ## .venv without torch: to plan, fetch and submit where steps run in an image

image: ## containers/images/unlearn-gpu.sif, the steps' container for NVIDIA GPUs (as an ordinary user, with Apptainer)
	$(CHECK_PYTHON)
	$(PYTHON) containers/build gpu

image-cpu: ## the same for CPUs, unlearn-cpu.sif
	$(CHECK_PYTHON)
	$(PYTHON) containers/build cpu

run: $(INSTALLED) ## run the experiment `mini`, or EXPERIMENT=NAME, and print its table
	$(BIN)/unlearn run $(EXPERIMENT)

# Which tests run in one process is said in tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

reproduce-mini: $(INSTALLED) ## the experiment of every published table and figure on the mini models; SHARE=HASH: one
	$(BIN)/python -m tests.support.reproduce_mini $(if $(SHARE),--share $(SHARE))

test: $(INSTALLED) ## all tests
	$(PYTEST)

test-fast: $(INSTALLED) ## the tests that take seconds
	$(PYTEST) -m "not slow"

# A third of what takes longest, which one is a commit's hash's to say: what continuous integration can afford of it.
SHARED = $(if $(SHARE),--share $(SHARE))

# The first in one process: each starts ranks or programs of its own.
test-long: $(INSTALLED) ## every method on every model family, every experiment planned, benchmarks at small shapes (9 minutes; SHARE=HASH: a third of them)
	$(BIN)/python -m pytest tests/families tests/perf -m long -n0 $(SHARED)
	$(PYTEST) tests/integration/test_experiments.py -m long $(SHARED)

test-cluster: $(INSTALLED) ## the workflow on a Slurm cluster with containers, which it sets up: as root on Debian 12 (50 minutes; SHARE=HASH: a third of them)
	$(BIN)/python -m pytest tests/cluster -m cluster -rs $(SHARED)

# In one process: megatron-core is made to use the CPU for a whole process, and those tests for the GPU.
test-gpu: $(INSTALLED) ## that a GPU computes what the CPU does; skipped where there is none
	$(BIN)/python -m perf.gpu_proof --prepare
	$(BIN)/python -m pytest tests/gpu -m gpu -n0 -rs

gpu-proof: $(INSTALLED) ## the same, then speed and memory on that GPU (10 minutes; results/gpu-proof/proof.jsonl)
	$(BIN)/python -m perf.gpu_proof --prepare
	$(BIN)/python -m perf.gpu_proof

mutants: $(INSTALLED) ## what the tests of losses, rules, sampling, gradients and metrics notice: 120 changes of the code (20 minutes)
	$(BIN)/python -m tests.support.mutants

bench: $(INSTALLED) ## what unlearning steps and evaluations cost, one against another, on an idle machine (25 minutes)
	$(BIN)/python -m perf

lint: $(INSTALLED) ## style, spelling, docstrings, documentation, workflow and configuration checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakefmt --check $(SNAKEFILES)
	$(BIN)/snakemake --lint
	$(BIN)/codespell
	$(BIN)/flake8 pipeline megatron_ext
	$(MAKE) --no-print-directory docs
	for file in $$(grep -L '^base:' workflow_configs/experiments/*.yaml); do \
		$(BIN)/python -m pipeline validate $$file > /dev/null || exit; done
	$(BIN)/python -m tests.support.reproduction_page

# The variable silences an announcement of Material for MkDocs.
docs: $(INSTALLED) ## the documentation with the reference of the code, as pages in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(INSTALLED) ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt $(SNAKEFILES)

clean: ## remove .venv and caches; results stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each package comes from a file whose SHA-256 is in constraints-hashed.txt; HASHES=no believes pip's indexes, for a site that
# builds its own files of the same versions. The stamps come last: an installation that was cut short is done again.
PACKAGES = $(BIN)/python containers/packages --quiet $(if $(filter no,$(HASHES)),--without-hashes)
PROJECT = $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .

$(INSTALLED): pyproject.toml constraints-hashed.txt
	$(CREATE_VENV)
	$(PACKAGES) work
	$(PROJECT)
	touch $@ $(VENV)/.installed-login

$(VENV)/.installed-login: pyproject.toml constraints-hashed.txt
	$(CREATE_VENV)
	$(PACKAGES) core
	$(PROJECT)
	touch $@

define CHECK_PYTHON
$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed; set PYTHON=...")'
endef

define CREATE_VENV
$(CHECK_PYTHON)
$(PYTHON) -m venv $(VENV)
endef
