# The one list of commands, for people and CI alike. `make demo` and `make test` need Python 3.11+ and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip's own progress is shown only where somebody watches.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: help setup demo serve test chaos test-unit lint format bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies into $(VENV) (about 2 GB, a few minutes the first time)" >&2
	$(PIP) --editable .
	@touch $@

$(VENV)/development: $(VENV)/runtime
	$(PIP) --editable '.[dev]'
	@touch $@

setup: $(VENV)/development  ## create .venv with everything for work on the code

demo: $(VENV)/runtime  ## the main job from end to end; DATA=file.csv for your own Sentiment140 file
	@$(BIN)/python jobs/demo.py $(if $(DATA),--data '$(DATA)')

serve: $(VENV)/runtime  ## serve over HTTP until Ctrl-C; MODEL=bundle (or else the demo's, trained if need be), PORT=8000
ifeq ($(MODEL),)
	@test -f runs/demo/model/bundle/MANIFEST.json || $(BIN)/python jobs/demo.py
endif
	@$(BIN)/python -m serve_app --model $(or $(MODEL),runs/demo/model/bundle) $(if $(PORT),--port $(PORT))

test: $(VENV)/development  ## all tests: unit tier, then the tiers on a local Ray
	$(BIN)/python -m pytest tests/unit --numprocesses auto
	$(BIN)/python -m pytest tests --ignore tests/unit -m "not slow and not gpu and (always or not chaos)"

chaos: $(VENV)/development  ## kill nodes, drivers and writes, and write docs/results/chaos.md; a few minutes
	CHAOS_RESULTS=docs/results $(BIN)/python -m pytest tests --ignore tests/unit -m "chaos and not slow"

test-unit: $(VENV)/development  ## the unit tier only: no Ray, about a minute
	$(BIN)/python -m pytest tests/unit --numprocesses auto

lint: $(VENV)/development  ## ruff and mypy --strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/development  ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/runtime  ## measure the main job into docs/results; DATA="a.csv b.parquet" ARCHIVE="tweets.jsonl" MODEL=bundle
	$(BIN)/python benchmarks/main_job.py $(if $(DATA),--data $(DATA)) $(if $(ARCHIVE),--archive $(ARCHIVE))
	$(if $(and $(MODEL),$(ARCHIVE)),for lane in bilstm size resume; do \
	$(BIN)/python benchmarks/score.py $$lane --model $(MODEL) --input $(ARCHIVE) || exit; done)

clean:  ## remove the environment, runs and caches
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache *.egg-info
