# Two commands on a fresh machine with Python 3.11 to 3.14: `make study` and `make test`.
MINORS := 11 12 13 14
# One command for each of these Pythons that is here and can make a virtual environment, oldest
# first: on the PATH, or of pyenv, which puts there only the versions that are switched on. (`true`:
# make takes a last status of 127 for a shell that did not start, and drops what was printed.)
PYTHONS = $(shell for minor in $(MINORS); do \
	for python in python3.$$minor python3 python \
		"$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.$$minor.*/bin/python3.$$minor; do \
		"$$python" -c "import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, $$minor))" \
			>/dev/null 2>&1 && echo "$$python" && break; \
	done; \
	done; true)
# The oldest that will do: every dependency has had the longest time to support it.
PYTHON ?= $(firstword $(PYTHONS))
NONE := no Python from 3.11 to 3.14 with its venv module is on the PATH or in pyenv: install one \
	(Debian: python3 and python3-venv), or name it: make PYTHON=/path/to/python3
VENV ?= .venv
BIN := $(VENV)/bin
STUDY ?= sweeps/quickstart.yaml

# What depends on the versions of Python and of the libraries, a part of every kind.
VERSIONED := tests/test_structure.py tests/data/test_media.py tests/data/test_packets.py \
	tests/scaling/test_train.py tests/scaling/test_reading.py tests/jobs/test_sweep.py \
	tests/jobs/test_mlflow_copy.py tests/analysis/test_tables.py \
	tests/report/test_figures.py tests/representations/test_continuation.py tests/models/test_decoder.py \
	tests/test_notebooks.py tests/test_cli.py

.PHONY: study test test-newest test-versions check audit format docs clean

study: $(VENV)/ready
	$(BIN)/scaling study $(STUDY)

test: $(VENV)/ready
	$(BIN)/pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not slurm"

# On the newest Python here, if it is not that of .venv, in an environment of its own.
test-newest: .venv/ready
	@newest="$(lastword $(PYTHONS))"; ours=$$(.venv/bin/python -V); \
	if [ -z "$$newest" ] || [ "$$("$$newest" -V)" = "$$ours" ]; then \
		echo "test-newest: skipped, $$ours of .venv is the newest of 3.11 to 3.14 here"; \
	else \
		$(MAKE) --no-print-directory test-versions VENV=.venv-newest PYTHON="$$newest"; \
	fi

test-versions: $(VENV)/ready
	$(BIN)/pytest -q -n auto --dist loadfile -m "not slurm and not slow" $(VERSIONED)

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Strict: without it pip-audit passes packages that the index could not tell it anything of.
audit: $(VENV)/ready
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/frozen.txt
	pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/frozen.txt

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# In .venv, because the pages of the API import the code and the notebooks run it.
docs: $(VENV)/ready
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html -t execute docs docs/_build
	@echo "docs/_build/index.html"

# Made again when the dependencies change; otherwise reused.
$(VENV)/ready: pyproject.toml
	@test -x $(BIN)/python || { python="$(PYTHON)"; test -n "$$python" || { echo "$(NONE)" >&2; \
		exit 1; }; "$$python" -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev --group docs
	touch $@

clean:
	rm -rf .venv .venv-newest .mypy_cache .ruff_cache .pytest_cache docs/_build docs/api/modules docs/tutorial/*.ipynb
