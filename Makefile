# Every target makes what it needs in .venv, from a fresh clone on.
#
#   PYTHON   the interpreter that .venv is made from, 3.10 or newer
#   TORCH    what pip installs as PyTorch before anything else, for example
#            TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
#
# Both count when .venv is made; `make clean` first to change them.

PYTHON ?= python3
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test check sanitize bench docs format clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

demo: $(VENV)/.images ## refine the labels of a photograph
	$(BIN)/python demos/image_crf.py

test: $(VENV)/.dev ## run every test
	$(BIN)/pytest -n auto

check: $(VENV)/.dev ## format, lint, types, import rule, fast tests: before each commit
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n auto -m "not slow"

sanitize: $(VENV)/.dev ## run the fast tests on kernels that watch memory and arithmetic
	rm -rf build/sanitize
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/sanitize -C cmake.define.HDCRF_SANITIZE=ON .
	$(BIN)/python -m zipfile -e build/sanitize/*.whl build/sanitize
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 \
	    UBSAN_OPTIONS=print_stacktrace=1 HDCRF_TEST_KERNELS=$$(ls build/sanitize/voxel/_native*.so) \
	    $(BIN)/pytest -m "not slow"

bench: $(VENV)/.bench ## print the tables of accuracy and speed
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/speed.py

docs: $(VENV)/.docs ## build the documentation into site/
	$(BIN)/mkdocs build --strict

format: $(VENV)/.dev ## format the code and apply the safe fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove .venv and all that was built
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.torch:
	@command -v $(PYTHON) >/dev/null || \
	    { echo "$(PYTHON) was not found. Name a Python 3.10 or newer: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "hdcrf needs Python 3.10 or newer, but $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(TORCH)
	@touch $@

KERNELS := CMakeLists.txt $(wildcard native/*.hpp native/*.cpp)

$(VENV)/.images: $(VENV)/.torch pyproject.toml $(KERNELS)
	$(INSTALL) --editable '.[images]' scikit-image
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml $(KERNELS)
	$(INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.torch pyproject.toml $(KERNELS)
	$(INSTALL) --editable '.[bench,images]'
	@touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml $(KERNELS)
	$(INSTALL) --editable '.[docs]'
	@touch $@
