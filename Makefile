# `make demo` and `make test` do all the set-up. Everything else is for people who change the code.
VENV    ?= .venv
PYTHON  ?= python3
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
STAMP_D := $(VENV)/.installed-dev
PEERS   ?= .venv-peers
STAMP_P := $(PEERS)/.installed

.PHONY: setup dev demo test test-slow lint bench bench-peers docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -e .
	touch $@

dev: $(STAMP_D)

$(STAMP_D): $(STAMP)
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/inscape run numeric-monotonic --out runs/demo

test: dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2

test-slow: dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/capture.py
	$(BIN)/python benchmarks/rerun.py

bench-peers: $(STAMP_P)
	$(PEERS)/bin/python benchmarks/rerun.py

# Other libraries bring much with them: they live apart from the project's own environment.
$(STAMP_P): pyproject.toml constraints.txt benchmarks/peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -c "import torch" 2>/dev/null || $(PEERS)/bin/pip install --quiet -c constraints.txt torch
	$(PEERS)/bin/pip install --quiet -c constraints.txt -e . -r benchmarks/peers.txt
	touch $@

docs: dev
	$(BIN)/pdoc --docformat google --output-directory site inscape inscape.models inscape.models.families \
	  inscape.subspaces inscape.runs inscape.data.facts inscape.data.properties inscape.data.numbers inscape.data.pairs \
	  inscape.data.worlds.numeric inscape.training.facts inscape.training.sizes inscape.studies \
	  inscape.studies.numeric_monotonic inscape.studies.numeric_comparison inscape.studies.causal_tracing inscape.attention \
	  inscape.data.corpus inscape.data.prompted inscape.data.treebanks inscape.evaluation inscape.probing inscape.training.bloom \
	  inscape.training.architectures inscape.training.bpe inscape.training.pretrain inscape.training.trainer inscape.training.parallel \
	  inscape.training.checkpoints inscape.training.plan inscape.training.multitask inscape.studies.multilingual_pretraining

clean:
	rm -rf runs site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
