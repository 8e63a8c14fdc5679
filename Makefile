# make demo | test | lint | soak | bench | audit | ui. Each sets the environment up first; a second run does not install again.

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
TESSERA_HOME ?= $(HOME)/tessera
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
CONSTRAINTS := infra/constraints.txt

.PHONY: demo test lint soak bench audit ui clean

demo: $(READY)
	$(BIN)/tessera demo

# make test JOBS=2: two files at a time, each with a Ray of its own.
test: $(READY)
	$(BIN)/python -m pytest -m "not slow" $(if $(JOBS),-n $(JOBS) --dist loadfile)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell platform jobs configs tests infra README.md CHANGELOG.md Makefile pyproject.toml

soak: $(READY)
	$(BIN)/python -m pytest -m slow

# All benchmarks of a few minutes, or one by name: make bench ONLY=augmentation
bench: $(PEERS)
	$(BIN)/python tests/benchmarks/bench.py $(if $(ONLY),--only $(ONLY))

# Known vulnerabilities of what is pinned; 3 where the database cannot be reached.
audit: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python infra/audit.py

ui: $(READY)
	$(BIN)/mlflow ui --backend-store-uri sqlite:///$(TESSERA_HOME)/mlflow.db

# uv installs in seconds what takes pip minutes; where pip cannot get it, pip does the work itself.
$(READY): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true
	if test -x $(BIN)/uv; then \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint $(CONSTRAINTS) --editable ".[dev]"; \
	else \
	  $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[dev]"; \
	fi
	touch $(READY)

# What the benchmarks are compared with. One that cannot be had here is skipped, and the results say so. elasticdeform's
# wheel wants NumPy 1 and is built instead.
$(PEERS): $(READY)
	for peer in elasticdeform albumentations monai; do \
	  $(BIN)/python -m pip install --quiet --no-binary elasticdeform --constraint $(CONSTRAINTS) $$peer || true; \
	done
	touch $(PEERS)

clean:
	rm -rf $(VENV)
