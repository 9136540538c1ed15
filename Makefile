# make train   train the hand-written NumPy MLP   (ARGS="--dataset cifar10" passes arguments on)
# make test    run every test, two at a time
# make test-min   the same with the oldest version allowed of everything, in an environment of its own
# make audit   look for known vulnerabilities in what is installed
# make lint    ruff and mypy --strict

VENV ?= .venv
BIN := $(VENV)/bin
# The first interpreter that really runs and is new enough; PYTHON=... overrides.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

.PHONY: train test test-min audit lint clean

train: $(VENV)/.installed-base
	@$(BIN)/python scripts/train_mlp_numpy.py $(ARGS)
	@echo
	@echo "Look at the pictures in the run folder: accuracy.png, predictions.png, first_layer.png."
	@echo "Next: make train ARGS=\"--preset uva-2018\"    # CIFAR-10, which is downloaded: 170 MB"
	@echo "      source $(BIN)/activate                # puts the commands on the PATH"
	@echo "      handgrad --help"

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(ARGS)

# "numpy>=1.26" becomes "numpy==1.26".
OLDEST := import re, tomllib; \
	p = tomllib.load(open("pyproject.toml", "rb"))["project"]; o = p["optional-dependencies"]; \
	print("\n".join(re.sub(">=|~=", "==", d) for d in p["dependencies"] + o["torch"] + o["dev"]))

test-min: $(VENV)/bin/python
	$(BIN)/python -m venv $(VENV)-min
	$(BIN)/python -c '$(OLDEST)' > $(VENV)-min/oldest.txt
	$(VENV)-min/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement $(VENV)-min/oldest.txt --editable .
	@# Formatting and types are judged by today's tools; old libraries warn of one another.
	$(VENV)-min/bin/python -m pytest -o filterwarnings=default \
		--ignore tests/test_code_quality.py $(ARGS)

audit: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --skip-editable

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found on PATH; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 2; }

$(VENV)/.installed-base: $(VENV)/bin/python pyproject.toml
	@echo "Installing handgrad into $(VENV) (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml
	@echo "Installing handgrad[torch,dev] into $(VENV) (once; PyTorch is a large download) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[torch,dev]"
	@touch $@ $(VENV)/.installed-base

clean:
	rm -rf $(VENV) $(VENV)-min build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
