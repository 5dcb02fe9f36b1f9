# `make demo` and `make test` do all there is to do on a machine with Python 3.11 and g++.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TYPES  := $(VENV)/typecheck

# One thread each: the tests run in parallel, and sums come out in the same order everywhere.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# It would put other packages before those of .venv.
unexport PYTHONPATH

# Models of other tools: their tests run where these are installed and are skipped where they are not.
EXTRAS := $(VENV)/.extras

.PHONY: help demo test test-keras examples lint check hardness fuzz fuzz-files channels schedules matrix clean

help:
	@echo 'make demo   train two small networks, compile both, compare them with the C simulation'
	@echo 'make test   run all tests'
	@echo 'make test-keras  install TensorFlow, QKeras, Brevitas and ONNX too, and test what reads them'
	@echo 'make examples  the networks of examples/, each to its C simulation'
	@echo 'make lint   style (ruff)'
	@echo 'make check  style, and types of the installed wheel (mypy --strict)'
	@echo 'make fuzz-files  read 1,000 damaged recipes, targets, programs, .pt2 and Keras files'
	@echo 'make hardness    kill -9 fifty times while an existing build is replaced'
	@echo 'make fuzz N=1000  random models through the compiler, 1 in 20 of them through C++'
	@echo 'make channels N=500  random models without some channels against masked ones'
	@echo 'make schedules N=200  random streamed networks, token times against single cycles'
	@echo 'make matrix      four networks through the C simulation of every target: half an hour'
	@echo 'make clean  remove .venv and all that was made'
	@echo 'PYTHON=...  the Python to use: 3.11 or 3.12'

demo: $(STAMP)
	$(BIN)/fxloom demo

examples: $(STAMP)
	$(BIN)/python examples/run.py

# worksteal: the conformance tests take seconds each, the others milliseconds.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

# TF_USE_LEGACY_KERAS: QKeras is made for Keras 2, which tensorflow.keras then is; keras is Keras 3.
test-keras: export TF_USE_LEGACY_KERAS := 1
test-keras: export TF_CPP_MIN_LOG_LEVEL := 2
test-keras: $(EXTRAS)
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/frontends $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot see the package mapping of an editable installation, so it reads the built wheel.
# build/lib would put files into the wheel that are long deleted.
check: lint
	rm -rf $(TYPES) build/lib build/bdist.*
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(TYPES)/dist .
	$(BIN)/python -m pip install --quiet --no-deps --target $(TYPES)/lib $(TYPES)/dist/*.whl
	MYPYPATH=$(TYPES)/lib $(BIN)/mypy --strict -p fxloom

fuzz-files: $(STAMP)
	$(BIN)/python -m tests.hardness files 1000

N ?= 1000
SEED ?= 0
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz $(N) --seed $(SEED) --csim $$(($(N) / 20))

channels: $(STAMP)
	$(BIN)/python -m tests.channel_masks $(N) --seed $(SEED)

schedules: N = 200
schedules: $(STAMP)
	$(BIN)/python -m tests.cycle_simulation $(N) --seed $(SEED)

matrix: $(STAMP)
	$(BIN)/python -m tests.matrix

hardness: $(STAMP)
	$(BIN)/python -m tests.hardness kill 50

$(STAMP): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'No Python found: install Python 3.11 or give PYTHON=...'; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else \
	  "fxloom needs Python 3.11 or 3.12; $(PYTHON) is %d.%d. Give another: make PYTHON=..." % v)'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV): some minutes the first time'
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

$(EXTRAS): $(STAMP)
	@echo 'Installing TensorFlow, QKeras, Brevitas and ONNX into $(VENV): some minutes the first time'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation \
	  -e '.[dev,qkeras,onnx,brevitas]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
