# make picture   installs into .venv and draws a picture            make test    installs and runs the tests
# make check     lint, types, line count and tests: what CI runs    make bench   speed and memory, as ratios
VENV ?= .venv
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
BIN = $(VENV)/bin

.PHONY: picture test check lint types lines bench
picture: $(BIN)/minisd
	$(BIN)/minisd txt2img "a red apple" -o apple.png
# two processes of one thread: the tensors of tests are small, and threads that wait for each other cost more than they give
test: $(VENV)/tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=8
lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
types: $(VENV)/tested
	$(BIN)/pyright --pythonpath $(BIN)/python
lines:
	$(PYTHON) scripts/countlines.py
check: lint types lines test
bench: $(VENV)/tested
	$(BIN)/python -m scripts.bench

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
$(BIN)/minisd: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) .
$(VENV)/tested: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) -e ".[test,dev]"
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) --no-deps k-diffusion
	touch $@
