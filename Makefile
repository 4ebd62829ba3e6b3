# Each target makes the virtual environment first where there is none. PYTHON picks the interpreter for it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= demo-run

.PHONY: demo test lint clean

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint,dp]'
	touch $@

# The whole way on the built-in phantom tiles: minutes on two cores, no network after the installation.
demo: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/histodistill distill --data phantom --preset cpu-demo --output $(RUN)

test: $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) $(RUN) build *.egg-info .pytest_cache .ruff_cache
