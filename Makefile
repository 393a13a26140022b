# `make demo` needs nothing but Python 3.11 and a package index, `make test` Python 3.12 as well: they build .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
RUNS   := runs

# Rooms whose tests start no servers and share nothing with others: they run two at a time.
PURE := $(addprefix tests/,compare/ core/ policy/ sim/ stream/ twin/ vllm_plugin/ workload/ test_config.py test_invariants.py)

# OpenHands' SDK wants Python 3.12, vLLM's CPU build 3.11: agents have an environment of their own, as their users' have.
PYENV         := $(firstword $(shell pyenv root 2>/dev/null) $(HOME)/.pyenv)
AGENTS_PYTHON ?= $(firstword $(wildcard $(PYENV)/versions/3.12.*/bin/python3.12) $(shell command -v python3.12))
AGENTS        := .venv-agents

# A load tool wants other versions of nearly everything.
AIPERF := .venv-aiperf

AUDIT         := .venv-audit
# Advisories that do not concern us, each with why.
AUDIT_IGNORED :=

# mars with its hot loops compiled: in front of the path it takes the place of the sources. Wants a C compiler.
COMPILED := $(CURDIR)/build/compiled

.PHONY: demo suite test search twin check audit bench clean compiled

# Recorded agents on a real vLLM: stock against MARS, under KV pressure and at low load. The load is sized by
# what this machine's core can do. Tools take 0.3 of the recorded time: then model and tools have about the
# shares of a session that recordings have which time both.
REPLAY  = $(BIN)/mars replay coding --tools-factor 0.3
PROFILE = $(RUNS)/profile.json

demo: $(READY) $(PROFILE)
	rm -rf $(RUNS)/demo $(RUNS)/demo-light
	$(REPLAY) --profile $(PROFILE) --load 4 --repeat 4 --out $(RUNS)/demo
	$(REPLAY) --profile $(PROFILE) --load 0.5 --sessions 6 --repeat 4 --out $(RUNS)/demo-light

$(PROFILE): $(READY)
	mkdir -p $(RUNS)
	$(BIN)/mars calibrate --out $@

# Against every kind of baseline: bound by KV, by the cores (each lent once at a time), by both; below, just past and far beyond the knee. Takes long; goes on where it ended.
LOADS := 0.5 1.5 4
# More sessions than agents at each load: those that come first meet an empty machine.
SESSIONS_0.5 := 5
SESSIONS_1.5 := 14
SESSIONS_4   := 24
SUITE := $(foreach load,$(LOADS),$(RUNS)/suite/kv-$(load) $(RUNS)/suite/cores-$(load) $(RUNS)/suite/both-$(load))
suite: $(SUITE)
	$(BIN)/mars report $(RUNS)/suite --markdown docs/results-engine.md

$(RUNS)/suite/kv-%:    SIZE = -- --num-gpu-blocks-override 320
$(RUNS)/suite/cores-%: SIZE = --set tools.share=1
$(RUNS)/suite/both-%:  SIZE = --set tools.share=1 -- --num-gpu-blocks-override 320
$(SUITE): LOAD = $(lastword $(subst -, ,$@))
$(SUITE): $(READY) $(PROFILE)
	rm -rf $@.part
	$(REPLAY) --profile $(PROFILE) --load $(LOAD) --sessions $(SESSIONS_$(LOAD)) --repeat 6 \
	  --policies fcfs,session_fcfs,continuum-dynamic,thunderagent,mars --out $@.part $(SIZE)
	mv $@.part $@

# Three environments, most of whose time is waiting for packages: at once.
test:
	$(MAKE) --no-print-directory --jobs 3 --output-sync=target check $(COMPILED)/mars $(AGENTS)/.ready $(AIPERF)/.ready
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; }
	command -v bwrap >/dev/null || { apt-get update -qq && apt-get install -y -qq bubblewrap >/dev/null; }
	command -v faketime >/dev/null || { apt-get update -qq && apt-get install -y -qq faketime >/dev/null; }
	$(BIN)/pytest -n 2 --dist loadfile $(PURE)
	PYTHONPATH=$(COMPILED) $(BIN)/mars bench-simulator --policies fcfs --repeat 1 | grep compiled
	PYTHONPATH=$(COMPILED) $(BIN)/pytest -n 2 $(addprefix tests/,compare/ policy/ sim/ twin/ vllm_plugin/)
	$(BIN)/pytest $(filter-out $(PURE) tests/__pycache__/,$(wildcard tests/*/ tests/test_*.py))

compiled: $(COMPILED)/mars

$(COMPILED)/mars: $(READY) hatch_build.py pyproject.toml $(shell find src/mars -type f -not -name '*.pyc')
	rm -rf $(COMPILED)
	HATCH_BUILD_HOOKS_ENABLE=1 $(BIN)/pip install --quiet --no-deps --target $(COMPILED) .

# The random tests on a thousand new examples each.
search: check
	$(BIN)/pytest -n 2 --dist worksteal --hypothesis-profile search -m hypothesis

# The simulator beside the real vLLM scheduler, every step of more than a thousand workloads.
twin: $(READY)
	$(BIN)/pytest tests/twin --workloads 4 -n 2

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --exclude-secrets '^none$$'
	-$(MAKE) --no-print-directory audit  # an advisory of today is to be seen, not to keep a stranger from running the tests

# Known vulnerabilities of what is installed, as far as PyPI knows the packages (a mirror alone knows none).
audit: $(READY) $(AUDIT)/.ready
	$(AUDIT)/bin/pip-audit --skip-editable --progress-spinner off $(addprefix --ignore-vuln ,$(AUDIT_IGNORED)) \
	  --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') > $(AUDIT)/found || { cat $(AUDIT)/found; exit 1; }
	grep -c 'could not be audited' $(AUDIT)/found | sed 's/$$/ packages could not be audited: PyPI does not answer for them/'

# What the plugin costs per scheduler step, against stock vLLM.
bench: $(READY)
	$(BIN)/mars bench-scheduler

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info[:2] == (3, 11) else "the CPU build of vLLM needs Python 3.11; run: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[cpu,report,compare,otel,dev]'
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec  # CUDA builds that do not import beside the CPU torch
	touch $@

$(AGENTS)/.ready: pyproject.toml
	test -n "$(AGENTS_PYTHON)" || { echo "OpenHands needs Python 3.12; run: make AGENTS_PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(AGENTS_PYTHON) -m venv $(AGENTS)
	$(AGENTS)/bin/pip install --quiet --upgrade pip  # an old one tries versions for many minutes
	$(AGENTS)/bin/pip install --quiet -e '.[openhands,miniswe]'
	touch $@

$(AUDIT)/.ready:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet pip-audit
	touch $@

$(AIPERF)/.ready:
	$(PYTHON) -m venv $(AIPERF)
	$(AIPERF)/bin/pip install --quiet --upgrade pip  # an old one tries versions for many minutes
	$(AIPERF)/bin/pip install --quiet aiperf==0.13.0
	touch $@

clean:
	rm -rf $(VENV) $(AGENTS) $(AIPERF) $(AUDIT) $(RUNS) $(COMPILED)
