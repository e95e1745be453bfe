# `make demo` and `make test` each work as the first command on a fresh machine with Python 3.10 to 3.12 and make.
# Everything goes into .venv; `make clean` takes it away. No compiler is needed: what detectors call of mmcv's compiled
# part, this package supplies. `make install MMCV=compiled` builds the real one (docs/troubleshooting.md).
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO_OUT ?= demo_output
TASK ?= segmentation
ZOO_OUT ?= zoo_output
JOBS ?= 1
MMCV ?= $(if $(wildcard $(VENV)/.mmcv-compiled),compiled,pure)
TESTS ?=
# Either kind of mmcv has the same name and version: what is installed is replaced, and what pip keeps is not looked at.
MMCV_INSTALL := install -c constraints.txt --no-cache-dir --no-deps --force-reinstall onedl-mmcv

.PHONY: install demo test test-all family mim check zoo faults clean
.DEFAULT_GOAL := install

install: $(VENV)/.installed

$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else f"Python 3.10 to 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing PyTorch.'
	$(PIP) install -q -c constraints.txt torch 'setuptools>=77' wheel
	@touch $@

# A build of its own, which sees no PyTorch, leaves the compiled part out.
$(VENV)/.mmcv-pure: $(VENV)/.torch
	@echo 'Installing mmcv, without its compiled operators.'
	@rm -f $(VENV)/.mmcv-compiled
	$(PIP) $(MMCV_INSTALL) -q --no-binary onedl-mmcv
	@touch $@

$(VENV)/.mmcv-compiled: $(VENV)/.torch
	@command -v c++ >/dev/null || { echo 'A C++ compiler is needed to build mmcv (Debian: apt-get install g++).' >&2; exit 1; }
	$(PIP) install -q -c constraints.txt ninja psutil
	@echo 'Installing mmcv. Where no ready wheel is found, it is compiled, which takes about 15 minutes on two cores.'
	@rm -f $(VENV)/.mmcv-pure
	$(PIP) $(MMCV_INSTALL) --no-build-isolation
	@touch $@

$(VENV)/.installed: $(VENV)/.mmcv-$(MMCV) setup.py
	@echo 'Installing the frameworks and this package.'
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[onedl,dev]'
	@touch $@

demo: $(VENV)/.installed
	rm -rf $(DEMO_OUT)
	$(BIN)/python -m benchmarks.demo.run --task $(TASK) --out $(DEMO_OUT)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(TESTS)

# The benchmarks' tests, and those that take long, besides.
test-all: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m '' tests benchmarks $(TESTS)

# The tests once more, with the original OpenMMLab releases in front of the installed ones (docs/troubleshooting.md).
family: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/families/openmmlab.py -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# MIM, in an environment of its own, on this package as a wheel (docs/releases.md).
mim: $(VENV)/.installed
	$(BIN)/python tests/families/mim.py

# Some hours of one core; JOBS=4 uses four. Stopped and started again, it goes on.
zoo: $(VENV)/.installed
	$(BIN)/python -m benchmarks.zoo.zoo_sweep --out $(ZOO_OUT)/zoo.jsonl --summary benchmarks/zoo/zoo.md --jobs $(JOBS)
	mv $(ZOO_OUT)/zoo.jsonl benchmarks/zoo/zoo.jsonl

# What goes wrong, in full: kills, full disks, dying processes, hostile files, wrong input.
faults: $(VENV)/.installed
	set -e; for script in tests/faults/sweep_*.py; do echo "== $$script"; \
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR) $(BIN)/python $$script; done

clean:
	rm -rf $(VENV) $(DEMO_OUT) $(ZOO_OUT) tutorial_output build *.egg-info mmdeform_upgrade/.mim
