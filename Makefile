# Needs Python 3.11, 3.12 or 3.13 with venv, and make.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

.PHONY: install demo ladder test lint clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools wheel
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[test,prepare,synthetic]"
	touch $@

# All stages on synthetic rooms, with a report: 12 to 28 minutes on two cores.
demo: install
	$(VENV)/bin/python scripts/demo.py

# What each stage adds, over three seeds: an hour or more; may be stopped.
ladder: install
	$(VENV)/bin/python scripts/ladder.py --seeds 0,1,2

test: install
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: install
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt ruff
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .hypothesis
