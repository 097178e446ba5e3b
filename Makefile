# Two commands on a fresh machine with Python 3.11: `make study` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin
STUDY ?= sweeps/quickstart.yaml

.PHONY: study test check format clean

study: .venv/ready
	$(BIN)/scaling study $(STUDY)

test: .venv/ready
	$(BIN)/pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not slurm"

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Made again when the dependencies change; otherwise reused.
.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
