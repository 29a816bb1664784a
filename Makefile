# Environments are made under .venv/ with $(PYTHON), kept, and brought up to date when
# pyproject.toml or the constraints change. `make PYTHON=python3.12 ...` chooses another Python
# (the constraints were resolved on 3.11 and need 3.11 or newer).

PYTHON ?= python3
ENVS := .venv
OUT ?= out/demo
BENCH_N ?= 1000

CONSTRAINTS := .ci/constraints.txt
CODE := lens_attr tests
INPUTS := pyproject.toml $(CONSTRAINTS)

ENV_39 := $(ENVS)/tl39
ENV_4 := $(ENVS)/tl4
ENV_WHEEL := $(ENVS)/wheel
ENV_DOCS := $(ENVS)/docs
NEWEST_4 := transformer-lens>=4,<5

# Bytecode is left to the first import: most installed modules are never imported.
PIP := -m pip install --quiet --no-compile --disable-pip-version-check -c $(CONSTRAINTS)
PYTEST := -m pytest -n auto $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo docs bench bench-demo bench-seeds test lint format test-39 test-4 build test-wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(ENV_4)/installed ## explain the demo models, figures and report in out/demo
	$(ENV_4)/bin/lens-attr demo --out $(OUT)

docs: $(ENV_DOCS)/installed ## the documentation in out/docs; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(ENV_DOCS)/bin/mkdocs build

bench: $(ENV_39)/installed ## time and memory of everything, one table in benchmarks/results (20 minutes)
	HF_HUB_OFFLINE=1 $(ENV_39)/bin/python -m benchmarks $(BENCH_ARGS)

bench-demo: $(ENV_39)/installed ## every method on the demo models: benchmarks/results, README
	$(ENV_39)/bin/python benchmarks/overview.py --n $(BENCH_N)

bench-seeds: $(ENV_39)/installed ## the demo models trained with two more seeds (hours)
	$(ENV_39)/bin/python benchmarks/seeds.py

test: lint test-wheel docs test-39 test-4 ## everything that continuous integration checks

lint: $(ENV_39)/installed ## style, types and the direction of imports
	$(ENV_39)/bin/ruff check .
	$(ENV_39)/bin/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(ENV_39)/bin/pyright --pythonpath $(ENV_39)/bin/python
	$(ENV_39)/bin/lint-imports

format: $(ENV_39)/installed ## sort imports and format the code
	$(ENV_39)/bin/ruff check --select I --fix .
	$(ENV_39)/bin/ruff format .

test-39 test-4: export HF_HUB_OFFLINE := 1
test-39 test-4: export TOKENIZERS_PARALLELISM := false
test-39 test-4: export OMP_NUM_THREADS := 1

test-39: $(ENV_39)/installed ## the test suite on TransformerLens 3.9
	$(ENV_39)/bin/python $(PYTEST)

test-4: $(ENV_4)/installed ## the test suite on the newest TransformerLens 4.x
	$(ENV_4)/bin/python $(PYTEST)

build: $(ENV_39)/installed ## source distribution and wheel in dist/
	rm -rf dist
	$(ENV_39)/bin/python -m build --no-isolation .

test-wheel: build $(ENV_WHEEL)/made ## the wheel, installed where nothing else of ours is
	$(ENV_WHEEL)/bin/python -m pip uninstall --quiet --yes lens-attr
	$(ENV_WHEEL)/bin/python $(PIP) dist/*.whl
	$(ENV_WHEEL)/bin/python -m pip check
	$(ENV_WHEEL)/bin/lens-attr --version
	$(ENV_WHEEL)/bin/python -I .ci/check_install.py

clean: ## remove everything that make made, environments too
	rm -rf $(ENVS) dist out .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(ENV_39)/installed: REQUIREMENTS := -e ".[dev]" "transformer-lens==3.9.*"
$(ENV_4)/installed: REQUIREMENTS := -e ".[test]" "$(NEWEST_4)"
# The docs are read from the source, not imported: the extra alone, without torch.
$(ENV_DOCS)/installed: REQUIREMENTS = $(shell $(PYTHON) -c "import tomllib; \
	project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	print(*map(repr, project['optional-dependencies']['docs']))")

$(ENV_39)/installed $(ENV_4)/installed $(ENV_DOCS)/installed: $(ENVS)/%/installed: $(INPUTS)
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) $(REQUIREMENTS)
	@$(@D)/bin/python -m pip list 2>/dev/null | grep -E '^(torch|transformer-lens|transformers|mkdocs) '
	@touch $@

$(ENV_WHEEL)/made: $(INPUTS)
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	@touch $@
