# make run    set up, then the main job on the demo clips
# make check  set up, then lint, types and the quick tests: before each commit
# make test   set up, then all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEER := $(VENV)/.peer

# Test processes at once, each with outputs and databases of its own: more than cores, because tests wait for commands.
PARALLEL := -n $(shell $(PYTHON) -c 'import os; print(min((os.cpu_count() or 1) + 1, 6))') --dist loadfile

.PHONY: run check test lint docs format ui clean constraints chaos faults fuzz mutants mutations
.DEFAULT_GOAL := run

# Set up anew only when a requirement has changed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) else "vggish-runner needs Python 3.10 to 3.13, and $(PYTHON) is %d.%d: use make PYTHON=python3.12" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs,metal]'
	@touch $@

# Packages that tests compare with or open our files with, without the requirements (PyTorch, notebooks) of parts that no
# test uses.
$(PEER): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torchvggish==0.2 perch-hoplite==1.0.2 hearvalidator==2021.0.2
	@touch $@

run: $(READY)
	$(BIN)/python -m runner $(ARGS)

check: lint
	$(BIN)/python -m pytest -q $(PARALLEL) -m "not slow and not long" $(ARGS)

test: $(READY) $(PEER)
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# Kills runs 200 times and compares what comes out with an undisturbed one (about an hour on 2 cores).
chaos: $(READY)
	$(BIN)/python -m tests.stress.chaos $(ARGS)

# Every call on a run's files fails with every error, and power is lost at every moment (half an hour; Linux with gcc).
faults: $(READY)
	$(BIN)/python -m tests.stress.faults $(ARGS)

# All of tests/stress/mutation_list.py; `make test` takes a twelfth of each kind (two minutes).
mutations: $(READY)
	$(BIN)/python -m pytest -m "long or not long" tests/stress/test_mutations.py $(ARGS)

# Broken input of all kinds for five minutes.
fuzz: $(READY)
	$(BIN)/python -m tests.stress.fuzz $(ARGS)

# Sixty mistakes in a copy of the package, one at a time: what tests caught before, they must catch (half an hour).
mutants: $(READY)
	$(BIN)/python -m tests.stress.mutants --jobs 2 --compare tests/stress/mutants.tsv $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if test -x $(BIN)/lint-imports; then $(BIN)/lint-imports; else echo 'the import contracts are checked with Python 3.11 and later'; fi

# Build the documentation into site/; a broken link or anchor, or a key without a description, is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: $(READY)
	$(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri "sqlite:///$(CURDIR)/outputs/mlflow.db"

# Runs, sweeps and the environment go; downloaded weights stay.
clean:
	rm -rf $(VENV) dist build site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find outputs -mindepth 1 ! -name README.md -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# After a change of requirements: versions for Python 3.10 to 3.13 on every platform, with no registry named.
constraints: $(READY)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --universal --extra metal --extra cuda --extra av --extra flac --extra dev --extra docs --no-annotate --no-header --no-emit-index-url \
	  --python-version 3.10 --output-file constraints.txt
