# The doors of the project. Each target sets up what it needs: `make demo` on a fresh machine is enough.
# Needs Python 3.10 to 3.12 (PYTHON=python3.11 to choose one), make and a package index.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# TensorFlow's start-up chatter hides what matters.
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help demo serve install test test-slow test-reference test-llama check format bench clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(VENV)/.installed  ## Set up, then write text with the bundled model
	@$(BIN)/gpt2 generate "Once upon a time" --max-tokens 110 --temperature 0.7 --seed 5
	@echo "(synthetic text, written by the bundled GPT-2; try: $(BIN)/gpt2 generate --help)"

serve: $(VENV)/.installed  ## Set up, then serve the bundled model and its page on http://127.0.0.1:8000
	$(BIN)/gpt2 serve

install: $(VENV)/.installed  ## Set up the virtual environment with the package

test: $(VENV)/.installed-test  ## Set up, then run the tests (under 10 minutes)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed-test $(VENV)-lm-eval/.installed  ## The slow tests: large models, many kills and mutations
	GPT2_LM_EVAL=$(CURDIR)/$(VENV)-lm-eval/bin/python $(BIN)/python -m pytest -m slow --timeout=3600

test-reference: $(VENV)/.installed-reference  ## Compare with torch, transformers and Keras Hub, which this installs
	$(BIN)/python -m pytest -m reference

test-llama: $(VENV)/.installed-llama  ## Compare with llama.cpp, which this compiles (minutes)
	$(BIN)/python -m pytest tests/test_exports.py

check: $(VENV)/.installed-check  ## Format, lint, types and layers (tests: make test)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-check  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-bench  ## Measure beside torch, llama.cpp and CTranslate2, which this installs (an hour)
	$(BIN)/python benchmarks/load_memory.py 124M
	for what in build cold_start decode prefill batch draft sampling train; do $(BIN)/python benchmarks/$$what.py || exit 1; done

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) $(VENV)-lm-eval .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build src/*.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.installed-check: $(VENV)/.installed-test
	$(PIP) -e '.[test,check]'
	@touch $@

# Of its own, since it needs a newer pyarrow than TensorFlow's NumPy allows.
$(VENV)-lm-eval/.installed:
	$(PYTHON) -m venv $(VENV)-lm-eval
	$(VENV)-lm-eval/bin/python -m pip install --quiet --disable-pip-version-check 'lm-eval[api]==0.4.13'
	@touch $@

# torch is taken without its GPU libraries where the index has such a build; see constraints.txt for the version.
$(VENV)/.installed-reference: $(VENV)/.installed-test
	$(PIP) -e '.[test,reference]'
	@touch $@

$(VENV)/.installed-llama: $(VENV)/.installed-test
	$(PIP) -e '.[test,llama]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-reference
	$(PIP) -e '.[bench]'
	@touch $@
