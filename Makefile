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
.PHONY: book plan doctor test test-fast lab edit student bench bench-networks zoo shapley toy lite0 digits \
	words leaderboard gallery picture notebooks format clean help chromium

book: plan $(DATA)  ## build the book into _build/html and print its address (JOBS=1: one page at a time)
	@$(BIN)/python tools/build_book.py $(if $(JOBS),--jobs $(JOBS))

# What will be installed and downloaded, said before it is.
plan: | $(BIN)/python
	@$(BIN)/python tools/doctor.py --plan

doctor:  ## say what is missing on this machine, and what cures it
	@$(or $(PYTHON),python3) tools/doctor.py

# As many processes as there are cores; the cells of a notebook, and all tests of a file, go to one.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder

test: plan $(DATA) chromium  ## run every test: code, notebooks, book, browser (set-up included)
	@$(PYTEST) tests chapters --nbval-lax --nbval-current-env --nbval-cell-timeout=600 \
		--durations=15 --durations-min=1

test-fast: $(READY)  ## the tests that need no data, no notebooks and no browser (under a minute)
	@$(PYTEST) tests -m "not slow and not weights and not book and not browser" \
		--durations=10 --durations-min=1

JUPYTER := $(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --notebook-dir=.

lab: $(DATA)  ## open the chapters in JupyterLab, to read and to try; your changes are kept
	@$(BIN)/python tools/plain.py
	@$(JUPYTER) --LabApp.default_url=/lab/tree/notebooks/index.ipynb

edit: $(DATA)  ## open the sources of the chapters in JupyterLab; saving a notebook saves its text too
	@$(BIN)/python tools/notebooks.py
	@$(JUPYTER) --LabApp.default_url=/lab/tree/chapters/index.ipynb

student: $(READY)  ## make notebooks without solutions, and a zip of them to hand out
	@$(BIN)/python tools/student.py

gallery: $(DATA)  ## compute the data of the gallery (part of `make book`; some minutes)
	@$(BIN)/python tools/gallery.py

bench: $(BENCH_READY) $(DATA)  ## measure speed and accuracy beside other libraries
	@PYTHONPATH=. $(BIN)/python tests/benchmark.py --output assets/benchmark.md

bench-networks: $(BENCH_READY)  ## measure ResNet-50 and ViT-B/16 at full size
	@$(BIN)/python -m tests.benchmark_networks --output assets/benchmark_networks.md

zoo: $(BENCH_READY)  ## explain every model of torchvision, families of others (some hours; goes on where it was stopped)
	@$(BIN)/python -m tests.zoo --output assets/zoo.md
	@$(BIN)/python -m tests.zoo_libraries --output assets/zoo_libraries.md

toy: $(READY)  ## train thirty networks on the toy digits and write the table of chapter 05
	@PYTHONPATH=. $(BIN)/python -m tests.toy_sweep

shapley: $(BENCH_READY) $(DATA)  ## how much of estimated Shapley interactions is chance (an hour)
	@$(BIN)/python -m tests.shapley_seeds

lite0: $(DATA)  ## measure EfficientNet-Lite0 beside VGG-16 at length (goes on where it was stopped)
	@$(BIN)/python -m tests.lite0

digits: $(READY)  ## train the six networks of the digit pictures anew (about ten minutes)
	@$(BIN)/python -m bilrp.models.digit_scenes

leaderboard: $(BENCH_READY) $(DATA)  ## compare methods on known truths (hours; goes on where stopped)
	@PYTHONPATH=. $(BIN)/python -m bilrp.compare.leaderboard --output assets/leaderboard.json

words: $(READY)  ## train the small networks of chapter 12 anew (two minutes; replaces their weights)
	@$(BIN)/python -m bilrp.models.numerals
	@$(BIN)/python -m bilrp.models.series

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
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

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
