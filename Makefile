# `make demo` and `make test` need no preparation: both set up .venv first, once.
.PHONY: demo test quick test-web test-faults lint types pytest format docs notebooks clean

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# Without the first, waiting threads keep the cores busy, and two jobs on one machine run many times slower. Without the
# second they never spin, and two threads are slower than one.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 20000
# Tests start many processes: each would compile torch's sources anew where no bytecode may be written (uv writes none).
export PYTHONDONTWRITEBYTECODE :=
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/.venv/pycache

demo: .venv/.demo
	$(BIN)/tok1d demo

test: lint types pytest

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.dev
	$(BIN)/mypy

pytest: .venv/.dev
	-$(BIN)/python -m tok1d.data.fashion_mnist
	-$(BIN)/python -m tok1d.data.emoji
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# For use while working: no mypy, and without the test files and tests that take long.
LONG_FILES := benchmarks bad_input browser cache captioned compare demo disk evaluations examples export faults grid half job kills labels \
	latents mixture onnx options own_data pairs precision processes profile proxies recipes requests run site text_conditions trackers \
	visitors wheel
LONG_TESTS := field_rows or yaml_round_trip or whole_chain or kl16 or torchmetrics or torch_fidelity or _sizes
quick: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" -k "not ($(LONG_TESTS))" \
		$(patsubst %,--ignore-glob='*/test_%.py',$(LONG_FILES))

# The pages in Chromium (Debian: apt install chromium); part of `make pytest`, and skipped there without a browser.
test-web: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m web -rs

# Kills and restarts 60 trainings (tests/faults) and writes the table into docs/reliability.md.
test-faults: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/harness.py --kills 20 --table docs/reliability.md

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation site, into build/site; it needs no server and no network.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Runs the examples at their full size (about 15 minutes on two cores) and writes the notebooks that the site shows.
notebooks: .venv/.docs
	$(BIN)/python docs/site/notebooks.py

$(BIN)/uv:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed, found none; on Debian/Ubuntu: apt install python3 python3-venv" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: this Python has no venv module; on Debian/Ubuntu: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

.venv/.demo: $(BIN)/uv pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e .
	@touch $@

.venv/.dev: $(BIN)/uv pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]'
	@touch $@ .venv/.demo

.venv/.docs: $(BIN)/uv pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[docs]'
	@touch $@ .venv/.demo

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
