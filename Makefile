# Every goal works from a fresh clone: it makes .venv, installs the pinned torch, builds the
# package in editable mode (native code is rebuilt by itself on import), then does its work.
#
#   PYTHON=python3.12            the Python that .venv is made from (3.10 or newer)
#   TORCH_PIP_ARGS='--index-url URL'   where torch comes from; give torch's CPU index where the
#                                default would download a CUDA build
#   WERROR=OFF                   do not treat compiler warnings as errors
#   ARGS='...'                   passed on by test, test-all, demo and bench

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
WERROR ?= ON
ARGS ?=

# The interpreter itself, also when PYTHON is that of an active environment.
BASE_PYTHON := $(shell $(PYTHON) -c 'import sys; print(sys._base_executable)')

VENV := .venv
PY := $(VENV)/bin/python
STAMPS := $(VENV)/stamps
TORCH := $(shell grep -om1 'torch==[0-9a-z.+]*' pyproject.toml)
TORCH_STAMP := $(STAMPS)/$(subst ==,-,$(TORCH))
CONSTRAINTS := $(STAMPS)/constraints.txt
PIP := $(PY) -m pip --disable-pip-version-check --quiet
REQUIREMENTS := $(PY) scripts/requirements.py
TAG = $(shell $(PY) -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
BUILD_DIR = build/$(TAG)
NATIVE_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name "*.cu" -o -name "*.cuh")

# Tools of the environment come first: an editable rebuild looks for cmake and ninja on the path.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help test test-all test-isa test-emulated demo bench lint format check-native wheel sanitize setup clean distclean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

test: setup ## all tests but the slow ones
	$(PY) -m pytest $(ARGS)

test-all: setup ## all tests, also the slow ones
	$(PY) -m pytest --run-slow $(ARGS)

test-isa: setup ## the operator tests once per instruction set that this processor has
	scripts/test_isa_levels.sh $(ARGS)

test-emulated: setup $(STAMPS)/lint ## the operator tests on the CUDA kernels, on an emulated GPU
	scripts/test_emulated.sh $(ARGS)

demo: setup ## Bach's chorales: fit, decode, draw bach.png
	$(PY) examples/bach_chorales.py $(ARGS)

bench: $(STAMPS)/bench ## the benchmarks against their peers; tables in benchmarks/results/
	$(PY) benchmarks/run_all.py $(ARGS)

lint: setup $(STAMPS)/lint ## ruff, mypy, clang-format, native build with warnings as errors
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	$(PY) -m mypy
	clang-format --dry-run --Werror $(NATIVE_FILES)
	cmake --build $(BUILD_DIR)

format: $(STAMPS)/lint ## rewrite Python and C++ files in the project's format
	$(PY) -m ruff check --fix-only --quiet
	$(PY) -m ruff format
	clang-format -i $(NATIVE_FILES)

check-native: setup $(STAMPS)/lint ## symbols per instruction set, libraries linked, torch's stable ABI
	cmake --build $(BUILD_DIR)
	scripts/check_symbols.sh $(BUILD_DIR)
	$(PY) scripts/check_abi.py $(BUILD_DIR)/_ops.so

wheel: $(STAMPS)/tools $(STAMPS)/lint ## build a wheel into dist/ and check it
	rm -f dist/sumprod-*.whl
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist \
	  --config-settings=build-dir='build/wheel-{wheel_tag}' .
	scripts/check_wheel.sh dist/sumprod-*.whl

sanitize: setup ## the operator tests under the address and undefined-behaviour sanitizers
	scripts/test_sanitized.sh $(ARGS)

# ---- the environment: one stamp per step, so that a second call is fast ----------------------

setup: $(STAMPS)/package ## only set everything up

# torch comes first and alone; from then on the constraints keep every other step from replacing it.
# The stamp is named after the pinned version, so that another pin makes a new environment.
$(TORCH_STAMP):
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or newer is needed; choose one with PYTHON=..." >&2; exit 1; }
	@echo "== new environment in $(VENV), with $(TORCH)"
	$(BASE_PYTHON) -m venv --clear $(VENV)
	mkdir -p $(STAMPS)
	$(PIP) install $(TORCH_PIP_ARGS) $(TORCH)
	$(PY) -m pip --disable-pip-version-check freeze | grep -i '^torch==' > $(CONSTRAINTS)
	touch $@

$(STAMPS)/tools: $(TORCH_STAMP) pyproject.toml
	$(REQUIREMENTS) build > $(STAMPS)/build.txt
	$(PIP) install -c $(CONSTRAINTS) -r $(STAMPS)/build.txt
	touch $@

# The stamp is named after WERROR, so that changing it installs again. `--config-settings` and not
# `-C`: pip 23.0, which comes with Python 3.10, only knows the long form.
$(STAMPS)/package-werror-$(WERROR): $(STAMPS)/tools pyproject.toml
	rm -f $(STAMPS)/package*
	@echo "== building the package (a few minutes of compiling the first time)"
	$(PIP) install -c $(CONSTRAINTS) --no-build-isolation \
	  --config-settings=build-dir=$(BUILD_DIR) \
	  --config-settings=editable.rebuild=true \
	  --config-settings=editable.verbose=false \
	  --config-settings=cmake.define.SUMPROD_WERROR=$(WERROR) \
	  -e '.[test]'
	ln -sf $(BUILD_DIR)/compile_commands.json compile_commands.json
	touch $@

$(STAMPS)/package: $(STAMPS)/package-werror-$(WERROR)
	touch $@

$(STAMPS)/lint: $(STAMPS)/tools pyproject.toml
	$(REQUIREMENTS) lint > $(STAMPS)/lint.txt
	$(PIP) install -c $(CONSTRAINTS) -r $(STAMPS)/lint.txt
	touch $@

$(STAMPS)/bench: $(STAMPS)/package
	$(REQUIREMENTS) bench > $(STAMPS)/bench.txt
	$(PIP) install -c $(CONSTRAINTS) -r $(STAMPS)/bench.txt
	touch $@

clean: ## remove builds and caches
	rm -rf build dist compile_commands.json .pytest_cache .mypy_cache .ruff_cache .hypothesis $(STAMPS)/package*
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0r rm -rf

distclean: clean ## remove the environment, too
	rm -rf $(VENV)
