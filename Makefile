# Every target does its own set-up: Python 3.11 or newer is all that has to be there.
# A stamp in the environment's folder makes the second time instant.

VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p) 2>/dev/null)))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The plain torch of PyPI for Linux brings gigabytes of CUDA. The version without is on PyTorch's own
# index; where that answers it is asked beside pip's configured ones, and pip takes its 2.13.0+cpu as
# the newer of the two. Elsewhere (no way out, a mirror, macOS) pip's own configuration decides.
TORCH := $(shell grep -E '^torch==' requirements/train.lock)
TORCH_CPU := https://download.pytorch.org/whl/cpu
TORCH_INDEX = $(shell [ "$$(uname -s)" = Linux ] && $(BIN)/python -c "import urllib.request as u; \
	u.urlopen('$(TORCH_CPU)/torch/', timeout=5).read(1)" 2>/dev/null && echo --extra-index-url $(TORCH_CPU))

.PHONY: demo demo-train test bench lint lock clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.runtime
	$(BIN)/streamai demo $(ARGS)

demo-train: $(VENV)/.dev
	$(BIN)/python -m replay_data.train $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python -m tests.bench $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .

lock:
	PYTHON=$(PYTHON) requirements/lock

clean:
	rm -rf $(VENV) .streamai build *.egg-info

$(VENV)/.python:
	@[ -n "$(PYTHON)" ] || { echo "make: no python3 found; streamai needs Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1); streamai needs Python 3.11 or newer." \
		"Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "make: $(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }
	@touch $@

# without torch: what a worker, replay and the demo need
$(VENV)/.runtime: $(VENV)/.python requirements/runtime.lock pyproject.toml
	$(PIP) install -q -r requirements/runtime.lock
	$(PIP) install -q --no-deps -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/train.lock requirements/dev.lock
	$(PIP) install -q --no-deps $(TORCH_INDEX) $(TORCH)
	$(PIP) install -q -r requirements/dev.lock
	@touch $@
