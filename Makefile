# Every target makes what it needs. PYTHON chooses the interpreter, VENV the environment.
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= build/oldest
SOURCES := pyproject.toml $(wildcard CMakeLists.txt csrc/*)

.PHONY: mnist inception test test-all test-oldest test-wheel docs wheels torture fuzz gpu lint bench clean

mnist: $(VENV)/paper
	$(VENV)/bin/batchnorm mnist

inception: $(VENV)/imagenet
	$(VENV)/bin/batchnorm inception all --data fashion

# A process a core, since each test has one thread. `make test` leaves out the tests marked slow.
test: $(VENV)/lint
	$(VENV)/bin/pytest --numprocesses auto --dist worksteal -m "not slow"

test-all: $(VENV)/lint
	$(VENV)/bin/pytest --numprocesses auto --dist worksteal

# The tests with the oldest releases that pyproject.toml names, in an environment of its own: 7 GB, with torch's GPU libraries.
# Python 3.10 is the oldest: PYTHON=python3.10.
test-oldest: $(OLDEST)/test
	$(OLDEST)/bin/pytest --numprocesses auto --dist worksteal

# The documentation, as pages that open without a network: build/site/index.html.
docs: $(VENV)/lint
	$(VENV)/bin/mkdocs build --strict

# The wheels of a release, for every Python and every torch, and the sdist; about ten minutes of a processor.
wheels: $(VENV)/wheels
	$(VENV)/bin/python tools/build_wheels.py dist

# The newest wheel of this machine in dist/, or a new one, in a new environment: the tests of the library. Zig and qemu, if
# it is there, run those of NEON.
test-wheel:
	ls dist/*manylinux*_$(shell uname -m).whl || $(MAKE) wheels
	rm -rf build/wheel
	$(PYTHON) -m venv build/wheel
	wheel=$$(ls -t dist/*manylinux*_$(shell uname -m).whl | head -1) && \
	  build/wheel/bin/pip install --quiet "$$wheel[test,wheels]"
	build/wheel/bin/pytest --numprocesses auto --dist worksteal tests/kernels tests/test_*.py

# Fail every write of short runs once, and kill them there; about 20 minutes on two cores. The tests take a sample.
torture: $(VENV)/lint
	PYTHONPATH=tests $(VENV)/bin/python -m torture

# Give the readers of files random bytes, a minute each. FUZZ="idx --seconds 600 --keep" gives options.
fuzz: $(VENV)/fuzz
	PYTHONPATH=tests $(VENV)/bin/python -m fuzz $(FUZZ)

# On a machine with a CUDA device: the tests of the library, and a training step there against torch's.
gpu: $(VENV)/lint
	$(VENV)/bin/python -c "import torch; assert torch.cuda.is_available(), 'make gpu wants a CUDA device'"
	$(VENV)/bin/pytest tests/test_*.py tests/kernels tests/graph tests/algorithm2
	$(BENCH)/bench_cuda.py --out $(OUT)/cuda.json

lint: $(VENV)/lint
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/codespell
	$(VENV)/bin/clang-format --dry-run -Werror csrc/*.[ch]* tests/kernels/*.c* tests/torture/*.c

# A folder that no run before it has written; of one moment, for all lines.
OUT ?= build/bench-$(shell date +%Y%m%d-%H%M%S)
OUT := $(OUT)
BENCH = $(VENV)/bin/python benchmarks

bench: $(VENV)/lint
	mkdir -p $(OUT)
	$(BENCH)/bench_mnist.py
	$(BENCH)/bench_batch_norm.py --layout NCHW --threads 1 --out $(OUT)/NCHW-float32-1.json
	$(BENCH)/bench_batch_norm.py --layout NCHW --compile --out $(OUT)/NCHW-float32-2.json
	$(BENCH)/bench_batch_norm.py --layout NHWC --threads 1 --out $(OUT)/NHWC-float32-1.json
	$(BENCH)/bench_batch_norm.py --layout NHWC --compile --out $(OUT)/NHWC-float32-2.json
	$(BENCH)/bench_batch_norm.py --layout NHWC --dtype bfloat16 --out $(OUT)/NHWC-bfloat16-2.json
	mkdir $(OUT)/then
	for then in relu silu hardswish residual; do for layout in NCHW NHWC; do $(BENCH)/bench_batch_norm.py \
	  --layout $$layout --then $$then --out $(OUT)/then/$$then-$$layout.json || exit 1; done; done
	$(BENCH)/plot_batch_norm.py $(OUT)
	$(BENCH)/bench_call.py $(OUT)/call.json
	$(BENCH)/bench_threshold.py --out $(OUT)/threshold.json
	$(BENCH)/bench_chain.py --only chains --out $(OUT)/chain.json
	$(BENCH)/bench_chain.py --only inception --batch 8 --out $(OUT)/inception.json
	$(BENCH)/bench_memory.py --out $(OUT)/memory.json
	$(BENCH)/bench_inception.py --out $(OUT)/training.json

# A stamp per set of extras, made again when the build or the dependencies change.
$(VENV)/%: $(SOURCES)
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[$*]'
	touch $@

# uv resolves to the oldest releases, which pip cannot.
$(OLDEST)/test: $(SOURCES)
	test -x $(OLDEST)/bin/pip || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build
