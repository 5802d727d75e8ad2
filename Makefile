# Explaining Deep Similarity.   `make help` lists what can be typed.

# Any Python from 3.11 on; `make book PYTHON=/path/to/python3` picks one.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

BIN := .venv/bin
READY := .venv/.ready
BENCH_READY := .venv/.bench-ready
DATA := data/cache/.fetched
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := book
.DELETE_ON_ERROR:
.PHONY: book test test-fast lab student bench zoo lite0 digits leaderboard picture notebooks format clean help chromium

book: $(DATA)  ## build the book into _build/html and print its address
	@$(BIN)/python tools/build_book.py

test: $(DATA) chromium  ## run every test: code, notebooks, book, browser (set-up included)
	@$(BIN)/python -m pytest tests chapters --nbval-lax --nbval-current-env --nbval-cell-timeout=600 \
		--durations=15 --durations-min=1

test-fast: $(READY)  ## the tests that need no data, no notebooks and no browser (under a minute)
	@$(BIN)/python -m pytest tests -m "not weights and not book and not browser" \
		--durations=10 --durations-min=1

lab: $(DATA)  ## open the chapters in JupyterLab; saving a notebook saves its text too
	@$(BIN)/python tools/notebooks.py
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --notebook-dir=. \
		--LabApp.default_url=/lab/tree/chapters/index.ipynb

student: $(READY)  ## make notebooks without solutions, and a zip of them to hand out
	@$(BIN)/python tools/student.py

bench: $(BENCH_READY) $(DATA)  ## measure speed and accuracy beside other libraries
	@PYTHONPATH=. $(BIN)/python tests/benchmark.py --output assets/benchmark.md

zoo: $(BENCH_READY)  ## explain every model of torchvision (some hours; goes on where it was stopped)
	@$(BIN)/python -m tests.zoo --output assets/zoo.md

lite0: $(DATA)  ## measure EfficientNet-Lite0 beside VGG-16 at length (goes on where it was stopped)
	@$(BIN)/python -m tests.lite0

digits: $(READY)  ## train the six networks of the digit pictures anew (about ten minutes)
	@$(BIN)/python -m bilrp.models.digit_scenes

leaderboard: $(BENCH_READY) $(DATA)  ## compare methods on known truths (hours; goes on where stopped)
	@PYTHONPATH=. $(BIN)/python -m bilrp.compare.leaderboard --output assets/leaderboard.json

picture: $(DATA)  ## draw the picture of the README anew
	@$(BIN)/python tools/readme_picture.py

notebooks: $(READY)  ## make chapters/*.ipynb from chapters/*.md
	@$(BIN)/python tools/notebooks.py

format: $(READY)  ## tidy code and chapters with ruff
	@$(BIN)/python tools/tidy.py

clean:  ## remove what was built (the environment and the data stay)
	rm -rf _build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find bilrp chapters tests tools -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

help:  ## list these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

# The environment: made once, brought up to date when the pins change.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "This book needs Python 3.11 or newer, and none was found."; \
		echo "Install one, or name it: make book PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments:"; \
		echo "on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than Python 3.11, which this book needs."; exit 1; }
	$(PYTHON) -m venv .venv

$(READY): requirements.txt pyproject.toml | $(BIN)/python
	@echo "Installing the pinned packages into .venv (the first time: some minutes and about 5 GB)"
	$(PIP) install -r requirements.txt
	$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

$(BENCH_READY): requirements-bench.txt $(READY)
	$(PIP) install -q -r requirements-bench.txt -c requirements.txt
	@touch $@

# Photos, digits and weights: sizes, origins and licences are in data/registry.toml.
$(DATA): $(READY) data/registry.toml $(wildcard bilrp/book/*.py)
	@$(BIN)/python -m bilrp.book.data
	@mkdir -p $(@D) && touch $@

# The browser tests need Chromium. Without it they are skipped (with CI=true, they fail).
chromium:
	@if ! command -v chromium >/dev/null 2>&1 && ! command -v google-chrome >/dev/null 2>&1 \
		&& [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		echo "Installing Chromium for the browser tests"; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } \
			>/dev/null 2>&1 || echo "Chromium could not be installed"; fi
