# Each target makes the virtual environment first where there is none. PYTHON picks the interpreter for it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= demo-run

# Type checkers and the documentation do not follow an editable installation, which maps folders to histodistill.*:
# links do the same.
LINKS := .mypy-links/histodistill

.PHONY: demo test lint links docs audit clean

$(VENV)/.installed: setup.cfg setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint,dp,adapters,slides]'
	touch $@

# The whole way on the built-in phantom tiles: minutes on two cores, no network after the installation.
demo: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/histodistill distill --data phantom --preset cpu-demo --output $(RUN)

# As many processes as there are processors, each with one thread: the models are too small to gain from more.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.mypy-links $(BIN)/mypy

links:
	mkdir -p $(LINKS)
	ln -sfn $(foreach name,hub_cards pipelines selection training,$(CURDIR)/$(name)) \
		$(CURDIR)/histodistill/__init__.py $(CURDIR)/histodistill/py.typed $(LINKS)

# The documentation: open site/index.html.
docs:
	PYTHON=$(PYTHON) .ci/docs

# Known faults of the pinned libraries. It needs the advisories of the package index: where it does not reach them it says
# so and fails, since a look that was not taken must not pass for a good one (.ci/audit ends with 3 then, and with 1 for a
# known fault; make itself has one number for both).
audit:
	PYTHON=$(PYTHON) .ci/audit

clean:
	rm -rf $(VENV) .venv-audit .venv-build .venv-docs .venv-lowest .venv-page .venv-wheel $(RUN) build dist site *.egg-info \
		.pytest_cache .ruff_cache .mypy_cache .mypy-links
