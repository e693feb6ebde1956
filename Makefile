# Every target makes what it needs. PYTHON chooses the interpreter, VENV the environment.
PYTHON ?= python3
VENV ?= .venv
SOURCES := pyproject.toml $(wildcard CMakeLists.txt csrc/*)

.PHONY: mnist inception test lint bench clean

mnist: $(VENV)/paper
	$(VENV)/bin/batchnorm mnist

inception: $(VENV)/imagenet
	$(VENV)/bin/batchnorm inception all --data fashion

test: $(VENV)/lint
	$(VENV)/bin/pytest

lint: $(VENV)/lint
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

bench: $(VENV)/lint
	$(VENV)/bin/python benchmarks/bench_mnist.py
	$(VENV)/bin/python benchmarks/bench_batch_norm.py --layout NCHW
	$(VENV)/bin/python benchmarks/bench_batch_norm.py --layout NHWC
	$(VENV)/bin/python benchmarks/bench_inception.py

# A stamp per set of extras, made again when the build or the dependencies change.
$(VENV)/%: $(SOURCES)
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) build
