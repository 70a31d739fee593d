# make demo | make test: see README.md. PYTHON picks the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Spinning OpenMP threads starve every other process of a small shared machine (measured: training 5x slower beside one).
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo unit test real-weights check format clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "drivekd needs Python 3.11 to 3.13, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[train,export,ort,rtx,sign,eval,video,ros-test,dev]'
	touch $@

demo: setup
	$(BIN)/drivekd demo --out out/demo

unit: setup
	$(BIN)/python -m pytest -m "not numerics and not e2e and not ros and not real and not slow and not gpu and not trt"

# In two processes, so that one works where the other waits; each holds torch, so more would not fit a small machine.
test: check
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not gpu and not trt"

# A pretrained language model in a checkpoint (93 MB are fetched): what tests marked `real` use.
real-weights: setup
	$(BIN)/python -m benchmarks.export.real_weights --work out/real-weights

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info out runs .pytest_cache .mypy_cache .ruff_cache
