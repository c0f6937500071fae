# `make demo` and `make test` set up what they need in .venv and reuse it; a second run does no set-up work.
# They need Python >= 3.10 and make. Choose another interpreter with `make PYTHON=/path/to/python3 ...`.

VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TRITON := triton==3.6.0   # only where torch brings no Triton of its own (a CPU build of torch)
PIP    := -m pip --disable-pip-version-check install --quiet --quiet --constraint constraints.txt
# Where `make dist` tries the wheel: an environment with nothing else.
CLEAN  := build/clean
JOBS   ?= 2
GPU_JOBS ?= 12
SANITIZED := 1d-small or 2d-causal-row or 3d-gqa or 2d-dilated-ragged or (float16 and mixed)
RACED := $(addprefix tests/gpu/test_,hopper_forward_gpu.py::test_forward[1d-small] \
	hopper_backward_gpu.py::test_backward[1d-small] \
	hopper_backward_gpu.py::test_backward[1d-one] triton_gpu.py::test_another_stream)
RACE_TIMEOUT ?= 120   # seconds, of each: one that is slow costs only itself
TEST_TIMEOUT ?= 300

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)

.PHONY: help setup demo demo-distributed test gpu-test gpu-sanitize lint format types docs pictures report dist check clean

help:
	@echo "make demo      denoise a photo, next to scikit-image (pictures and figures in demo-output/)"
	@echo "make demo-distributed  train on one image that two processes hold"
	@echo "make test      the test suite (no GPU needed)"
	@echo "make gpu-test  the tests that need a GPU, with the system's python3 and no set-up"
	@echo "make gpu-sanitize  some of them under compute-sanitizer"
	@echo "make lint      ruff and the import contracts    make format  apply ruff's fixes"
	@echo "make types     mypy                             make docs    build the documentation"
	@echo "make report    tables and charts of README and docs, from benchmarks/results"
	@echo "make dist      wheel and sdist in dist/, checked and tried in an empty environment"
	@echo "make check     test, lint, types, docs, dist    make clean   remove .venv and outputs"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python >= 3.10 found; name one with make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Setting up $(VENV); the first time it downloads torch and takes a few minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) --editable '.[dev,docs]'
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python $(PIP) $(TRITON)
	@touch $@

demo: $(READY)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python demo/denoise_photo.py   # spinning threads stall each other on a busy machine

demo-distributed: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m torch.distributed.run --standalone --nproc-per-node 2 examples/context_parallel.py

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" -n $(JOBS) --dist worksteal --timeout $(TEST_TIMEOUT) tests

# For a machine with a GPU and no package index: needs torch, triton, pytest, pytest-xdist and hypothesis in its own
# python3. Compiling kernels is most of the work, so as many processes as the GPU's memory lets in.
gpu-test:
	PYTHONPATH=src python3 -m pytest -m gpu -n $(GPU_JOBS) --dist worksteal tests/gpu

# The same machine, small problems of every kind of kernel under CUDA's own checkers. Not under initcheck: tests fill
# memory with NaN, which shows what is read unwritten, and what the copy engine writes counts for it as unwritten.
gpu-sanitize:
	for tool in memcheck synccheck; do \
		PYTHONPATH=src PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 9 \
			python3 -m pytest -q -m gpu -k "$(SANITIZED)" tests/gpu || exit 1; \
	done
	PYTHONPATH=src python3 tests/gpu/racecheck.py $(RACE_TIMEOUT) $(RACED)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

# Without --quiet, which would keep warnings from --strict.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The pictures of docs/concepts.md, by the commands that stand below them.
pictures: $(READY)
	$(BIN)/python docs/pictures.py > /dev/null

# Tables and charts of README and docs from the files in benchmarks/results: after a run was added there.
report: $(READY)
	$(BIN)/vicinal bench report
	$(BIN)/vicinal bench paper --results benchmarks/results/paper-h200.jsonl --report-only \
		--tables docs/paper.md --plots docs/pictures/paper
	-$(BIN)/vicinal bench models-report --plots docs/pictures/models

# The wheel is installed as a user would: first with torch alone, then with the extras.
dist: $(READY)
	@rm -rf dist $(CLEAN)
	$(BIN)/python -m build --outdir dist . > /dev/null
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/python -m venv $(CLEAN)
	$(CLEAN)/bin/python $(PIP) dist/*.whl
	$(CLEAN)/bin/python -I .ci/smoke.py alone
	$(CLEAN)/bin/python $(PIP) "$$(echo dist/*.whl)[cpu,cli,plot]"
	$(CLEAN)/bin/python -I .ci/smoke.py extras
	@rm -rf $(CLEAN)

check: test lint types docs dist

clean:
	rm -rf $(VENV) site demo-output digits-output build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
