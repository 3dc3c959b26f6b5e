# Every target creates the virtual environment .venv if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Folder of `make run` and `make ui`, and further overrides: make run ARGS="train.steps=300"
WORKSPACE ?= workspace
PORT ?= 5000
ARGS ?=

.PHONY: run ui test slow check docs bench-data bench-step bench-train bench-scale bench-metrics clean

run: $(VENV)/installed
	$(BIN)/python -m pipeline.run stage=shard,train,evaluate workspace=$(WORKSPACE) $(ARGS)

ui: $(VENV)/installed
	$(BIN)/vlae ui workspace=$(WORKSPACE) port=$(PORT)

test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

slow: $(VENV)/installed-test
	PYTHONPATH=tests $(BIN)/python -m helpers.slow_tests $(ARGS)

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build --strict

bench-data: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.data_write $(ARGS)
	$(BIN)/python -m benchmarks.data_read $(ARGS)
	$(BIN)/python -m benchmarks.data_resume $(ARGS)

bench-step: $(VENV)/installed
	$(BIN)/python -m benchmarks.train_step $(ARGS)

bench-train: $(VENV)/installed
	$(BIN)/python -m benchmarks.train_loop $(ARGS)

bench-scale: $(VENV)/installed
	$(BIN)/python -m benchmarks.scale $(ARGS)

bench-metrics: $(VENV)/installed
	$(BIN)/python -m benchmarks.metrics $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# Debian's python3 has no ensurepip without python3-venv: pip then installs itself into the new environment.
$(VENV)/installed $(VENV)/installed-test $(VENV)/installed-dev: pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); $(PYTHON) -m venv --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.$(EXTRA)'
	touch $@

$(VENV)/installed: EXTRA :=
$(VENV)/installed-test: EXTRA := [test]
$(VENV)/installed-dev: EXTRA := [dev]

# litdata requires torchvision, which has no CPU build here and which it does not need: hence --no-deps.
$(VENV)/installed-bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $$($(BIN)/python -c \
	  "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['bench'])")
	touch $@
